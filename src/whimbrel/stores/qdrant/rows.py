"""Rows of a collection, as points and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.qdrant.backend import Backend
from whimbrel.stores.qdrant.payload import ID, TEXT, decode
from whimbrel.stores.qdrant.rules import MARKER, to_point

WRITE_ROWS = 2_000
PAGE_ROWS = 1_000
IDS_PER_CALL = 5_000


def pages(items: Sequence[Any], rows: int) -> list[Sequence[Any]]:
    return [items[start : start + rows] for start in range(0, len(items), rows)]


def marker(about: Mapping[str, Any]) -> Any:
    from qdrant_client import models

    return models.PointStruct(id=MARKER, vector={}, payload=dict(about))


async def write(backend: Backend, name: str, batch: Records, payloads: Sequence[dict[str, Any]]) -> None:
    from qdrant_client import models

    ids: list[Any] = list(map(to_point, batch.ids))
    points = models.Batch(ids=ids, vectors={DENSE: batch.vectors[DENSE].tolist()}, payloads=list(payloads))
    await backend.do(lambda client: client.upsert(name, points=points, wait=True))


async def delete(backend: Backend, name: str, points: Sequence[Any]) -> None:
    from qdrant_client import models

    chosen = models.PointIdsList(points=list(points))
    await backend.do(lambda client: client.delete(name, points_selector=chosen, wait=True))


async def read(backend: Backend, name: str, ids: Sequence[str], dimensions: int) -> Records:
    """The rows of those ids that exist, whole."""
    wanted = {to_point(id_): id_ for id_ in ids}
    found = await backend.do(
        lambda client: client.retrieve(name, ids=list(wanted), with_payload=True, with_vectors=[DENSE])
    )
    return records([point for point in found if (point.payload or {}).get(ID) == wanted[point.id]], dimensions)


async def scroll(backend: Backend, name: str, rows: int, *, whole: bool) -> AsyncIterator[list[Any]]:
    """Every point but the marker, in the order of the ids; `whole` with text, metadata and vector, else its id."""
    offset: Any = None
    while True:
        wanted = {
            "limit": rows,
            "offset": offset,
            "with_payload": True if whole else [ID],
            "with_vectors": [DENSE] if whole else False,
        }
        found, offset = await backend.do(partial(_scroll, name, wanted))
        page = [point for point in found if point.id != MARKER]
        if page:
            yield page
        if offset is None:
            return


def _scroll(name: str, wanted: Mapping[str, Any], client: Any) -> Any:
    return client.scroll(name, **wanted)


def records(points: Sequence[Any], dimensions: int) -> Records:
    if not points:
        return Records.none(dimensions)
    return Records(
        [point.payload[ID] for point in points],
        {DENSE: np.array([point.vector[DENSE] for point in points], np.float32)},
        [point.payload[TEXT] for point in points],
        [decode(point.payload) for point in points],
    )
