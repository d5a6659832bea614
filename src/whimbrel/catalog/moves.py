"""Moves as rows: which view a collection is on its way to, and how far it has come.

A move's views are views like any other: the target is built and fed by the owner, the source goes on being fed after
the switch. The row says what they are to each other, and what a person has asked for.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from whimbrel.catalog import adoptions, collections, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.adoptions import AdoptionState
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.cuts import batched
from whimbrel.catalog.engine import AnyRow, now
from whimbrel.domain import MoveState, ViewKind, ViewState
from whimbrel.errors import Conflict, MoveNotFound, ViewNotFound

KEPT_SAMPLES = 400
"""Of a move's progress over time; beyond it, every other one is left out."""
_ENDED = [state for state in MoveState if state.ended]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. At least one of the first three differs from what the collection has."""

    uri: str
    """Of the target store, without credentials."""
    embedder: str
    """`provider:model`."""
    chunking: str
    rate: float = 0.0
    """Rows per second that the copy is held to; 0 for as fast as it goes."""
    auto_switch: bool = False
    judged: str = ""
    """A folder of judged queries, in BEIR's layout, that both sides are searched for; empty for none."""
    min_ndcg: float = 0.0
    """nDCG@10 that hybrid search must reach through the target for the move to become ready."""


@dataclass(frozen=True, slots=True)
class Move:
    id: str
    collection_id: int
    collection: str
    state: MoveState
    paused: bool
    accepted: bool
    """A person has accepted the named differences and the rejected rows."""
    request: Request
    source_store: int | None
    source_lexicon: int | None
    target_store: int | None
    target_lexicon: int | None
    recut_after: int
    recut_upto: int
    position: int
    plan: Mapping[str, Any]
    checks: Mapping[str, Any]
    samples: Sequence[Mapping[str, float]]
    history: Sequence[tuple[str, float]]
    """(state, seconds since the epoch) of each step."""
    error: str
    hint: str
    created_at: float
    updated_at: float

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(key for key in (self.target_store, self.target_lexicon) if key is not None)

    @property
    def sources(self) -> tuple[int, ...]:
        return tuple(key for key in (self.source_store, self.source_lexicon) if key is not None)

    @property
    def cutting(self) -> bool:
        """Documents have still to be cut in the new chunking; the target is not written to before."""
        return self.recut_after < self.recut_upto

    @property
    def held(self) -> bool:
        """Nothing is to be written to the target now."""
        return self.cutting or (self.paused and self.state in (MoveState.COPYING, MoveState.CATCHING_UP))


_MOVES = select(t.moves, t.collections.c.name.label("collection")).join(
    t.collections, t.collections.c.id == t.moves.c.collection_id
)


def get(connection: Connection, move_id: str) -> Move:
    """Raises `MoveNotFound`."""
    row = connection.execute(_MOVES.where(t.moves.c.id == move_id)).first()
    if row is None:
        raise MoveNotFound(f"There is no move {move_id!r}.", "`whimbrel move status` shows those that there are.")
    return _move(row)


def lock(connection: Connection, move_id: str) -> Move:
    """As `get`; nobody else changes its row in this transaction. Whoever decides by its state and then changes it reads
    it so: a person may abort it, or a job switch it, at any time."""
    connection.execute(select(t.moves.c.id).where(t.moves.c.id == move_id).with_for_update())
    return get(connection, move_id)


def latest(connection: Connection, collection: Collection) -> Move:
    """The last move of a collection. Raises `MoveNotFound`."""
    of = _MOVES.where(t.moves.c.collection_id == collection.id)
    row = connection.execute(of.order_by(t.moves.c.created_at.desc()).limit(1)).first()
    if row is None:
        raise MoveNotFound(
            f"The collection {collection.name!r} has never been moved.",
            f"`whimbrel move plan {collection.name} --to STORE_URI` says what that would take.",
        )
    return _move(row)


def listing(connection: Connection, *, under_way: bool = False, limit: int | None = 100) -> list[Move]:
    """Newest first; `limit` None: all. `under_way`: only those that have not ended."""
    query = _MOVES.order_by(t.moves.c.created_at.desc()).limit(limit)
    if under_way:
        query = query.where(t.moves.c.state.not_in(_ENDED))
    return [_move(row) for row in connection.execute(query)]


def of_target(connection: Connection, view: int) -> Move | None:
    """The move under way that a view was made by."""
    columns = t.moves.c
    query = _MOVES.where(columns.state.not_in(_ENDED))
    row = connection.execute(query.where((columns.target_store == view) | (columns.target_lexicon == view))).first()
    return _move(row) if row else None


