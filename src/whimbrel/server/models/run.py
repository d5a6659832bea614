"""`whimbrel models`: one process, one event loop. The socket opens first; `/health` says 503 until the model is
loaded, and so does everything else."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from whimbrel.errors import ConfigError
from whimbrel.memory import bound_memory
from whimbrel.models.embedders.resolve import resolve_embedder
from whimbrel.models.rerankers.resolve import resolve_reranker
from whimbrel.server.hosts import check_server, is_loopback_name
from whimbrel.server.http import Http, on_signals, runner, url_of
from whimbrel.server.logs import set_up_logging
from whimbrel.server.models.app import create_app
from whimbrel.server.models.models import Models
from whimbrel.server.sockets import listen

if TYPE_CHECKING:
    from whimbrel.config import Settings

logger = logging.getLogger("whimbrel.server")

PORT = 8080
"""Where TEI is found by those who start it by hand."""
NONE = "none"


def serve_models(
    settings: Settings,
    *,
    embedder: str,
    reranker: str,
    host: str,
    port: int,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. `embedder`, `reranker`: `provider:model`, or `none`.

    `on_ready` is given the base URL once the port is open. Raises `PortInUse`, `ConfigError`, and what opening the
    models raises.
    """
    set_up_logging(settings.log)
    bound_memory()
    check_server(settings)
    named = ["" if spec == NONE else spec for spec in (embedder, reranker)]
    if not any(named):
        raise ConfigError("Neither an embedder nor a reranker is to be served.", "Name one: --embedder, --reranker.")
    _refuse_own_address(named, host, port)
    sockets = listen(host, port)
    _refuse_strangers(settings, sockets)
    models = Models(embedder=named[0], reranker=named[1], most_waiting=settings.models.max_waiting)
    if on_ready is not None:
        on_ready(url_of(host, sockets[0]))
    with runner() as loop:
        loop.run(_serve(models, settings, sockets))


def _refuse_own_address(specs: list[str], host: str, port: int) -> None:
    """A configuration that all processes share may name this very server as their embedder."""
    for spec in specs:
        if spec.startswith("tei:") and port and spec.rstrip("/").endswith(f":{port}") and is_loopback_name(host):
            raise ConfigError(
                f"{spec!r} is the address that is to be served here.",
                "Name what it is to serve: `--embedder minilm`, for example.",
            )


def _refuse_strangers(settings: Settings, sockets: list[socket.socket]) -> None:
    if settings.parsed_api_keys() or all(is_loopback_name(str(one.getsockname()[0])) for one in sockets):
        return
    for one in sockets:
        one.close()
    raise ConfigError(
        "Without API keys, models are served on this machine only. Nothing was opened.",
        "Set WHIMBREL_API_KEYS=NAME:SECRET, and TEI_API_KEY=SECRET where they are asked from; or --host 127.0.0.1.",
    )


async def _serve(models: Models, settings: Settings, sockets: list[socket.socket]) -> None:
    http = Http(create_app(models, settings), settings.server, sockets)
    on_signals(http.stop)
    loading = asyncio.create_task(_load(models, settings), name="loading")
    loading.add_done_callback(lambda task: http.stop() if task.cancelled() or task.exception() else None)
    try:
        await http.serve()
    finally:
        loading.cancel()
        (ended,) = await asyncio.gather(loading, return_exceptions=True)
        await models.close()
    if isinstance(ended, Exception):
        raise ended
    logger.info("stopped")


async def _load(models: Models, settings: Settings) -> None:
    threads = settings.embed.threads
    await models.load(
        lambda spec: resolve_embedder(spec, threads=threads), lambda spec: resolve_reranker(spec, threads=threads)
    )
    logger.info("serving %s", " and ".join(filter(None, (models.embedder_spec, models.reranker_spec))))
