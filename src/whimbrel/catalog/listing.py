"""What people look at: documents, and the state of a home."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from whimbrel.catalog import collections, jobs, leases, rows, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.documents import batched, count_documents, read_text
from whimbrel.catalog.engine import AnyRow
from whimbrel.catalog.keys import among
from whimbrel.config import Settings, mask_url
from whimbrel.config.values import without_credentials
from whimbrel.domain import DocumentState, ViewKind, document_id
from whimbrel.errors import DocumentNotFound

UNSAYABLE = re.compile("[\x00\ud800-\udfff]")
"""What a database's text cannot hold."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the views of a collection are on their way to a position."""

    position: int
    lexicon: int
    store: int
    """Where the views of a kind stand; 0 while there is none."""
    vectors: int
    """Vectors of record ever made: its growth is the rate of embedding."""


def lag(connection: Connection, views: Sequence[ViewRow], position: int) -> Lag:
    """`views`: those of the collection that follow its log."""
    lexicon, store = (
        min((row.view.position for row in views if row.view.kind is kind), default=0)
        for kind in (ViewKind.LEXICON, ViewKind.STORE)
    )
    made = connection.execute(select(t.counters.c.value).where(t.counters.c.name == "vectors")).scalar()
    return Lag(position, lexicon, store, int(made or 0))


def status(connection: Connection, settings: Settings, home: str) -> dict[str, Any]:
    """One JSON object; where configuration and catalog differ, the catalog wins and `differs` says so."""
    owner = leases.read(connection, "owner")
    return {
        "home": home,
        "catalog": mask_url(settings.catalog),
        "owner": {"holder": owner.holder, **owner.info} if owner is not None and owner.alive else None,
        "collections": [_collection(connection, found, settings) for found in collections.every(connection)],
        "jobs": [_job(job) for job in jobs.listing(connection, active=True)],
    }


def _collection(connection: Connection, collection: Collection, settings: Settings) -> dict[str, Any]:
    views = collections.views(connection, collection.id)
    live = [row for row in views if row.id in (collection.store_view_id, collection.lexicon_view_id)]
    states = count_documents(connection, collection.id)
    extracted = states.pop(DocumentState.EXTRACTED, 0)
    behind = 0
    if (extracted and any(row.view.position < collection.head for row in live)) or len(live) < 2:
        behind = _behind(connection, collection, min((row.view.position for row in live), default=-1))
        behind = extracted if len(live) < 2 else behind
    states[DocumentState.EXTRACTED] = behind
    states[DocumentState.INDEXED] = extracted - behind
    chunking = next((row.view.chunking_id for row in live), None)
    return {
        "name": collection.name,
        "language": collection.language,
        "epoch": collection.epoch,
        "head": collection.head,
        "documents": {state.value: states.get(state, 0) for state in DocumentState},
        "chunks": rows.count_chunks(connection, collection.id, chunking) if chunking is not None else 0,
        "views": [view(connection, row, collection) for row in views],
        "differs": _differs(connection, live, settings),
    }


def view(connection: Connection, row: ViewRow, collection: Collection) -> dict[str, Any]:
    key, chunking = row.view.space_id, row.view.chunking_id
    space = vectors.read_space(connection, key) if key is not None else None
    refused = vectors.refusals(connection, key, collection.id, chunking) if key is not None else 0
    return {
        "id": row.id,
        "collection": collection.name,
        "uri": mask_url(row.view.uri),
        "name": row.view.name,
        "kind": row.view.kind.value,
        "state": row.view.state.value,
        "live": row.id in (collection.store_view_id, collection.lexicon_view_id),
        "epoch": row.view.epoch,
        "position": row.view.position,
        "lag": collection.head - row.view.position,
        "space": {"embedder": space[1], "model": space[0].model, "dimensions": space[0].dimensions} if space else None,
        "chunking": collections.chunking_spec(connection, chunking),
        "refused": refused,
        "error": row.view.error,
    }


def _behind(connection: Connection, collection: Collection, position: int) -> int:
    columns = t.documents.c
    query = select(columns.id).where(
        columns.collection_id == collection.id,
        columns.state == DocumentState.EXTRACTED,
        columns.position > position,
    )
    return len(connection.execute(query).all())


def _differs(connection: Connection, live: list[ViewRow], settings: Settings) -> list[str]:
    """Where the configuration disagrees with the catalog, which wins."""
    said = []
    for row in live:
        if row.view.space_id is None:
            continue
        spec = vectors.read_space(connection, row.view.space_id)[1]
        if spec != settings.embedder:
            said.append(f"embedder: configured {settings.embedder!r}, the collection's vectors are of {spec!r}")
        if row.view.uri != without_credentials(settings.store):
            said.append(
                f"store: configured {mask_url(settings.store)!r}, the collection is in {mask_url(row.view.uri)!r}"
            )
        cut = collections.chunking_spec(connection, row.view.chunking_id)
        configured = f"tokens={settings.chunking.tokens},overlap={settings.chunking.overlap}"
        if cut != configured:
            said.append(f"chunking: configured {configured!r}, the collection is cut by {cut!r}")
    return said


def _job(job: Any) -> dict[str, Any]:
    return job_dict(job)


def job_dict(job: Any) -> dict[str, Any]:
    """A job as JSON. Its arguments name paths, never text."""
    return {
        "id": job.id,
        "kind": job.kind,
        "collection": job.collection,
        "state": job.state.value,
        "progress": dict(job.progress),
        "result": dict(job.result),
        "attempts": job.attempts,
        "error": job.error,
        "hint": job.hint,
        "cancel_requested": job.cancel_requested,
        "created_at": job.created_at.isoformat(timespec="seconds"),
        "updated_at": job.updated_at.isoformat(timespec="seconds"),
        "not_before": job.not_before.isoformat(timespec="seconds") if job.not_before else None,
    }


