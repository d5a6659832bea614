"""`whimbrel copy` of a LanceDB table that another program filled, every row compared, against each target's own client
writing the same rows."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.figures import Figure, clock, note
from bench.move import MEMORY_MB, own_chroma, own_postgres, own_side, watched
from bench.stores import lancedb
from bench.stores.rows import Rows, make_rows
from whimbrel.memory import bound_memory
from whimbrel.move.copy import Options, copy_all
from whimbrel.stores.base import DENSE
from whimbrel.stores.foreign.base import Chosen
from whimbrel.stores.foreign.resolve import parse
from whimbrel.stores.metrics import Metric

FEWER = {"chroma": 20_000}
"""Rows for those that take a thousand a second."""


def run(folder: Path, *, quick: bool) -> list[Figure]:
    """Rows/s from the start until every row is compared, and the memory of the process that copies."""
    place = folder / "copying"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    most = 20_000 if quick else 100_000
    figures: list[Figure] = []
    with ExitStack() as stack:
        servers = {
            "postgres": stack.enter_context(own_postgres(place / "postgres")),
            "chroma": stack.enter_context(own_chroma(place / "chroma")),
        }
        targets = {"lancedb": f"lancedb:{place / 'target'}", "parquet": f"parquet:{place / 'parquet'}", **servers}
        for name, uri in targets.items():
            count = min(most, FEWER.get(name, most))
            source = place / f"source{count}"
            rows = make_rows(count)
            if not source.exists():
                asyncio.run(_fill(source, rows))
            bare = asyncio.run(_bare(name, servers, place / "bare", rows))
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                seconds, writing, above = process.submit(_copy, source, uri, place / f"states-{name}").result()
            note(f"copy into {name}: {count:,} rows in {seconds:.1f} s, {writing:.1f} s of them writing")
            figures += [
                Figure(f"copy into {name}", count / seconds, "rows/s", bare).show(),
                Figure(f"copy into {name}, memory", above, "MB", None, f"<= {MEMORY_MB}").show(),
            ]
    return figures


async def _fill(folder: Path, rows: Rows) -> None:
    side = lancedb.Direct(folder)
    await side.create()
    for start in range(0, len(rows), rows.batch):
        await side.write(rows.records(start, start + rows.batch))


async def _bare(name: str, uris: dict[str, str], folder: Path, rows: Rows) -> float:
    """Rows per second of the database's own client, or of pyarrow."""
    shutil.rmtree(folder, ignore_errors=True)
    batches = [rows.records(start, start + rows.batch) for start in range(0, len(rows), rows.batch)]
    if name == "parquet":
        folder.mkdir(parents=True)
        with clock() as seconds:
            writer = None
            for batch in batches:
                flat = pa.array(batch.vectors[DENSE].reshape(-1))
                table = pa.table(
                    {
                        "id": batch.ids,
                        "vector": pa.FixedSizeListArray.from_arrays(flat, batch.vectors[DENSE].shape[1]),
                        "text": batch.texts,
                        "metadata": pa.array(batch.metadata),
                    }
                )
                writer = writer or pq.ParquetWriter(folder / "rows.parquet", table.schema)
                writer.write_table(table)
            assert writer is not None
            writer.close()
        return len(rows) / seconds()
    async with own_side(name, uris, folder) as side:
        await side.create()
        with clock() as seconds:
            for batch in batches:
                await side.write(batch)
    return len(rows) / seconds()


def _copy(source: Path, target: str, states: Path) -> tuple[float, float, float]:
    """Seconds, of them spent writing, and MB above what the process had."""
    bound_memory()  # as the command does
    where, mark, query = target.partition("?")
    here, there = parse(f"lancedb:{source}/direct"), parse(f"{where}/copied{mark}{query}")
    options = Options(chosen=Chosen(metric=Metric.COSINE))  # a table without an index says none
    with watched() as peak:
        (report,) = asyncio.run(copy_all(here, there, options, base=Path.cwd(), states=states))
    assert report.holds, report
    return report.seconds, report.seconds_writing, peak.above_mb
