"""Homes to measure on: documents whose vectors are in the catalog before they are ingested."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from bench.corpus import CHUNKING, PARAGRAPHS, Vectors, Written, write_files
from bench.figures import clock, note
from whimbrel import Whimbrel
from whimbrel.catalog import bulk, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import take_keys
from whimbrel.owner.views import AT_REST_S

OVERRIDES = {"chunking.tokens": CHUNKING.tokens, "chunking.overlap": CHUNKING.overlap}


def open_home(path: Path) -> Whimbrel:
    return Whimbrel(path, **OVERRIDES)


class Grown:
    """A home that grows by made-up documents."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self._sources = folder / "sources"
        self.documents = 0
        self.chunks = 0
        self._vectors: Vectors | None = None

    def grow(self, whimbrel: Whimbrel, documents: int, *, wait: str = "all") -> float:
        """Ingest so many more documents, their vectors computed before. Returns the seconds that the ingest took."""
        source = self._sources / f"{self.documents:07d}"
        before = self.chunks
        for written in write_files(source, whimbrel.embedder().tokenizer, self.documents, documents):
            self._prefill(whimbrel, written)
        self.documents += documents
        embedded = embedded_texts(whimbrel)
        with clock() as seconds:
            result = whimbrel.ingest([source], wait=wait)
        assert result["failed"] == 0, result["failures"]
        assert result["chunks_added"] == self.chunks - before, "the corpus was cut otherwise than foreseen"
        assert embedded_texts(whimbrel) == embedded, "a vector was not found, and computed"
        shutil.rmtree(source)
        return seconds()

    def _prefill(self, whimbrel: Whimbrel, written: Written) -> None:
        if self._vectors is None:
            self._vectors = asyncio.run(Vectors.of(whimbrel.embedder()))
        made = self._vectors(written.topics, self.chunks)
        self.chunks += len(written.hashes)
        rows = dict(zip(written.hashes, made, strict=True))  # each text once
        with whimbrel.catalog.write() as connection:
            space = vectors.space_id(connection, whimbrel.embedder().space, whimbrel.settings.embedder)
            first = take_keys(connection, "texts", len(rows))
            texts = [{"id": first + number, "hash": digest} for number, digest in enumerate(rows)]
            bulk.insert(connection, t.texts, texts)
            ids = [row["id"] for row in texts]
            vectors.put(connection, space, ids, _stacked(list(rows.values())))


def embedded_texts(whimbrel: Whimbrel) -> int:
    """What the owner's embedding stages have computed."""
    owner = whimbrel.owner
    return owner.views.stages.embedded if owner is not None else 0


def _stacked(rows: list) -> object:
    import numpy as np

    return np.stack(rows)


def searched_home(folder: Path, chunks: int) -> Path:
    """A home of about `chunks` chunks in `folder`; one that is there already is taken as it is."""
    done = folder / f"built-{chunks}"
    grown = Grown(folder)
    if done.exists():
        return grown.home
    with clock() as seconds, open_home(grown.home) as whimbrel:
        taken = grown.grow(whimbrel, chunks // PARAGRAPHS)
        note(f"made a home of {grown.chunks} chunks in {seconds():.0f} s; the ingest took {taken:.0f} s")
        time.sleep(AT_REST_S + 15)  # as a home is that has been left in peace: its last rows are indexed then
    done.touch()
    return grown.home


def tokenizer() -> Path:
    """The built-in model's."""
    from whimbrel.models.embedders.minilm import folder

    return folder() / "tokenizer.json"
