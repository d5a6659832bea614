"""The ingest job: source -> bytes -> text and chunks (in worker processes) -> one catalog transaction after another.

Killed anywhere, it loses nothing and doubles nothing: what was committed is found unchanged the next time, which costs
a `stat`. Embedding and the views come after it, each at its own pace.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from sqlalchemy import Connection

from whimbrel.catalog import documents, sources
from whimbrel.catalog.documents import DocumentWrite, NotCut, WriteCounts
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.sources import Held, Known
from whimbrel.domain import ChunkSpan, DocumentState, document_id
from whimbrel.errors import SuspiciousChange, WhimbrelError
from whimbrel.ingest.discover import Found, discover
from whimbrel.ingest.extract import Limits
from whimbrel.ingest.reader import NO_OPTIONS, Options
from whimbrel.ingest.workers import ExtractionPool, Measured, Processed, Request

EXTRACTOR = "3"
"""Names what reads a document, in its `recipe`. Raised when extraction or cutting changes what it makes of the same
bytes: documents are then read again. How a collection is cut, and by whose tokens, is no part of it: that changes by a
move alone, which cuts what is there itself."""

BATCH_DOCUMENTS = 512
BATCH_CHUNKS = 1_500
FIRST_BATCH_S = 0.3
BATCH_S = 1.0
"""A commit costs the lexicon, the stage and the appliers 0.1 s together, whatever its size; the first one is early, so
that the model has something to do."""
PLANNED = 32
MAX_FAILURES_LISTED = 200


@dataclass(frozen=True, slots=True)
class IngestArgs:
    """What an ingest job is asked to do."""

    paths: Sequence[str]
    """Absolute."""
    external_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    """None: documents keep the metadata that they have."""
    allow_gone: bool = False
    """Remove vanished documents even where they are a suspicious share of their folder."""


@dataclass(slots=True)
class IngestReport:
    counts: WriteCounts = field(default_factory=WriteCounts)
    seen: int = 0
    skipped: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fail(self, uri: str, error: WhimbrelError) -> None:
        self.counts.failed += 1
        if len(self.failures) < MAX_FAILURES_LISTED:
            self.failures.append({"uri": uri, "error": error.code, "reason": error.message, "hint": error.hint})

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> IngestReport:
        """Back from `as_dict`: what a job had done before it was interrupted."""
        counted = {one.name: saved[one.name] for one in fields(WriteCounts) if one.name in saved}
        counts = WriteCounts(**counted, head=saved["position"])
        return cls(counts, saved["documents"], saved["skipped"], list(saved["failures"]), list(saved["warnings"]))

    def as_dict(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "documents": self.seen,
            "added": counts.added,
            "changed": counts.changed,
            "unchanged": counts.unchanged,
            "removed": counts.removed,
            "failed": counts.failed,
            "skipped": self.skipped,
            "chunks_added": counts.chunks_added,
            "chunks_kept": counts.chunks_kept,
            "chunks_removed": counts.chunks_removed,
            "position": counts.head,
            "failures": self.failures,
            "warnings": self.warnings,
        }


@dataclass(frozen=True, slots=True)
class Pending:
    """A document on its way through extraction."""

    public_id: str
    external_id: str | None
    uri: str
    root: str
    title: str
    metadata: Mapping[str, Any] | None
    size: int
    mtime_ns: int
    request: Request
    cut_in: Sequence[int]
    """The chunkings of the request, in its order."""
    known: Known | None


@dataclass(frozen=True, slots=True)
class Ready:
    """A document that has come out of extraction, and waits to be committed."""

    pending: Pending
    result: Processed | WhimbrelError
    cuts: Mapping[int, Sequence[ChunkSpan]] = field(default_factory=dict)
    """Its chunks, by chunking."""


class Walked:
    """What a walk over paths has met: says which documents are gone."""

    def __init__(self, paths: Sequence[str]) -> None:
        folders = [path for path in paths if os.path.isdir(path)]  # noqa: PTH112 Path.is_dir may raise
        self.roots = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
        """The folders that were named, resolved."""
        self.seen: set[str] = set()
        """Public ids of what was there, readable or not."""
        self._broken: set[Path] = set()
        """Folders that were named and of which a part could not be read."""
        self._lost: list[str] = []
        """URIs, with a slash at the end, of where links lead that lead nowhere now: unmounted folders, perhaps."""

    def note_unreadable(self, found: Found) -> None:
        if found.path.is_symlink():
            if not os.path.exists(found.path):  # noqa: PTH110 a link that leads to itself raises
                self._lost.append(folder_uri(Path(os.path.realpath(found.path))))
        elif found.root is not None and not os.path.isfile(found.path):  # noqa: PTH113 as above
            self._broken.add(found.root)

    def is_broken(self, root: Path) -> bool:
        """Whether what is missing from a folder may lie where the walk could not look."""
        return any(root in (there, *there.parents) or there in root.parents for there in self._broken)

    def is_gone(self, held: Held, root: str) -> bool:
        if held.public_id in self.seen or any(held.uri.startswith(folder) for folder in self._lost):
            return False
        if held.root == root:
            return True
        # It was named itself, or with another folder: a walk from here may pass it by because it is hidden.
        return held.uri.startswith("file://") and not os.path.lexists(path_of(held.uri))


@dataclass(frozen=True, slots=True)
class Guard:
    """When a folder's vanished documents are too many to believe."""

    share: float
    least: int


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a collection's documents are read and cut."""

    ways: Mapping[int, Measured]
    """By chunking, that of the live views first."""
    limits: Limits
    options: Options = NO_OPTIONS

    def request(self, source: Path | bytes | str, name: str, keys: Sequence[int], **more: Any) -> Request:
        """To read and cut a document in the chunkings `keys`."""
        first, *others = (self.ways[key] for key in keys)
        options = {"limits": self.limits, "options": self.options, **more}
        return Request(source, name, first.tokenizer, first.chunking, also=others, **options)


