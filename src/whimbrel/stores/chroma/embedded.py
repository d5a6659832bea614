"""A Chroma folder, opened by this process alone.

chromadb gives each process its own copy of the index and no word of the others' writes: two of them overwrite each
other. So a lock of ours lies in the folder, and a second process is refused. The stores of one process share the open
folder. chromadb is blocking: its calls run in threads.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.errors import Conflict
from whimbrel.stores.chroma.backend import (
    ELSEWHERE,
    HNSW,
    SPACE_KEY,
    Backend,
    Collection,
    Nearest,
    Rows,
    as_vectors,
    metric_of,
)
from whimbrel.stores.chroma.folder import DATABASE, Folder, chroma_errors, index_folder

T = TypeVar("T")

_CALLS = 8
"""At most at once, of one store."""


class EmbeddedBackend(Backend):
    single_process = True

    def __init__(self, folder: Path) -> None:
        self._path = folder
        self._folder: Folder | None = None
        self._opening = asyncio.Lock()
        self._turns = asyncio.Semaphore(_CALLS)

    @property
    def shown(self) -> str:
        return str(self._path)

    # --- collections -------------------------------------------------------------------------------------------------

    async def max_rows(self) -> int:
        return await self._do(lambda client: int(client.get_max_batch_size()))

    async def find(self, name: str) -> Collection | None:
        if self._folder is None and not await asyncio.to_thread((self._path / DATABASE).is_file):
            return None  # opening it would make it
        folder = await self._opened()

        def find(client: Any) -> Collection | None:
            with folder.describing:
                found = _find(client, name)
                if found is not None:
                    folder.collections[found.id] = found
                return found

        return await self._do(find)

    async def again(self, collection: Collection) -> Collection | None:
        """As this process knows it, which alone changes it."""
        folder = await self._opened()
        return folder.collections.get(collection.id) or await self.find(collection.name)

    async def create(self, name: str, metadata: Mapping[str, Any]) -> Collection:
        folder = await self._opened()

        def create(client: Any) -> Collection:
            with folder.describing:
                if _find(client, name) is not None:
                    raise Conflict(
                        f"There is a collection {name!r} in {self._path} already. Nothing was changed.", ELSEWHERE
                    )
                return _collection(
                    client.create_collection(
                        name, metadata=dict(metadata), configuration={"hnsw": dict(HNSW)}, embedding_function=None
                    )
                )

        return await self._do(create, writes=True)

    async def describe(self, collection: Collection, metadata: Mapping[str, Any]) -> None:
        folder = await self._opened()

        def describe(handle: Any) -> None:
            with folder.describing:
                folder.collections.pop(collection.id, None)
                handle.modify(metadata=dict(metadata))
                folder.collections[collection.id] = replace(collection, metadata=dict(metadata))

        await self._in(collection, describe, writes=True)

    async def drop(self, collection: Collection) -> None:
        folder = await self._opened()

        def drop(client: Any) -> None:
            index = index_folder(self._path, collection.id)
            with folder.describing:
                folder.collections.pop(collection.id, None)
                client.delete_collection(collection.name)
            folder.handles.pop(collection.id, None)
            if index is not None:
                shutil.rmtree(index, ignore_errors=True)  # Chroma leaves it behind, with the vectors in it

        await self._do(drop, writes=True, frees=True)

    async def count(self, collection: Collection) -> int:
        return await self._in(collection, lambda handle: int(handle.count()))

    # --- rows --------------------------------------------------------------------------------------------------------

    async def upsert(
        self,
        collection: Collection,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        texts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None],
    ) -> None:
        await self._in(
            collection,
            lambda handle: handle.upsert(
                ids=list(ids), embeddings=vectors, documents=list(texts), metadatas=list(metadata)
            ),
            writes=True,
        )

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        await self._in(collection, lambda handle: handle.delete(ids=list(ids)), writes=True, frees=True)

    async def get(
        self,
        collection: Collection,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        include: Sequence[str] = (),
    ) -> Rows:
        def get(handle: Any) -> Rows:
            found = handle.get(ids=None if ids is None else list(ids), where=where, include=list(include))
            vectors = as_vectors(found["embeddings"])
            return Rows(found["ids"], found["documents"] or [], found["metadatas"] or [], vectors)

        return await self._in(collection, get)

    async def query(
        self,
        collection: Collection,
        vector: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        metadata: bool = False,
    ) -> Nearest:
        def query(handle: Any) -> Nearest:
            found = handle.query(
                query_embeddings=[vector],
                n_results=k,
                ids=None if ids is None else list(ids),
                where=where,
                include=["distances", *(["metadatas"] if metadata else [])],
            )
            return Nearest(found["ids"][0], found["distances"][0], (found["metadatas"] or [[]])[0])

        return await self._in(collection, query)

    async def erase(self) -> None:
        """`chroma vacuum`: it purges Chroma's log and its word index, and writes the database file anew."""
        folder = await self._opened()
        await asyncio.to_thread(folder.vacuum)

    async def close(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(folder.release)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _in(
        self, collection: Collection, work: Callable[[Any], T], *, writes: bool = False, frees: bool = False
    ) -> T:
        folder = await self._opened()
        return await self._do(lambda client: work(folder.handle(client, collection)), writes=writes, frees=frees)

    async def _do(self, work: Callable[[Any], T], *, writes: bool = False, frees: bool = False) -> T:
        folder = await self._opened()

        def call() -> T:
            if writes:
                with folder.write(frees=frees) as client:
                    return work(client)
            with folder.use() as client, chroma_errors(folder.path):
                return work(client)

        async with self._turns:
            return await asyncio.to_thread(call)

    async def _opened(self) -> Folder:
        if self._folder is None:
            async with self._opening:
                if self._folder is None:
                    self._folder = await asyncio.to_thread(Folder.take, self._path)
        return self._folder


def _find(client: Any, name: str) -> Collection | None:
    from chromadb.errors import NotFoundError

    try:
        return _collection(client.get_collection(name, embedding_function=None))
    except NotFoundError:
        return None


def _collection(handle: Any) -> Collection:
    metadata = handle.metadata or {}
    metric = metric_of(handle.configuration_json, metadata)
    row = handle.get(limit=1, include=["embeddings"])["embeddings"] if SPACE_KEY not in metadata else []
    return Collection(str(handle.id), handle.name, metric, len(row[0]) if len(row) else None, metadata)
