"""How a move grows with the collection: into Postgres and back into LanceDB, at 10,000 to 1,000,000 chunks."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bench.corpus import PARAGRAPHS
from bench.figures import Figure, clock, note
from bench.homes import Grown, open_home
from bench.move import MEMORY_MB, Moved, move_to, own_postgres
from whimbrel.owner.views import AT_REST_S

SIZES = (10_000, 100_000, 1_000_000)
STEP = 50_000


def run(folder: Path, *, quick: bool) -> list[Figure]:
    """Rows/s from the start to `ready`, against the smallest size, and the memory of the process that moves."""
    place = folder / "move_growth"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    grown = Grown(place)
    figures: list[Figure] = []
    first: dict[str, Moved] = {}
    with own_postgres(place / "postgres") as postgres:
        for size in SIZES[:2] if quick else SIZES:
            _grow(grown, size)
            for source, target, uri in (
                ("lancedb", "postgres", postgres),
                ("postgres", "lancedb", f"lancedb:grown{size}"),
            ):
                moved = move_to(grown.home, source, target, uri)
                base = first.setdefault(target, moved)
                name = f"move of {moved.rows:,} rows into {target}"
                figures += [
                    Figure(name, moved.rows / moved.seconds, "rows/s", base.rows / base.seconds).show(),
                    Figure(f"{name}, memory", moved.above_mb, "MB", None, f"<= {MEMORY_MB}").show(),
                ]
    return figures


def _grow(grown: Grown, size: int) -> None:
    with open_home(grown.home) as whimbrel, clock() as seconds:
        while grown.chunks < size:
            grown.grow(whimbrel, max(1, min(STEP, size - grown.chunks) // PARAGRAPHS))
        time.sleep(AT_REST_S + 15)
        note(f"a home of {grown.chunks:,} chunks after {seconds():.0f} s")
