"""The error for a collection that is not in a database, which names those that are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from whimbrel.errors import NotFound

SHOWN = 20


def absent(what: str, name: str, where: str, there: Iterable[str] | None) -> NotFound:
    """`what`: what the database calls it. `there`: the names of all; None where they were not asked for: a key of a
    server may be for one collection, and not for listing them."""
    message = f"There is no {what} {name!r} in {where}. Nothing was copied."
    if there is None:
        return NotFound(message, "`whimbrel inspect` with the database's URI names those that are there.")
    names = sorted(there)
    near = get_close_matches(name, names, n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return NotFound(message, f"{guess}{listed(names)}" if names else "There is none at all.")


def listed(names: Sequence[str]) -> str:
    """Of names in order, at least one."""
    more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"Those that are there: {', '.join(map(repr, names[:SHOWN]))}{more}."
