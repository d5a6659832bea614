"""Frozen views at hand, for moves and for other processes: databases of other programs, searched as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set

from whimbrel.catalog import adoptions
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.domain import ViewState
from whimbrel.owner.parts import Parts
from whimbrel.owner.targets import StoreTarget
from whimbrel.stores.base import Store

Rows = Sequence[tuple[Collection, Sequence[ViewRow]]]


class FrozenStores:
    def __init__(self, parts: Parts, on_single: Callable[[], Awaitable[None]]) -> None:
        """`on_single`: called where one is in a database that one process may open."""
        self._parts = parts
        self._on_single = on_single
        self._stores: dict[int, Store] = {}

    def store(self, view: int) -> Store | None:
        return self._stores.get(view)

    async def hold(self, rows: Rows, *, besides: Set[int]) -> None:
        """Those that there are now, but for the views `besides`. Opens no database."""
        frozen = {
            row.id: (collection, row)
            for collection, views in rows
            for row in views
            if row.view.state is ViewState.FROZEN and adoptions.is_frozen(row)
        }
        for key in self._stores.keys() - frozen.keys():
            await self.close(key)
        for key, (collection, row) in frozen.items():
            if key in self._stores or key in besides:
                continue
            target = await asyncio.to_thread(self._parts.open_target, collection, row)
            assert isinstance(target, StoreTarget)
            self._stores[key] = target.store
            if target.store.describe().single_process:
                await self._on_single()

    async def close(self, view: int) -> None:
        store = self._stores.pop(view, None)
        if store is not None:
            await store.close()

    async def close_all(self) -> None:
        for view in list(self._stores):
            await self.close(view)
