"""What the store asks of Milvus, in a folder or behind a server: its collections, as rows.

Each call raises `StoreUnavailable` (no answer now), `StoreRefused`, `ViewDamaged` (the collection or its files are not
there or unreadable), `DiskFull`, `HomeError`; and `Refused` for what may be asked in parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.stores.milvus.where import Facts

ID, VECTOR, TEXT, MORE, METADATA, FACTS, LOOSE = "id", "vector", "text", "more", "metadata", "facts", "loose"
"""Fields of a collection that we make; see `whimbrel.stores.milvus.rows`."""

SPACE_KEY, FORMAT_KEY = "space", "format"

ABOUT = "whimbrel"
"""Of a collection that we made: the key of what is said of it, and the partition of the row with its position."""

ROWS = "_default"
"""The partition of its rows, as Milvus names it."""

POSITION = "whimbrel:position"
"""The id of the row with the position."""


ELSEWHERE = "Name another file, database or collection."

NAMES = "Names have up to 255 letters, digits and `_`, and do not start with a digit."

HNSW: Mapping[str, Any] = {"M": 16, "efConstruction": 200}
EF = 200
"""Rows that a search looks at, at least: recall@10 on real embeddings."""
FILTERED_EF = 2_000
"""The same where a condition lets few of them pass: a graph leads to those less well."""

MAX_WINDOW = 16_384
"""Most hits of one search, and most rows of one page of a server."""

MAX_LENGTH = 65_535
"""Bytes of a string, of an id too."""
MAX_CAPACITY = 4_096
"""Items of an array."""


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    metric: str
    """Milvus' name: `COSINE`, `L2` or `IP`; "" where the vector has no index."""
    dimensions: int | None
    """None where it has no field of vectors such as ours."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What we say of a collection that we made: its format, and the space of its vectors."""


@dataclass(frozen=True, slots=True)
class Hit:
    id: str
    similarity: float
    """Cosine."""
    row: Mapping[str, Any]
    """The fields that were asked for."""


class Backend(ABC):
    single_process: bool
    writes_at_once: int
    """Batches that are on their way at a time: one is made while the server works on another."""
    facts: Facts
    """How a condition asks for a fact."""

    @property
    @abstractmethod
    def shown(self) -> str:
        """Where it is, for messages; no credentials."""

    @abstractmethod
    async def find(self, name: str) -> Collection | None: ...

    @abstractmethod
    async def create(self, name: str, dimensions: int, about: Mapping[str, Any]) -> None:
        """Make it, loaded. Raises `Conflict` if there is one of that name."""

    @abstractmethod
    async def drop(self, name: str) -> None: ...

    @abstractmethod
    async def count(self, name: str) -> int: ...

    @abstractmethod
    async def write(self, name: str, rows: Sequence[dict[str, Any]], *, more: bool) -> None:
        """Write whole rows; those of the same ids are replaced. `more`: many are to come, so the index may wait. Raises
        `Refused`."""

    @abstractmethod
    async def delete(self, name: str, ids: Sequence[str]) -> None: ...

    @abstractmethod
    async def get(self, name: str, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of those ids that exist: their id and the fields that were asked for; `*` is all."""

    @abstractmethod
    async def ids(self, name: str, where: str = "") -> list[str]:
        """Of the rows that pass the condition."""

    @abstractmethod
    def scan(self, name: str, page: int) -> AsyncIterator[list[dict[str, Any]]]:
        """Whole rows, in pages of at most `page`. A row that stays from the first to the last is in one of them."""

    @abstractmethod
    async def search(
        self, name: str, vector: npt.NDArray[np.float32], k: int, where: str, fields: Sequence[str]
    ) -> list[Hit]:
        """The k nearest rows that pass the condition, best first, as the index finds them: it may overlook some."""

    @abstractmethod
    async def read_position(self, name: str) -> str | None: ...

    @abstractmethod
    async def write_position(self, name: str, dimensions: int, said: str, *, wait: bool) -> None:
        """`wait`: until every reader sees it, and with it all that was written before."""

    @abstractmethod
    async def settle(self, name: str, *, wait: bool) -> None:
        """Bring what was written under the index; `wait`: to the end."""

    @abstractmethod
    async def erase(self, name: str) -> None:
        """Write deleted rows out of the files, as far as this can be asked for."""

    @abstractmethod
    async def close(self) -> None: ...
