"""What an applier writes to: a store or a lexicon behind one interface."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from whimbrel.catalog.rows import ChunkRows
from whimbrel.domain import Position
from whimbrel.errors import Busy
from whimbrel.lexicon.base import LexicalRows
from whimbrel.lexicon.tantivy import TantivyLexicon
from whimbrel.owner.held import Held, HeldDigests, HeldRecords, as_records, digests
from whimbrel.stores.base import Store

T = TypeVar("T")

SCANNED = 5_000
"""Rows of a view that are compared together, at most."""
SCANNED_BYTES = 5 << 20
"""Of their vectors and texts, about: a database may read a dozen batches ahead."""
_TEXT_BYTES = 1_000
"""A row's text and metadata, as they are mostly."""
AT_REST_SHARE = 0.01
"""Of a segment's rows: as many deleted ones are written out of a lexicon at rest."""


class Target(ABC):
    """The data of one view, open for writing."""

    atomic = True
    """Rows, deletions and position are one commit: what says where it stands is what it holds."""
    elsewhere = False
    """Its database may be in another process, which ends and begins anew without a word to this one."""

    @abstractmethod
    async def exists(self) -> bool: ...

    @abstractmethod
    async def create(self) -> None: ...

    @abstractmethod
    async def position(self) -> Position | None: ...

    @abstractmethod
    async def apply(
        self, rows: ChunkRows | None, deletes: Sequence[str], position: Position | None, *, new: bool
    ) -> None:
        """Write rows and deletions; then the position, unless it is None (there is more to come before it holds)."""

    async def begin_bulk(self) -> None:
        """Many new rows are about to come. Called again where an owner goes on with what another began."""

    async def end_bulk(self) -> None:
        """They have come."""

    @abstractmethod
    async def count(self) -> int: ...

    async def check(self) -> None:
        """Compare the files with what was written, where that can be told. Raises `ViewDamaged`."""

    @abstractmethod
    def scan(self) -> AsyncGenerator[Held, None]:
        """Every row, in batches."""

    @abstractmethod
    async def maintain(self, *, full: bool = False) -> None: ...

    @abstractmethod
    async def settle(self) -> None:
        """Nothing has come for a while: tidy up to the last row."""

    @abstractmethod
    async def erase(self, *, grace_s: float) -> None: ...

    @abstractmethod
    async def drop(self) -> None:
        """Remove the data, however damaged; nothing happens where there is none."""

    @abstractmethod
    async def close(self) -> None: ...


class StoreTarget(Target):
    def __init__(self, store: Store) -> None:
        self.store = store
        self._exact = store.describe().exact_vectors
        self.atomic = store.describe().atomic
        self.elsewhere = not store.describe().single_process

    async def exists(self) -> bool:
        return await self.store.exists()

    async def create(self) -> None:
        await self.store.create()

    async def position(self) -> Position | None:
        return await self.store.position()

    async def apply(
        self, rows: ChunkRows | None, deletes: Sequence[str], position: Position | None, *, new: bool
    ) -> None:
        records = as_records(rows) if rows is not None and len(rows) else None
        if position is not None:
            await self.store.apply(records, deletes, position, new=new)
            return
        if deletes:
            await self.store.delete(deletes)
        if records is not None:
            await self.store.upsert(records, new=new)

    async def begin_bulk(self) -> None:
        await self.store.begin_bulk()

    async def end_bulk(self) -> None:
        await self.store.end_bulk()
        await self.store.maintain()  # the index, where the store makes it then: before anybody searches there

    async def count(self) -> int:
        return await self.store.count()

    async def scan(self) -> AsyncGenerator[Held, None]:
        size = SCANNED_BYTES // (4 * self.store.describe().dimensions + _TEXT_BYTES)
        async for records in self.store.scan(min(SCANNED, max(size, 1))):
            yield HeldRecords(records, exact=self._exact)

    async def maintain(self, *, full: bool = False) -> None:
        await self.store.maintain(full=full)

    async def settle(self) -> None:
        await self.store.settle()

    async def erase(self, *, grace_s: float) -> None:
        await self.store.erase(grace_s=grace_s)

    async def drop(self) -> None:
        await self.store.drop()

    async def close(self) -> None:
        await self.store.close()


class LexiconTarget(Target):
    def __init__(self, path: Path, language: str) -> None:
        self._path = path
        self._language = language
        self._open: TantivyLexicon | None = None

    @property
    def lexicon(self) -> TantivyLexicon:
        if self._open is None:
            self._open = TantivyLexicon.open(self._path, language=self._language, writable=True)
        return self._open

    async def exists(self) -> bool:
        return TantivyLexicon.exists(self._path)

    async def create(self) -> None:
        self._open = await _finished(TantivyLexicon.create, self._path, language=self._language)

    async def position(self) -> Position | None:
        return await _finished(lambda: self.lexicon.position())

    async def apply(
        self, rows: ChunkRows | None, deletes: Sequence[str], position: Position | None, *, new: bool
    ) -> None:
        def work() -> None:
            lexical = _lexical(rows) if rows is not None and len(rows) else None
            self.lexicon.apply(lexical, deletes, position)

        await _finished(work)

    async def count(self) -> int:
        return await _finished(lambda: self.lexicon.count())

    async def check(self) -> None:
        await _finished(lambda: self.lexicon.check())

    async def scan(self) -> AsyncGenerator[Held, None]:
        rows = await _finished(lambda: self.lexicon.scan())
        while batch := await _finished(lambda: list(islice(rows, SCANNED))):
            ids, found = zip(*batch, strict=True)
            yield HeldDigests(ids, found)

    async def maintain(self, *, full: bool = False) -> None:
        await _finished(lambda: self.lexicon.maintain(share=0.0) if full else self.lexicon.maintain())

    async def settle(self) -> None:
        # Deleted rows count in BM25's statistics until they are merged away: let the past leave the scores. But a
        # segment of a million rows is not written again for a few of them.
        await _finished(lambda: self.lexicon.maintain(share=AT_REST_SHARE))

    async def erase(self, *, grace_s: float) -> None:
        def work() -> bool:
            return self.lexicon.erase()

        for _ in range(20):
            if await _finished(work):
                return
            await asyncio.sleep(0.5)
        raise Busy("A search keeps old files of the lexicon open.", "The erasure goes on when it has ended.")

    async def drop(self) -> None:
        def work() -> None:
            if self._open is not None:
                self._open.close()
                self._open = None
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._path)  # also where it is too damaged to be opened

        await _finished(work)

    async def close(self) -> None:
        if self._open is not None:
            lexicon, self._open = self._open, None
            await _finished(lexicon.close)


async def _finished(work: Callable[..., T], *args: Any, **options: Any) -> T:
    """Run in a thread, to its end also when the task is cancelled: nobody may find the files being written still."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **options))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _lexical(rows: ChunkRows) -> LexicalRows:
    return LexicalRows(
        ids=rows.ids, titles=rows.titles, texts=rows.texts, metadata=rows.metadata, digests=digests(rows)
    )
