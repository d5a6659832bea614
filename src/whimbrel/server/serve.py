"""`whimbrel serve`: the API of a home on TCP and on the home's Unix socket, in one process and one event loop.

The sockets open first, with `/health` behind them; what takes long to import comes after, and requests that arrive
before it is there wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from whimbrel.errors import WhimbrelError
from whimbrel.home import Home
from whimbrel.memory import bound_memory, importing
from whimbrel.server.gate import Gate
from whimbrel.server.hosts import check_server, is_loopback_name
from whimbrel.server.http import FINISH_S, Http, config, on_signals, runner, url_of
from whimbrel.server.logs import set_up_logging
from whimbrel.server.sockets import HomeSocket, listen

if TYPE_CHECKING:
    from fastapi import FastAPI

    from whimbrel.app import Whimbrel
    from whimbrel.config import Settings
    from whimbrel.config.settings import Server
    from whimbrel.server.served import Served

logger = logging.getLogger("whimbrel.server")

OWN_EVERY_S = 2.0
WARM_S = 5.0


def serve(
    whimbrel: Whimbrel,
    *,
    host: str | None = None,
    port: int | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an open home until SIGTERM or SIGINT; then close it.

    Owns the home if nobody does; else serves beside the owner, and takes over when that has gone. `on_ready` is given
    the base URL once the port is open. Raises `PortInUse`, `ConfigError`, `HomeError`.
    """
    _run(lambda: whimbrel, whimbrel.settings, host, port, on_ready)


def serve_home(
    settings: Settings,
    *,
    host: str | None = None,
    port: int | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """As `serve`, and opens the home itself: quicker to start, since it listens before that is done."""

    def opened() -> Whimbrel:
        from whimbrel.app import Whimbrel

        return Whimbrel(settings=settings)

    _run(opened, settings, host, port, on_ready)


def _run(
    open_whimbrel: Callable[[], Whimbrel],
    settings: Settings,
    host: str | None,
    port: int | None,
    on_ready: Callable[[str], None] | None,
) -> None:
    set_up_logging(settings.log)
    bound_memory()
    host = settings.server.host if host is None else host
    check_server(settings)
    sockets = listen(host, settings.server.port if port is None else port)
    _say_who_may_write(settings, sockets)
    server = _Server(open_whimbrel, settings, sockets)
    if on_ready is not None:
        on_ready(url_of(host, sockets[0]))
    with runner() as loop:
        loop.run(server.main())


def _say_who_may_write(settings: Settings, sockets: Sequence[socket.socket]) -> None:
    if not settings.parsed_api_keys() and not all(is_loopback_name(str(one.getsockname()[0])) for one in sockets):
        logger.warning(
            "no API keys are set: whoever can reach this address may read, and nobody may write but over loopback. "
            "Set WHIMBREL_API_KEYS=NAME:SECRET"
        )


class _Server:
    """One run of `serve`."""

    def __init__(self, open_whimbrel: Callable[[], Whimbrel], settings: Settings, sockets: list[socket.socket]) -> None:
        self._open_whimbrel = open_whimbrel
        self._home_socket = HomeSocket(Home(settings.home))
        self._gate = Gate()
        self._http = _Http(self._gate, settings.server, sockets)
        self._whimbrel: Whimbrel | None = None
        self._served: Served | None = None
        self._owning: asyncio.Task[bool] | None = None

    async def main(self) -> None:
        on_signals(self._stop)
        background = asyncio.create_task(self._behind(), name="opening")
        background.add_done_callback(lambda _: self._stop())  # it ends only by an error
        try:
            await self._http.serve()
        finally:
            background.cancel()
            (ended,) = await asyncio.gather(background, return_exceptions=True)
            await self._close()
        if not isinstance(ended, asyncio.CancelledError):
            raise ended

    def _stop(self) -> None:
        """Take no more requests, and finish those under way; asked twice, do not wait for them."""
        self._http.stop()
        self._gate.give_up()

    async def _behind(self) -> NoReturn:
        """Open the home behind the open port; then look after who owns it."""
        with importing():
            whimbrel = self._whimbrel = await asyncio.to_thread(self._open_whimbrel)
            app = await asyncio.to_thread(self._application, whimbrel)
            served = self._served = app.state.served
            self._gate.open(app)
            # The owner's work would slow it down; but no model that does not answer may keep the home without an owner.
            await asyncio.wait([served.warm()], timeout=WARM_S)
        while True:
            await self._look_after(whimbrel, served)
            await asyncio.sleep(OWN_EVERY_S)

    def _application(self, whimbrel: Whimbrel) -> FastAPI:
        from whimbrel.server.app import create_app

        return create_app(whimbrel)

    async def _look_after(self, whimbrel: Whimbrel, served: Served) -> None:
        """Become the owner when there is none any more, and take the home's socket when nobody listens there."""
        try:
            if not self._home_socket.held:
                found = await asyncio.to_thread(self._home_socket.listen)
                if found is not None:
                    await self._http.listen_unix(found)
            before = served.owner
            self._owning = asyncio.create_task(asyncio.to_thread(whimbrel.own))
            owns = await asyncio.shield(self._owning)
            served.owner_elsewhere = not owns and await asyncio.to_thread(whimbrel.owner_lease) is not None
            if served.owner != before:
                logger.info("this process owns the home" if owns else "another process owns the home")
        except WhimbrelError as error:  # tried again shortly; /ready says what is wrong with the catalog
            logger.warning("%s %s", error.message, error.hint)

    async def _close(self) -> None:
        self._home_socket.release()
        if self._served is not None:
            await self._served.close()
        if self._owning is not None:  # an owner that is starting is stopped when it has started
            await asyncio.gather(self._owning, return_exceptions=True)
        if self._whimbrel is not None:
            owner = self._whimbrel.owner
            if owner is not None:
                await asyncio.to_thread(owner.stop, FINISH_S)
            if owner is None or not owner.running:
                await asyncio.to_thread(self._whimbrel.close)
            else:  # it is in a long step: nothing is lost if it ends with the process
                logger.warning("the owner did not stop in %s s", FINISH_S)
        logger.info("stopped")


class _Http(Http):
    """With one more socket, that comes later."""

    def __init__(self, gate: Gate, limits: Server, sockets: list[socket.socket]) -> None:
        super().__init__(gate, limits, sockets)
        self._unix = config(gate.for_unix, limits)

    async def listen_unix(self, bound: socket.socket) -> None:
        self._unix.load()

        def protocol() -> asyncio.Protocol:
            return self._unix.http_protocol_class(  # type: ignore[call-arg]
                config=self._unix, server_state=self.server_state, app_state={}
            )

        self.servers.append(await asyncio.get_running_loop().create_unix_server(protocol, sock=bound))
