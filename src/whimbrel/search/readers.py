"""Views that this process has open for searching, by view id.

A view's data never changes its place, so a handle is good until the view is dropped or damaged.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from whimbrel.catalog.collections import ViewRow
from whimbrel.errors import ViewDamaged
from whimbrel.lexicon.tantivy import TantivyLexicon
from whimbrel.stores.base import Store

T = TypeVar("T")

MAX_OPEN = 64


class Readers:
    def __init__(
        self, open_store: Callable[[ViewRow], Store], open_lexicon: Callable[[ViewRow, str], TantivyLexicon]
    ) -> None:
        self._open_store = open_store
        self._open_lexicon = open_lexicon
        self._stores: dict[int, Store] = {}
        self._lexicons: dict[int, TantivyLexicon] = {}
        self._opening = threading.Lock()

    async def store(self, row: ViewRow) -> Store:
        """The open store of a view. Raises `ViewDamaged` when its data is not there."""
        found = self._stores.get(row.id)
        if found is None:
            found = await asyncio.to_thread(self._opened, self._stores, row.id, lambda: self._open_store(row))
            if not await found.exists():
                self._stores.pop(row.id, None)
                raise ViewDamaged(f"the data of view {row.id} is not there", "The owner builds it again.")
        return found

    async def lexicon(self, row: ViewRow, language: str) -> TantivyLexicon:
        """The open lexicon of a view; `language`: of the collection, for a view that does not say its own."""
        found = self._lexicons.get(row.id)
        if found is None:
            found = await asyncio.to_thread(
                self._opened, self._lexicons, row.id, lambda: self._open_lexicon(row, language)
            )
        return found

    def _opened(self, handles: dict[int, T], view: int, open_it: Callable[[], T]) -> T:
        """Open once, however many searches ask at the same time."""
        with self._opening:
            found = handles.get(view)
            if found is None:
                if len(handles) >= MAX_OPEN:
                    handles.pop(next(iter(handles)))
                found = handles[view] = open_it()
            return found

    async def close(self, view: int) -> None:
        """Forget a view; the next search opens it again."""
        store = self._stores.pop(view, None)
        if store is not None:
            await store.close()
        lexicon = self._lexicons.pop(view, None)
        if lexicon is not None:
            lexicon.close()

    async def close_all(self) -> None:
        for view in {*self._stores, *self._lexicons}:
            await self.close(view)