class Ingest:
    """One run over files and folders, or over texts that were handed in."""

    def __init__(
        self,
        catalog: Catalog,
        collection_id: int,
        *,
        cutting: Callable[[], Cutting],
        pool: ExtractionPool,
        guard: Guard,
        fence: int | None,
        in_flight: int,
    ) -> None:
        """`cutting` is asked again when the collection has got another chunking meanwhile."""
        self.catalog = catalog
        self.collection_id = collection_id
        self._cutting_now = cutting
        self.cutting = cutting()
        self.pool = pool
        self.guard = guard
        self.fence = fence
        self.in_flight = in_flight
        self.report = IngestReport()

    # --- files -------------------------------------------------------------------------------------------------------

    async def files(self, args: IngestArgs) -> AsyncGenerator[IngestReport, None]:
        """Take in files and folders; yields the report after each committed batch."""
        walked = Walked(args.paths)
        async with aclosing(self._extract_all(self._plan(args, walked))) as reports:
            async for report in reports:
                yield report
        await asyncio.to_thread(self._remove_gone, walked, args.allow_gone)
        yield self.report

    def _plan(self, args: IngestArgs, walked: Walked) -> Iterator[Pending]:
        """Walk the paths; what is unchanged is counted and left out."""
        for batch in _in_batches(discover([Path(path) for path in args.paths]), BATCH_DOCUMENTS):
            ids = [document_id(external_id=args.external_id, uri=found.uri) for found in batch]
            with self.catalog.read() as connection:
                known = sources.known(connection, self.collection_id, ids)
            touched: list[tuple[Known, Found]] = []
            relabelled: list[tuple[Known, Mapping[str, Any]]] = []
            for public_id, found in zip(ids, batch, strict=True):
                if found.skipped:
                    self.report.skipped += 1
                    self.report.warnings.append(f"{found.uri}: {found.skipped}")
                    continue
                root = shown(found.root) if found.root is not None else ""
                walked.seen.add(public_id)
                if found.error is not None:
                    walked.note_unreadable(found)
                    self._failed(found, public_id, args.external_id, root, found.error)
                    continue
                self.report.seen += 1
                row = known.get(public_id)
                if row is not None and row.unchanged(found.uri, found.size, found.mtime_ns, EXTRACTOR):
                    if args.metadata is not None and row.metadata != args.metadata:
                        relabelled.append((row, args.metadata))
                    else:
                        self.report.counts.unchanged += 1
                    if root and row.root != root:
                        touched.append((row, found))
                    continue
                cutting = self.cutting
                yield Pending(
                    public_id,
                    args.external_id,
                    found.uri,
                    root,
                    "",
                    args.metadata,
                    found.size,
                    found.mtime_ns,
                    _request(cutting, found.path, shown(found.path.name), row, found.uri, "", args.metadata),
                    list(cutting.ways),
                    row,
                )
            self._relabel(relabelled)
            if touched:
                with self.catalog.write(fence=self.fence) as connection:
                    sources.touch(connection, [(row.key, shown(found.root), found.mtime_ns) for row, found in touched])

    def _relabel(self, rows: Sequence[tuple[Known, Mapping[str, Any]]]) -> None:
        """New metadata on unchanged text: every chunk goes to the views again, none to the model."""
        if not rows:
            return
        with self.catalog.write(fence=self.fence) as connection:
            head = sources.relabel(
                connection, self.collection_id, [(row.key, row.public_id, metadata) for row, metadata in rows]
            )
        self.report.counts.changed += len(rows)
        self.report.counts.head = max(self.report.counts.head, head)

    def _failed(self, found: Found, public_id: str, external_id: str | None, root: str, error: WhimbrelError) -> None:
        self.report.seen += 1
        self.report.fail(found.uri, error)
        title = shown(found.path.name)
        write = _bare_write(public_id, external_id, found.uri, root, title, found.size, found.mtime_ns)
        with self.catalog.write(fence=self.fence) as connection:
            documents.record_failure(connection, self.collection_id, write, f"{error.code}: {error.message}")

    def _remove_gone(self, walked: Walked, allow: bool) -> None:
        """Remove what was in the folders and is no more; nothing at all where that is too much to be true."""
        gone: dict[int, None] = {}
        for root in walked.roots:
            if walked.is_broken(root):
                self.report.warnings.append(
                    f"{shown(root)}: parts of it could not be read, so nothing was removed from it"
                )
                continue
            with self.catalog.read() as connection:
                there = sources.under(connection, self.collection_id, shown(root), folder_uri(root))
            missing = [held.key for held in there if walked.is_gone(held, shown(root))]
            if not allow and len(missing) >= self.guard.least and len(missing) > self.guard.share * len(there):
                raise SuspiciousChange(
                    f"{len(missing)} of the {len(there)} documents from {shown(root)} have vanished. Nothing was "
                    "removed; what is new or changed was taken in.",
                    "If the folder is not mounted, mount it. If they are meant to go: whimbrel ingest --allow-gone.",
                )
            gone.update(dict.fromkeys(missing))
        for batch in documents.batched(list(gone), BATCH_DOCUMENTS):
            with self.catalog.write(fence=self.fence) as connection:
                counts = documents.remove_documents(connection, self.collection_id, batch, "no longer in its source")
            self.report.counts.add(counts)

    # --- texts -------------------------------------------------------------------------------------------------------

    def text(self, about: Mapping[str, Any], data: bytes) -> Pending:
        """A document that was handed in: `about` has uri, id, title, metadata, media_type."""
        external_id = about.get("id")
        uri = str(about.get("uri") or f"text:{external_id}")
        public_id = document_id(external_id=external_id, uri=uri)
        with self.catalog.read() as connection:
            known = sources.known(connection, self.collection_id, [public_id]).get(public_id)
        name = str(about.get("name") or "text.md")
        title = str(about.get("title") or "")
        cutting = self.cutting
        request = _request(cutting, data, name, known, uri, title, about.get("metadata"))
        return Pending(
            public_id,
            external_id,
            uri,
            "",
            title,
            about.get("metadata"),
            len(data),
            0,
            request,
            list(cutting.ways),
            known,
        )

    async def texts(self, pending: Iterable[Pending]) -> None:
        async for _ in self._extract_all(iter(pending)):
            pass

    # --- both --------------------------------------------------------------------------------------------------------

    async def _extract_all(self, queue: Iterator[Pending]) -> AsyncGenerator[IngestReport, None]:
        """Extract with bounded concurrency; commit what has come in, in batches."""
        running: set[asyncio.Task[Ready]] = set()
        ready: list[Ready] = []
        found: deque[Pending] = deque()
        chunks = 0
        patience = FIRST_BATCH_S
        since = time.monotonic()
        exhausted = False
        try:
            while not exhausted or running:
                while not exhausted and len(running) < self.in_flight:
                    if not found:  # some at a time: to go to a thread for each costs as much as reading a short file
                        found.extend(await asyncio.to_thread(lambda: list(islice(queue, PLANNED))))
                    if not found:
                        exhausted = True
                        break
                    running.add(asyncio.create_task(self._extract(found.popleft())))
                if running:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        ready.append(task.result())
                        chunks += sum(len(spans) for spans in ready[-1].cuts.values())
                full = len(ready) >= BATCH_DOCUMENTS or chunks >= BATCH_CHUNKS or time.monotonic() - since > patience
                if ready and (full or (exhausted and not running)):
                    await self._commit(ready)
                    ready, chunks, since, patience = [], 0, time.monotonic(), BATCH_S
                    yield self.report
        finally:  # cancelled, or out of space: what is being read is given up
            for task in running:
                task.cancel()

    async def _extract(self, pending: Pending) -> Ready:
        try:
            result = await self.pool.process(pending.request)
        except WhimbrelError as error:
            return Ready(pending, error)
        spans = [] if result.unchanged else [result.spans, *result.also]
        return Ready(pending, result, dict(zip(pending.cut_in, spans, strict=False)))

    async def _commit(self, ready: Sequence[Ready]) -> None:
        while True:
            try:
                await asyncio.to_thread(self._write_down, ready)
                return
            except NotCut:  # a move to another chunking has begun since they were read
                self.cutting = await asyncio.to_thread(self._cutting_now)
                ready = await asyncio.gather(*(self._cut_too(one) for one in ready))

    async def _cut_too(self, ready: Ready) -> Ready:
        """Cut what was read in the chunkings that it lacks."""
        missing = [key for key in self.cutting.ways if key not in ready.cuts]
        result = ready.result
        if isinstance(result, WhimbrelError) or result.unchanged or not missing:
            return ready
        try:
            cut = await self.pool.process(
                self.cutting.request(result.text, result.cut_title, missing, pages=result.pages)
            )
        except WhimbrelError as error:
            return Ready(ready.pending, error)
        more = dict(zip(missing, [cut.spans, *cut.also], strict=True))
        return replace(ready, cuts={**ready.cuts, **more})

    def _write_down(self, ready: Sequence[Ready]) -> None:
        live = next(iter(self.cutting.ways))
        writes = [write for one in ready if (write := _write(one, live)) is not None]
        with self.catalog.write(fence=self.fence) as connection:
            if writes:
                documents.check_cut(connection, self.collection_id, live, writes)
            for one in ready:
                known = one.pending.known
                if isinstance(one.result, WhimbrelError):
                    self._commit_failure(connection, one.pending, one.result)
                elif known is not None and one.result.unchanged:
                    sources.touch(connection, [(known.key, one.pending.root or known.root, one.pending.mtime_ns)])
                    self.report.counts.unchanged += 1
            if writes:
                self.report.counts.add(documents.write_documents(connection, self.collection_id, live, writes))

    def _commit_failure(self, connection: Connection, pending: Pending, error: WhimbrelError) -> None:
        self.report.fail(pending.uri, error)
        write = _bare_write(
            pending.public_id,
            pending.external_id,
            pending.uri,
            pending.root,
            pending.title or pending.request.name,
            pending.size,
            pending.mtime_ns,
        )
        documents.record_failure(connection, self.collection_id, write, f"{error.code}: {error.message}")


