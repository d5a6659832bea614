"""Reading the snapshot that a new view starts from, a batch ahead of who writes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from whimbrel.catalog import rows
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.owner.ahead import Ahead
from whimbrel.owner.embedding import EmbeddingStage
from whimbrel.owner.pace import TRAFFIC

FIRST_ROWS = 1_000
"""Of the first batch, which tells how large rows are and how quickly they are written."""
MOST_ROWS = 10_000
MOST_BYTES = 6 << 20
"""Of texts and vectors in a batch. Two are in memory, one being read and one being written, in several forms each."""
WRITE_S = 3.0
"""That a batch should take to be written, at most: who wants the view in between does not wait longer. Chroma, which
writes 1,000 rows a second, writes a tenth more of them in batches of 2,500 than of 1,000; larger ones gain little."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The chunks in a part of a snapshot, each with its vector."""

    rows: rows.ChunkRows
    reached: int
    """The key up to which it has every chunk."""
    read: int
    """Chunks that were read, those that the model refused too."""


class Snapshot:
    """The chunks that a building view copies, in the order of their keys."""

    def __init__(self, catalog: Catalog, row: ViewRow, stage: EmbeddingStage | None) -> None:
        self._catalog = catalog
        self._view = row.view
        self._stage = stage
        self._upto = 0
        self._rows = FIRST_ROWS
        self._most = MOST_ROWS
        self._doubtful = MOST_ROWS
        self._ahead = Ahead(self._read)

    async def take(self, after: int, upto: int, rows_per_s: float) -> Batch:
        """The next batch in `(after, upto]`; of no more rows than may be copied in a second, where that is limited.
        What comes after it is being read from then on, where nobody searches."""
        self._upto = upto
        self._most = max(1, min(MOST_ROWS, int(rows_per_s))) if rows_per_s > 0 else MOST_ROWS
        batch = await self._ahead.take(after)
        if batch.reached < upto and not TRAFFIC.busy:
            self._ahead.begin(batch.reached)
        return batch

    @property
    def certain(self) -> bool:
        """None of the rows that come next is in the view already. An owner that was killed may have written a batch
        that it did not note; a batch has `MOST_ROWS`, so what comes after as many is new."""
        return self._doubtful <= 0

    def wrote(self, batch: Batch, seconds: float) -> None:
        """A batch has been written in so many seconds: the next ones are sized by it."""
        self._doubtful -= batch.read
        if len(batch.rows):
            by_size = MOST_BYTES * len(batch.rows) // max(batch.rows.nbytes, 1)
            by_time = int(len(batch.rows) * WRITE_S / max(seconds, 1e-3))
            self._rows = max(min(by_size, by_time), FIRST_ROWS // 10)

    def failed(self) -> None:
        """A batch may have been written, or a part of it."""
        self._doubtful = MOST_ROWS
        self.close()

    def close(self) -> None:
        """Stop reading ahead."""
        self._ahead.forget()

    async def _read(self, after: int) -> Batch:
        batch, waiting, keys = await asyncio.to_thread(self._load, after)
        if waiting and self._stage is not None:
            await self._stage.fill(keys)
            found = await asyncio.to_thread(self._load_again, keys)
            return Batch(found, batch.reached, batch.read)
        return batch

    def _load(self, after: int) -> tuple[Batch, int, list[int]]:
        view, limit = self._view, min(self._rows, self._most)
        with self._catalog.read() as connection:
            found, waiting, keys = rows.next_chunks(
                connection,
                view.collection_id,
                view.chunking_id,
                view.space_id,
                after=after,
                upto=self._upto,
                limit=limit,
            )
        reached = keys[-1] if len(keys) == limit else self._upto
        return Batch(found, reached, len(keys)), waiting, keys

    def _load_again(self, keys: list[int]) -> rows.ChunkRows:
        with self._catalog.read() as connection:
            found, _, _ = rows.load_chunks(connection, keys, self._view.space_id)
        return found
