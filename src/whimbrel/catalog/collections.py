"""Collections and their views, as rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from whimbrel.catalog import bulk, conversations, log
from whimbrel.catalog import tables as t
from whimbrel.catalog.chunkings import collection_chunking as collection_chunking
from whimbrel.catalog.chunkings import collection_chunkings as collection_chunkings
from whimbrel.catalog.chunkings import forget_chunking as forget_chunking
from whimbrel.catalog.documents import batched
from whimbrel.catalog.engine import AnyRow, now, take_keys
from whimbrel.catalog.keys import among
from whimbrel.catalog.rows import max_chunk_key
from whimbrel.domain import View, ViewKind, ViewState
from whimbrel.errors import BadInput, CollectionNotFound, Conflict, ViewNotFound

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection's row, as a search reads it."""

    id: int
    name: str
    language: str
    epoch: str
    head: int
    floor: int
    store_view_id: int | None
    lexicon_view_id: int | None
    deleting: bool
    created_at: float


@dataclass(frozen=True, slots=True)
class ViewRow:
    """A view's row with its cursors."""

    view: View
    build_after: int
    build_upto: int
    replaces: int | None
    suspect: str
    lease_until: float

    @property
    def id(self) -> int:
        return self.view.id


_COLUMNS = [t.collections.c[name] for name in Collection.__dataclass_fields__]

# Made once, since each search reads them: to put a statement together takes SQLAlchemy longer than SQLite to answer it.
_BY_NAME = select(*_COLUMNS).where(t.collections.c.name == bindparam("wanted"), t.collections.c.deleting.is_(False))
_BY_ID = select(*_COLUMNS).where(t.collections.c.id == bindparam("wanted"))
_VIEWS = select(t.views).order_by(t.views.c.id)
_VIEWS_OF = _VIEWS.where(t.views.c.collection_id == bindparam("collection"))


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadInput(
            "A collection's name is 1 to 63 letters, digits, dots, hyphens and underscores, beginning with a letter or "
            "digit.",
            "Choose another name; titles with other characters belong in metadata.",
        )
    return name


def find(connection: Connection, name: str) -> Collection:
    """Raises `CollectionNotFound`, naming those that there are."""
    row = connection.execute(_BY_NAME, {"wanted": name}).first()
    if row is None:
        names = [collection.name for collection in every(connection)]
        there = f"There are: {', '.join(names[:10])}." if names else "There are none yet."
        raise CollectionNotFound(
            f"There is no collection {name!r}. {there}",
            f"`whimbrel ingest PATH -c {name}` makes it, or `whimbrel collections create {name}`.",
        )
    return Collection(*row)


def every(connection: Connection, *, deleting: bool = False) -> list[Collection]:
    """Collections by name; with `deleting`, those that are on their way out instead."""
    query = select(*_COLUMNS).where(t.collections.c.deleting.is_(deleting)).order_by(t.collections.c.name)
    return [Collection(*row) for row in connection.execute(query)]


def by_id(connection: Connection, key: int) -> Collection | None:
    row = connection.execute(_BY_ID, {"wanted": key}).first()
    return Collection(*row) if row else None


def create(connection: Connection, name: str, language: str = "auto") -> Collection:
    """A collection without views; `auto`: its language is found out from its documents.

    Raises `Conflict` if there is one of that name.
    """
    check_name(name)
    if connection.execute(select(t.collections.c.id).where(t.collections.c.name == name)).first():
        raise Conflict(f"There is a collection {name!r} already.", "Ingest into it, or choose another name.")
    connection.execute(
        t.collections.insert(),
        {
            "id": take_keys(connection, "collections", 1),
            "name": name,
            "language": language,
            "epoch": log.new_stamp(),
            "head": 0,
            "stamp": log.new_stamp(),
            "floor": 0,
            "deleting": False,
            "created_at": now(),
        },
    )
    return find(connection, name)


