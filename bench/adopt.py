"""Adopting databases that other programs filled, against reading all their rows out and doing nothing with them.

Both read by the same code; the databases are filled by their own clients. The rate of adopting is told at three
moments: when the first search is answered, over the rows that are in by then; when every row is in the catalog and
found by meaning; and when it is found by words too. Ten rows of 500 characters are a document.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.adoptable import DIMENSIONS, FEWER, PER_DOCUMENT, SOURCES, filled
from bench.figures import Figure, clock, note
from bench.homes import tokenizer
from whimbrel import Whimbrel
from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import WhimbrelError
from whimbrel.models.embedders import resolve
from whimbrel.models.embedders.base import Embedder
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign.base import Chosen
from whimbrel.stores.foreign.resolve import open_database, parse

READ_ROWS = 4_000
_WORDS = 3_000


class _Known(Embedder):
    """Gives each text the vector that its row has."""

    def __init__(self, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
        self._at = {text: row for row, text in enumerate(texts)}
        self._vectors = vectors

    @property
    def space(self) -> Space:
        return Space("bench", "1", DIMENSIONS)

    @property
    def tokenizer(self) -> Path:
        return tokenizer()

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        return self._vectors[[self._at.get(text, 0) for text in texts]]


def run(folder: Path, *, quick: bool) -> list[Figure]:
    place = folder / "adopt"
    place.mkdir(parents=True, exist_ok=True)
    count = 20_000 if quick else 100_000
    table, embedder = _rows(count)
    resolve._PROVIDERS["bench"] = lambda _model, _threads: embedder
    figures = []
    _warmed(place, table)
    for name in SOURCES:
        rows = min(count, FEWER.get(name, count))
        with filled(name, place / name, table.slice(0, rows)) as uri:
            figures += _adopted(place / f"home-{name}", name, uri, rows)
    shutil.rmtree(place, ignore_errors=True)
    return figures


def _warmed(place: Path, table: pa.Table) -> None:
    """What a process imports and opens once is done before the first figure, as it is before reading out."""
    with Whimbrel(place / "warm", embedder="bench") as whimbrel:
        with filled("lancedb", place / "few", table.slice(0, 500)) as uri:
            whimbrel.adopt(uri, "theirs")
        assert whimbrel.search("word7 word8", "theirs").hits


def _adopted(home: Path, name: str, uri: str, rows: int) -> list[Figure]:
    with Whimbrel(home, embedder="bench") as whimbrel:
        whimbrel.own()
        asyncio.run(_read_out(uri, home / "warm"))  # imports, and the files in the system's memory
        with clock() as reading:
            assert asyncio.run(_read_out(uri, home / "warm")) == rows
        read = rows / reading()
        note(f"{name}: {rows:,} rows are read out in {reading():.2f} s")
        with clock() as taken:
            begun = whimbrel.start_adopt(uri, "theirs")
            _until_answered(whimbrel)
            first = taken()
            whimbrel.finish(begun.job)
            whole = taken()
            whimbrel.wait_for_head("theirs")
        found = whimbrel.search("word7 word8", "theirs")
        assert found.hits
        assert not found.degraded, found.degraded
    shutil.rmtree(home)
    return [
        Figure(f"adopt {name}, first search answered", rows / first, "rows/s", read, ">= 0.8").show(),
        Figure(f"adopt {name}, every row in the catalog", rows / whole, "rows/s", read).show(),
        Figure(f"adopt {name}, every row found by words", rows / taken(), "rows/s", read).show(),
    ]


def _until_answered(whimbrel: Whimbrel) -> None:
    """Until a search by meaning finds something."""
    while True:
        try:
            if whimbrel.search("word7 word8", "theirs", mode="dense").hits:
                return
        except WhimbrelError:
            pass  # the first rows are not in yet
        time.sleep(0.02)


async def _read_out(uri: str, scratch: Path) -> int:
    address = parse(uri)
    database = open_database(address, base=Path.cwd(), scratch=scratch, reach=Reach(timeout_s=120.0))
    source = database.source(address.collection, Chosen())
    count = 0
    try:
        await source.describe()
        async for ids in source.ids():
            for start in range(0, len(ids), READ_ROWS):
                some = ids[start : start + READ_ROWS]
                count += len((await source.fetch(some, range(count, count + len(some)))).rows)
    finally:
        await source.close()
        await database.close()
    return count


def _rows(count: int) -> tuple[pa.Table, Embedder]:
    rng = np.random.default_rng(7)
    words = np.array([f"word{number}" for number in range(_WORDS)])
    texts = [f"Passage {row}: " + " ".join(words[rng.integers(0, _WORDS, 58)]) for row in range(count)]
    latent = rng.normal(size=(count, 40)).astype(np.float32) @ rng.normal(size=(40, DIMENSIONS)).astype(np.float32)
    vectors = latent / np.linalg.norm(latent, axis=1, keepdims=True)
    table = pa.table(
        {
            "id": [f"row-{row}" for row in range(count)],
            "text": texts,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIMENSIONS),
            "source": [f"https://bench.example/{row // PER_DOCUMENT}" for row in range(count)],
            "title": [f"Document {row // PER_DOCUMENT}" for row in range(count)],
            "chunk_index": [row % PER_DOCUMENT for row in range(count)],
            "year": [2000 + row // PER_DOCUMENT % 25 for row in range(count)],
        }
    )
    return table, _Known(texts, vectors)
