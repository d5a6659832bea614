"""What a copy asks of Chroma, in a folder and at a server."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from whimbrel.errors import StoreRefused
from whimbrel.stores.chroma.backend import NAMES, Backend, Collection, as_vectors
from whimbrel.stores.chroma.embedded import EmbeddedBackend
from whimbrel.stores.chroma.folder import DATABASE
from whimbrel.stores.chroma.server import ServerBackend

_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Whole:
    """Rows as Chroma has them."""

    ids: list[str]
    texts: Sequence[str | None] = ()
    metadata: Sequence[Mapping[str, Any] | None] = ()
    uris: Sequence[str | None] = ()
    vectors: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))


class Everything(Backend):
    """What a copy asks of Chroma beyond what a view does."""

    @abstractmethod
    async def names(self) -> list[str]: ...

    @abstractmethod
    async def make(self, name: str, metric: str, metadata: Mapping[str, Any]) -> Collection: ...

    @abstractmethod
    async def read(self, collection: Collection, ids: Sequence[str]) -> Whole: ...

    @abstractmethod
    async def put(self, collection: Collection, rows: Whole) -> None: ...


class InFolder(EmbeddedBackend, Everything):
    async def names(self) -> list[str]:
        if self._folder is None and not await asyncio.to_thread((self._path / DATABASE).is_file):
            return []  # opening it would make it
        return await self._do(lambda client: [one.name for one in client.list_collections()])

    async def make(self, name: str, metric: str, metadata: Mapping[str, Any]) -> Collection:
        def make(client: Any) -> Collection:
            made = client.create_collection(
                name, metadata=dict(metadata), configuration={"hnsw": {"space": metric}}, embedding_function=None
            )
            return Collection(str(made.id), made.name, metric, None, metadata)

        return await self._do(make)

    async def read(self, collection: Collection, ids: Sequence[str]) -> Whole:
        def read(handle: Any) -> Whole:
            found = handle.get(ids=list(ids), include=["documents", "metadatas", "embeddings", "uris"])
            vectors = as_vectors(found["embeddings"])
            return Whole(found["ids"], found["documents"], found["metadatas"], found["uris"], vectors)

        return await self._in(collection, read)

    async def put(self, collection: Collection, rows: Whole) -> None:
        await self._in(
            collection,
            lambda handle: handle.upsert(
                ids=rows.ids,
                embeddings=rows.vectors,
                documents=list(rows.texts),
                metadatas=list(rows.metadata),
                uris=list(rows.uris) if any(one is not None for one in rows.uris) else None,
            ),
        )


class AtServer(ServerBackend, Everything):
    async def names(self) -> list[str]:
        await self._greet()
        names: list[str] = []
        while True:
            page = await self._ask("GET", f"/collections?limit={_PAGE}&offset={len(names)}")
            names += [one["name"] for one in page]
            if len(page) < _PAGE:
                return names

    async def make(self, name: str, metric: str, metadata: Mapping[str, Any]) -> Collection:
        await self._greet()
        about = {"name": name, "metadata": dict(metadata), "configuration": {"hnsw": {"space": metric}}}
        status, answer = await self._send("POST", f"{self._database}/collections", about)
        if status in (400, 422) and "name" in str(answer):
            raise StoreRefused(f"Chroma does not take {name!r} as the name of a collection.", NAMES)
        self._check(status, answer)
        return Collection(answer["id"], name, metric, None, metadata)

    async def read(self, collection: Collection, ids: Sequence[str]) -> Whole:
        wanted = {"ids": ids, "include": ["documents", "metadatas", "embeddings", "uris"]}
        found = await self._ask("POST", f"/collections/{quote(collection.id)}/get", wanted)
        vectors = await asyncio.to_thread(as_vectors, found["embeddings"])
        nothing = [None] * len(found["ids"])
        return Whole(found["ids"], found["documents"], found["metadatas"], found.get("uris") or nothing, vectors)

    async def put(self, collection: Collection, rows: Whole) -> None:
        await self._greet()
        written = {
            "ids": rows.ids,
            "embeddings": self._vectors(rows.vectors),
            "documents": rows.texts,
            "metadatas": rows.metadata,
            "uris": rows.uris if any(one is not None for one in rows.uris) else None,
        }
        await self._put(collection, written)

    def _vectors(self, vectors: npt.NDArray[np.float32]) -> Any:
        from whimbrel.stores.chroma.server import _as_base64

        return _as_base64(vectors) if self._base64 else vectors
