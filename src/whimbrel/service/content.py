"""What a home holds: documents, collections, views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whimbrel.catalog import collections, documents, jobs, listing
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.domain import Job, ViewState
from whimbrel.errors import Conflict
from whimbrel.lexicon.language import AUTO, checked, language_of
from whimbrel.owner.erase import request_purge
from whimbrel.service.intake import Intake


class Content(Intake):
    """What shows, changes and removes what is there."""

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
