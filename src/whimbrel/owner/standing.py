"""Views that stand still until they are opened again: how long that takes, and how they are searched meanwhile."""

from __future__ import annotations

import asyncio

from whimbrel.errors import DiskFull
from whimbrel.owner.targets import StoreTarget, Target
from whimbrel.stores.base import Store

FIRST_S = 0.5
FULL_S = 5.0
"""At most, between two tries to write to a full disk."""
LONGEST_S = 30.0
"""At most, between two tries where it is anything else."""


class Patience:
    """With one view: it is tried again ever more slowly."""

    def __init__(self) -> None:
        self._pause_s = FIRST_S
        self._full = False

    def opened(self) -> None:
        """The view has been opened."""
        if not self._full:  # which shows when it is written to, not when it is opened
            self._pause_s = FIRST_S

    async def wait(self, error: Exception) -> None:
        """Until it is time to try again, after an error."""
        self._full = isinstance(error, DiskFull)
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, FULL_S if self._full else LONGEST_S)


class Standing:
    """Of views whose disk is full: what was open when they could not be written to. They are searched in it, since some
    databases cannot be opened again where there is no room."""

    def __init__(self) -> None:
        self._targets: dict[int, Target] = {}

    def store(self, view: int) -> Store | None:
        target = self._targets.get(view)
        return target.store if isinstance(target, StoreTarget) else None

    def put(self, view: int, target: Target) -> None:
        self._targets[view] = target

    async def close(self, view: int) -> None:
        """It is open again, or not needed any more."""
        target = self._targets.pop(view, None)
        if target is not None:
            await target.close()

    async def close_all(self) -> None:
        for view in list(self._targets):
            await self.close(view)
