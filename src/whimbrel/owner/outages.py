"""Outlasting a catalog that does not answer: a Postgres that restarts, a lock that another holds, a disk that is full.

What the owner writes is fenced, so to try again later is always safe; what it has begun stays in its hands meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from whimbrel.errors import CatalogUnavailable, DiskFull, WhimbrelError

T = TypeVar("T")

logger = logging.getLogger("whimbrel.owner")

OUTAGES = (CatalogUnavailable, DiskFull)
"""What passes, or is mended from outside."""
LONGEST_PAUSE_S = 5.0


class Outages:
    """What waits for the catalog now. Read from other threads: who waits for the owner is told why it does not move."""

    def __init__(self) -> None:
        self._standing: dict[str, tuple[float, WhimbrelError]] = {}

    def standing(self, longer_than_s: float) -> WhimbrelError | None:
        """The error of an outage that has lasted so long."""
        before = time.monotonic() - longer_than_s
        return next((error for since, error in list(self._standing.values()) if since < before), None)

    async def outlast(self, work: Callable[[], Awaitable[T]], what: str) -> T:
        """Do it; again, ever more slowly, while the catalog is out. It must be repeatable."""
        pause = 0.25
        said = ""
        try:
            while True:
                try:
                    return await work()
                except OUTAGES as error:
                    if error.message != said:
                        logger.warning("%s waits for the catalog: %s", what, error.message)
                    said = error.message
                    since, _ = self._standing.get(what, (time.monotonic(), error))
                    self._standing[what] = since, error
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
        finally:
            if self._standing.pop(what, None):
                logger.info("%s goes on", what)
