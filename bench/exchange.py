"""Export and import of a collection, against pyarrow writing and reading the same tables alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.corpus import PARAGRAPHS
from bench.figures import Figure, clock, median, note
from bench.homes import Grown, open_home
from whimbrel.catalog.exported_folder import ExportFolder

TIMES = 3


def run(folder: Path, *, quick: bool) -> list[Figure]:
    """Chunks/s, each in turn with pyarrow alone; medians."""
    wanted = 20_000 if quick else 100_000
    place = folder / "exchange"
    shutil.rmtree(place, ignore_errors=True)
    grown = Grown(place)
    with open_home(grown.home) as whimbrel:
        grown.grow(whimbrel, wanted // PARAGRAPHS)
    rates: dict[str, list[float]] = {name: [] for name in ("export", "write", "check", "read", "import", "searchable")}
    for number in range(TIMES):
        for name, seconds in _once(grown, place, number).items():
            rates[name].append(grown.chunks / seconds)
    shutil.rmtree(place)
    found = {name: median(some) for name, some in rates.items()}
    about = f"of {grown.chunks:,} chunks"
    return [
        Figure(f"export {about}, against pyarrow writing", found["export"], "chunks/s", found["write"]).show(),
        Figure(f"check {about}, against pyarrow reading", found["check"], "chunks/s", found["read"]).show(),
        Figure(
            f"import {about}: check and job, against pyarrow reading", found["import"], "chunks/s", found["read"]
        ).show(),
        Figure(f"import {about}, until both views hold them", found["searchable"], "chunks/s").show(),
    ]


def _once(grown: Grown, place: Path, number: int) -> dict[str, float]:
    """Seconds of each."""
    took = {}
    target, alone = place / f"export-{number}", place / f"alone-{number}"
    with open_home(grown.home) as whimbrel, clock() as seconds:
        whimbrel.export("default", target)
        took["export"] = seconds()
    with clock() as seconds:
        tables = {path.name: pq.read_table(path) for path in target.glob("*.parquet")}
        took["read"] = seconds()
    alone.mkdir()
    with clock() as seconds:
        _write(alone, tables)
        took["write"] = seconds()
    del tables
    with clock() as seconds:
        ExportFolder(target).check()
        took["check"] = seconds()
    with open_home(place / f"home-{number}") as whimbrel, clock() as seconds:
        whimbrel.import_(target, wait="job")
        took["import"] = seconds()
        whimbrel.wait_for_head("default")
        took["searchable"] = seconds()
    note(", ".join(f"{name} {one:.2f} s" for name, one in took.items()))
    shutil.rmtree(place / f"home-{number}")
    return took


def _write(folder: Path, tables: dict[str, pa.Table]) -> None:
    for name, table in tables.items():
        compression = "none" if name.startswith("vectors") else "zstd"
        with (folder / name).open("wb") as file:
            pq.write_table(table, file, use_dictionary=False, compression=compression, row_group_size=5_000)
            file.flush()
            os.fsync(file.fileno())
