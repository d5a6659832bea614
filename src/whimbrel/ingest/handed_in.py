"""Files that come by hand, with a request, and not from a path."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whimbrel.catalog import documents
from whimbrel.catalog.listing import UNSAYABLE
from whimbrel.errors import BadInput, TooLarge
from whimbrel.filters import normalise_metadata

MAX_NAME = 200
LARGEST = 512 << 20
"""Bytes. A database takes no much larger value in one piece (Postgres: 1 GB with its escapes, SQLite: 1 GB)."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class HandedIn:
    """One file."""

    name: str
    """As its sender calls it; a path in it means nothing here."""
    size: int
    """Bytes."""
    digest: str
    """Of its content: tells two requests apart."""
    read: Callable[[], bytes]
    external_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    """None: a document that is there keeps what it has."""


def describe(files: Sequence[HandedIn], max_file_bytes: int) -> list[dict[str, Any]]:
    """What the job is told of each file. Its identity is its id or else `upload:NAME`: the same again replaces it."""
    if not files:
        raise BadInput("No file was given.", "Send at least one.")
    described = [_described(file, min(max_file_bytes, LARGEST)) for file in files]
    seen: set[str] = set()
    for about in described:
        identity = f"id {about['id']!r}" if "id" in about else f"name {about['name']!r}"
        if identity in seen:
            raise BadInput(
                f"Two files have the {identity}: one would replace the other. Nothing was written.",
                "Give each file an id of its own, or another name.",
            )
        seen.add(identity)
    return described


def _described(file: HandedIn, limit: int) -> dict[str, Any]:
    name = safe_name(file.name)
    if file.size > limit:
        raise TooLarge(
            f"{name!r} has {file.size:,} bytes; the limit is {limit:,}. Nothing was written.",
            "Raise `ingest.max_file_bytes`, or put it beside the server and `whimbrel ingest` it.",
        )
    about: dict[str, Any] = {"uri": f"upload:{name}", "name": name}
    if file.external_id is not None:
        if not file.external_id.strip() or UNSAYABLE.search(file.external_id):
            raise BadInput("An id is blank, or holds a NUL or half a character.", "Send another, or leave it out.")
        about["id"] = file.external_id
    if file.metadata is not None:
        about["metadata"] = checked_metadata(file.metadata)
    return about


def safe_name(name: str) -> str:
    """The last part of a path of any system, printable, its ending kept. It names a document; no file is made by it."""
    last = _UNPRINTABLE.sub("", re.split(r"[/\\]", name)[-1]).strip()
    if last in ("", ".", ".."):
        raise BadInput("A file has no name.", "Send each part with a `filename`: its ending says how it is read.")
    stem, dot, ending = last.rpartition(".")
    if len(last) <= MAX_NAME:
        return last
    return f"{stem[: MAX_NAME - 20]}{dot}{ending[:19]}" if dot and len(ending) < 20 else last[:MAX_NAME]


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    normal = normalise_metadata(metadata)
    taken = [key for key in documents.RESERVED if key in normal]
    if taken:
        raise BadInput(f"The metadata key {taken[0]!r} is Whimbrel's own.", "Choose a name without the underscore.")
    return normal
