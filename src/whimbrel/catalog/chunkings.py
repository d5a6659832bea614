"""Which chunkings a collection's documents are cut in, and taking one away.

While a collection is on its way to another chunking it has chunks of both: those that are searched, and those of the
views that are being built, or kept for the way back. Whatever writes a document writes all of them in one transaction,
so that each view can follow the one log.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from sqlalchemy import ColumnElement, Connection, bindparam, column, delete, func, select, tuple_

from whimbrel.catalog import log
from whimbrel.catalog import tables as t
from whimbrel.catalog.keys import among
from whimbrel.domain import ViewState
from whimbrel.errors import Conflict

_FED = (ViewState.BUILDING, ViewState.LIVE, ViewState.STANDBY)
_VIEWS = (
    select(
        t.views.c.id,
        t.views.c.chunking_id,
        t.views.c.state,
        t.collections.c.store_view_id,
        t.collections.c.lexicon_view_id,
    )
    .join(t.collections, t.collections.c.id == t.views.c.collection_id)
    .where(t.views.c.collection_id == bindparam("wanted"))
    .order_by(t.views.c.id)
)
_ANY_CHUNK = select(t.chunks.c.chunking_id).where(t.chunks.c.collection_id == bindparam("wanted")).limit(1)


def collection_chunkings(connection: Connection, collection_id: int) -> list[int]:
    """The chunkings that each document of a collection is cut in: that of the live views first, then those of the other
    views that follow the log, by age. Empty before the collection has any.

    What holds for a write is what this returns after `log.lock`: a view is added under the same lock.
    """
    ranked: list[tuple[int, int, int]] = []
    for key, chunking, state, store, lexicon in connection.execute(_VIEWS, {"wanted": collection_id}):
        live = (store, lexicon).index(key) if key in (store, lexicon) else 2
        if live < 2 or state in _FED:
            ranked.append((live, key, chunking))
    if not ranked:  # after a restore: the chunks are there, the views are not yet
        known = connection.execute(_ANY_CHUNK, {"wanted": collection_id}).scalar()
        return [] if known is None else [int(known)]
    return list(dict.fromkeys(chunking for _, _, chunking in sorted(ranked)))


def collection_chunking(connection: Connection, collection_id: int) -> int | None:
    """The chunking that a collection is searched in; None before it has any."""
    return next(iter(collection_chunkings(connection, collection_id)), None)


def left_behind(connection: Connection, collection_id: int) -> list[int]:
    """The chunkings that no view of a collection follows: of each it may have something still."""
    followed = collection_chunkings(connection, collection_id)
    query = select(t.chunkings.c.id).where(t.chunkings.c.id.not_in(followed)).order_by(t.chunkings.c.id)
    return list(connection.execute(query).scalars())


def forget_chunking(connection: Connection, collection_id: int, chunking_id: int, limit: int = 500) -> int:
    """Remove what a collection has in a chunking that none of its views follows any more: the chunks of up to `limit`
    documents, then up to 100 times as many entries of the log. Returns how many rows went; 0 when nothing is left.

    A document loses all its chunks in that chunking at once: `recut` takes one that has some for done. Texts that
    nobody has any more stay, with their vectors, until a purge sweeps them: a move that is begun again finds them.
    Raises `Conflict` while a view follows it.
    """
    log.lock(connection, collection_id)
    if chunking_id in collection_chunkings(connection, collection_id):
        raise Conflict(
            "A view of the collection has this chunking. Nothing was removed.", "Abort or finish its move first."
        )
    chunks, changes = t.chunks.c, t.changes.c
    here = (chunks.collection_id == collection_id) & (chunks.chunking_id == chunking_id)
    documents = list(connection.execute(select(chunks.document_id).where(here).distinct().limit(limit)).scalars())
    if documents:
        return connection.execute(delete(t.chunks).where(here, among(chunks.document_id, documents))).rowcount
    logged = (changes.collection_id == collection_id) & (changes.chunking_id == chunking_id)
    positions = list(connection.execute(select(changes.position).where(logged).limit(100 * limit)).scalars())
    if not positions:
        return 0
    return connection.execute(delete(t.changes).where(logged, among(changes.position, positions))).rowcount


def live_chunks(connection: Connection) -> ColumnElement[bool]:
    """Which rows of the table of chunks are of the chunking that their collection is searched in."""
    keys = connection.execute(select(t.collections.c.id)).scalars().all()
    live = [(key, chunking) for key in keys if (chunking := collection_chunking(connection, key)) is not None]
    return tuple_(column("collection_id"), column("chunking_id")).in_(live)


def keep_one(connection: Connection) -> None:
    """Leave each collection the chunking in which most of its documents are cut: for a catalog that has lost its views,
    and with them which one was live. A chunking that was only begun has fewer; where two are whole, either serves."""
    chunks = t.chunks.c
    documents = func.count(chunks.document_id.distinct())
    covered: dict[int, Counter[int]] = defaultdict(Counter)
    query = select(chunks.collection_id, chunks.chunking_id, documents)
    for collection, chunking, count in connection.execute(query.group_by(chunks.collection_id, chunks.chunking_id)):
        covered[collection][chunking] = count
    for collection, counts in covered.items():
        kept = min(counts, key=lambda chunking: (-counts[chunking], chunking))
        for chunking in counts.keys() - {kept}:
            here = (chunks.collection_id == collection) & (chunks.chunking_id == chunking)
            connection.execute(delete(t.chunks).where(here))
