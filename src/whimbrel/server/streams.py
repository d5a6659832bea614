"""Streams of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Each event has a name and one JSON object. A comment is sent when nothing else has been for a while, so that what lies
between does not close the connection. A client that goes away ends the work behind its stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from fastapi.sse import EventSourceResponse, format_sse_event

from whimbrel.errors import WhimbrelError, place
from whimbrel.server.problems import encoded, problem, unexpected

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger("whimbrel.server")

HEARTBEAT = format_sse_event(comment="still here")
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""No cache, and no proxy (nginx reads the second), may hold events back."""
AHEAD = 64
"""Events made before the client has taken them."""

Event = tuple[str, Any]
"""Its name, and what goes into it as JSON."""


def wants_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


class EventStream(EventSourceResponse):
    """An answer that is a stream. `body_iterator` is closed with it, however it ends."""

    body_iterator: AsyncGenerator[bytes, None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


async def stream(events: AsyncGenerator[Event, None], heartbeat_s: float) -> EventStream:
    """Begins once there is a first event: what goes wrong before it is raised here, and has a status of its own. What
    goes wrong later is the last event, `error`."""
    work = _Work(events)
    try:
        first = await work.next()
    except BaseException:
        await work.stop()
        raise
    return EventStream(_written(work, first, heartbeat_s), headers=HEADERS)


async def _written(work: _Work, first: Event | None, heartbeat_s: float) -> AsyncGenerator[bytes, None]:
    try:
        event = first
        while event is not None:
            yield _bytes(*event)
            waiting = asyncio.ensure_future(work.next())
            try:
                while not (await asyncio.wait({waiting}, timeout=heartbeat_s))[0]:
                    yield HEARTBEAT
                event = waiting.result()
            finally:
                waiting.cancel()
    except WhimbrelError as error:
        yield _bytes("error", problem(error))
    except Exception as error:  # the answer has begun: it can no longer become a status
        logger.error("unexpected %s", place(error))
        yield _bytes("error", problem(unexpected()))
    finally:
        await work.stop()


def _bytes(name: str, content: Any) -> bytes:
    return format_sse_event(event=name, data_str=encoded(content).decode())


class _Work:
    """Runs a generator in one task from its first step to its last: what it holds open may belong to its task."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._queue: asyncio.Queue[Event] = asyncio.Queue(AHEAD)
        self._task = asyncio.create_task(self._run(events))

    async def _run(self, events: AsyncGenerator[Event, None]) -> None:
        async with aclosing(events):
            async for event in events:
                await self._queue.put(event)

    async def next(self) -> Event | None:
        """None at the end. Raises what the generator raised."""
        coming = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait({coming, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
            if not self._queue.empty():
                return self._queue.get_nowait()
            self._task.result()
            return None
        finally:
            coming.cancel()

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError, Exception):  # whoever waited for an event has been told
            await self._task
