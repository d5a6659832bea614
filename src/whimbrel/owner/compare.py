"""Comparing a view with the catalog at one position: every id, text, metadata and vector."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import rows
from whimbrel.catalog.collections import ViewRow
from whimbrel.domain import ViewKind
from whimbrel.owner.follower import Follower

LISTED = 20
"""Differences that a report names one by one."""

Progress = Callable[..., Awaitable[None]]
"""Called between batches with `compared` and `expected`."""


@dataclass(slots=True)
class Comparison:
    """What was found, by chunk id."""

    view: int
    kind: ViewKind
    position: int
    expected: int = 0
    """Rows that the view should hold."""
    rows: int = 0
    """Rows that it holds; one that comes twice counts once."""
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    doubled: int = 0
    changing: int = 0
    """Rows that were not compared: the view has not heard of their last change yet."""
    damage: str = ""
    """Why it could not be read to the end."""

    @property
    def equal(self) -> bool:
        return not (self.missing or self.extra or self.different or self.doubled or self.damage)

    def report(self) -> dict[str, Any]:
        found = {"missing": self.missing, "extra": self.extra, "different": self.different}
        return {
            "view": self.view,
            "kind": self.kind,
            "position": self.position,
            "rows": self.rows,
            "expected": self.expected,
            "equal": self.equal,
            **{name: len(ids) for name, ids in found.items()},
            "doubled": self.doubled,
            "changing": self.changing,
            "examples": {name: list(ids[:LISTED]) for name, ids in found.items()},
            **({"damage": self.damage} if self.damage else {}),
        }


async def compare(follower: Follower, connection: Connection, besides: Set[str], progress: Progress) -> Comparison:
    """`connection`: the catalog in one snapshot throughout; `besides`: chunks that are not compared."""
    row, target = follower.row, follower.target
    await target.check()  # what a scan does not read, too
    expected = await asyncio.to_thread(_expected, connection, row) - besides
    found = Comparison(row.id, row.view.kind, follower.position, len(expected), changing=len(besides))
    seen: set[str] = set()
    async for ids, digests in target.scan():
        known = await asyncio.to_thread(_digests, connection, follower, ids)
        for chunk_id, digest in zip(ids, digests, strict=True):
            if chunk_id in seen:
                found.doubled += 1
            elif chunk_id in besides:
                continue
            elif chunk_id not in known:
                found.extra.append(chunk_id)
            elif not target.agree(known[chunk_id], digest):
                found.different.append(chunk_id)
            seen.add(chunk_id)
        await progress(compared=len(seen), expected=len(expected))
    found.rows = len(seen)
    found.missing = sorted(expected - seen)
    return found


def _expected(connection: Connection, row: ViewRow) -> set[str]:
    space = row.view.space_id if row.view.kind is ViewKind.STORE else None
    return rows.public_ids(connection, row.view.collection_id, row.view.chunking_id, space)


def _digests(connection: Connection, follower: Follower, ids: list[str]) -> dict[str, str]:
    view = follower.row.view
    space = view.space_id if view.kind is ViewKind.STORE else None
    keys = rows.keys_of(connection, view.collection_id, view.chunking_id, ids)
    found, _, _ = rows.load_chunks(connection, keys, space)
    return dict(zip(found.ids, follower.target.digests(found), strict=True))
