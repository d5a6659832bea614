"""Helpers for tests on a whole, running Whimbrel."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sqlalchemy import func, select

from whimbrel.app import Whimbrel
from whimbrel.catalog import collections, log
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import Collection
from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import ModelError, TextRefused
from whimbrel.ingest.workers import ExtractionPool, Processed, Request
from whimbrel.models.embedders import minilm
from whimbrel.models.embedders.base import Embedder

DEADLINE_S = 60.0


class Toy(Embedder):
    """An embedder that can be out, refuse texts, and counts what it is given; its words-as-vectors need no time."""

    def __init__(self, *, model: str = "toy", revision: str = "1", dimensions: int = 32) -> None:
        self._space = Space(model=model, revision=revision, dimensions=dimensions)
        self.out = ""
        """Why it does not answer; empty while it does."""
        self.refuses = "no text has this"
        self.says_which = True
        self.given: list[str] = []
        """Documents' texts that it made a vector of."""

    @property
    def space(self) -> Space:
        return self._space

    @property
    def tokenizer(self) -> Path:
        return minilm.folder() / "tokenizer.json"

    def count_tokens(self, text: str) -> int:
        return len(text.split()) + 2

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        if self.out:
            raise ModelError(self.out, "Wait.")
        bad = [index for index, text in enumerate(texts) if self.refuses in text]
        if bad:
            raise TextRefused("It has a word that I do not read.", positions=bad if self.says_which else ())
        if kind is EmbedKind.DOCUMENT:
            self.given.extend(texts)
        return np.array([self._vector(text) for text in texts], np.float32).reshape(len(texts), -1)

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        vector = np.zeros(self._space.dimensions, np.float32)
        for word in text.lower().split():
            vector[int.from_bytes(hashlib.md5(word.encode()).digest()[:4], "little") % len(vector)] += 1.0
        return vector / max(float(np.linalg.norm(vector)), 1e-6)


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that are read while it lasts."""
    read: list[str] = []
    process = ExtractionPool.process

    async def counted(self: ExtractionPool, request: Request) -> Processed:
        read.append(request.name)
        return await process(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(ExtractionPool, "process", counted)
        yield read


def files(folder: Path, count: int, about: str = "birds") -> list[Path]:
    """Short Markdown files, each of one chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        path = folder / f"f{number:03}.md"
        path.write_text(
            f"# {about} {number}\n\nNumber {number} of the notes on {about}, written in town {number * 7}.\n"
        )
        made.append(path)
    return made


def paragraphs(*names: object) -> str:
    """A text of paragraphs so long that each is a chunk of its own; `bird{name}` is in one alone."""
    return "\n\n".join(_paragraph(name) for name in names) + "\n"


_WORDS = ("river", "stone", "field", "light", "water", "summer", "winter", "house", "road", "north", "tree", "hill")


def _paragraph(name: object) -> str:
    dice = random.Random(str(name))
    sentences = [" ".join(dice.choice(_WORDS) for _ in range(12)) + "." for _ in range(11)]
    return f"bird{name} " + " ".join(sentences)


def found(whimbrel: Whimbrel, name: str) -> Collection:
    with whimbrel.catalog.read() as connection:
        return collections.find(connection, name)


def head(whimbrel: Whimbrel, name: str) -> int:
    return found(whimbrel, name).head


def count(whimbrel: Whimbrel, table: Any) -> int:
    with whimbrel.catalog.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def logged(whimbrel: Whimbrel, name: str) -> int:
    with whimbrel.catalog.read() as connection:
        return log.length(connection, collections.find(connection, name).id)


def chunks(whimbrel: Whimbrel, name: str, document: str | None = None) -> dict[str, tuple[int, int, int]]:
    """Public id -> (key, start, end)."""
    columns = t.chunks.c
    query = (
        select(columns.public_id, columns.id, columns.start, columns.end)
        .join_from(t.chunks, t.documents, t.documents.c.id == columns.document_id)
        .where(columns.collection_id == found(whimbrel, name).id)
        .order_by(columns.document_id, columns.ordinal)
    )
    if document is not None:
        query = query.where(t.documents.c.public_id == bytes.fromhex(document))
    with whimbrel.catalog.read() as connection:
        return {row[0].hex(): (row[1], row[2], row[3]) for row in connection.execute(query)}


def verified(whimbrel: Whimbrel, name: str) -> None:
    """Each view of the collection equals the catalog, row for row."""
    for row in whimbrel.views(name):
        if row.view.state == "live":
            report = whimbrel.finish(whimbrel.start_view_job("verify_view", row.id), timeout_s=DEADLINE_S)
            assert report["equal"], report


def until(true: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
    """Wait for something; what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.03)
    return value


def uris(whimbrel: Whimbrel, name: str, state: str | None = None) -> list[str]:
    return [document["uri"] for document in whimbrel.documents(name, state=state, limit=10_000)]
