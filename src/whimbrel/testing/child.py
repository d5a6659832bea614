"""What the suite does in other processes, `python -m whimbrel.testing.child TASK JSON`: each prints what it did."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from whimbrel.domain import Position
from whimbrel.errors import WhimbrelError
from whimbrel.stores.base import Records
from whimbrel.testing.place import Place, rows_of, unit_vectors

ROWS = 200
"""Of a batch of `write`."""


def batch_of(number: int) -> Records:
    """A batch whose rows overlap those of the batches before, and say of which batch they are."""
    return rows_of([{"batch": number, f"k{number % 7}": number}] * ROWS, first=number * 37 % 1_000, text=str(number))


async def write(place: Place, **_: Any) -> None:
    """Batches of the log until it is killed."""
    store = place.store()
    if not await store.exists():
        await store.create()
    number = 0
    while True:
        number += 1
        await store.apply(batch_of(number), [], Position("epoch", number, "stamp"))
        print(number, flush=True)  # noqa: T201


async def add(place: Place, ids: list[str], **_: Any) -> None:
    """A few rows and a position."""
    store = place.store()
    rows = rows_of([{"added": True}] * len(ids))
    await store.upsert(Records(ids, rows.vectors, rows.texts, rows.metadata))
    await store.set_position(Position("epoch", 9, "theirs"))
    await store.close()


async def read(place: Place, **_: Any) -> None:
    """Searches until it is killed; prints how many hits each had."""
    store = place.store(read_only=True)
    while True:
        found = await store.search(unit_vectors(1, seed=1)[0], 10)
        print(len(found.ids), flush=True)  # noqa: T201


async def count(place: Place, **_: Any) -> None:
    """Prints the number of rows, or the name of the error that stands in the way."""
    store = place.store(read_only=True)
    try:
        print(await store.count(), flush=True)  # noqa: T201
    except WhimbrelError as error:
        print(error.code, bool(error.hint), flush=True)  # noqa: T201
    await store.close()


TASKS: dict[str, Callable[..., Awaitable[None]]] = {"write": write, "add": add, "read": read, "count": count}


async def _main(task: str, arguments: dict[str, Any]) -> None:
    place = arguments.pop("place")
    await TASKS[task](Place(place["uri"], Path(place["base"]), place["opener"]), **arguments)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], json.loads(sys.argv[2])))
