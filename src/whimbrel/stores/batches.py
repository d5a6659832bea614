"""Batches that a database takes: so many rows, so many bytes; and half of one that it refused as too large."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from whimbrel.domain import Metadata
from whimbrel.errors import RowRefused
from whimbrel.stores.records import DENSE, Records

MAX_BYTES = 16 << 20
"""Of one request, where a database names no limit of its own: proxies before a server often take 32 MiB."""


class Refused(Exception):
    """Raised by a write for a batch that the database, or a proxy before it, finds too large."""


@dataclass(slots=True)
class Batches:
    """The sizes of one database's writes. A refusal is remembered, so that it is met once and not with every batch."""

    rows: int
    """At most, in one write."""
    bytes: int = MAX_BYTES
    """At most, by `weights`."""
    vector_bytes: float = 4.0
    """Per component as it travels: 4 as it is, about 6 in base64, 12 as digits."""

    def cut(self, records: Records) -> Iterator[Records]:
        """The rows in batches of these sizes; a row that is larger alone is a batch of its own."""
        start = 0
        size = 0
        weights = self.weights(records)
        for row, weight in enumerate(weights):
            if row > start and (row - start >= self.rows or size + weight > self.bytes):
                yield records.between(start, row)
                start, size = row, 0
            size += weight
        if start < len(records):
            yield records.between(start, len(records))

    def weights(self, records: Records) -> list[int]:
        """About how many bytes each row is on its way: id, text, metadata and vector."""
        vectors = records.vectors.get(DENSE)
        fixed = 64 + (int(vectors.shape[1] * self.vector_bytes) if vectors is not None else 0)
        known: dict[int, int] = {}
        found = []
        for id_, text, metadata in zip(records.ids, records.texts, records.metadata, strict=True):
            about = known.get(id(metadata))  # the chunks of a document share theirs
            if about is None:
                about = known[id(metadata)] = _size_of(metadata)
            size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            found.append(fixed + len(id_) + size + about)
        return found

    async def write(self, records: Records, write: Callable[[Records], Awaitable[None]], *, at_once: int = 1) -> None:
        """Every batch by `write`, begun in order; one that raises `Refused` in halves, down to a single row. `at_once`:
        as many are on their way at a time, so that one is made while the database works on another.

        Raises `RowRefused` for a row that is refused alone; the rows before it have been written. A write is an upsert:
        what was written of a batch before it was refused is written again. Nothing is on its way any more when it
        returns or raises.
        """
        under_way: set[asyncio.Task[None]] = set()
        try:
            for batch in self.cut(records):
                if len(under_way) == at_once:
                    under_way = await _first(under_way)
                under_way.add(asyncio.create_task(self._halving(batch, write)))
            while under_way:
                under_way = await _first(under_way)
        except asyncio.CancelledError:
            for task in under_way:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _halving(self, batch: Records, write: Callable[[Records], Awaitable[None]]) -> None:
        try:
            await write(batch)
            return
        except Refused as refused:
            if len(batch) == 1:
                raise RowRefused.of(
                    batch.ids[0],
                    f"The database refuses the row {batch.ids[0]!r} as too large: {refused}. Rows before it are there.",
                    "Raise the database's limit on requests, or cut the documents into smaller chunks.",
                ) from None
        half = len(batch) // 2
        self.rows = min(self.rows, max(half, 1))
        await self._halving(batch.between(0, half), write)
        await self._halving(batch.between(half, len(batch)), write)


def _size_of(metadata: Metadata) -> int:
    """About its bytes as JSON; written only where that cannot be seen."""
    size = 2
    for key, value in metadata.items():
        if type(value) is str and value.isascii():
            size += len(key) + len(value) + 6
        elif type(value) in (bool, int, float):
            size += len(key) + 14
        else:
            return len(json.dumps(metadata))
    return size


async def _first(under_way: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Until one has ended, which leaves the set; the others. Raises what it raised."""
    done, others = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    under_way -= done
    for error in [task.exception() for task in done]:
        if error is not None:
            raise error
    return others
