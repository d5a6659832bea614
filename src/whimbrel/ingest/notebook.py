"""Jupyter notebooks as Markdown: text as it was written, code in fences, what it printed below it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from whimbrel.errors import CorruptFile

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST_OUTPUT = 20_000
"""Characters of one output: a notebook may hold the whole of a table or a log."""


def to_markdown(text: str) -> str:
    """Raises `CorruptFile` for what is no notebook."""
    try:
        notebook = json.loads(text)
        cells = notebook["cells"] if "cells" in notebook else [c for w in notebook["worksheets"] for c in w["cells"]]
        language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "")
        return "\n\n".join(part.strip("\n") for cell in cells for part in _cell(cell, language) if part.strip()) + "\n"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFile("It is no Jupyter notebook.", "Does Jupyter open it?") from error


def _cell(cell: dict[str, Any], language: str) -> Iterator[str]:
    kind = cell.get("cell_type")
    source = _joined(cell.get("source", cell.get("input", "")))
    if kind == "heading":
        yield f"{'#' * min(int(cell.get('level', 1)), 6)} {source}"
    elif kind == "code":
        if source.strip():
            yield _fenced(source, cell.get("language", language))
        for output in cell.get("outputs", []):
            data = output.get("data", output)
            said = _joined(data.get("text/markdown") or data.get("text/plain") or output.get("text") or "")
            failed = "\n".join(output.get("traceback") or ())
            if printed := _COLOURS.sub("", said or failed)[:_LONGEST_OUTPUT]:
                yield printed if "text/markdown" in data else _fenced(printed, "")
    else:
        yield source


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
