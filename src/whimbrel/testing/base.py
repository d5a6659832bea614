"""What a suite of stores is told of the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import ClassVar

import pytest

from whimbrel.stores.base import Store
from whimbrel.testing.place import Place

NewPlace = Callable[[], Place]


class StoreSuite:
    name: ClassVar[str] = ""
    """Of the store, in the table of behaviour."""
    durable: ClassVar[bool] = True
    """Whether tables outlive their process, and other processes of this machine can open them."""
    selective_rows: ClassVar[int] = 20_000
    """Of the table on which filters keep 1 % and 0.01 %."""
    batch_rows: ClassVar[int] = 12_000
    """Written, fetched and deleted in one call: more than the database takes at once, where it has a limit."""

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls) -> NewPlace:
        """Makes a place without tables at each call: a new folder, database or schema."""
        raise NotImplementedError("a subclass of StoreConformance gives the fixture `new_place`")

    @pytest.fixture
    async def store(self, new_place: NewPlace) -> AsyncIterator[Store]:
        """A new, empty table."""
        async with new_place().table() as store:
            yield store

    def _needs_processes(self) -> None:
        if not self.durable:
            pytest.skip("its tables end with their process")

    def _needs_several_processes(self, store: Store) -> None:
        self._needs_processes()
        if store.describe().single_process:
            pytest.skip("one process alone may open it")
