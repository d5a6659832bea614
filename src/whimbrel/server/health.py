"""The state of what this process depends on, as it was last seen. Asking for it never waits for any of them for long,
and never calls a model that is paid for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.domain import ViewKind
from whimbrel.server.cached import Cached

if TYPE_CHECKING:
    from whimbrel.server.served import Served

State = Literal["healthy", "degraded", "unhealthy", "unknown"]

SEEN_S = 2.0
"""How long the catalog's last answer counts."""
FIRST_S = 1.0
SILENT_S = 5.0
"""A catalog that has not answered for so long is unhealthy."""

_WORST: Mapping[State, int] = {"unknown": 0, "healthy": 1, "degraded": 2, "unhealthy": 3}

Live = list[tuple[Collection, ViewRow]]


class Health:
    def __init__(self, served: Served) -> None:
        self._served = served
        self._live: Cached[Live] = Cached(self._read, SEEN_S)

    async def services(self) -> tuple[dict[str, State], list[str]]:
        """States by service, and why one is not healthy."""
        seen = await self._live.get(FIRST_S)
        reasons: list[str] = []
        if seen.error is not None:
            reasons.append(f"database: {seen.error.message}")
        elif seen.overdue_s > SILENT_S:
            reasons.append(f"database: it has not answered for {seen.overdue_s:.0f} s")
        database: State = "unhealthy" if reasons else "unknown" if seen.value is None else "healthy"
        vectors, troubles = self._vectors(seen.value or []) if database == "healthy" else ("unknown", [])
        providers, complaints = self._served.provider.state()
        return {"database": database, "vector_db": vectors, **providers}, [*reasons, *troubles, *complaints]

    def _vectors(self, live: Live) -> tuple[State, list[str]]:
        stores = [(collection, row) for collection, row in live if row.view.kind is ViewKind.STORE]
        troubles = {row.id: self._served.trouble(row) for _, row in stores}
        said = [
            f"vector_db: view {row.id} of {collection.name!r}: {troubles[row.id]}"
            for collection, row in stores
            if troubles[row.id]
        ]
        if said:
            return ("unhealthy" if len(said) == len(stores) else "degraded"), said
        opened = all(self._served.is_open(row.id) for _, row in stores)
        if not opened:
            self._served.warm()
        return ("healthy" if opened else "unknown"), []

    async def _read(self) -> Live:
        return await self._served.call(self._served.live)

    async def close(self) -> None:
        await self._live.close()


def worst(states: Iterable[State]) -> State:
    """Of those that are known."""
    return max(states, key=_WORST.__getitem__, default="unknown")
