"""A connection whose head of a request is bounded in size and time.

The parser keeps an unfinished header in memory for as long as it comes, and waits for ever for the first byte: many
such connections (a "slowloris") would use up what the process has.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from whimbrel.config.settings import Server
from whimbrel.errors import SlowRequest, WhimbrelError
from whimbrel.server.problems import PROBLEM, encoded, headers_too_large, problem


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, its callbacks watched. `bounded` sets the limits."""

    limits: ClassVar[Server]

    _timer: asyncio.TimerHandle | None = None
    _requests = 0
    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._requests if self._in_head else -1
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._requests == before:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.max_header_bytes:
                self._refuse(headers_too_large(self.limits.max_header_bytes))
        elif not self._in_head and self._timer is None and self._answered():
            self._expect_head()  # blank lines, which begin no request and end uvicorn's own wait for one

    def on_message_begin(self) -> None:
        self._requests += 1
        self._in_head, self._head_bytes = True, 0
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.limits.head_timeout_s, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        limit = self.limits.head_timeout_s
        if self._in_head:
            self._refuse(SlowRequest(f"The head of the request did not arrive in {limit:g} s.", "Send it again."))
        else:
            self.transport.close()

    def _refuse(self, error: WhimbrelError) -> None:
        """Nothing above has seen this request: it is answered here, unless another's answer is still under way."""
        if self.transport.is_closing():
            return
        if self._answered():
            body = encoded(problem(error))
            head = (
                f"HTTP/1.1 {error.status} Refused\r\ncontent-type: {PROBLEM}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def bounded(limits: Server) -> type[Connection]:
    """The class of connections under these limits."""
    return type("BoundedConnection", (Connection,), {"limits": limits})
