"""Comparing a source with what was made of it: the sets of ids, then rows by id, everything in them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator

from whimbrel.move.copy.report import EXAMPLES, Mode, Verified
from whimbrel.move.copy.state import Listed, State
from whimbrel.stores.foreign.base import Fetched, Rows, Sink, Source, Table
from whimbrel.stores.foreign.values import contents, differences, digests

SAMPLE_SHARE, SAMPLE_ROWS = 0.01, 1_000
"""A sample has this share of the rows, and at least so many."""
SEED = 7
_READ_ROWS, _READ_ROWS_OF_SEVERAL = 2_000, 100
"""Fewer of rows with several vectors: some are of thousands."""


async def verify(source: Source, sink: Sink, table: Table, state: State, mode: Mode, on_step: object) -> Verified:
    """`full`: every row; `sample`: some, drawn with a seed that the result names; the ids are compared in full in both.
    `none` compares nothing."""
    if mode == "none":
        return Verified(mode, 0)
    assert callable(on_step)
    missing, extra, lost, strange = await state.compared(sink.ids(), EXAMPLES)
    examples = {str(id_): "missing" for id_ in lost} | {str(id_): "not in the source" for id_ in strange}
    tolerance = sink.tolerance(table)
    compared = differing = changed = 0
    total = state.count if mode == "full" else _sample_size(state.count)
    lacking = set(lost)
    read_rows = _READ_ROWS if not table.vectors else _READ_ROWS_OF_SEVERAL
    async for listed, here, there in _both(source, sink, _batches(state, mode, read_rows)):
        rejected = state.is_rejected(listed.ids)
        kept = [row for row, id_ in enumerate(here.rows.ids) if id_ not in rejected]
        wanted = here.rows if len(kept) == len(here.rows) else here.rows.taken(kept)
        written = dict(zip(listed.ids, listed.digests, strict=True))
        said = contents(wanted)
        newer = {id_ for id_, now in zip(wanted.ids, digests(wanted, said), strict=True) if written[id_] != now}
        newer |= set(listed.ids) - set(here.rows.ids) - here.unfit.keys() - rejected
        found = differences(wanted, there, tolerance, said)
        changed += len(newer)
        for id_, what in found.items():
            if id_ in newer or what == "missing":  # the source's doing; counted with the ids
                continue
            differing += 1
            if len(examples) < 3 * EXAMPLES and id_ not in lacking:
                examples[str(id_)] = what
        compared += len(wanted)
        on_step("verifying", compared, total)
    return Verified(
        mode,
        compared,
        seed=SEED if mode == "sample" else None,
        tolerance=tolerance,
        missing=missing,
        extra=extra,
        differing=differing,
        examples=examples,
        changed=changed,
    )


async def _both(source: Source, sink: Sink, batches: Iterator[Listed]) -> AsyncIterator[tuple[Listed, Fetched, Rows]]:
    """The rows of each batch on both sides; the next are read while these are compared."""

    async def read(listed: Listed) -> tuple[Listed, Fetched, Rows]:
        here, there = await asyncio.gather(source.fetch(listed.ids, listed.places), sink.fetch(listed.ids))
        return listed, here, there

    reading: asyncio.Task[tuple[Listed, Fetched, Rows]] | None = None
    try:
        for listed in batches:
            ready, reading = reading, asyncio.create_task(read(listed))
            if ready is not None:
                yield await ready
        if reading is not None:
            yield await reading
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _batches(state: State, mode: Mode, read_rows: int) -> Iterator[Listed]:
    if mode == "sample":
        count = state.count
        places = sorted(random.Random(SEED).sample(range(count), _sample_size(count)))
        for start in range(0, len(places), read_rows):
            yield state.at(places[start : start + read_rows])
        return
    place = 0
    while len(listed := state.after(place, read_rows)):
        yield listed
        place = listed.places[-1] + 1


def _sample_size(count: int) -> int:
    return min(count, max(SAMPLE_ROWS, int(count * SAMPLE_SHARE)))
