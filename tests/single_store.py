"""A store that one process may open: LanceDB behind a lock on its folder, as an embedded database would have it."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TextIO

from whimbrel.domain import Space
from whimbrel.errors import AlreadyOwned
from whimbrel.stores.base import Reach, StoreInfo
from whimbrel.stores.lancedb import LanceStore

_HELD: dict[Path, tuple[TextIO, list[object]]] = {}
"""The folders that this process has open, and who of it does."""


class SingleStore(LanceStore):
    @classmethod
    def at(cls, uri: str, name: str, space: Space, *, base: Path, read_only: bool, reach: Reach) -> Self:
        return cls(base / uri.partition(":")[2], name, space, read_only=read_only)

    def describe(self) -> StoreInfo:
        return replace(super().describe(), name="single", single_process=True)

    async def exists(self) -> bool:
        self._take()
        return await super().exists()

    async def _open(self) -> Any:
        self._take()
        return await super()._open()

    async def close(self) -> None:
        await super().close()
        lock, users = _HELD.get(self._folder, (None, []))
        if self in users:
            users.remove(self)
        if lock is not None and not users:
            del _HELD[self._folder]
            lock.close()

    def _take(self) -> None:
        if self._folder not in _HELD:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise AlreadyOwned(
                    f"Another process has {self._folder} open, and one may.",
                    "Stop it; or use it through a home, whose owner the others ask.",
                ) from None
            _HELD[self._folder] = (lock, [])
        users = _HELD[self._folder][1]
        if self not in users:
            users.append(self)
