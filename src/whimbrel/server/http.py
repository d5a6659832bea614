"""uvicorn as both servers run it, `serve` and `models`: on sockets that are open already, within our limits, in an
event loop whose signals are ours."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.config import Config

from whimbrel.server.connections import bounded

if TYPE_CHECKING:
    from whimbrel.config.settings import Server

FINISH_S = 4
"""How long requests under way may take after a signal, and then the owner's batch at hand."""


class Http(uvicorn.Server):
    """uvicorn on open sockets; it sets no signal handlers."""

    def __init__(self, app: Any, limits: Server, sockets: list[socket.socket]) -> None:
        super().__init__(config(app, limits))
        self._tcp = sockets

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(self._tcp if sockets is None else sockets)

    def stop(self) -> None:
        """Take no more requests, and finish those under way; asked twice, do not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ours are set already, and do not end the process by a signal


def config(app: Any, limits: Server) -> Config:
    return Config(
        app,
        http=bounded(limits),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=FINISH_S,
    )


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM and SIGINT; from the main thread's loop, else nothing."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)


def runner() -> asyncio.Runner:
    """With uvloop where there is one (not for Windows)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def url_of(host: str, bound: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{bound.getsockname()[1]}"
