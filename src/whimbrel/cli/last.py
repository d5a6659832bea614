"""What `whimbrel open` opens: the places that the last answer in a terminal cited.

Never their text, so that a purge need not look here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whimbrel.cli import out
from whimbrel.cli.opening import settings
from whimbrel.errors import CitationNotFound
from whimbrel.home import Home


@dataclass(frozen=True, slots=True)
class Place:
    document_id: str
    start: int
    end: int
    page: int | None


@dataclass(frozen=True, slots=True)
class Last:
    collection: str
    conversation_id: str | None
    places: Mapping[int, Place]
    """By marker."""


def remember(found: Mapping[str, Any], collection: str) -> None:
    """Note where an answer's citations lie."""
    places = {
        str(cited["marker"]): {name: cited[name] for name in ("document_id", "start", "end", "page")}
        for cited in found["citations"]
    }
    kept = {"collection": collection, "conversation_id": found["conversation_id"], "places": places}
    path = Home(settings().home).last_answer
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(kept))
        unfinished.replace(path)
    except OSError as error:
        out.note(f"`whimbrel open` will not know this answer: {path} cannot be written ({error.strerror}).")


def recall() -> Last:
    """Raises `CitationNotFound` if there is no last answer."""
    path = Home(settings().home).last_answer
    try:
        kept = json.loads(path.read_text())
        places = {int(marker): Place(**place) for marker, place in kept["places"].items()}
        return Last(kept["collection"], kept["conversation_id"], places)
    except FileNotFoundError:
        raise CitationNotFound("Nothing has been asked in this home yet.", 'Ask first: `whimbrel ask "..."`.') from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CitationNotFound(f"{path} cannot be read.", "Ask again: it is written anew.") from None
