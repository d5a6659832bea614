"""Outlasting a catalog that does not answer: a Postgres that restarts, a lock that another holds, a disk that is full.

What the owner writes is fenced, so to try again later is always safe; what it has begun stays in its hands meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from whimbrel.errors import CatalogUnavailable, DiskFull

T = TypeVar("T")

logger = logging.getLogger("whimbrel.owner")

OUTAGES = (CatalogUnavailable, DiskFull)
"""What passes, or is mended from outside."""
LONGEST_PAUSE_S = 5.0


async def outlast(work: Callable[[], Awaitable[T]], what: str) -> T:
    """Do it; again, ever more slowly, while the catalog is out. It must be repeatable."""
    pause = 0.25
    said = ""
    while True:
        try:
            result = await work()
        except OUTAGES as error:
            if error.message != said:
                logger.warning("%s waits for the catalog: %s", what, error.message)
            said = error.message
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            if said:
                logger.info("%s goes on", what)
            return result
