"""Comparing a view with the catalog at one position: every id, text, metadata and vector.

The view is read in its own order, in batches, and of each batch the catalog's rows; so it takes no more memory for a
million rows than for a thousand, but for the ledger of their ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Connection

from whimbrel.catalog import rows
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.ledger import Ledger, with_vectors
from whimbrel.domain import ViewKind
from whimbrel.owner.ahead import ahead
from whimbrel.owner.follower import Follower
from whimbrel.owner.held import Held
from whimbrel.owner.pace import TRAFFIC
from whimbrel.stores.base import Vectors

LISTED = 20
"""Differences that a report names one by one."""
TELL_S = 0.5
"""Between two tellings of the progress."""

Progress = Callable[..., Awaitable[None]]
"""Called now and then with `compared` and `expected`."""
Witness = Callable[[Sequence[str], Vectors], None]
"""Shown the ids of rows, and their vectors of record, float32[n, d]; from another thread."""


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


async def compare(
    follower: Follower, connection: Connection, besides: Set[str], progress: Progress, witness: Witness | None = None
) -> Comparison:
    """`connection`: the catalog in one snapshot throughout; `besides`: chunks that are not compared. `witness` sees
    every row that is: what exact search needs is read already."""
    target = follower.target
    await target.check()  # what a scan does not read, too
    found = Comparison(follower.row.id, follower.row.view.kind, follower.position, changing=len(besides))
    comparing = _Comparing(follower.row, connection, besides, witness, found)
    await asyncio.to_thread(comparing.begin)
    told = 0.0
    began = time.monotonic()
    async with aclosing(ahead(target.scan())) as batches:
        async for held in batches:
            await asyncio.to_thread(comparing.take, held)
            await TRAFFIC.give_way(time.monotonic() - began)
            began = time.monotonic()
            if time.monotonic() >= told + TELL_S:
                await progress(compared=found.rows, expected=comparing.due)
                told = time.monotonic()
    await asyncio.to_thread(comparing.end)
    return found


class _Comparing:
    """One comparison. Its methods read the catalog, and run in threads, one after another."""

    def __init__(
        self,
        row: ViewRow,
        connection: Connection,
        besides: Set[str],
        witness: Witness | None,
        found: Comparison,
    ) -> None:
        self._view = row.view
        self._space = row.view.space_id if row.view.kind is ViewKind.STORE else None
        self._connection = connection
        self._besides = besides
        self._witness = witness
        self._found = found
        self._strangers: set[str] = set()
        """Ids that are in the view and not in the catalog."""
        self.due = 0
        """Chunks to be compared, those that the model refused too."""

    def begin(self) -> None:
        self._ledger = Ledger.read(self._connection, self._view.collection_id, self._view.chunking_id)
        self._left_out = np.zeros(len(self._ledger), np.bool_)
        self._seen = np.zeros(len(self._ledger), np.bool_)
        entries = self._ledger.find(list(self._besides))
        self._left_out[entries[entries >= 0]] = True
        self.due = len(self._ledger) - int(self._left_out.sum())

    def take(self, held: Held) -> None:
        """Compare a batch of the view."""
        entries = self._ledger.find(held.ids)
        for row in np.flatnonzero(entries < 0).tolist():
            self._take_stranger(held.ids[row])
        at = np.flatnonzero(entries >= 0)
        at = at[~self._left_out[entries[at]]]
        first = at[np.unique(entries[at], return_index=True)[1]]
        first = first[~self._seen[entries[first]]]
        self._found.doubled += len(at) - len(first)
        self._found.rows += len(first)
        self._seen[entries[first]] = True
        self._compare(held, first, self._ledger.keys[entries[first]])

    def _take_stranger(self, id_: str) -> None:
        if id_ in self._strangers:
            self._found.doubled += 1
        elif id_ not in self._besides:
            self._strangers.add(id_)
            self._found.extra.append(id_)
            self._found.rows += 1

    def _compare(self, held: Held, at: rows.Numbers, keys: rows.Numbers) -> None:
        """The rows `at` of a batch, which the catalog has under these keys."""
        order = np.argsort(keys)
        at, keys = at[order], keys[order]
        wanted, _, _ = rows.load_chunks(self._connection, keys.tolist(), self._space)
        if len(wanted) < len(keys):  # what has no vector should not be there
            there = np.isin(keys, wanted.keys)
            self._found.extra += [held.ids[row] for row in at[~there].tolist()]
            at = at[there]
        self._found.expected += len(wanted)
        self._found.different += [wanted.ids[row] for row in np.flatnonzero(held.differs(wanted, at)).tolist()]
        if self._witness is not None and wanted.vectors is not None:
            self._witness(wanted.ids, wanted.vectors)

    def end(self) -> None:
        """Look for what the view does not hold."""
        unseen = np.flatnonzero(~self._seen & ~self._left_out)
        if self._space is not None:
            keys = self._ledger.keys[unseen]
            unseen = unseen[np.isin(keys, with_vectors(self._connection, keys.tolist(), self._space))]
        self._found.missing = list(map(self._ledger.id, unseen.tolist()))
        self._found.expected += len(unseen)
