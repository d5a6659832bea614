"""What a server builds beside the rows: the graph of the vectors, held back during a bulk load, and an index for each
field that filters may name. Local mode has neither."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from whimbrel.errors import ViewDamaged
from whimbrel.stores.qdrant.backend import Backend
from whimbrel.stores.qdrant.payload import ODD, plain
from whimbrel.stores.qdrant.where import key

HELD = "indexing_threshold"
"""In the marker during a bulk load: what it was before."""
MAX_FIELDS = 32
"""Of a collection, beside that of `ODD`: each index is held in the server's memory."""
MAX_TEXT = 256
"""A field with a longer value is not filtered by."""


async def create(backend: Backend, name: str) -> None:
    """Before the first row: the graph then has links for filters."""
    if not backend.single_process:
        await _index(backend, name, ODD, "keyword")


async def add(backend: Backend, name: str, payloads: Sequence[Mapping[str, Any]], indexed: set[str]) -> None:
    """An index for each field of these rows that has none yet, as `indexed` knows: fields as the server names them,
    read from it where that is empty."""
    if not indexed:
        info = await backend.do(lambda client: client.get_collection(name))
        indexed.update(info.payload_schema, [ODD])
    for payload in payloads:
        for path, value in plain(payload).items():
            field = key(path)
            if field not in indexed and len(indexed) <= MAX_FIELDS and (kind := _kind(value)):
                await _index(backend, name, field, kind)
                indexed.add(field)


async def threshold(backend: Backend, name: str) -> int | None:
    """From how many kB of vectors a segment gets a graph; None is the server's default."""
    info = await backend.do(lambda client: client.get_collection(name))
    found = info.config.optimizer_config.indexing_threshold
    return None if found is None else int(found)


async def set_threshold(backend: Backend, name: str, threshold: int | None) -> None:
    from qdrant_client import models

    config = models.OptimizersConfigDiff(indexing_threshold=20_000 if threshold is None else threshold)
    await backend.do(lambda client: client.update_collection(name, optimizers_config=config))


async def ready(backend: Backend, name: str) -> None:
    """Waits until the server has built all that is due. Raises `ViewDamaged` where it says that it cannot."""
    wait = 0.1
    while True:
        info = await backend.do(lambda client: client.get_collection(name))
        status = str(info.status.value)
        if status == "green":
            return
        if status == "red":
            raise ViewDamaged(
                f"The Qdrant server at {backend.shown} says that the collection {name!r} is damaged.",
                "Its log says why; the view is built again by `whimbrel view rebuild`.",
            )
        if status == "grey":  # it waits for a change before it goes on
            await set_threshold(backend, name, await threshold(backend, name))
        await asyncio.sleep(wait)
        wait = min(2.0, wait * 1.5)


async def _index(backend: Backend, name: str, field: str, kind: str) -> None:
    await backend.do(lambda client: client.create_payload_index(name, field_name=field, field_schema=kind, wait=True))


def _kind(value: Any) -> str:
    """Of the index for values like this one; numbers are compared by ranges, which an index of floats answers for all
    of them. Empty where there is none."""
    value = value[0] if isinstance(value, list) else value
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "keyword" if len(value) <= MAX_TEXT else ""
    return "float"
