"""`whimbrel models`."""

from __future__ import annotations

from typing import Annotated

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import settings
from whimbrel.memory import importing


def models(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Any other than loopback needs API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8080,
    embedder: Annotated[
        str | None, typer.Option(metavar="PROVIDER:MODEL", help="The configured one unless given; `none` for none.")
    ] = None,
    reranker: Annotated[
        str | None, typer.Option(metavar="PROVIDER:MODEL", help="The configured one unless given; `none` for none.")
    ] = None,
) -> None:
    """Serve the embedder and the reranker to other processes and hosts, over the protocols of TEI and OpenAI.

    It needs no home. Others name it as their embedder: `tei:http://HOST:PORT`.
    """
    found = settings()
    with importing():
        from whimbrel.server.models.run import serve_models

    serve_models(
        found,
        embedder=embedder or found.embedder,
        reranker=reranker or found.reranker or "none",
        host=host,
        port=port,
        on_ready=lambda url: out.note(f"Serving models at {url}. Ctrl-C stops it."),
    )
