"""The job that takes the rows of a frozen view into the catalog.

It goes over the source once, in its order, and writes documents as they come; rows of a document that had been written
before its last row came are taken at the end, together with the others of it. A row that the catalog has is left as it
is, so the job may be killed anywhere, and run again at any time: it takes what is missing.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whimbrel.adopt import grouping
from whimbrel.adopt.fields import Fields
from whimbrel.adopt.grouping import MOST_ROWS, Grouper, Looked, Row
from whimbrel.adopt.opening import opened, scratch_of
from whimbrel.adopt.sameness import Stand, alike, note, stand_of, unlike
from whimbrel.catalog import adoptions, collections
from whimbrel.catalog.adoptions import Adoption, AdoptionState, Known
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.documents import text_hash
from whimbrel.domain import hash_id
from whimbrel.errors import Conflict
from whimbrel.owner.frozen import address_of, chosen_of
from whimbrel.owner.runner import JobContext, Refused
from whimbrel.stores.base import Reach, Vectors
from whimbrel.stores.foreign import exact
from whimbrel.stores.foreign.base import Id, IdKind, Source, Table

logger = logging.getLogger("whimbrel.jobs")

FIRST_ROWS = 500
"""Of the first batch, after which searches find something; each next one has twice as many."""
READ_ROWS = 4_000
READ_BYTES = 12 << 20
"""Of vectors and texts that are read together, about: two such batches are in memory."""
AGAIN = 200
"""Documents that are put together anew in one go."""


@dataclass(slots=True)
class _Counts:
    rows: int = 0
    """Read, in this run."""
    adopted: int = 0
    changed: int = 0
    """Whose text is another than the catalog has."""
    kept_vectors: int = 0
    """Rows that are as they were, but for their vector: the one of record stays."""
    doubled: int = 0
    other_vectors: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class _Page:
    ids: Sequence[Id]
    first: int
    """Place of the first of them."""


class Adopter:
    """Handler of `adopt` jobs: `{"view": id}`."""

    def __init__(self, home: Path, adopted: Path, reach: Reach, configured: Callable[[], Sequence[str]]) -> None:
        """`adopted`: the folder of what is made beside the catalog. `configured`: URIs that may hold credentials."""
        self._home = home
        self._adopted = adopted
        self._reach = reach
        self._configured = configured

    async def __call__(self, context: JobContext) -> Mapping[str, Any]:
        if context.owner is None:
            raise Refused(Conflict("Only the owner can adopt.", "Start `whimbrel serve` or `whimbrel owner`."))
        view, adoption = await asyncio.to_thread(_read, context)
        address = address_of(adoption.source, self._configured(), served=False)
        bare, chosen = str(adoption.source["place"]), chosen_of(adoption.source)
        scratch = await asyncio.to_thread(scratch_of, address, bare, self._home, self._adopted)
        opening = opened(address, chosen, base=self._home, scratch=scratch, reach=self._reach)
        async with opening as (database, source):
            table = await source.describe()
            self._check(table, adoption)
            if adoption.state is AdoptionState.ADOPTED:
                await self._check_vectors(context, adoption, source)
            run = _Run(context, view, adoption, source, table)
            await run.all()
            stand = await stand_of(source, address, self._home)
            copied = database.copied
        served = f"{address.scheme}:{copied}" if copied is not None else ""
        where = {"served": served, "scratch": scratch.name}
        await asyncio.to_thread(run.end, stand, where, self._adopted)
        context.owner.wake()
        return run.result()

    def _check(self, table: Table, adoption: Adoption) -> None:
        said = adoption.source
        if (table.identity, table.dimensions, table.ids) != (said["identity"], said["dimensions"], said["ids"]):
            raise Refused(
                Conflict(
                    f"{said['uri']} is another collection, or has other columns, than when it was adopted. What was "
                    "adopted stays.",
                    "Adopt it as another collection: `whimbrel adopt ... -c NAME`.",
                )
            )

    async def _check_vectors(self, context: JobContext, adoption: Adoption, source: Source) -> None:
        """Before anything is taken: vectors of another model are of another space, and may not come among those."""
        found = await unlike(context.catalog, adoption, source)
        if found.embedded_anew:
            await asyncio.to_thread(note, context.catalog, adoption, found.drift, context.fence)
            raise Refused(
                Conflict(
                    f"{adoption.source['uri']} was embedded anew since it was adopted: of {found.compared:,} rows "
                    f"that were compared, {found.vectors:,} have another vector. What was adopted stays as it is.",
                    "Adopt it as another collection: `whimbrel adopt ... -c NAME`.",
                )
            )


def _read(context: JobContext) -> tuple[ViewRow, Adoption]:
    key = int(context.job.args["view"])
    with context.catalog.read() as connection:
        return collections.view(connection, key), adoptions.get(connection, key)


def _of_place(scratch: str) -> str:
    """What the names of all copies of one place begin with."""
    return "-".join(scratch.split("-")[:2])


def _remove(folder: Path, prefix: str, *, besides: Collection[str]) -> None:
    """What nobody searches any more."""
    for old in folder.glob(f"{prefix}*"):
        if old.name not in besides:
            shutil.rmtree(old, ignore_errors=True)


def _next(document: str) -> str:
    """The document that goes on for one that has as many rows as one may have."""
    return hash_id("more", document)


@dataclass(slots=True)
class _Open:
    """A document whose rows are still coming."""

    document: str
    rows: list[Row] = field(default_factory=list)


class _Run:
    def __init__(self, context: JobContext, view: ViewRow, adoption: Adoption, source: Source, table: Table) -> None:
        self._context = context
        self._catalog = context.catalog
        self._view = view
        self._adoption = adoption
        self._source = source
        self._table = table
        self._kind: IdKind = table.ids
        self._fields = Fields.read(adoption.fields)
        self._where = str(adoption.source["uri"])
        self._looked = Looked()
        self._counts = _Counts()
        self._later: dict[str, list[str]] = {}
        """Ids of rows that came after their document was written, by document."""
        self._full: dict[str, str] = {}
        """Documents with as many rows as one may have, and the one that goes on for each."""
        self._written: set[str] = set()
        """Documents that have been written."""
        self._taken: set[int] = set()
        """64 bits of the ids of rows that this run has taken: the first of two with one id counts."""
        self._open: dict[str, _Open] = {}
        self._size = max(100, min(READ_ROWS, READ_BYTES // (4 * table.dimensions + 1_000)))
        self._total = int(adoption.source.get("rows") or 0)

    # --- the way through it ------------------------------------------------------------------------------------------

    async def all(self) -> None:
        known = await asyncio.to_thread(self._known)
        grouper = Grouper(known)
        self._written = {document for document, _ in known}
        fresh = not known
        ahead: asyncio.Task[list[Row]] | None = None
        writing: asyncio.Task[None] | None = None
        try:
            async for page in self._pages():
                reading = asyncio.create_task(self._rows(page, fresh=fresh))
                if ahead is not None:
                    writing = await self._hand_on(await ahead, grouper, writing)
                ahead = reading
            if ahead is not None:
                writing = await self._hand_on(await ahead, grouper, writing)
            if writing is not None:
                await writing
                writing = None
            await self._write(self._closed(everything=True))
            await self._take_later(grouper)
        finally:
            for task in (ahead, writing):
                if task is not None and not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    async def _hand_on(
        self, rows: list[Row], grouper: Grouper, writing: asyncio.Task[None] | None
    ) -> asyncio.Task[None]:
        """Write what is whole, while the next rows are read."""
        last = self._sort(rows, grouper)
        if writing is not None:
            await writing
        return asyncio.create_task(self._write(self._closed(but=last)))

    async def _pages(self) -> AsyncIterator[_Page]:
        place = 0
        size = min(FIRST_ROWS, self._size)
        async for some in self._source.ids():
            start = 0
            while start < len(some):
                ids = some[start : start + size]
                yield _Page(ids, place)
                place += len(ids)
                start += len(ids)
                size = min(2 * size, self._size)

    async def _rows(self, page: _Page, *, fresh: bool) -> list[Row]:
        """Those of a page that the catalog has not, or not as they are."""
        ids: Sequence[Id] = page.ids
        places: Sequence[int] | None = range(page.first, page.first + len(page.ids))
        self._counts.rows += len(ids)
        rows = await self._fetched(ids, places)
        if fresh:
            return rows
        there = await asyncio.to_thread(self._there, [row.public_id for row in rows])
        kept, same = [], []
        for row in rows:
            known = there.get(row.public_id)
            if known is None:
                kept.append(row)
            elif self._is_second(row):
                continue
            elif known.text_hash != text_hash(row.text):  # its document is put together anew
                self._counts.changed += 1
                self._later.setdefault(known.document, []).append(row.source_id)
            else:
                same.append(row)
        held = await asyncio.to_thread(self._vectors, [row.public_id for row in same])
        self._counts.kept_vectors += sum(
            row.public_id in held and not alike(row.vector, held[row.public_id]) for row in same
        )
        return kept

    async def _fetched(self, ids: Sequence[Id], places: Sequence[int] | None) -> list[Row]:
        fetched = await self._source.fetch(ids, places)
        looked = Looked()
        for id_, why in fetched.unfit.items():
            grouping.refuse(id_, self._kind, why, looked)
        rows = await asyncio.to_thread(grouping.read_rows, fetched.rows, self._kind, self._fields, self._where, looked)
        self._looked.add(looked)
        return rows

    def _is_second(self, row: Row) -> bool:
        """Whether a row with its id came before; counted."""
        short = int(row.public_id[:16], 16)
        if short in self._taken:
            self._counts.doubled += 1
            return True
        self._taken.add(short)
        return False

    def _sort(self, rows: Sequence[Row], grouper: Grouper) -> str:
        """Put rows to their documents. Returns the one that may go on in the next batch."""
        document = ""
        for row in rows:
            if self._is_second(row):
                continue
            document = grouper.document(row)
            while document in self._full:
                document = self._full[document]
            if document in self._written:
                self._later.setdefault(document, []).append(row.source_id)
                continue
            held = self._open.setdefault(document, _Open(document))
            held.rows.append(row)
            if len(held.rows) >= MOST_ROWS:
                self._full[document] = _next(document)
        return document

    def _closed(self, *, but: str = "", everything: bool = False) -> list[_Open]:
        """Documents to be written now: all but the one whose rows may go on."""
        done = [one for key, one in self._open.items() if everything or key != but]
        for one in done:
            del self._open[one.document]
            self._written.add(one.document)
        return done

    async def _take_later(self, grouper: Grouper) -> None:
        """Documents of which rows came apart are put together anew, from all rows that they have."""
        documents = list(self._later)
        for start in range(0, len(documents), AGAIN):
            some = documents[start : start + AGAIN]
            before = await asyncio.to_thread(self._rows_of, some)
            whole: list[_Open] = []
            for document in some:
                whole += await self._filled(document, before.get(document, []), self._later[document])
                if sum(len(one.rows) for one in whole) >= self._size:
                    await self._write(whole)
                    whole = []
            await self._write(whole)

    async def _filled(self, document: str, held: list[str], new: Sequence[str]) -> list[_Open]:
        """A document with the rows that it has and `new` ones; those that are too many in others that go on for it."""
        while len(held) >= MOST_ROWS:
            document = _next(document)
            held = (await asyncio.to_thread(self._rows_of, [document])).get(document, [])
        names = list(dict.fromkeys([*held, *new]))
        whole = []
        while names:
            whole.append(_Open(document, await self._by_name(names[:MOST_ROWS])))
            document, names = _next(document), names[MOST_ROWS:]
        return whole

    async def _by_name(self, names: Sequence[str]) -> list[Row]:
        rows = await self._fetched([self._kind.parse(one) for one in names], None)
        at = {row.source_id: row for row in reversed(rows)}
        return [at[name] for name in names if name in at]

    # --- in the catalog ----------------------------------------------------------------------------------------------

    def _known(self) -> list[tuple[str, str]]:
        with self._catalog.write(fence=self._context.fence) as connection:
            adoptions.forget_rejects(connection, self._view.id)  # what is not in the catalog is looked at again
        with self._catalog.read() as connection:
            found = adoptions.documents_of(connection, self._view)
            return [(document, grouping.digest_of(metadata)) for document, metadata in found]

    def _there(self, public_ids: Sequence[str]) -> dict[str, Known]:
        with self._catalog.read() as connection:
            return adoptions.known(connection, self._view, public_ids)

    def _vectors(self, public_ids: Sequence[str]) -> dict[str, Vectors]:
        with self._catalog.read() as connection:
            return adoptions.own_vectors(connection, self._view, public_ids)

    def _rows_of(self, documents: Sequence[str]) -> dict[str, list[str]]:
        with self._catalog.read() as connection:
            return adoptions.rows_of(connection, self._view, documents)

    async def _write(self, documents: Sequence[_Open]) -> None:
        documents = [one for one in documents if one.rows]
        counts = self._counts
        rejects, self._looked.rejects = self._looked.rejects, {}
        if documents or rejects:
            await asyncio.to_thread(self._put, documents, rejects)
        await self._context.checkpoint(rows=counts.adopted, of=self._total, rejected=counts.rejected)

    def _put(self, documents: Sequence[_Open], rejects: Mapping[str, str]) -> None:
        writes = [grouping.write_of(one.document, one.rows) for one in documents]
        vectors = [
            vector
            for write, one in zip(writes, documents, strict=True)
            for vector in grouping.vectors_of(write, one.rows)
        ]
        with self._catalog.write(fence=self._context.fence) as connection:
            if rejects:
                adoptions.put_rejects(connection, self._view.id, rejects)
            if writes:
                written = adoptions.write(connection, self._view, writes, np.array(vectors, np.float32))
                self._counts.other_vectors += written.other_vectors
                self._counts.adopted += written.counts.chunks_added
        self._counts.rejected += len(rejects)

    def end(self, stand: Stand, where: Mapping[str, str], adopted: Path) -> None:
        """All rows are in: the lexicon may be built, and where the source has no index, what stands in for it is.
        `where`: it is searched from now on. `adopted`: the folder of that."""
        characters, texts = grouping.cut_at(self._looked.lengths)
        with self._catalog.write(fence=self._context.fence) as connection:
            before = adoptions.get(connection, self._view.id).counts
            rejects = adoptions.rejects(connection, self._view.id)
            adopted_rows = adoptions.count(connection, self._view)
            counts = {
                "rows": stand.rows,
                "adopted": adopted_rows,
                "changed": self._counts.changed,
                "kept_vectors": self._counts.kept_vectors,
                "gone": max(0, adopted_rows + len(rejects) + self._counts.doubled - stand.rows),
                "rejected": len(rejects),
                "doubled": self._counts.doubled,
                "other_vectors": self._counts.other_vectors + int(before.get("other_vectors", 0)),
                "cut_at": characters or int(before.get("cut_at", 0)),
                "cut_texts": texts or int(before.get("cut_texts", 0)),
                "generation": int(before.get("generation", 0)) + 1,
                "stand": stand.as_dict(),
            }
            source = {**self._adoption.source, **where}
            state = AdoptionState.ADOPTED
            adoptions.change(connection, self._view.id, state=state, source=source, counts=counts, drift={})
            collections.set_view(connection, self._view.id, error="")
            self._adoption = adoptions.get(connection, self._view.id)
            copies = {str(one.source["scratch"]) for one in adoptions.every(connection)}
        _remove(adopted, _of_place(where["scratch"]), besides=copies)
        if not self._adoption.source["indexed"]:
            name = f"{self._view.view.name}-{counts['generation']}"
            with self._catalog.read() as connection:
                exact.build(adopted / name, adoptions.each_vector(connection, self._view))
            _remove(adopted, self._view.view.name, besides={name})

    def result(self) -> dict[str, Any]:
        counts = {key: value for key, value in self._adoption.counts.items() if key not in ("generation", "stand")}
        with self._catalog.read() as connection:
            position = collections.view(connection, self._view.id).view.position
            examples = [reason for _, reason in adoptions.rejects(connection, self._view.id)[:5]]
        return {**counts, "view": self._view.id, "position": position, "examples": examples}
