"""The change log of a collection.

Positions are given in commit order: `head` is raised inside the transaction that writes the changes, and the row stays
locked until its commit, so writers of one collection queue on it. (A sequence would not do: a transaction that took 1
can commit after one that took 2, and a view that stands at 2 would never see 1.)
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from sqlalchemy import Connection, bindparam, delete, func, select

from whimbrel.catalog import bulk
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import now
from whimbrel.domain import Position
from whimbrel.errors import CollectionNotFound

# Made once: the stage and the appliers look for more after every change.
_HEAD = select(t.collections.c.epoch, t.collections.c.head, t.collections.c.stamp, t.collections.c.floor).where(
    t.collections.c.id == bindparam("wanted")
)
_AFTER = select(t.commits.c.position, t.commits.c.stamp).where(
    t.commits.c.collection_id == bindparam("wanted"), t.commits.c.position > bindparam("after")
)
_NEXT = _AFTER.order_by(t.commits.c.position).limit(1)
_WITHIN = _AFTER.where(t.commits.c.position <= bindparam("upto")).order_by(t.commits.c.position.desc()).limit(1)


class Op(IntEnum):
    ADD = 1
    """A chunk that no view has ever held under this key."""
    UPDATE = 2
    DELETE = 3


@dataclass(frozen=True, slots=True)
class Change:
    op: Op
    chunk_id: int
    chunking_id: int
    public_id: bytes | None = None
    """Set for DELETE, whose chunk is gone from the catalog."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a collection's log."""

    epoch: str
    head: int
    stamp: str
    floor: int

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.head, self.stamp)


def new_stamp() -> str:
    """16 random hex characters: the mark of a commit, or the name of an epoch."""
    return secrets.token_hex(8)


def lock(connection: Connection, collection_id: int) -> Head:
    """Queue on the collection's row: what is read after this is what the changes will be appended to.

    Raises `CollectionNotFound` when the collection has been deleted meanwhile.
    """
    columns = t.collections.c
    row = connection.execute(
        select(columns.epoch, columns.head, columns.stamp, columns.floor)
        .where(columns.id == collection_id, columns.deleting.is_(False))
        .with_for_update()
    ).first()
    if row is None:
        raise CollectionNotFound("The collection has been deleted meanwhile.", "Nothing was written.")
    return Head(*row)


def head(connection: Connection, collection_id: int) -> Head:
    return Head(*connection.execute(_HEAD, {"wanted": collection_id}).one())


def append(connection: Connection, collection_id: int, changes: Sequence[Change]) -> int:
    """Write `changes` to the end of the log; returns the new head."""
    stamp = new_stamp()
    columns = t.collections.c
    values = {"head": columns.head + len(changes), "stamp": stamp} if changes else {"head": columns.head}
    update = t.collections.update().where(columns.id == collection_id).values(**values).returning(columns.head)
    last = int(connection.execute(update).scalar_one())
    if not changes:
        return last
    first = last - len(changes) + 1
    bulk.insert(
        connection,
        t.changes,
        [
            {
                "collection_id": collection_id,
                "position": first + offset,
                "op": int(change.op),
                "chunk_id": change.chunk_id,
                "chunking_id": change.chunking_id,
                "public_id": change.public_id,
            }
            for offset, change in enumerate(changes)
        ],
    )
    connection.execute(
        t.commits.insert(), {"collection_id": collection_id, "position": last, "stamp": stamp, "at": now()}
    )
    return last


def stamp_at(connection: Connection, collection_id: int, position: int) -> str | None:
    """The stamp of the commit that ended at `position`; None if no commit that is still known ended there."""
    query = select(t.commits.c.stamp).where(
        t.commits.c.collection_id == collection_id, t.commits.c.position == position
    )
    return connection.execute(query).scalar()


def distrust(connection: Connection, collection_id: int, held: Position | None) -> str:
    """Why a view that says it stands at `held` cannot be caught up from this log; empty if it can."""
    end = head(connection, collection_id)
    if held is None:
        return "it has no position"
    if held.epoch != end.epoch:
        return "it belongs to another epoch of the collection (a restore has happened since)"
    if held.position > end.head:
        return f"it is ahead of the catalog ({held.position} > {end.head})"
    if held.position < end.floor:
        return f"the log has been cut at {end.floor}, after its position {held.position}"
    if held.position == 0:
        return ""
    if stamp_at(connection, collection_id, held.position) != held.stamp:
        return f"its position {held.position} belongs to another history of the collection"
    return ""


def commit_end(connection: Connection, collection_id: int, after: int, limit: int) -> tuple[int, str] | None:
    """Where a batch of the log that starts after `after` ends: the last commit within about `limit` changes.

    Batches end where commits end, so that a view always stands at a position that has a stamp. A single commit that is
    longer than `limit` makes a longer batch. None when there is nothing after `after`.
    """
    row = connection.execute(_WITHIN, {"wanted": collection_id, "after": after, "upto": after + limit}).first()
    row = row or connection.execute(_NEXT, {"wanted": collection_id, "after": after}).first()
    return (int(row[0]), str(row[1])) if row else None


def cut(connection: Connection, collection_id: int, upto: int) -> int:
    """Forget changes at or below `upto`, which no leased view still needs. Returns how many rows went."""
    end = lock(connection, collection_id)
    upto = min(upto, end.head)
    if upto <= end.floor:
        return 0
    connection.execute(t.collections.update().where(t.collections.c.id == collection_id).values(floor=upto))
    gone = connection.execute(
        delete(t.changes).where(t.changes.c.collection_id == collection_id, t.changes.c.position <= upto)
    ).rowcount
    # The commit that ended at the floor stays: a view may stand there.
    connection.execute(delete(t.commits).where(t.commits.c.collection_id == collection_id, t.commits.c.position < upto))
    return gone


def length(connection: Connection, collection_id: int) -> int:
    return int(
        connection.execute(
            select(func.count()).select_from(t.changes).where(t.changes.c.collection_id == collection_id)
        ).scalar_one()
    )
