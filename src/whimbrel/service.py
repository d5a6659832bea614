"""What programs, the CLI and the API ask of a home, beside searching: everything that only needs the catalog and jobs.

Writes of documents and changes of views are jobs: enqueued here, done by the owner, waited for if asked to.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from whimbrel import __version__
from whimbrel.catalog import collections, conversations, documents, jobs, listing
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.conversations import Conversation, Turn
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.domain import Job, JobState, ViewKind, ViewState, hash_id
from whimbrel.errors import (
    BadInput,
    CollectionNotFound,
    Conflict,
    PathNotFound,
    TooLarge,
    ViewError,
    WaitTimeout,
    WhimbrelError,
)
from whimbrel.home import Home, host_name
from whimbrel.ingest.handed_in import HandedIn, checked_metadata, describe
from whimbrel.ingest.pipeline import Guard, sayable, shown
from whimbrel.ingest.preview import Intent, Preview, preview
from whimbrel.lexicon.language import AUTO, checked, language_of
from whimbrel.models.embedders.base import Embedder
from whimbrel.owner import lock
from whimbrel.owner.erase import request_purge

if TYPE_CHECKING:
    from whimbrel.catalog.backup import BackupReport, RestoreReport
    from whimbrel.owner.owner import Owner

Progress = Callable[[Job], None]

OnLag = Callable[[listing.Lag], None]
RowsDone = Callable[[str, int, int], None]
"""Called with a table's name, the rows done so far and the rows in all."""

RESTORE_LEASE_S = 3_600.0

OUTAGE_S = 6.0
"""A catalog that the owner could not write to for so long is not waited for any longer: it tries every 5 s at least."""

STALLED_S = 30.0
"""A view that has an error and has not moved for so long is not waited for any longer."""


