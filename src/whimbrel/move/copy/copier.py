"""One collection, from a source to a sink: list the ids, copy by id, look again, compare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from whimbrel.errors import BadInput, StoreUnavailable, SuspiciousChange, TooLarge
from whimbrel.move.copy.report import CopyReport, Mode
from whimbrel.move.copy.state import Listed, State
from whimbrel.move.copy.verify import verify
from whimbrel.stores.batches import Refused
from whimbrel.stores.foreign.base import Chosen, Fetched, Id, Mark, Rows, Sink, Source, Table
from whimbrel.stores.foreign.values import contents, digests, sizes_of_more

T = TypeVar("T")

Step = Callable[[str, int, int], None]
"""Told what is done, how many rows of how many."""

_SAMPLE_ROWS = 1_000
"""Whose keys become columns, where the source declares none and the target has columns."""
_GONE_SHARE, _GONE_ROWS = 0.2, 100
"""More than this share, and more than so many, are not removed from the target without being asked for."""
_LEAST_READ_ROWS = 50


@dataclass(frozen=True, slots=True)
class Options:
    verify: Mode = "full"
    resume: bool = False
    chosen: Chosen = field(default_factory=Chosen)
    """What is what in a source that does not say it."""
    allow_gone: bool = False
    """Remove rows that the source does not have any more, however many."""
    retries_s: Sequence[float] = (0.5, 1, 2, 4, 8)
    """Waits before a database that does not answer is asked again."""


@dataclass(slots=True)
class Counts:
    written: int = 0
    removed: int = 0
    writing_s: float = 0.0


class Copier:
    """A copy that was begun: its source described, its target made or found to be its own."""

    def __init__(self, source: Source, sink: Sink, table: Table, state: State, options: Options, on_step: Step) -> None:
        self._source = source
        self._sink = sink
        self._table = table
        self._state = state
        self._options = options
        self._on_step = on_step
        self._counts = Counts()
        first = sink.limits.bytes // (4 * table.dimensions + 500) if not table.vectors else 0
        self._read_rows = max(_LEAST_READ_ROWS, min(sink.limits.rows, first))

    async def run(self, source: str, target: str) -> CopyReport:
        """`source` and `target`: their names, for the report."""
        began = time.monotonic()
        state, table = self._state, self._table
        if state.get("phase") == "copied":  # another run of a copy that has ended: look what has changed since
            state.put(phase="listing")
        if state.get("phase") in ("", "listing") or state.get("version") != (table.version or ""):
            await self._list()
        await self._copy_rows()
        if table.version is None:
            await self._list()  # what came or went meanwhile
            await self._copy_rows()
        await self._remove_gone()
        self._on_step("building the index", state.count, state.count)
        await self._patiently(self._sink.finish)
        verified = await verify(self._source, self._sink, table, state, self._options.verify, self._on_step)
        changed = bool(verified.changed) or await self._source.version() != table.version
        state.put(phase="copied")
        state.write_rejects()
        counts = self._counts
        report = CopyReport(
            source=source,
            target=target,
            rows=state.count,
            dimensions=table.dimensions,
            metric=table.metric,
            written=counts.written,
            unchanged=max(0, state.count - state.reject_count - counts.written),
            removed=counts.removed,
            rejected=state.reject_count,
            source_changed=changed,
            verified=verified,
            seconds=time.monotonic() - began,
            seconds_writing=counts.writing_s,
            notes=table.notes,
            state=str(state.folder),
        )
        state.write_report(report.as_dict())
        return report

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        self._on_step("listing the rows", 0, 0)
        await self._patiently(lambda: self._state.list_anew(self._source.ids()))
        self._state.put(phase="copying", version=self._table.version or "")

    async def _copy_rows(self) -> None:
        """Reads one batch ahead of the one that is written."""
        state = self._state
        total, done = state.count, state.done
        uncertain = state.begun
        listed = state.after(done, self._read_rows)
        reading = asyncio.create_task(self._read(listed)) if len(listed) else None
        try:
            while reading is not None:
                batch, fetched = listed, await reading
                listed = state.after(batch.places[-1] + 1, self._read_rows)
                reading = asyncio.create_task(self._read(listed)) if len(listed) else None
                await self._take(batch, fetched, uncertain)
                done = batch.places[-1] + 1
                self._on_step("copying", min(done, total), total)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, listed: Listed) -> Fetched:
        return await self._patiently(lambda: self._source.fetch(listed.ids, listed.places))

    async def _take(self, listed: Listed, fetched: Fetched, uncertain: int) -> None:
        """Writes what is not in the target as it is, and notes it."""
        stop = listed.places[-1] + 1
        place = dict(zip(listed.ids, listed.places, strict=True))
        known = dict(zip(listed.ids, listed.digests, strict=True))
        rows, rejects = fetched.rows, dict(fetched.unfit)
        if len(set(rows.ids)) != len(rows):
            raise BadInput(
                "An id comes twice in the source, so that its rows cannot be told apart.",
                "Name a column whose values are unique: `--id COLUMN`.",
            )
        rejects |= {rows.ids[row]: why for row, why in self._sink.refused(rows).items()}
        said = contents(rows)
        of = dict(zip(rows.ids, digests(rows, said), strict=True))
        fixed = 100 + 4 * self._table.dimensions
        more = sizes_of_more(rows) if rows.more else [0] * len(rows)
        weights = [fixed + len(one) + size for one, size in zip(said, more, strict=True)]
        self._resize(weights)
        wanted = [row for row, id_ in enumerate(rows.ids) if id_ not in rejects and known[id_] != of[id_]]
        self._state.begin(stop)
        new = [row for row in wanted if place[rows.ids[row]] >= uncertain and known[rows.ids[row]] is None]
        old = [row for row in wanted if not (place[rows.ids[row]] >= uncertain and known[rows.ids[row]] is None)]
        for some, fresh in ((new, True), (old, False)):
            if some:
                began = time.monotonic()
                part = rows.taken(some) if len(some) < len(rows) else rows
                rejects |= await self._write(part, [weights[row] for row in some], fresh)
                self._counts.writing_s += time.monotonic() - began
        written = {place[rows.ids[row]]: of[rows.ids[row]] for row in wanted if rows.ids[row] not in rejects}
        self._counts.written += len(written)
        stale = [id_ for id_ in rejects if known.get(id_) is not None]
        if stale:  # it was copied once, and cannot be any more: what is there is not what the source has
            await self._patiently(lambda: self._sink.delete(stale))
        self._state.wrote(written, rejects, stop)

    async def _write(self, rows: Rows, weights: Sequence[int], fresh: bool) -> dict[Id, str]:
        """In pieces of the sink's size, halved where it refuses one as too large. Returns the rows that are too large
        alone, with the reason."""
        rejects: dict[Id, str] = {}
        for start, stop in _pieces(weights, self._sink.limits.rows, self._sink.limits.bytes):
            rejects |= await self._halving(rows.between(start, stop), fresh)
        return rejects

    async def _halving(self, rows: Rows, fresh: bool) -> dict[Id, str]:
        tried = False

        async def write() -> None:
            nonlocal tried
            again, tried = tried, True
            await self._sink.write(rows, fresh=fresh and not again)

        try:
            await self._patiently(write)
            return {}
        except (Refused, TooLarge) as refused:
            if len(rows) == 1:
                return {rows.ids[0]: f"the target finds it too large: {refused}"}
        half = len(rows) // 2
        return await self._halving(rows.between(0, half), False) | await self._halving(
            rows.between(half, len(rows)), False
        )

    async def _remove_gone(self) -> None:
        """Rows that this copy wrote, and that the source does not have any more."""
        state = self._state
        gone = state.gone_count
        if gone > _GONE_ROWS and gone > _GONE_SHARE * (state.count + gone) and not self._options.allow_gone:
            raise SuspiciousChange(
                f"{gone:,} of {state.count + gone:,} rows are not in the source any more. None was removed from the "
                "target.",
                "If that is meant, run the same command with --allow-gone.",
            )
        while ids := state.gone(1_000):
            await self._patiently(lambda some=ids: self._sink.delete(some))  # type: ignore[misc]
            state.removed(ids)
            self._counts.removed += len(ids)

    def _resize(self, weights: Sequence[int]) -> None:
        """So many rows a read as make about one write, however long their texts are."""
        if not weights:
            return
        limits = self._sink.limits
        per_row = sum(weights) / len(weights)
        least = _LEAST_READ_ROWS if not self._table.vectors else 1
        self._read_rows = max(least, min(limits.rows, int(limits.bytes / per_row)))

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        return await patiently(work, self._options.retries_s)


async def patiently(work: Callable[[], Awaitable[T]], waits_s: Sequence[float]) -> T:
    """A database that does not answer is asked again a few times."""
    for wait in waits_s:
        try:
            return await work()
        except StoreUnavailable:
            await asyncio.sleep(wait)
    return await work()


def with_sample(table: Table, rows: Rows) -> Table:
    """The table with columns for what a sample of its rows has, where the source declares none."""
    from whimbrel.stores.foreign.arrow_types import sampled

    return replace(table, fields=sampled(rows.metadata))


async def sample(source: Source, *, several: bool = False) -> Rows:
    """The first rows of a source, fewer where they have `several` vectors: some are of thousands."""
    async for ids in source.ids():
        some = ids[: _SAMPLE_ROWS if not several else _LEAST_READ_ROWS]
        if some:
            return (await source.fetch(some, range(len(some)))).rows
    return Rows.none(0)


def mark_of(copy: str, table: Table) -> Mark:
    return Mark(copy, table.ids, table.metric, table.about, table.has_text, table.main, table.vectors)


def _pieces(weights: Sequence[int], most_rows: int, most_bytes: int) -> list[tuple[int, int]]:
    found, start, size = [], 0, 0
    for row, weight in enumerate(weights):
        if row > start and (row - start >= most_rows or size + weight > most_bytes):
            found.append((start, row))
            start, size = row, 0
        size += weight
    return [*found, (start, len(weights))]
