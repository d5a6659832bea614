"""Collections out as Parquet files, and in again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select, update

from whimbrel import __version__
from whimbrel.catalog import collections, compatible, jobs, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.compatible import CompatibleState
from whimbrel.config.values import without_credentials
from whimbrel.domain import Job, JobState, ViewKind
from whimbrel.errors import BackupError, BadInput, ConfigError, Conflict
from whimbrel.home import host_name
from whimbrel.ingest.chunk import Chunking
from whimbrel.lexicon.language import checked
from whimbrel.models.embedders.unknown import UNKNOWN
from whimbrel.service.adopting import Adopting
from whimbrel.service.jobs import OnLag
from whimbrel.service.jobs import Progress as OnProgress

if TYPE_CHECKING:
    from whimbrel.catalog.exported import SpaceEntry
    from whimbrel.catalog.exported_folder import ExportFolder
    from whimbrel.catalog.exporting import ExportReport

RowsDone = Callable[[str, int, int], None]
"""Called with what is done, the rows done so far and the rows in all."""


class Exchange(Adopting):
    """What leaves a home and comes into another one."""

    def export(self, collection: str, target: str | Path, *, progress: RowsDone | None = None) -> ExportReport:
        """Write a collection to the folder `target` as Parquet files, as it is at one position, with what was embedded.
        Others may go on writing. Deleted documents are not in it.

        Raises `CollectionNotFound`; `Conflict` for a folder that is not empty; `DiskFull`, `HomeError`.
        """
        from whimbrel.catalog.exporting import export

        path = Path(target).expanduser().absolute()
        return export(self.catalog, collection, path, version=__version__, progress=progress)

    def import_(
        self,
        folder: str | Path,
        collection: str | None = None,
        *,
        wait: str = "all",
        progress: RowsDone | None = None,
        on_progress: OnProgress | None = None,
        on_lag: OnLag | None = None,
    ) -> dict[str, Any]:
        """Make a new collection of an exported one, under its name or another: see `start_import`. `wait`: as for
        `ingest`. Returns counts and the log's position."""
        job = self.start_import(folder, collection, progress=progress)
        return self.finish(job, wait=wait, on_progress=on_progress, on_lag=on_lag)

    def start_import(
        self, folder: str | Path, collection: str | None = None, *, progress: RowsDone | None = None
    ) -> Job:
        """Check an exported collection, wholly, then make the collection and the job that fills it; the owner of this
        machine's home does it. Ids are what they were, and nothing is embedded: its vectors come with it.

        One that was begun and did not end goes on where it stopped. Raises `PathNotFound`; `BadInput` for a folder
        that is no export; `BackupError` for one that is damaged, newer, or says what is not so; `Conflict` where there
        is a collection of that name.
        """
        from whimbrel.catalog.exported_folder import ExportFolder

        found = ExportFolder(Path(folder).expanduser().absolute())
        name = collections.check_name(collection if collection is not None else found.manifest.collection.name)
        with self.catalog.read() as connection:
            if self._begun(connection, name, found.digest) is None:
                _refuse_known(connection, name)
        _check_words(found)
        found.check(progress)
        with self.catalog.write() as connection:
            job = self._begun(connection, name, found.digest)
            if job is None or job.state not in jobs.ACTIVE:
                job = self._begin(connection, name, found, job)
        for space in job.args["spaces"].values():
            self._decided(space)  # what serves it may have come along
        self._wake()
        return job

    def _begun(self, connection: Connection, name: str, manifest: str) -> Job | None:
        """The last import of this export into the collection, unless it is done; None without one."""
        known = next((one for one in collections.every(connection) if one.name == name), None)
        if known is None:
            return None
        columns = t.jobs.c
        query = select(columns.id).where(columns.kind == "import", columns.collection_id == known.id)
        for key in connection.execute(query.order_by(columns.created_at.desc())).scalars():
            job = jobs.get(connection, key)
            return job if job.args.get("manifest") == manifest and job.state is not JobState.DONE else None
        return None

    def _begin(self, connection: Connection, name: str, found: ExportFolder, before: Job | None) -> Job:
        """`before`: one that failed or was cancelled, from whose cursor it goes on."""
        args, cursor = {}, {}
        if before is not None:
            args = {**before.args, "folder": str(found.folder), "signature": found.signature()}
            cursor = connection.execute(select(t.jobs.c.cursor).where(t.jobs.c.id == before.id)).scalar_one()
        else:
            _refuse_known(connection, name)
            args = self._make(connection, name, found)
        job, _ = jobs.enqueue(
            connection, "import", collection_id=args["collection_id"], collection=name, args=args, host=host_name()
        )
        if cursor:
            connection.execute(update(t.jobs).where(t.jobs.c.id == job.id).values(cursor=cursor))
        return job

    def _make(self, connection: Connection, name: str, found: ExportFolder) -> dict[str, Any]:
        """The collection, with the view that says what it is searched in: a default one might be of another model."""
        manifest = found.manifest
        made = collections.create(connection, name, checked(manifest.collection.language))
        chunkings = {spec: collections.chunking_id(connection, spec) for spec in manifest.chunkings}
        spaces = {one.key: _space(connection, one, name) for one in manifest.spaces}
        searched = manifest.collection.searched
        if searched.chunking:
            self._first_view(connection, made, chunkings[searched.chunking], spaces.get(searched.space))
        return {
            "folder": str(found.folder),
            "name": name,
            "manifest": found.digest,
            "signature": found.signature(),
            "collection_id": made.id,
            "chunkings": chunkings,
            "spaces": spaces,
            "searched": spaces.get(searched.space),
        }

    def _first_view(self, connection: Connection, collection: Collection, chunking: int, space: int | None) -> None:
        kind = ViewKind.STORE if space is not None else ViewKind.LEXICON
        uri = without_credentials(self.settings.store) if space is not None else "tantivy:"
        collections.add_view(connection, collection, kind, uri=uri, space_id=space, chunking_id=chunking)


def _space(connection: Connection, said: SpaceEntry, collection: str) -> int:
    """The catalog's key. What was declared to serve a space holds here too, unless a model of this home serves it: all
    collections of the space would follow."""
    known = connection.execute(select(t.spaces.c.id).where(t.spaces.c.key == said.key)).scalar()
    key = vectors.space_id(connection, said.space, said.embedder)
    declared = said.declared
    unserved = known is None or vectors.read_space(connection, key)[1] == UNKNOWN
    if declared is not None and unserved and compatible.latest(connection, key) is None:
        made = compatible.declare(connection, key, collection, declared.embedder, declared.space, declared.checks)
        if declared.state == "finalised":
            compatible.change(connection, made, CompatibleState.FINALISED)
    return key


def _refuse_known(connection: Connection, name: str) -> None:
    if any(one.name == name for one in collections.every(connection)):
        raise Conflict(
            f"There is a collection {name!r} already. Nothing was written.",
            "Import it under another name: `whimbrel import DIR -c NAME`.",
        )


def _check_words(found: ExportFolder) -> None:
    """Raises `BackupError` for a language or a chunking that there is not."""
    try:
        checked(found.manifest.collection.language)
        for spec in found.manifest.chunkings:
            Chunking.parse(spec)
    except (BadInput, ConfigError) as error:
        raise BackupError(
            f"The export {found.folder} cannot be used: {error.message} Nothing was written.",
            "Export the collection again; if a newer Whimbrel made it, upgrade this one.",
        ) from error