def kept(connection: Connection) -> set[int]:
    """Retired views whose data stays until it is dropped by hand: what finished moves came from."""
    columns = t.moves.c
    query = select(columns.source_store, columns.source_lexicon).where(columns.state == MoveState.FINALISED)
    return {key for row in connection.execute(query) for key in row if key is not None}


def create(
    connection: Connection,
    collection: Collection,
    request: Request,
    *,
    space_id: int,
    chunking_id: int,
    plan: Mapping[str, Any],
) -> Move:
    """A move with its target views, which the owner begins to build. Raises `Conflict` for a second one at once."""
    store, lexicon = collections.live_views(connection, collection)
    recut = store is not None and chunking_id != store.view.chunking_id
    if store is None or (lexicon is None and (recut or not _is_empty(connection, collection))):
        raise Conflict(
            f"The collection {collection.name!r} has no live views yet: it is being built.",
            "Nothing was begun. Start the move when `whimbrel status` shows them live.",
        )
    going = [move for move in listing(connection, under_way=True, limit=None) if move.collection_id == collection.id]
    if going:
        raise Conflict(
            f"The collection {collection.name!r} is being moved already: move {going[0].id} is {going[0].state}.",
            "Nothing was begun. End that one first: `whimbrel move finalise`, or `move abort`.",
        )
    target = collections.add_view(
        connection, collection, ViewKind.STORE, uri=request.uri, space_id=space_id, chunking_id=chunking_id
    )
    words = None
    if recut and lexicon is not None:
        words = collections.add_view(
            connection, collection, ViewKind.LEXICON, uri=lexicon.view.uri, space_id=None, chunking_id=chunking_id
        )
    last = connection.execute(
        select(func.max(t.documents.c.id)).where(t.documents.c.collection_id == collection.id)
    ).scalar()
    move_id = secrets.token_hex(4)
    connection.execute(
        t.moves.insert(),
        {
            "id": move_id,
            "collection_id": collection.id,
            "state": MoveState.COPYING,
            "paused": False,
            "accepted": False,
            "request": as_json(request),
            "source_store": store.id,
            "source_lexicon": lexicon.id if recut and lexicon is not None else None,
            "target_store": target.id,
            "target_lexicon": words.id if words is not None else None,
            "recut_after": 0,
            "recut_upto": int(last or 0) if recut else 0,
            "position": 0,
            "plan": dict(plan),
            "checks": {},
            "samples": [],
            "history": [[MoveState.PLANNED, now()], [MoveState.COPYING, now()]],
            "error": "",
            "hint": "",
            "created_at": now(),
            "updated_at": now(),
        },
    )
    return get(connection, move_id)


def _is_empty(connection: Connection, collection: Collection) -> bool:
    """Nothing was ever written to it, so it has no lexicon: its language is not known. Nor is anything on its way."""
    adoption = adoptions.find(connection, collection.id)
    adopting = adoption is not None and adoption.state is AdoptionState.ADOPTING
    return not collection.head and not adopting


def change(connection: Connection, move_id: str, **values: Any) -> Move:
    """Set columns; a new state is added to the history."""
    state = values.get("state")
    if state is not None:
        move = get(connection, move_id)
        if state is not move.state:
            values["history"] = [*([name, at] for name, at in move.history), [state, now()]]
    connection.execute(update(t.moves).where(t.moves.c.id == move_id).values(**values, updated_at=now()))
    return get(connection, move_id)


def sample(connection: Connection, move: Move, **figures: float) -> None:
    """Note how far a move is, for its report."""
    samples = [*move.samples, {"at": now(), **figures}]
    if len(samples) > KEPT_SAMPLES:
        samples = [*samples[:-1:2], samples[-1]]
    connection.execute(update(t.moves).where(t.moves.c.id == move.id).values(samples=samples, updated_at=now()))


def view_replaced(connection: Connection, before: int, after: int) -> None:
    """A view of a move under way was built anew, as another."""
    for name in ("source_store", "source_lexicon", "target_store", "target_lexicon"):
        column = t.moves.c[name]
        known = (column == before) & t.moves.c.state.not_in(_ENDED)
        connection.execute(update(t.moves).where(known).values({name: after}))