def documents(
    connection: Connection, collection: Collection, state: str | None, limit: int, offset: int
) -> list[dict[str, Any]]:
    """By URI. Without a state, all that are not gone."""
    columns = t.documents.c
    query = select(t.documents).where(columns.collection_id == collection.id).order_by(columns.uri, columns.id)
    position = _live_position(connection, collection)
    if state in (DocumentState.INDEXED, DocumentState.EXTRACTED):
        passed = columns.position <= position
        query = query.where(
            columns.state == DocumentState.EXTRACTED, passed if state == DocumentState.INDEXED else ~passed
        )
    elif state is not None:
        query = query.where(columns.state == state)
    else:
        query = query.where(columns.state != DocumentState.GONE)
    found = connection.execute(query.limit(limit).offset(offset)).all()
    chunks = _chunk_counts(connection, collection, [row.id for row in found])
    return [_document(row, position, chunks[row.id]) for row in found]


def document(connection: Connection, collection: Collection, key: int) -> dict[str, Any]:
    row = connection.execute(select(t.documents).where(t.documents.c.id == key)).one()
    chunks = _chunk_counts(connection, collection, [key])[key]
    return {**_document(row, _live_position(connection, collection), chunks), "text": read_text(connection, key)}


@dataclass(frozen=True, slots=True)
class _Meant:
    """What a name of a document may be."""

    ids: Sequence[bytes]
    """Public ids: itself, or made from it as an external id."""
    origins: Sequence[bytes]
    """Public ids made from it as a URI or path."""
    uris: Sequence[str]


def _meant(name: str) -> _Meant:
    ids = [document_id(external_id=name, uri="")]
    if len(name) == 32 and all(letter in "0123456789abcdef" for letter in name):
        ids.append(name)
    uris = [] if UNSAYABLE.search(name) else [name]
    if "\0" not in name:  # also of a file that is no more
        uris.append(Path(os.path.realpath(os.path.expanduser(name))).as_uri())  # noqa: PTH111 `~who` may be no user
    origins = [document_id(external_id=None, uri=uri) for uri in uris]
    return _Meant([bytes.fromhex(one) for one in ids], [bytes.fromhex(one) for one in origins], uris)


def resolve(connection: Connection, collection: Collection, name: str) -> int:
    """The key of one document by public id, external id, URI, or path. Raises `DocumentNotFound`."""
    columns = t.documents.c
    meant = _meant(name)
    query = select(columns.id).where(columns.collection_id == collection.id)
    for known in (columns.public_id.in_([*meant.ids, *meant.origins]), columns.uri.in_(meant.uris)):
        if (key := connection.execute(query.where(known)).scalar()) is not None:
            return int(key)
    raise _unknown(collection, name)


def resolve_all(connection: Connection, collection: Collection, names: Sequence[str]) -> list[int]:
    """The keys of all documents that these names mean, each once.

    A public or external id means one document; a URI or path all that come from there: a file may be one document by
    its path and another by an id that it was given. Raises `DocumentNotFound` for the first name that means none.
    """
    columns = t.documents.c
    meant = {name: _meant(name) for name in names}
    query = select(columns.id, columns.public_id, columns.uri).where(columns.collection_id == collection.id)
    by_id: dict[bytes, int] = {}
    for batch in batched([one for about in meant.values() for one in (*about.ids, *about.origins)], 5_000):
        by_id |= {row.public_id: row.id for row in connection.execute(query.where(columns.public_id.in_(batch)))}
    uris = [uri for about in meant.values() if not any(one in by_id for one in about.ids) for uri in about.uris]
    by_uri: dict[str, list[int]] = {}
    for some in batched(uris, 5_000):
        for row in connection.execute(query.where(columns.uri.in_(some))):
            by_uri.setdefault(row.uri, []).append(row.id)
    found: dict[int, None] = {}
    for name, about in meant.items():
        keys = [by_id[one] for one in about.ids if one in by_id]
        if not keys:
            keys = [by_id[one] for one in about.origins if one in by_id]
            keys += [key for uri in about.uris for key in by_uri.get(uri, ())]
        if not keys:
            raise _unknown(collection, name)
        found |= dict.fromkeys(keys)
    return list(found)


def _unknown(collection: Collection, name: str) -> DocumentNotFound:
    return DocumentNotFound(
        f"There is no document {name!r} in {collection.name!r}.", "`whimbrel documents list` shows ids and URIs."
    )


def _live_position(connection: Connection, collection: Collection) -> int:
    live = collections.live_views(connection, collection)
    return min(row.view.position if row is not None else -1 for row in live)


def _chunk_counts(connection: Connection, collection: Collection, keys: Sequence[int]) -> Counter[int]:
    """How many chunks documents have in the chunking that is searched."""
    chunks = t.chunks.c
    live = collections.collection_chunking(connection, collection.id)
    query = select(chunks.document_id, func.count()).where(chunks.chunking_id == live)
    some = query.where(among(chunks.document_id, keys)).group_by(chunks.document_id)
    counts: Counter[int] = Counter()
    for key, count in connection.execute(some):
        counts[key] = count
    return counts


def _document(row: AnyRow, position: int, chunks: int) -> dict[str, Any]:
    state = row.state
    if state == DocumentState.EXTRACTED and row.position <= position:
        state = DocumentState.INDEXED
    return {
        "document_id": row.public_id.hex(),
        "external_id": row.external_id,
        "uri": row.uri,
        "title": row.title,
        "media_type": row.media_type,
        "state": str(state),
        "reason": row.reason,
        "metadata": row.metadata,
        "size": row.size,
        "text_length": row.text_length,
        "chunks": chunks,
        "position": row.position,
    }
