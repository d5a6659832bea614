"""Giving way to searches: what compares and copies rows takes every core that there is, and whoever searches waits.

With searches of this process under way it rests as long as it has worked; nobody pays for it where nobody searches.
Why, and what it brings: docs/decisions/0014.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

RECENT_S = 0.5
"""Who has searched just now is likely to search again."""
LONGEST_S = 1.0


class Traffic:
    """The searches of a process, from all of its threads and event loops."""

    def __init__(self) -> None:
        self._under_way = 0
        self._ended = float("-inf")
        self._lock = threading.Lock()

    @contextmanager
    def searching(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self._ended = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether somebody searches, or has within the last half second."""
        return self._under_way > 0 or time.monotonic() - self._ended < RECENT_S

    async def give_way(self, worked_s: float) -> None:
        """Called between two pieces of work, of which the last took so many seconds."""
        if self.busy:
            await asyncio.sleep(min(worked_s, LONGEST_S))


TRAFFIC = Traffic()
"""Of this process, whose cores are what is shared."""