def rename(connection: Connection, name: str, to: str) -> Collection:
    collection = find(connection, name)
    check_name(to)
    if connection.execute(select(t.collections.c.id).where(t.collections.c.name == to)).first():
        raise Conflict(f"There is a collection {to!r} already.", "Choose another name.")
    connection.execute(update(t.collections).where(t.collections.c.id == collection.id).values(name=to))
    return find(connection, to)


def set_language(connection: Connection, name: str, language: str) -> Collection:
    """The owner builds a lexicon in it, which takes the place of the one that there is."""
    collection = find(connection, name)
    connection.execute(update(t.collections).where(t.collections.c.id == collection.id).values(language=language))
    return find(connection, name)


def mark_deleting(connection: Connection, collection: Collection) -> None:
    """Out of sight at once; its name is free again. The owner removes its rows and views."""
    connection.execute(
        update(t.collections)
        .where(t.collections.c.id == collection.id)
        .values(deleting=True, name=f"{collection.name}#deleted-{collection.id}")
    )


def remove_some(connection: Connection, collection_id: int, limit: int = 2_000) -> int:
    """Remove up to `limit` documents of a collection that is being deleted, with all that hangs on them.

    Returns how many were removed; at 0 the collection's own rows are gone too.
    """
    keys = list(
        connection.execute(
            select(t.documents.c.id).where(t.documents.c.collection_id == collection_id).limit(limit)
        ).scalars()
    )
    for batch in batched(keys, 500):
        connection.execute(delete(t.chunks).where(among(t.chunks.c.document_id, batch)))
        connection.execute(delete(t.segments).where(among(t.segments.c.document_id, batch)))
        connection.execute(delete(t.documents).where(among(t.documents.c.id, batch)))
    if not keys:
        conversations.remove_of(connection, collection_id)
        views = select(t.views.c.id).where(t.views.c.collection_id == collection_id)
        connection.execute(delete(t.rejects).where(t.rejects.c.view_id.in_(views)))
        for table in (t.moves, t.adoptions, t.changes, t.commits, t.views):
            connection.execute(delete(table).where(table.c.collection_id == collection_id))
        connection.execute(delete(t.collections).where(t.collections.c.id == collection_id))
    return len(keys)


def chunking_id(connection: Connection, spec: str) -> int:
    """The catalog's key of a chunking, made on first sight."""
    known = connection.execute(select(t.chunkings.c.id).where(t.chunkings.c.spec == spec)).scalar()
    if known is not None:
        return int(known)
    row = {"id": take_keys(connection, "chunkings", 1), "spec": spec}  # others that make it too wait here
    return bulk.insert_once(connection, t.chunkings, row, "spec")


def chunking_spec(connection: Connection, key: int) -> str:
    return str(connection.execute(select(t.chunkings.c.spec).where(t.chunkings.c.id == key)).scalar_one())


# --- views -----------------------------------------------------------------------------------------------------------


def add_view(
    connection: Connection,
    collection: Collection,
    kind: ViewKind,
    *,
    uri: str,
    space_id: int | None,
    chunking_id: int,
    replaces: int | None = None,
) -> ViewRow:
    """A building view, its snapshot taken here: everything up to the log's head, then the tail."""
    end = log.lock(connection, collection.id)
    key = take_keys(connection, "views", 1)
    connection.execute(
        t.views.insert(),
        {
            "id": key,
            "collection_id": collection.id,
            "kind": kind,
            "uri": uri,
            "name": f"c{collection.id}-v{key}-{log.new_stamp()[:6]}",
            "space_id": space_id,
            "chunking_id": chunking_id,
            "state": ViewState.BUILDING,
            "epoch": end.epoch,
            "position": end.head,
            "build_after": 0,
            "build_upto": max_chunk_key(connection, collection.id, chunking_id),
            "replaces": replaces,
            "suspect": "",
            "error": "",
            "lease_until": now() + 3600,
            "created_at": now(),
        },
    )
    return view(connection, key)


