"""How a view comes to be, and takes another's place: each a transaction on the catalog."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import Connection

from whimbrel.catalog import collections, jobs, log, moves
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import ViewKind, ViewState
from whimbrel.errors import CollectionNotFound
from whimbrel.owner.parts import Where


def add_first(catalog: Catalog, fence: int, collection: Collection, kind: ViewKind, where: Where) -> ViewRow | None:
    """A collection's first view of a kind; None where there is one meanwhile, or no collection any more."""
    uri, space, chunking = where
    with suppress(CollectionNotFound), catalog.write(fence=fence) as connection:
        log.lock(connection, collection.id)
        if any(row.view.kind is kind for row in collections.fed(collections.views(connection, collection.id))):
            return None  # a rebuild was quicker
        return collections.add_view(connection, collection, kind, uri=uri, space_id=space, chunking_id=chunking)
    return None  # deleted meanwhile


def build_beside(
    catalog: Catalog,
    fence: int,
    collection: Collection,
    key: int,
    reason: str,
    first: Where | None,
    uri: str | None = None,
) -> ViewRow | None:
    """A building view that is to take the place of another; None if there is one already.

    `first`: where it goes if it was never live; `uri`: another one than it has, for a live one.
    """
    with suppress(CollectionNotFound), catalog.write(fence=fence) as connection:
        log.lock(connection, collection.id)  # or two that find it damaged at once would each build another
        views = collections.fed(collections.views(connection, collection.id))
        row = next((row for row in views if row.id == key), None)  # as it is now: it may have become live since
        if row is None:
            return None
        where = (row.view.uri, row.view.space_id, row.view.chunking_id)
        if row.view.state is ViewState.BUILDING and row.replaces is None:
            where = first or where
        if row.view.state is ViewState.BUILDING:  # it was never live: simply begin again
            collections.set_view(connection, key, state=ViewState.RETIRED, error=reason)
            drop_later(connection, row)
            replaces = row.replaces
        else:
            said = f"being replaced: {reason}" if reason else row.view.error
            collections.set_view(connection, key, suspect="", error=said)
            replaces = key
        same = [other for other in views if other.id != key and other.view.kind is row.view.kind]
        if any(other.view.state is ViewState.BUILDING and other.replaces == replaces for other in same):
            return None
        same_uri, space, chunking = where
        made = collections.add_view(
            connection,
            collection,
            row.view.kind,
            uri=uri or same_uri,
            space_id=space,
            chunking_id=chunking,
            replaces=replaces,
        )
        if row.view.state is ViewState.BUILDING:
            moves.view_replaced(connection, key, made.id)
        return made
    return None


def promote(
    catalog: Catalog, fence: int, collection: Collection, made: ViewRow, position: int
) -> tuple[ViewRow, int | None] | None:
    """Make a view that stands at `position` what it was built to be. Returns it as it is now, and the one whose place
    it took; None where it has still to wait.

    A collection's first view, and what replaces the live one, goes live, at the end of the log. The target of a move
    stands by: its move decides. What replaces a view that stands by, stands by.
    """
    with suppress(CollectionNotFound), catalog.write(fence=fence) as connection:
        log.lock(connection, collection.id)
        found = collections.by_id(connection, collection.id)
        if found is None or collections.view(connection, made.id).view.state is not ViewState.BUILDING:
            return None
        live = found.store_view_id if made.view.kind is ViewKind.STORE else found.lexicon_view_id
        aside = made.replaces is not None and made.replaces != live
        before: int | None
        if aside or moves.of_target(connection, made.id) is not None:
            before = made.replaces
            collections.set_view(connection, made.id, state=ViewState.STANDBY, replaces=None)
        elif found.head != position or (live is not None and live != made.replaces):
            return None
        else:
            before = collections.switch(connection, found.id, made)
        if before is not None:
            moves.view_replaced(connection, before, made.id)
            collections.set_view(connection, before, state=ViewState.RETIRED)
            drop_later(connection, collections.view(connection, before))
        return collections.view(connection, made.id), before
    return None  # deleted meanwhile


def drop_later(connection: Connection, row: ViewRow) -> None:
    """Enqueue the removal of a retired view's data."""
    collection = collections.by_id(connection, row.view.collection_id)
    name = collection.name if collection is not None else None
    jobs.enqueue(connection, "drop_view", collection_id=row.view.collection_id, collection=name, args={"view": row.id})