def _request(
    cutting: Cutting,
    source: Path | bytes,
    name: str,
    known: Known | None,
    uri: str,
    title: str,
    metadata: Mapping[str, Any] | None,
) -> Request:
    same = (
        known is not None
        and known.state == DocumentState.EXTRACTED
        and known.recipe == EXTRACTOR
        and known.uri == uri
        and title in ("", known.title)
        and (metadata is None or known.metadata == metadata)
    )
    known_hash = known.content_hash if same and known is not None else ""
    return cutting.request(source, name, list(cutting.ways), known_hash=known_hash)


def _write(ready: Ready, live: int) -> DocumentWrite | None:
    """None where there is nothing to write. Raises `NotCut` for what is not cut in the live chunking."""
    pending, result, known = ready.pending, ready.result, ready.pending.known
    if isinstance(result, WhimbrelError) or (result.unchanged and known is not None):
        return None
    if live not in ready.cuts:
        raise NotCut([live])
    metadata = pending.metadata if pending.metadata is not None else (known.metadata if known else {})
    return DocumentWrite(
        public_id=pending.public_id,
        external_id=pending.external_id,
        uri=pending.uri,
        root=pending.root or (known.root if known else ""),
        title=pending.title or result.title,
        media_type=result.media_type,
        metadata=metadata,
        content_hash=result.content_hash,
        recipe=EXTRACTOR,
        size=result.size,
        mtime_ns=pending.mtime_ns,
        text=result.text,
        spans=ready.cuts[live],
        also={chunking: spans for chunking, spans in ready.cuts.items() if chunking != live},
        pages=result.pages,
        warnings=result.warnings,
        cut_title=result.cut_title,
    )


def _bare_write(
    public_id: str, external_id: str | None, uri: str, root: str, title: str, size: int, mtime_ns: int
) -> DocumentWrite:
    return DocumentWrite(
        public_id=public_id,
        external_id=external_id,
        uri=uri,
        root=root,
        title=title,
        media_type="",
        metadata={},
        content_hash="",
        recipe=EXTRACTOR,
        size=size,
        mtime_ns=mtime_ns,
        text="",
        spans=(),
    )


def _in_batches(items: Iterable[Found], size: int) -> Iterator[list[Found]]:
    batch: list[Found] = []
    for item in items:
        batch.append(item)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def shown(path: Path | str | None) -> str:
    """A path as text that a database can hold: names are bytes, and need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace") if path is not None else ""


def sayable(path: str) -> str:
    """A path as a job's arguments can hold it: a name that is not UTF-8 goes as a URI. Back by `path_of`."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path


def path_of(path: str) -> str:
    """The path of a `file:` URI; any other is a path already."""
    return os.fsdecode(unquote_to_bytes(path.removeprefix("file://"))) if path.startswith("file://") else path


def folder_uri(folder: Path) -> str:
    """With a slash at the end."""
    return folder.as_uri().rstrip("/") + "/"