def switch(connection: Connection, move: Move, *, back: bool = False) -> None:
    """Make the target the live view (`back`: the source again), and the other one stand by: one statement on the
    collection's row for both kinds, so that no search reads one of each."""
    pairs = (
        (t.collections.c.store_view_id, move.source_store, move.target_store),
        (t.collections.c.lexicon_view_id, move.source_lexicon, move.target_lexicon),
    )
    values: dict[str, int] = {}
    for column, source, target in pairs:
        if source is None or target is None:
            continue
        live, other = (source, target) if back else (target, source)
        values[column.name] = live
        for key, state in ((live, ViewState.LIVE), (other, ViewState.STANDBY)):
            frozen = collections.view(connection, key).view.state is ViewState.FROZEN  # it stays so, wherever it stands
            collections.set_view(connection, key, state=ViewState.FROZEN if frozen else state)
    connection.execute(update(t.collections).where(t.collections.c.id == move.collection_id).values(**values))


# --- rows that a target refuses --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reject:
    chunk_id: str
    reason: str
    document: str
    """The document's URI; empty where the chunk is gone since."""


def reject(connection: Connection, view: int, chunk_id: str, reason: str) -> None:
    forget_rejects(connection, view, [chunk_id])
    row = {"view_id": view, "public_id": bytes.fromhex(chunk_id), "reason": reason, "at": now()}
    connection.execute(t.rejects.insert(), row)


def forget_rejects(connection: Connection, view: int, chunk_ids: Sequence[str]) -> None:
    """They have been written, or deleted, since."""
    for start in range(0, len(chunk_ids), 500):
        some = [bytes.fromhex(chunk_id) for chunk_id in chunk_ids[start : start + 500]]
        connection.execute(delete(t.rejects).where(t.rejects.c.view_id == view, t.rejects.c.public_id.in_(some)))


def rejects(connection: Connection, view: ViewRow) -> list[Reject]:
    """Of a view: the chunks that the catalog has and its database does not hold."""
    columns = t.rejects.c
    told = select(columns.public_id, columns.reason).where(columns.view_id == view.id)
    found: list[Reject] = []
    # In two steps: with all in one, SQLite begins with the collection's chunks, and there are many more of those.
    for batch in batched(connection.execute(told.order_by(columns.at, columns.public_id)).all(), 500):
        uris = _uris(connection, view, [row.public_id for row in batch])
        found += [
            Reject(row.public_id.hex(), row.reason, uris[row.public_id]) for row in batch if row.public_id in uris
        ]
    return found


def lost(connection: Connection, move: Move) -> list[Reject]:
    """Chunks that the target does not hold: its database refuses them, or its model their texts, and not also the
    source's. Of views that there still are."""
    found: list[Reject] = []
    for key in move.targets:
        with suppress(ViewNotFound):  # dropped since, with what it refused
            found += rejects(connection, collections.view(connection, key))
    if move.source_store is not None and move.target_store is not None:
        with suppress(ViewNotFound):
            source, target = (collections.view(connection, key) for key in (move.source_store, move.target_store))
            found += _refused(connection, source, target)
    return found


def _refused(connection: Connection, source: ViewRow, target: ViewRow) -> list[Reject]:
    """Chunks of the target's chunking whose text its model refuses, but for those that the source lacks as well."""
    here, there = source.view, target.view
    if (here.space_id, here.chunking_id) == (there.space_id, there.chunking_id):
        return []
    lacked, lacks = (
        vectors.refused(connection, view.space_id, view.collection_id, view.chunking_id) for view in (here, there)
    )
    before = {text for text, _, _ in lacked}
    missing = {id_: reason for text, id_, reason in lacks if text not in before}
    found: list[Reject] = []
    for batch in batched(list(missing), 500):
        uris = _uris(connection, target, batch)
        found += [Reject(id_.hex(), missing[id_], uris[id_]) for id_ in batch if id_ in uris]
    return found


def _uris(connection: Connection, view: ViewRow, public_ids: Sequence[bytes]) -> dict[bytes, str]:
    """Of the documents of those chunks, for the chunks that there are."""
    chunks = t.chunks.c
    query = (
        select(chunks.public_id, t.documents.c.uri)
        .select_from(t.chunks.join(t.documents, t.documents.c.id == chunks.document_id))
        .where(chunks.collection_id == view.view.collection_id, chunks.chunking_id == view.view.chunking_id)
        .where(chunks.public_id.in_(public_ids))
    )
    return {row.public_id: row.uri for row in connection.execute(query)}


def as_json(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in Request.__dataclass_fields__}


def _move(row: AnyRow) -> Move:
    values = {name: getattr(row, name) for name in Move.__dataclass_fields__}
    values["state"] = MoveState(row.state)
    values["request"] = Request(**row.request)
    values["history"] = [(str(state), float(at)) for state, at in row.history]
    return Move(**values)
