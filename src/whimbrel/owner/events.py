"""Waiting for an event, for a time."""

from __future__ import annotations

import asyncio


async def comes(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; False when it has not come in that time.

    Not by `asyncio.wait_for`: until Python 3.12 it loses a cancellation that arrives together with the event, and a
    loop that was told to stop never did.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
