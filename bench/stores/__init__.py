"""A view in each database against the database's own client, used directly and well, in turn in one run.

Both sides hold the same 100,000 rows: 384 dimensions, texts of 500 characters, five metadata fields. They take turns, a
batch or a query each, so that what else the machine does falls on both.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.figures import Figure, clock, median, note
from bench.stores.rows import SITES, YEAR, Rows, make_rows
from bench.stores.sides import Database, Ours, Side

DATABASES = ("lancedb", "postgres", "chroma", "chroma_folder", "qdrant_folder", "milvus", "milvus_lite")
"""One file each here: `database(folder)` gives both sides of it."""

FEWER = {"qdrant_folder": 10_000, "milvus_lite": 20_000}
"""Rows of those that look at all of them where a filter is given, or for each search."""

TOP_K = 10
RATE, LATENCY = ">= 0.9", "<= 1.15"


def run(folder: Path, *, quick: bool, names: tuple[str, ...] = DATABASES) -> list[Figure]:
    most = 30_000 if quick else 100_000
    every = {count: make_rows(count) for count in {FEWER.get(name, most) for name in names}}
    figures = []
    for name in names:
        rows = every[FEWER.get(name, most)]
        place = folder / "stores" / name
        place.mkdir(parents=True, exist_ok=True)
        database = import_module(f"bench.stores.{name}").database
        figures += asyncio.run(_measure(name, database(place), rows, quick=quick))
    return figures


async def _measure(
    name: str, opening: AbstractAsyncContextManager[Database], rows: Rows, *, quick: bool
) -> list[Figure]:
    async with opening as database:
        sides = (Ours(database.store), database.direct)
        figures = await _writing(name, sides, rows, together=database.indexes_as_it_likes)
        figures += await _searching(name, sides, rows, queries=100 if quick else 400)
        figures += await _upserting(name, sides, rows, batches=4 if quick else 10)
        figures += await _reading(name, sides, rows, times=3)
    return figures


async def _writing(name: str, sides: tuple[Side, Side], rows: Rows, *, together: bool) -> list[Figure]:
    """Rows per second until they are in, and until they are indexed too."""
    for side in sides:
        await side.create()
    written: list[list[float]] = [[], []]
    for start in range(0, len(rows), rows.batch):
        for side, seconds in zip(sides, written, strict=True):
            with clock() as elapsed:
                await side.write(rows.records(start, start + rows.batch))
            seconds.append(elapsed())
    indexed = []
    for side in sides:
        with clock() as elapsed:
            await side.index()
        indexed.append(elapsed())
    ours, direct = (rows.batch / median(seconds) for seconds in written)
    figures = [Figure(f"{name}: bulk write", ours, "rows/s", direct, RATE).show()]
    if together:
        note(f"{name}: what the index costs is in `bench move`: the server builds both at once, as it likes")
        return figures
    ours, direct = (len(rows) / (sum(seconds) + more) for seconds, more in zip(written, indexed, strict=True))
    return [*figures, Figure(f"{name}: bulk write and index", ours, "rows/s", direct, RATE).show()]


async def _upserting(name: str, sides: tuple[Side, Side], rows: Rows, *, batches: int) -> list[Figure]:
    """Batches of 1,000 rows with the index in place: half of them are there already."""
    seconds: list[list[float]] = [[], []]
    for number in range(batches):
        batch = rows.changed(number, 1_000)
        for side, each in zip(sides, seconds, strict=True):
            with clock() as elapsed:
                await side.upsert(batch)
            each.append(elapsed())
    ours, direct = (1_000 / median(each) for each in seconds)
    return [Figure(f"{name}: upsert", ours, "rows/s", direct, RATE).show()]


async def _searching(name: str, sides: tuple[Side, Side], rows: Rows, *, queries: int) -> list[Figure]:
    figures = []
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("search", {}),
        (f"search, 1 of {SITES} sites", {"site": "docs7"}),
        ("search, half of the years", {"year": YEAR}),
    ]
    for kind, where in kinds:
        seconds: list[list[float]] = [[], []]
        right = [0, 0]
        for number in range(queries):
            query = rows.query(number)
            exact = rows.nearest(query, TOP_K, **where) if number < 50 else set()
            for index in (0, 1) if number % 2 else (1, 0):
                with clock() as elapsed:
                    found = await sides[index].search(query, TOP_K, **where)
                seconds[index].append(1000 * elapsed())
                assert len(found) == TOP_K
                right[index] += len(exact & set(found))
        recall = [hits / (TOP_K * min(50, queries)) for hits in right]
        note(f"{name}: {kind}: recall@{TOP_K} {recall[0]:.3f}, direct {recall[1]:.3f}")
        warm = queries // 10
        ours, direct = (median(each[warm:]) for each in seconds)
        figures.append(Figure(f"{name}: {kind}, p50", ours, "ms", direct, LATENCY).show())
    return figures


async def _reading(name: str, sides: tuple[Side, Side], rows: Rows, *, times: int) -> list[Figure]:
    """Every row with its text, metadata and vector."""
    seconds: list[list[float]] = [[], []]
    counts = set()
    for _ in range(times):
        for side, each in zip(sides, seconds, strict=True):
            with clock() as elapsed:
                counts.add(await side.read_out())
            each.append(elapsed())
    (count,) = counts
    ours, direct = (count / median(each) for each in seconds)
    return [Figure(f"{name}: read-out", ours, "rows/s", direct, RATE).show()]
