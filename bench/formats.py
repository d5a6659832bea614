"""Documents a second by format: ours, and Kreuzberg alone on the same files, both with all cores.

Kreuzberg alone is its own batch call with Markdown as output, on its own threads. Ours is what an ingest does with a
file: a process for each core reads it, makes Markdown of it and finds its pages. Both have the files in memory, and
ours are told which to read by number, as workers are told a path. The figures with a target leave out the cutting into
chunks, which Kreuzberg is not asked for; one with it, through the worker processes, is a note. What Kreuzberg does not
read here (pictures without Tesseract), and text, which needs no reader, is not compared.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.figures import Figure, median, note
from bench.homes import tokenizer
from whimbrel.errors import ExtractionFailed
from whimbrel.ingest.extract import extract
from whimbrel.ingest.formats import format_of
from whimbrel.ingest.reader import ocr_available
from whimbrel.ingest.workers import ExtractionPool, Request

ROUNDS = 5
LEAST = 0.4
"""Seconds that a side takes at least, by reading the files of a small format several times."""
PORTIONS = 50
"""That a batch is handed to each process in: few enough to cost nothing, so many that both end together."""
NAMES = {
    "application/pdf": "PDF",
    "text/html": "HTML",
    "text/x-rst": "RST",
    "message/rfc822": "EML",
    "application/vnd.ms-outlook": "MSG",
    "application/epub+zip": "EPUB",
    "application/rtf": "RTF",
    "text/csv": "CSV",
    "application/x-ipynb+json": "notebooks",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "DOCX",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "XLSX",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "PPTX",
    "application/vnd.oasis.opendocument.text": "ODT",
}

File = tuple[str, bytes, str]
"""(name, content, media type)."""


def run(folder: Path, *, quick: bool) -> list[Figure]:
    data = os.environ.get("WHIMBREL_TEST_DATA", "")
    if not data or not (Path(data) / "files").is_dir():
        note("formats: WHIMBREL_TEST_DATA is not set, or has no files/: skipped")
        return []
    files = _files(Path(data))
    rounds = 1 if quick else ROUNDS
    cores = len(os.sched_getaffinity(0))
    figures = []
    totals: dict[str, list[float]] = {"ours": [], "cut": [], "theirs": []}
    every = [one for some in files.values() for one in some]
    places = {file[:2]: place for place, file in enumerate(every)}

    def read(batch: list[File]) -> None:
        told = [places[file[:2]] for file in batch]
        pool.map(_read, told, chunksize=max(1, len(batch) // (cores * PORTIONS)))

    with multiprocessing.get_context("spawn").Pool(cores, _hold, [every]) as pool:
        read([one for some in files.values() for one in some[:2]])  # imports, and the first use of each reader
        for media_type, some in files.items():
            ours, theirs = _in_turns(some, rounds, read, _kreuzberg)
            title = f"formats: {NAMES[media_type]}, {len(some)} files"
            figures.append(Figure(title, len(some) / ours, "documents/s", len(some) / theirs, ">= 0.8").show())
            totals["ours"].append(ours)
            totals["theirs"].append(theirs)
    cut, _ = _in_turns(every, 1, _worker_pool, lambda batch: None)
    count = len(every)
    against = count / sum(totals["theirs"])
    figures.append(Figure("formats: all of them", count / sum(totals["ours"]), "documents/s", against, ">= 0.8").show())
    figures.append(
        Figure("formats: all of them, through the workers and cut", count / cut, "documents/s", against).show()
    )
    return figures


def _in_turns(
    files: Sequence[File], rounds: int, ours: Callable[[list[File]], object], theirs: Callable[[list[File]], object]
) -> tuple[float, float]:
    """Median seconds for the files once, ours and theirs; the sides take turns."""
    began = time.perf_counter()
    ours(list(files))
    times = max(1, min(50, round(LEAST / max(time.perf_counter() - began, 0.001))))
    batch = list(files) * times
    measured: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            (ours, theirs)[side](batch)
            measured[side].append((time.perf_counter() - began) / times)
    return median(measured[0]), median(measured[1])


_held: list[File] = []
"""In a process of the pool: what it may be told to read."""


def _hold(files: list[File]) -> None:
    _held[:] = files


def _read(place: int) -> int:
    name, content, _ = _held[place]
    try:
        return len(extract(content, name=name).text)
    except ExtractionFailed:
        return 0


def _kreuzberg(files: list[File]) -> object:
    import kreuzberg

    config = kreuzberg.ExtractionConfig(output_format="markdown", use_cache=False, disable_ocr=not ocr_available())
    return kreuzberg.batch_extract_bytes_sync(
        [content for _, content, _ in files], [media_type for _, _, media_type in files], config
    )


def _worker_pool(files: list[File]) -> None:
    async def work() -> None:
        pool = ExtractionPool(workers=len(os.sched_getaffinity(0)))

        async def one(file: File) -> None:
            with suppress(ExtractionFailed):
                await pool.process(Request(file[1], file[0], tokenizer()))

        await asyncio.gather(*map(one, files))
        await pool.close()

    asyncio.run(work())


def _files(data: Path) -> dict[str, list[File]]:
    """By media type; what Kreuzberg cannot read is left out on both sides."""
    places = [*sorted((data / "files").rglob("*")), *sorted((data / "pdf_qa").rglob("*.pdf"))[:5]]
    places += sorted((data / "docs").rglob("*.rst"))[::4]
    for site in sorted((data / "sites").iterdir()) if (data / "sites").is_dir() else []:
        places += sorted(site.rglob("*.html"))[::12] if site.is_dir() else []
    found: dict[str, list[File]] = defaultdict(list)
    for path in places:
        if path.is_file() and path.stat().st_size < 4_000_000:
            content = path.read_bytes()
            media_type = format_of(path.name, content).media_type
            if media_type in NAMES and _readable((path.name, content, media_type)):
                found[media_type].append((path.name, content, media_type))
    return dict(sorted(found.items(), key=lambda item: NAMES[item[0]]))


def _readable(file: File) -> bool:
    import kreuzberg

    try:
        kreuzberg.extract_bytes_sync(file[1], file[2], kreuzberg.ExtractionConfig(use_cache=False, disable_ocr=True))
    except Exception:
        return False
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a panic in Rust becomes; no Exception
            raise
        return False
    return True
