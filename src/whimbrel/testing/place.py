"""Where the suite makes tables, what it puts into them, and how another process comes to the same table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np

from whimbrel.domain import Metadata, Space
from whimbrel.stores.base import DENSE, Reach, Records, Store, Vectors
from whimbrel.stores.resolve import open_store

SPACE = Space("conformance", "1", 16)
"""Of the small tables."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place without tables: all that another process needs to open what is made there."""

    uri: str
    base: Path
    """What relative paths of the URI are under."""
    opener: str | None = None
    """`package.module:callable`, as an entry point of the group `whimbrel.stores` would name it; None where the scheme
    is known already."""

    def store(self, name: str = "view", space: Space = SPACE, *, read_only: bool = False) -> Store:
        """A handle on a table; nothing is opened yet."""
        if self.opener is None:
            return open_store(self.uri, name, space, base=self.base, read_only=read_only)
        opener = EntryPoint("conformance", self.opener, "whimbrel.stores").load()
        made: Store = opener(self.uri, name, space, base=self.base, read_only=read_only, reach=Reach())
        return made

    @asynccontextmanager
    async def table(self, name: str = "view", space: Space = SPACE) -> AsyncIterator[Store]:
        """A new, empty table, closed at the end."""
        store = self.store(name, space)
        await store.create()
        try:
            yield store
        finally:
            await store.close()

    def process(self, task: str, **arguments: Any) -> subprocess.Popen[str]:
        """Another process at a task of `whimbrel.testing.child`, with what it prints."""
        place = {**asdict(self), "base": str(self.base)}
        return subprocess.Popen(
            [sys.executable, "-m", "whimbrel.testing.child", task, json.dumps({"place": place, **arguments})],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )


def unit_vectors(count: int, seed: int = 0, dimensions: int = SPACE.dimensions) -> Vectors:
    """float32[count, dimensions] of length 1, the same for the same seed."""
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def rows_of(metadata: Sequence[Metadata], *, first: int = 0, text: str = "text") -> Records:
    """Rows with the ids `000000`, `000001`, ... from `first`, each with a vector of its own."""
    ids = [f"{i:06d}" for i in range(first, first + len(metadata))]
    return Records(ids, {DENSE: unit_vectors(len(ids), first)}, [f"{text} {id_}" for id_ in ids], metadata)


async def scanned(store: Store, batch: int = 5_000) -> Records:
    """The whole table, by `scan`."""
    parts = [part async for part in store.scan(batch)]
    assert all(0 < len(part) <= batch for part in parts), "a batch is empty or too large"
    return Records.joined(parts, store.describe().dimensions)


def by_id(records: Records) -> dict[str, tuple[str, Metadata]]:
    """(text, metadata) of each row; no id comes twice."""
    assert len(set(records.ids)) == len(records), "an id comes twice"
    return dict(zip(records.ids, zip(records.texts, records.metadata, strict=True), strict=True))
