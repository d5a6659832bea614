"""`whimbrel serve` and `whimbrel owner`."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import log_to_stderr, settings
from whimbrel.errors import AlreadyOwned, Fenced, WhimbrelError
from whimbrel.memory import importing

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel

logger = logging.getLogger("whimbrel.owner")

LOOK_S = 1.0
AGAIN_S = 2.0
"""Between two tries to own the home while the catalog does not answer."""


def serve(
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="127.0.0.1 unless configured.")] = None,
    port: Annotated[int | None, typer.Option(help="8000 unless configured; 0 takes a free one.")] = None,
) -> None:
    """Serve the API, and own the home if nobody does.

    Where another process is the owner, it is an API worker beside it.
    """
    found = settings(**{"server.host": host, "server.port": port})
    from whimbrel.server.serve import serve_home

    serve_home(found, on_ready=lambda url: out.note(f"Serving {found.home} at {url}. Ctrl-C stops it."))


def owner() -> None:
    """Own the home without an API: run jobs, embed, keep the views up to date, until stopped."""
    found = settings()
    log_to_stderr(found, quiet=False)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with importing():
        from whimbrel.app import Whimbrel

    with Whimbrel(settings=found) as whimbrel:
        if not whimbrel.own():
            raise _already_owned(whimbrel.owner_lease())
        out.note(f"Process {os.getpid()} owns {found.home}. Ctrl-C stops it.")
        while not stop.wait(LOOK_S):
            if whimbrel.owner is None or not whimbrel.owner.running:
                _own_again(whimbrel, stop)
        out.note("Stopping: the batch at hand is finished first.")


def _own_again(whimbrel: Whimbrel, stop: threading.Event) -> None:
    """After the owner has ended by itself: its catalog was out for too long, its disk full. Waits for whoever owns the
    home meanwhile, as a command does for a moment. Raises `Fenced` where another took over from this process."""
    said = ""
    while not stop.is_set():
        failed = whimbrel.owner.failed if whimbrel.owner is not None else None
        if isinstance(failed, Fenced):
            raise failed
        try:
            if not whimbrel.own():
                raise _already_owned(whimbrel.owner_lease())
        except WhimbrelError as error:
            if error.message != said:
                logger.warning("the home cannot be owned now: %s %s", error.message, error.hint)
            said = error.message
            stop.wait(AGAIN_S)
        else:
            logger.info("this process owns the home again")
            return


def _already_owned(lease: Any) -> AlreadyOwned:
    who = f"by {lease.holder}" if lease is not None else "by another process"
    return AlreadyOwned(
        f"The home is owned {who}.", "There can be one owner. Stop that one, or let it do the work: ingest goes to it."
    )
