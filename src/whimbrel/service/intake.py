"""Documents in: files and folders, texts, uploads. Each is a job."""

from __future__ import annotations

import json
import os
import secrets
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import collections, jobs, listing
from whimbrel.catalog.collections import Collection
from whimbrel.domain import Job, ViewKind, hash_id
from whimbrel.errors import BadInput, CollectionNotFound, Conflict, PathNotFound, TooLarge
from whimbrel.home import host_name
from whimbrel.ingest.handed_in import HandedIn, checked_metadata, describe
from whimbrel.ingest.pipeline import Guard, sayable, shown
from whimbrel.ingest.preview import Intent, Preview, preview
from whimbrel.lexicon.language import AUTO
from whimbrel.service.jobs import Jobs, Progress


class Intake(Jobs):
    """What takes documents in."""

    @abstractmethod
    def _checked_chunking(self, spec: str) -> str:
        """The specification in full. Raises `ConfigError` for one that is wrong, or that the embedder cannot read."""

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
            return preview(connection, found.id if found is not None else None, guard, intent)

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