class Service(ABC):
    """The part of `Whimbrel` that works on rows."""

    def __init__(self, catalog: Catalog, settings: Settings, home: Home) -> None:
        self.catalog = catalog
        self.settings = settings
        self.home = home
        self.owner: Owner | None = None
        self._spaces: dict[int, Embedder] = {}
        self._spaces_lock = threading.Lock()
        self._secrets: dict[str, Sequence[str]] = {}

    @abstractmethod
    def own(self) -> bool:
        """Become the owner, if nobody is. True when this process owns the home now."""

    @abstractmethod
    def run_here(self, job: Job) -> None:
        """Do a job that reads files of this machine, where the owner is on another one; else nothing."""

    @abstractmethod
    def _checked_chunking(self, spec: str) -> str:
        """The specification in full. Raises `ConfigError` for one that is wrong, or that the embedder cannot read."""

    @abstractmethod
    def _recipe(self, connection: Connection, collection: Collection) -> str:
        """What reads and cuts the collection's documents."""

    # --- documents in ------------------------------------------------------------------------------------------------

    def ingest(
        self,
        paths: Sequence[str | Path],
        collection: str = "default",
        *,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        allow_gone: bool = False,
        wait: str = "all",
        on_progress: Progress | None = None,
        idempotency_key: str | None = None,
        passwords: Sequence[str] = (),
        chunking: str | None = None,
    ) -> dict[str, Any]:
        """Take in files and folders; makes the collection if there is none. Returns counts and the log's position.

        `id`: an external id, for a single file. `metadata`: None leaves what documents have. `wait`: until found by
        words (`lexical`), by all views (`all`), or until the job is done (`job`). `passwords` and `chunking`: see
        `start_ingest`.
        """
        job = self.start_ingest(
            paths,
            collection,
            id=id,
            metadata=metadata,
            allow_gone=allow_gone,
            idempotency_key=idempotency_key,
            passwords=passwords,
            chunking=chunking,
        )
        return self.finish(job, wait=wait, on_progress=on_progress)

    def preview(
        self,
        paths: Sequence[str | Path],
        collection: str = "default",
        *,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Preview:
        """What `ingest` would do. Looks into files that seem changed, writes nothing."""
        intent = Intent(_absolute(paths, id), id, checked_metadata(metadata) if metadata is not None else None)
        guard = Guard(self.settings.ingest.gone_guard_share, self.settings.ingest.gone_guard_min)
        with self.catalog.read() as connection:
            found = next((one for one in collections.every(connection) if one.name == collection), None)
            recipe = self._recipe(connection, found) if found is not None else ""
            return preview(connection, found.id if found is not None else None, recipe, guard, intent)

    def start_ingest(
        self,
        paths: Sequence[str | Path],
        collection: str = "default",
        *,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        allow_gone: bool = False,
        idempotency_key: str | None = None,
        passwords: Sequence[str] = (),
        chunking: str | None = None,
    ) -> Job:
        """Enqueue it; the owner of this machine's home does it.

        `passwords` are tried on encrypted PDFs. They stay in this process, which must be the owner for that: raises
        `Conflict` where another one is. `chunking` (`tokens=256,overlap=32`) is that of a collection that is not there
        yet; raises `Conflict` for one that is cut otherwise.
        """
        absolute = _absolute(paths, id)
        args: dict[str, Any] = {"paths": absolute, "allow_gone": allow_gone}
        if id is not None:
            args["id"] = id
        if metadata is not None:
            args["metadata"] = checked_metadata(metadata)
        spec = self._checked_chunking(chunking) if chunking is not None else None
        return self._enqueue(
            "ingest",
            collection,
            args,
            host=host_name(),
            idempotency_key=idempotency_key,
            create=True,
            chunking=spec,
            passwords=passwords,
        )

    def _keep_secrets(self, passwords: Sequence[str]) -> str:
        """A name for them, which may stand in a job's row."""
        if not self.own():
            raise Conflict(
                "Another process owns this home and reads its files; passwords are not handed to it: they would have "
                "to be stored. Nothing was taken in.",
                "Upload the files to it with the password, start it with WHIMBREL_INGEST_PASSWORDS set, or stop it and "
                "try again.",
            )
        name = secrets.token_hex(8)
        self._secrets[name] = tuple(passwords)
        return name

    def secrets_of(self, name: str) -> Sequence[str]:
        """What was given to this process under that name: after a restart, nothing."""
        return self._secrets.get(name, ())

    def forget_secrets(self, name: str) -> None:
        self._secrets.pop(name, None)

    def add(
        self,
        texts: Sequence[Mapping[str, Any]],
        collection: str = "default",
        *,
        wait: str = "all",
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Take in texts: mappings with `text`, and `id` or `uri`; also `title`, `metadata`."""
        return self.finish(self.start_add(texts, collection, idempotency_key=idempotency_key), wait=wait)

    def start_add(
        self, texts: Sequence[Mapping[str, Any]], collection: str = "default", *, idempotency_key: str | None = None
    ) -> Job:
        uploads = [_upload(number, text, self.settings.ingest.max_file_bytes) for number, text in enumerate(texts)]
        if not uploads:
            raise BadInput("No document was given.", "Send at least one.")
        parts = [part for about, data in uploads for part in (json.dumps(about, sort_keys=True), data.decode())]
        args = {"count": len(uploads), "digest": hash_id(*parts)}
        return self._enqueue("add", collection, args, uploads=uploads, idempotency_key=idempotency_key, create=True)

    def start_files(
        self,
        files: Sequence[HandedIn],
        collection: str = "default",
        *,
        idempotency_key: str | None = None,
        passwords: Sequence[str] = (),
    ) -> Job:
        """Enqueue files that were handed in, byte for byte; they are in the catalog when this returns.

        `passwords`: as for `start_ingest`. Raises `BadInput`, `TooLarge`, `Conflict`; nothing was written then.
        """
        described = describe(files, self.settings.ingest.max_file_bytes)
        parts = [
            part
            for about, file in zip(described, files, strict=True)
            for part in (json.dumps(about, sort_keys=True), file.digest)
        ]
        args = {"count": len(files), "digest": hash_id(*parts)}
        # One at a time is read into memory: of own files, written a moment ago, so that the transaction stays short.
        uploads = ((about, file.read()) for about, file in zip(described, files, strict=True))
        return self._enqueue(
            "add",
            collection,
            args,
            uploads=uploads,
            idempotency_key=idempotency_key,
            create=True,
            passwords=passwords,
        )

    def _enqueue(
        self,
        kind: str,
        collection: str,
        args: Mapping[str, Any],
        *,
        host: str = "",
        uploads: Iterable[tuple[Mapping[str, Any], bytes]] = (),
        idempotency_key: str | None = None,
        create: bool = False,
        chunking: str | None = None,
        passwords: Sequence[str] = (),
    ) -> Job:
        secret = self._keep_secrets(passwords) if passwords else ""
        made = False
        try:
            with self.catalog.write() as connection:
                found = self._find(connection, collection, create=create, chunking=chunking)
                job, made = jobs.enqueue(
                    connection,
                    kind,
                    collection_id=found.id,
                    collection=found.name,
                    args={**args, "collection_id": found.id, **({"secrets": secret} if secret else {})},
                    host=host,
                    uploads=uploads,
                    idempotency_key=f"{found.id}:{idempotency_key}" if idempotency_key else None,
                )
        finally:
            if not made:
                self.forget_secrets(secret)
        self._wake()
        return job

    def _find(self, connection: Connection, name: str, *, create: bool, chunking: str | None = None) -> Collection:
        try:
            found = collections.find(connection, name)
        except CollectionNotFound:
            if not create:
                raise
            return self._create(connection, name, chunking=chunking)
        if chunking is not None:
            self._refuse_other_chunking(connection, found, chunking)
        return found

    def _create(
        self, connection: Connection, name: str, *, language: str = AUTO, chunking: str | None = None
    ) -> Collection:
        """A chunking of its own stands with the collection's first view: there is none without."""
        made = collections.create(connection, name, language)
        if chunking is not None:
            key = collections.chunking_id(connection, chunking)
            collections.add_view(connection, made, ViewKind.LEXICON, uri="tantivy:", space_id=None, chunking_id=key)
        return made

    def _refuse_other_chunking(self, connection: Connection, collection: Collection, wanted: str) -> None:
        key = collections.collection_chunking(connection, collection.id)
        spec = collections.chunking_spec(connection, key) if key is not None else ""
        if spec != wanted:
            cut = f"is cut by {spec!r}" if spec else "is there already"
            raise Conflict(
                f"The collection {collection.name!r} {cut}; a chunking is given when a collection is made. Nothing was "
                "taken in.",
                "Leave the chunking out, or ingest into a new collection.",
            )

    def _wake(self) -> None:
        if self.owner is not None:
            self.owner.wake()

    # --- jobs --------------------------------------------------------------------------------------------------------

    def finish(
        self,
        job: Job,
        *,
        wait: str = "job",
        on_progress: Progress | None = None,
        on_lag: OnLag | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Wait for a job, becoming the owner if nobody is; then for the views. Returns the job's result.

        Raises the job's error; `WaitTimeout` after `timeout_s` (the job goes on); `DiskFull` or `CatalogUnavailable`
        where this process is the owner and cannot write down how the job goes (it goes on when that has passed).
        """
        began = time.monotonic()
        deadline = began + timeout_s if timeout_s is not None else None
        last_check = 0.0
        while job.state not in (JobState.DONE, JobState.FAILED, JobState.CANCELLED):
            if time.monotonic() - last_check > 1.0:
                if not self.own() and job.state is JobState.QUEUED:  # own: also when the owner that was there has died
                    self.run_here(job)
                last_check = time.monotonic()
            if time.monotonic() - began > OUTAGE_S and (outage := self._outage()) is not None:
                raise outage
            _past(deadline, f"Job {job.id} ({job.kind}) is {job.state} still.")
            if job.state is JobState.WAITING and wait != "end":
                break
            time.sleep(_pause(began))
            job = self.job(job.id)
            if on_progress is not None:
                on_progress(job)
        if job.state is not JobState.WAITING:
            self.forget_secrets(job.args.get("secrets", ""))
        if job.state is JobState.FAILED:
            raise JobFailed.of(job)
        if job.state is JobState.CANCELLED:
            raise Conflict(f"Job {job.id} was cancelled.", "What it had done stays; start it again to go on.")
        result = {"job_id": job.id, **job.result}
        if wait in ("all", "lexical") and job.collection is not None and "position" in result:
            self.wait_for(
                job.args["collection_id"], int(result["position"]), wait=wait, deadline=deadline, on_lag=on_lag
            )
        return result

    def _outage(self) -> WhimbrelError | None:
        return self.owner.outages.standing(OUTAGE_S) if self.owner is not None else None

    def wait_for(
        self,
        collection_id: int,
        position: int,
        *,
        wait: str = "all",
        deadline: float | None = None,
        on_lag: OnLag | None = None,
    ) -> None:
        """Until the live lexicon (`lexical`), or every live view (`all`), has passed a position of the log."""
        began = last_check = moved_at = time.monotonic()
        stood: tuple[list[tuple[int, int]], int] | None = None
        while True:
            with self.catalog.read() as connection:
                collection = collections.by_id(connection, collection_id)
                if collection is None or collection.deleting:
                    return
                live = collections.live_views(connection, collection)
                views = collections.fed(collections.views(connection, collection_id))
                lag = listing.lag(connection, views, position)
            if on_lag is not None:
                on_lag(lag)
            wanted = [live[1]] if wait == "lexical" else live
            if position <= 0 or all(row is not None and row.view.position >= position for row in wanted):
                return  # at 0 nothing was ever written: a view may wait for that too
            followed = [row for row in views if wait == "all" or row.view.kind is ViewKind.LEXICON]
            stand = [(row.view.position, row.build_after) for row in followed], lag.vectors
            if stand != stood:
                stood, moved_at = stand, time.monotonic()
            errors = " ".join(row.view.error for row in followed if row.view.error)
            said = f"The views have not reached position {position}. {errors}".strip()
            _past(deadline, said)
            if errors and time.monotonic() - moved_at > STALLED_S:
                raise ViewError(
                    f"{said} The documents are in the catalog: nothing is lost, and the view catches up when its "
                    "trouble is over.",
                    "Mend what the message names, then run `whimbrel serve`, or the command again.",
                )
            if time.monotonic() - last_check > 1.0:
                self.own()
                last_check = time.monotonic()
            time.sleep(_pause(began))

    def job(self, job_id: str) -> Job:
        with self.catalog.read() as connection:
            return jobs.get(connection, job_id)

    def jobs(self, *, active: bool = False, limit: int = 100) -> list[Job]:
        with self.catalog.read() as connection:
            return jobs.listing(connection, active=active, limit=limit)

    def cancel(self, job_id: str) -> Job:
        with self.catalog.write() as connection:
            return jobs.cancel(connection, job_id)

    # --- documents ---------------------------------------------------------------------------------------------------

    def documents(
        self, collection: str = "default", *, state: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[dict[str, Any]]:
        with self.catalog.read() as connection:
            return listing.documents(connection, collections.find(connection, collection), state, limit, offset)

    def document(self, document: str, collection: str = "default") -> dict[str, Any]:
        """A document with its text, by public id, external id, URI or path."""
        with self.catalog.read() as connection:
            found = collections.find(connection, collection)
            return listing.document(connection, found, listing.resolve(connection, found, document))

    def delete(self, chosen: Sequence[str], collection: str = "default") -> dict[str, Any]:
        """Remove documents from the collection. Their rows stay, as `gone`; `purge` erases."""
        with self.catalog.write() as connection:
            found = collections.find(connection, collection)
            keys = listing.resolve_all(connection, found, chosen)
            counts = documents.remove_documents(connection, found.id, keys, "deleted")
        self._wake()
        return {"removed": counts.removed, "chunks_removed": counts.chunks_removed, "position": counts.head}

    def purge(self, chosen: Sequence[str], collection: str = "default") -> Job:
        """Erase documents: hidden at once, gone from everything when the job is done. The job says when."""
        with self.catalog.write() as connection:
            found = collections.find(connection, collection)
            keys = listing.resolve_all(connection, found, chosen)
            job = request_purge(connection, found, keys)
        self._wake()
        return job

    # --- collections and views ---------------------------------------------------------------------------------------

    def collections(self) -> list[Collection]:
        with self.catalog.read() as connection:
            return collections.every(connection)

    def collection(self, name: str) -> Collection:
        with self.catalog.read() as connection:
            return collections.find(connection, name)

    def create_collection(self, name: str, *, language: str = AUTO, chunking: str | None = None) -> Collection:
        """`language`: a code such as `de`, or `auto`, found out from the documents; see `whimbrel.lexicon.language`.
        `chunking`: how its documents are cut (`tokens=256,overlap=32`), where not as the settings say.

        Raises `ConfigError` for a chunking that the embedder cannot read, `Conflict` where there is one of that name.
        """
        language = checked(language)
        spec = self._checked_chunking(chunking) if chunking is not None else None
        with self.catalog.write() as connection:
            made = self._create(connection, name, language=language, chunking=spec)
        self._wake()
        return made

    def set_language(self, name: str, language: str) -> Collection:
        """Analyse a collection's words in another language. A lexicon in it is built beside the old one."""
        language = checked(language)
        with self.catalog.write() as connection:
            found = collections.set_language(connection, name, language)
        self._wake()
        return found

    def language(self, collection: str = "default") -> str:
        """What the words of a collection are analysed as now, by its live lexicon."""
        return self.languages([self.collection(collection)])[0]

    def languages(self, of: Sequence[Collection]) -> list[str]:
        """What the words of each collection are analysed as now, by its live lexicon."""
        with self.catalog.read() as connection:
            lexicons = [collections.live_views(connection, one)[1] for one in of]
        return [
            language_of(row.view.uri if row is not None else "", one.language)
            for one, row in zip(of, lexicons, strict=True)
        ]

    def rename_collection(self, name: str, to: str) -> Collection:
        with self.catalog.write() as connection:
            return collections.rename(connection, name, to)

    def delete_collection(self, name: str) -> Job:
        """Out of sight at once; the job removes its rows and views."""
        with self.catalog.write() as connection:
            found = collections.find(connection, name)
            collections.mark_deleting(connection, found)
            job, _ = jobs.enqueue(
                connection,
                "delete_collection",
                collection_id=found.id,
                collection=name,
                args={"collection_id": found.id},
            )
        self._wake()
        return job

    def views(self, collection: str | None = None) -> list[ViewRow]:
        with self.catalog.read() as connection:
            key = collections.find(connection, collection).id if collection is not None else None
            return collections.views(connection, key)

    def start_view_job(self, kind: str, view: int, **args: Any) -> Job:
        """`verify_view`, `rebuild_view` or `drop_view`."""
        with self.catalog.write() as connection:
            row = collections.view(connection, view)
            collection = collections.by_id(connection, row.view.collection_id)
            assert collection is not None
            live = view in (collection.store_view_id, collection.lexicon_view_id)
            if kind == "drop_view" and (live or row.view.state is ViewState.LIVE):
                raise Conflict(
                    f"View {view} is live: searches of {collection.name!r} use it. Nothing was dropped.",
                    "`whimbrel view rebuild` makes it anew without interrupting them.",
                )
            job, _ = jobs.enqueue(
                connection, kind, collection_id=collection.id, collection=collection.name, args={"view": view, **args}
            )
        self._wake()
        return job

    # --- conversations -----------------------------------------------------------------------------------------------

    def conversations(self, collection: str | None = None, *, limit: int = 100, offset: int = 0) -> list[Conversation]:
        """The last used first. Raises `CollectionNotFound`."""
        with self.catalog.read() as connection:
            key = collections.find(connection, collection).id if collection is not None else None
            return conversations.listing(connection, key, limit, offset)

    def conversation(self, conversation_id: str) -> tuple[Conversation, list[Turn]]:
        """A conversation and its turns, oldest first. Raises `ConversationNotFound`."""
        with self.catalog.read() as connection:
            return conversations.get(connection, conversation_id), conversations.turns(connection, conversation_id)

    def start_conversation(self, collection: str = "default") -> Conversation:
        """An empty one, to ask in. Raises `CollectionNotFound`."""
        with self.catalog.write() as connection:
            made = conversations.create(connection, collections.find(connection, collection).id)
            return conversations.get(connection, made)

    def delete_conversation(self, conversation_id: str) -> None:
        """With its turns and feedback. Raises `ConversationNotFound`."""
        with self.catalog.write() as connection:
            conversations.remove(connection, conversation_id)

    def add_feedback(self, turn_id: str, rating: int, comment: str = "") -> None:
        """What a user thinks of a stored answer: 1 is good, -1 bad. Raises `TurnNotFound`, `BadInput`."""
        with self.catalog.write() as connection:
            conversations.rate(connection, turn_id, rating, comment)

    # --- backup ------------------------------------------------------------------------------------------------------

    def backup(self, target: str | Path, *, overwrite: bool = False, progress: RowsDone | None = None) -> BackupReport:
        """Save the catalog to one file, as it is at one moment. Views are not in it: they follow from the catalog."""
        from whimbrel.catalog.backup import backup

        path = Path(target).expanduser().absolute()
        return backup(self.catalog, path, version=__version__, overwrite=overwrite, progress=progress)

    def restore(self, archive: str | Path, *, progress: RowsDone | None = None) -> RestoreReport:
        """Fill this home, which must be empty and without an owner. Its views are built when it has one (`own`).

        Raises `AlreadyOwned`, `Conflict`, `BackupError`.
        """
        from whimbrel.catalog.backup import restore

        # Nobody renews the lease meanwhile: the restore is one transaction, as long as it takes.
        ownership = lock.acquire(self.home, self.catalog, lease_s=RESTORE_LEASE_S)
        try:
            return restore(Path(archive).expanduser().absolute(), self.catalog, progress=progress)
        finally:
            ownership.release()

    def wait_for_head(
        self, collection: str, *, wait: str = "all", on_lag: OnLag | None = None, timeout_s: float | None = None
    ) -> None:
        """Until the views of a collection hold everything that is in the catalog now."""
        with self.catalog.read() as connection:
            found = collections.find(connection, collection)
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        self.own()
        self.wait_for(found.id, found.head, wait=wait, deadline=deadline, on_lag=on_lag)

    # --- state -------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Collections, documents by state, views with their lag, jobs that are not done."""
        with self.catalog.read() as connection:
            found = listing.status(connection, self.settings, str(self.home.path))
            every = collections.every(connection)
        for one, analysed_as in zip(found["collections"], self.languages(every), strict=True):
            one["analysed_as"] = analysed_as
        owner = lock.lease_of(self.home, self.catalog)
        return {**found, "owner": {"holder": owner.holder, **owner.info} if owner is not None else None}


class JobFailed(WhimbrelError):
    """A job ended with an error; `code` is the class name where it is known."""

    @classmethod
    def of(cls, job: Job) -> WhimbrelError:
        import whimbrel.errors as known

        kind = getattr(known, job.error_code, None) if job.error_code else None
        if isinstance(kind, type) and issubclass(kind, WhimbrelError):
            return kind(job.error, job.hint)
        return cls(job.error, job.hint)


def _pause(began: float) -> float:
    """Seconds to the next look, a fiftieth of the wait so far: each takes 1 ms from the work that is waited for."""
    return min(max(0.02, (time.monotonic() - began) / 50), 0.25)


def _past(deadline: float | None, what: str) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise WaitTimeout(f"{what} Nothing is lost: it goes on.", "Wait longer, or look at `whimbrel status`.")


def _absolute(paths: Sequence[str | Path], id: str | None) -> list[str]:
    absolute = [os.path.join(os.getcwd(), os.path.expanduser(path)) for path in paths]  # noqa: PTH109, PTH111, PTH118
    if not absolute:
        raise BadInput("No path was given.", "Name files or folders.")
    for path in absolute:
        if not os.path.lexists(path):
            raise PathNotFound(f"There is no {shown(path)}.", "Check the spelling, and that its disk is mounted.")
    if id is not None and (len(absolute) != 1 or os.path.isdir(absolute[0])):  # noqa: PTH112
        raise BadInput("An id names one document.", "Ingest a single file with it, or leave it out.")
    if id is not None and listing.UNSAYABLE.search(id):
        raise BadInput("The id holds a NUL or half a character.", "Decode its bytes as UTF-8 first.")
    return [sayable(path) for path in absolute]


def _upload(number: int, text: Mapping[str, Any], limit: int) -> tuple[dict[str, Any], bytes]:
    if not isinstance(text, Mapping):
        raise BadInput(f"Document {number} is no object.", 'For example: {"id": "note-1", "text": "..."}.')
    unknown = set(text) - {"text", "id", "uri", "title", "metadata", "name"}
    if unknown:
        raise BadInput(
            f"Document {number} has an unknown field {sorted(unknown)[0]!r}.",
            "Known: text, id, uri, title, metadata, name. Own fields go into metadata.",
        )
    body = text.get("text")
    if not isinstance(body, str) or not body.strip():
        raise BadInput(f"Document {number} has no text.", "Send `text` as a string that is not blank.")
    for name in ("id", "uri", "title", "name"):
        if text.get(name) is not None and not isinstance(text[name], str):
            raise BadInput(f"Document {number}: `{name}` must be a string.", "Send it in quotes.")
        if listing.UNSAYABLE.search(text.get(name) or ""):
            raise BadInput(
                f"Document {number}: `{name}` holds a NUL or half a character.", "Decode its bytes as UTF-8 first."
            )
    if not text.get("id") and not text.get("uri"):
        raise BadInput(
            f"Document {number} has neither id nor uri.", "Its identity is made from one of them: never at random."
        )
    data = body.encode("utf-8", "replace")
    if len(data) > limit:
        raise TooLarge(
            f"Document {number} has {len(data):,} bytes; the limit is {limit:,}. Nothing was written.",
            "Split it, or raise `ingest.max_file_bytes`.",
        )
    about: dict[str, Any] = {name: text[name] for name in ("id", "uri", "title", "name") if text.get(name)}
    if text.get("metadata") is not None:
        try:
            about["metadata"] = checked_metadata(text["metadata"])
        except BadInput as error:
            raise BadInput(f"Document {number}: {error.message}", error.hint) from None
    return about, data
