"""Printing: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from whimbrel.errors import WhimbrelError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def data(value: Any) -> None:
    """One line of JSON, in ASCII: no character of a document can end the line, nor be unsayable in a terminal."""
    typer.echo(json.dumps(value, separators=(",", ":")))


def line(text: str = "") -> None:
    typer.echo(shown(text) if sys.stdout.isatty() else _sayable(text))


def note(text: str) -> None:
    """Something about the work, not its result."""
    typer.echo(shown(text), err=True)


def bold(text: str) -> str:
    """For people: an emphasis that a file or a pipe does not get."""
    return typer.style(shown(text), bold=True) if sys.stdout.isatty() else _sayable(text)


def styled(text: str) -> None:
    """A line that holds `bold` parts; the rest of it has been through `shown`."""
    typer.echo(text)


def shown(text: str) -> str:
    """A document's text must not steer the terminal: control characters become visible."""
    return _CONTROL.sub("�", _sayable(text))


def _sayable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def failed(error: WhimbrelError, *, as_json: bool) -> int:
    """Tell an error; returns its exit status."""
    note(f"{error.code}: {error.message}")
    if error.hint:
        note(f"  {error.hint}")
    if as_json:
        data(error.as_dict())
    return error.exit_code


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns for people; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(header), *(len(row[at]) for row in cells), 0) for at, header in enumerate(headers)]
    right = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in range(len(headers))]

    def joined(row: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if r else text.ljust(width) for text, width, r in zip(row, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    styled(bold(joined([*headers])))
    for row in cells:
        styled(joined(row))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return shown(str(value)).replace("\n", " ")


def fields(values: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        styled(f"{name.ljust(width)}  {_cell(value)}")


def snippet(text: str, width: int = 300) -> str:
    """The beginning of a passage on one line; an ellipsis says that there is more."""
    flat = " ".join(shown(text).split())
    return flat if len(flat) <= width else flat[: width - 1].rstrip() + "…"
