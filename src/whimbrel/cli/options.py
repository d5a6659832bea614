"""Options that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from whimbrel.errors import WhimbrelError

Collection = Annotated[str, typer.Option("--collection", "-c", metavar="NAME", help="The collection.")]
Chunking = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="How a new collection is cut: `tokens=256,overlap=32`."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON, and nothing else, to stdout.")]


def parsed(text: str | None, what: str, error: type[WhimbrelError], example: str) -> Any:
    """The value of an option that is JSON; None if it was not given. Raises `error`."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as broken:
        where = f": {broken.msg} at character {broken.pos + 1}" if isinstance(broken, json.JSONDecodeError) else ""
        raise error(f"{what} is not JSON{where}.", f"For example: {example}") from None