def begin_anew(connection: Connection, collection_id: int, key: int) -> ViewRow:
    """Take the snapshot of a building view once more, at the log's head: what it had copied is gone."""
    end = log.lock(connection, collection_id)
    upto = max_chunk_key(connection, collection_id, view(connection, key).view.chunking_id)
    set_view(connection, key, epoch=end.epoch, position=end.head, build_after=0, build_upto=upto)
    return view(connection, key)


def view(connection: Connection, key: int) -> ViewRow:
    row = connection.execute(select(t.views).where(t.views.c.id == key)).first()
    if row is None:
        raise ViewNotFound(f"There is no view {key}.", "`whimbrel view list` shows those that there are.")
    return _view(row)


def views(connection: Connection, collection_id: int | None = None) -> list[ViewRow]:
    if collection_id is None:
        return [_view(row) for row in connection.execute(_VIEWS)]
    return [_view(row) for row in connection.execute(_VIEWS_OF, {"collection": collection_id})]


def live_views(connection: Connection, collection: Collection) -> tuple[ViewRow | None, ViewRow | None]:
    """The live store view and the live lexicon."""
    found = {row.id: row for row in views(connection, collection.id)}
    store, lexicon = collection.store_view_id, collection.lexicon_view_id
    return (found.get(store) if store else None), (found.get(lexicon) if lexicon else None)


def counting_space(connection: Connection, collection: Collection, chunking_id: int) -> int | None:
    """The space whose model counts the tokens of chunks in a chunking: that of the live store view, if it has this
    chunking; else of the oldest store view that follows the log with it; else of the live one. None where there is
    none yet.

    A view of another model in the same chunking keeps the chunks as they are. (They may be longer for it than it reads:
    see `whimbrel.catalog.longer`.) Once it is live, what comes anew is counted by its model.
    """
    rows = [row for row in views(connection, collection.id) if row.view.kind is ViewKind.STORE]
    live = [row for row in rows if row.id == collection.store_view_id]
    for row in (*(row for row in (*live, *fed(rows)) if row.view.chunking_id == chunking_id), *live):
        if row.view.space_id is not None:
            return row.view.space_id
    return None


def _view(row: AnyRow) -> ViewRow:
    view = View(
        id=row.id,
        collection_id=row.collection_id,
        kind=ViewKind(row.kind),
        uri=row.uri,
        name=row.name,
        space_id=row.space_id,
        chunking_id=row.chunking_id,
        epoch=row.epoch,
        position=row.position,
        state=ViewState(row.state),
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        error=row.error,
    )
    return ViewRow(view, row.build_after, row.build_upto, row.replaces, row.suspect, row.lease_until)


def set_view(connection: Connection, key: int, **values: Any) -> None:
    connection.execute(update(t.views).where(t.views.c.id == key).values(**values))


def forget_view(connection: Connection, key: int) -> None:
    """Remove a view's row; its data has been dropped before."""
    connection.execute(delete(t.rejects).where(t.rejects.c.view_id == key))
    connection.execute(delete(t.adoptions).where(t.adoptions.c.view_id == key))
    connection.execute(delete(t.views).where(t.views.c.id == key))


def switch(connection: Connection, collection_id: int, target: ViewRow) -> int | None:
    """Make `target` the live view of its kind: one statement on the collection's row. Returns the one before."""
    column = t.collections.c.store_view_id if target.view.kind is ViewKind.STORE else t.collections.c.lexicon_view_id
    before = connection.execute(select(column).where(t.collections.c.id == collection_id)).scalar()
    connection.execute(
        update(t.collections).where(t.collections.c.id == collection_id).values({column.name: target.id})
    )
    set_view(connection, target.id, state=ViewState.LIVE, replaces=None)
    return before


def fed(rows: Sequence[ViewRow]) -> list[ViewRow]:
    """The views that follow the log."""
    return [row for row in rows if row.view.state in (ViewState.BUILDING, ViewState.LIVE, ViewState.STANDBY)]
