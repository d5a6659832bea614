"""`whimbrel ask`: through a running `serve` where there is one, else in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.last import remember
from whimbrel.cli.opening import opened, settings
from whimbrel.cli.options import AsJson, Collection
from whimbrel.cli.searching import answered, page, say_degraded, shapes
from whimbrel.cli.writing import Writing

MARKS = {"yes": " ✓", "partly": " (supported: partly)", "no": " (supported: no)"}


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="A question.")],
    collection: Collection = "default",
    model: Annotated[
        str | None,
        typer.Option(metavar="PROVIDER:MODEL", help="The model that writes the answer; `extractive` for quotes only."),
    ] = None,
    conversation: Annotated[
        str | None,
        typer.Option("--conversation", "-C", metavar="ID", help="Follow up on a conversation; `new` begins one."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Answer anew, also where nothing has changed since the same question.")
    ] = False,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Show the answer while it is written, as terminals do.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question from the documents, each sentence with its citation.

    Without a model the answer is made of the documents' own sentences.
    """
    given = (("model", model), ("conversation_id", conversation), ("fresh", fresh))
    options = {name: value for name, value in given if value}
    if as_json:
        found = _at_once(question, collection, options)
        remember(found, collection)
        say_degraded(found)
        out.data(found)
        return
    found, titles = _shown(question, collection, options, live=sys.stdout.isatty() if stream is None else stream)
    remember(found, collection)
    _footnotes(found, titles)


def _at_once(question: str, collection: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if "model" in options:  # this user's choice, with this user's key: not the server's
        with opened() as whimbrel:
            return dict(shapes().answer(whimbrel.ask(question, collection, **options)))
    return answered(
        "/v1/query",
        {"query": question, "collection": collection, **options},
        lambda whimbrel: shapes().answer(whimbrel.ask(question, collection, **options)),
    )


def _shown(
    question: str, collection: str, options: Mapping[str, Any], *, live: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """The answer, shown; and its documents' titles, by id."""
    writing = Writing(live=live)
    titles: dict[str, str] = {}
    found: dict[str, Any] = {}
    for name, data in _events(question, collection, options):
        if name == "passages":
            titles = {hit["document_id"]: hit["title"] for hit in data["passages"]}
        elif name == "text":
            writing.add(data["text"])
        elif name == "answer":
            found = data
    writing.end(found["answer"])
    say_degraded(found)
    return found, titles


def _events(question: str, collection: str, options: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    from whimbrel.client import ServeClient
    from whimbrel.home import Home

    configured = settings()
    if "model" not in options:
        body = {"query": question, "collection": collection, **options}
        served = ServeClient(Home(configured.home).socket).stream("/v1/query", body)
        if served is not None:
            yield from served
            return
    with opened(configured) as whimbrel, closing(whimbrel.ask_stream(question, collection, **options)) as events:
        for event in events:
            yield shapes().event(event)


def _footnotes(found: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    if found["citations"]:
        out.line()
    for cited in found["citations"]:
        title = titles.get(cited["document_id"], "")
        place = f"{cited['uri']}:{cited['start']}-{cited['end']}{page(cited)}{f' · {title}' if title else ''}"
        out.line(f"[{cited['marker']}] {place} — “{out.snippet(cited['quote'])}”{MARKS[cited['supported']]}")
    unsupported = [one for one in found["sentences"] if one["supported"] == "no"]
    if unsupported and not found["abstained"]:
        out.line()
        for one in unsupported:
            out.line(f"Not supported: “{out.snippet(found['answer'][one['start'] : one['end']])}”")
    if found["question"] and found["conversation_id"]:
        out.note(f"asked: {found['question']}")
    if found["conversation_id"]:
        out.note(f"conversation: {found['conversation_id']}")
