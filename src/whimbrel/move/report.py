"""The report of a move: what was taken where, what was compared and found, as JSON, as a page, and the rows that could
not go.

    HOME/moves/ID/report.html    one page that needs no network and no script
    HOME/moves/ID/report.json    the same
    HOME/moves/ID/rejects.jsonl  one line for each row that the target, or its model, refuses: id, document, reason

No text of a document is in any of them.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import moves
from whimbrel.catalog.engine import Catalog, now
from whimbrel.catalog.moves import Move, Reject
from whimbrel.errors import DiskFull, HomeError, WhimbrelError
from whimbrel.move.shown import as_dict, iso

logger = logging.getLogger("whimbrel.move")

NAMED = 100
"""Refused rows that the page and the JSON name; `rejects.jsonl` has all."""


class Reporter:
    """Writes the reports of a home's moves."""

    def __init__(self, catalog: Catalog, folder: Path) -> None:
        """`folder`: HOME/moves."""
        self._catalog = catalog
        self._folder = folder

    def write(self, move_id: str) -> Path:
        """The three files, each whole or as it was before. Returns the page's path. Raises `DiskFull`, `HomeError`."""
        from whimbrel.move.report_page import page

        with self._catalog.read() as connection:
            move = moves.get(connection, move_id)
            rejected = moves.lost(connection, move)
            found = report(connection, move, rejected)
        place = self._folder / move.id
        lines = "".join(_line(one) for one in rejected)
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            _put(place / "rejects.jsonl", lines)
            _put(place / "report.json", json.dumps(found, indent=2) + "\n")
            _put(place / "report.html", page(found))
        except OSError as error:
            full = DiskFull if error.errno == 28 else HomeError
            raise full(
                f"The report of move {move.id} cannot be written to {place}: {error.strerror}. The move is as it was.",
                "Free some space or mend the folder; `whimbrel move report` writes it again.",
            ) from error
        return place / "report.html"

    def try_to_write(self, move_id: str) -> None:
        """As `write`, where the move goes on whether that can be done or not: the log says that it could not."""
        try:
            self.write(move_id)
        except WhimbrelError as error:
            logger.warning("%s", error.message)


def report(connection: Connection, move: Move, rejected: Sequence[Reject]) -> dict[str, Any]:
    """One JSON object."""
    return {
        "written_at": iso(now()),
        "move": {name: value for name, value in as_dict(connection, move).items() if name != "busy"},
        "timeline": timeline(move),
        "throughput": throughput(move.samples),
        "losses": _losses(move.plan.get("losses")),
        "rejected": {"rows": len(rejected), "named": [_as_dict(one) for one in rejected[:NAMED]]},
    }


def timeline(move: Move) -> list[dict[str, Any]]:
    """How long each state lasted, seconds; the last one until now, or 0 where the move has ended."""
    steps = [*move.history]
    end = now() if not move.state.ended else steps[-1][1]
    until = [at for _, at in steps[1:]] + [end]
    return [
        {"state": state, "at": iso(at), "seconds": round(max(after - at, 0.0), 3)}
        for (state, at), after in zip(steps, until, strict=True)
    ]


def throughput(samples: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Rows per second between each two samples, by seconds since the first one."""
    found = []
    for before, after in pairwise(samples):
        took = after["at"] - before["at"]
        if took <= 0:
            continue
        found.append(
            {
                "seconds": round(after["at"] - samples[0]["at"], 2),
                "rows": int(after["rows"]),
                "rows_per_s": round(max(after["rows"] - before["rows"], 0.0) / took, 1),
                "lag": int(after.get("lag", 0)),
            }
        )
    return found


def _losses(planned: Sequence[Mapping[str, Any]] | None) -> list[dict[str, str]] | None:
    """None where nobody looked."""
    return None if planned is None else [{name: one[name] for name in ("what", "said")} for one in planned]


def _as_dict(one: Reject) -> dict[str, str]:
    return {"id": one.chunk_id, "document": one.document, "reason": one.reason}


def _line(one: Reject) -> str:
    return json.dumps(_as_dict(one), separators=(",", ":")) + "\n"


def _put(path: Path, text: str) -> None:
    """Replace a file at once: who reads it sees the old one or the new one."""
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        Path(made).replace(path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
