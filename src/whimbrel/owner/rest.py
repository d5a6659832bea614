"""Giving memory back when there is nothing to do.

glibc keeps what has been freed in heaps, one for some threads each: after a bulk ingest more than 200 MB that nobody
uses. They are given back once per rest.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import time
from collections.abc import Callable

logger = logging.getLogger("whimbrel.owner")

LOOK_S = 5.0


async def rest(at_rest: Callable[[], bool], after_s: float) -> None:
    """Give memory back each time that `at_rest` has held for `after_s`, and not again before that has ended."""
    trim = trimmer()
    if trim is None:
        return
    since: float | None = None
    given = False
    while True:
        await asyncio.sleep(min(LOOK_S, after_s))
        if not at_rest():
            since, given = None, False
            continue
        since = since if since is not None else time.monotonic()
        if not given and time.monotonic() - since >= after_s:
            await asyncio.to_thread(trim)
            given = True
            logger.debug("at rest: freed memory was given back")


def trimmer() -> Callable[[], object] | None:
    """What gives freed memory back to the system; None where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None else lambda: trim(0)
