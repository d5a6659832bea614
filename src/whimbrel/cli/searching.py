"""`whimbrel search`: through a running `serve` where there is one, else in this process."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened, settings
from whimbrel.cli.options import AsJson, Collection, parsed
from whimbrel.errors import BadFilter

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question, or words.")],
    collection: Collection = "default",
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="Hits wanted; 10 unless configured.")] = None,
    mode: Annotated[
        Literal["hybrid", "dense", "lexical"], typer.Option(help="By meaning (dense), by words (lexical), or both.")
    ] = "hybrid",
    filter: Annotated[
        str | None, typer.Option("--filter", metavar="JSON", help="On metadata: conditions as a JSON object.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="SCORE", help="Leave out hits that score less; 0 to 1.")
    ] = None,
    queries: Annotated[
        int | None, typer.Option(metavar="N", help="Ask in N ways at once, 1 to 8; 1 unless configured.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find passages."""
    where = parsed(filter, "--filter", BadFilter, """--filter '{"year": {"$gte": 2020}}'""")
    given = {"top_k": top_k, "mode": mode, "filter": where, "threshold": threshold, "queries": queries}
    options = {name: value for name, value in given.items() if value is not None}
    found = answered(
        "/v1/search",
        {"query": query, "collection": collection, **options},
        lambda whimbrel: shapes().search_result(whimbrel.search(query, collection, **options)),
    )
    say_degraded(found)
    if as_json:
        out.data(found)
        return
    for hit in found["hits"]:
        out.styled(f"{hit['rank']:>2}. {out.bold(hit['title'] or hit['uri'])}  {hit['score']:.3f}")
        out.line(f"    {hit['uri']}:{hit['start']}-{hit['end']}{page(hit)}")
        out.line(f"    {out.snippet(hit['text'])}")
    if not found["hits"]:
        out.line("Nothing was found.")


def answered(path: str, body: dict[str, Any], here: Callable[[Whimbrel], dict[str, Any]]) -> dict[str, Any]:
    from whimbrel.client import ServeClient
    from whimbrel.home import Home

    found = settings()
    answer = ServeClient(Home(found.home).socket).post(path, body)
    if answer is not None:
        return answer
    with opened(found) as whimbrel:
        return here(whimbrel)


def shapes() -> ModuleType:
    """How the API says it; imported when it is needed."""
    from whimbrel.server import shapes

    return shapes


def say_degraded(found: dict[str, Any]) -> None:
    for reason in found["degraded"]:
        out.note(f"degraded: {reason}")


def page(found: dict[str, Any]) -> str:
    return f" (page {found['page']})" if found.get("page") else ""
