"""Rows of a collection, under ids that Chroma takes, read and written in what its calls take."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whimbrel.errors import StoreUnavailable
from whimbrel.stores.base import DENSE, Records, Vectors
from whimbrel.stores.chroma.backend import Backend, Collection, Rows, UnknownId
from whimbrel.stores.chroma.metadata import decode

PAGE_ROWS = 250
"""Of one read of rows by their ids. A vector comes as digits, and each becomes an object first: 14 KB for 384 of them,
which a move is to hold few of. Pages of 1,000 take as long, of 5,000 1.4 to 1.6 times."""
_IDS_PER_CALL = 5_000
_ID_PREFIX = "whimbrel:id:"


def to_chroma(id_: str) -> str:
    """Chroma refuses the empty id; it gets a name, and so does whatever begins like that name."""
    return id_ if id_ and not id_.startswith(_ID_PREFIX) else _ID_PREFIX + id_


def from_chroma(id_: str) -> str:
    return id_.removeprefix(_ID_PREFIX)


def pages(items: Sequence[str], rows: int) -> list[Sequence[str]]:
    return [items[start : start + rows] for start in range(0, len(items), rows)]


async def get(
    backend: Backend,
    collection: Collection,
    *,
    ids: Sequence[str] | None = None,
    where: Mapping[str, Any] | None = None,
    include: Sequence[str] = (),
) -> Rows:
    """As the backend's. A row that is deleted between Chroma's look at its tables and at its index fails the whole
    read there: it is asked again."""
    for attempt in range(20):
        try:
            return await backend.get(collection, ids=ids, where=where, include=include)
        except UnknownId:
            await asyncio.sleep(0.02 * attempt)
    raise StoreUnavailable(
        f"Collection {collection.name!r} in {backend.shown}: rows are deleted faster than they are read.", "Try again."
    )


async def present(backend: Backend, collection: Collection, ids: Sequence[str]) -> list[str]:
    """Those of the ids, as Chroma has them, that have a row."""
    return [id_ for some in pages(ids, _IDS_PER_CALL) for id_ in (await get(backend, collection, ids=some)).ids]


async def read(backend: Backend, collection: Collection, ids: Sequence[str], dimensions: int) -> Records:
    """The rows of those ids that exist, whole."""
    wanted = list(map(to_chroma, ids))
    rows = await get(backend, collection, ids=wanted, include=["documents", "metadatas", "embeddings"])
    vectors = rows.vectors if rows.ids else np.zeros((0, dimensions), np.float32)
    texts = [text or "" for text in rows.texts]
    return Records(list(map(from_chroma, rows.ids)), {DENSE: vectors}, texts, list(map(decode, rows.metadata)))


async def write(backend: Backend, collection: Collection, batch: Records, metadata: list[dict[str, Any]]) -> None:
    """Upsert rows whose metadata is encoded as `metadata` says."""
    ids, vectors, texts = list(map(to_chroma, batch.ids)), batch.vectors[DENSE], list(batch.texts)
    await backend.upsert(collection, ids, vectors, texts, [one or None for one in metadata])
    await _remove_stale_keys(backend, collection, ids, vectors, texts, metadata)


async def _remove_stale_keys(
    backend: Backend,
    collection: Collection,
    ids: list[str],
    vectors: Vectors,
    texts: list[str],
    metadata: list[dict[str, Any]],
) -> None:
    """Keys that a row had before stay, and one that is new may have arrays of a collection that was dropped: Chroma
    leaves those behind, and gives its row numbers again (chroma-core/chroma issue 7594)."""
    there = await get(backend, collection, ids=ids, include=["metadatas"])
    number = {id_: row for row, id_ in enumerate(ids)}
    stale: dict[int, dict[str, None]] = {}
    for id_, stored in zip(there.ids, there.metadata, strict=True):
        row = number[id_]
        if stored and stored.keys() != metadata[row].keys():
            stale[row] = {key: None for key in stored if key not in metadata[row]}
    rows = [row for row, keys in stale.items() if keys]
    if rows:
        await backend.upsert(
            collection,
            [ids[row] for row in rows],
            vectors[rows],
            [texts[row] for row in rows],
            [{**metadata[row], **stale[row]} for row in rows],
        )


async def delete_arrays(backend: Backend, collection: Collection) -> None:
    """Delete the rows that have arrays: dropping the collection would leave these behind, for rows of other collections
    to find."""
    for some in pages((await get(backend, collection)).ids, _IDS_PER_CALL):
        rows = await get(backend, collection, ids=some, include=["metadatas"])
        pairs = zip(rows.ids, rows.metadata, strict=True)
        having = [id_ for id_, one in pairs if any(isinstance(value, list) for value in (one or {}).values())]
        if having:
            await backend.delete(collection, having)
