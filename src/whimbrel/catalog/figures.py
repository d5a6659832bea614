"""Counts of the whole home, for metrics: three grouped reads, two of them of an index alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from whimbrel.catalog import collections
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.domain import DocumentState


@dataclass(frozen=True, slots=True)
class CollectionFigures:
    collection: Collection
    documents: Mapping[str, int]
    """By state, `indexed` told from `extracted`."""
    views: Sequence[ViewRow]


def collection_figures(connection: Connection) -> list[CollectionFigures]:
    """By name."""
    columns = t.documents.c
    stored: dict[int, dict[str, int]] = defaultdict(dict)
    grouped = select(columns.collection_id, columns.state, func.count()).group_by(columns.collection_id, columns.state)
    for key, state, count in connection.execute(grouped):
        stored[key][str(state)] = count
    rows: dict[int, list[ViewRow]] = defaultdict(list)
    for row in collections.views(connection):
        rows[row.view.collection_id].append(row)
    return [
        CollectionFigures(found, _told_apart(connection, found, stored[found.id], rows[found.id]), rows[found.id])
        for found in collections.every(connection)
    ]


def _told_apart(
    connection: Connection, collection: Collection, stored: Mapping[str, int], views: Sequence[ViewRow]
) -> dict[str, int]:
    counts = {state.value: stored.get(state.value, 0) for state in DocumentState}
    live = [row for row in views if row.id in (collection.store_view_id, collection.lexicon_view_id)]
    extracted = counts[DocumentState.EXTRACTED]
    behind = extracted
    if len(live) == 2:
        position = min(row.view.position for row in live)
        behind = _behind(connection, collection, position) if extracted and position < collection.head else 0
    return {**counts, DocumentState.EXTRACTED.value: behind, DocumentState.INDEXED.value: extracted - behind}


def _behind(connection: Connection, collection: Collection, position: int) -> int:
    columns = t.documents.c
    query = select(func.count()).where(
        columns.collection_id == collection.id,
        columns.state == DocumentState.EXTRACTED,
        columns.position > position,
    )
    return int(connection.execute(query).scalar_one())


def job_counts(connection: Connection) -> dict[str, int]:
    """Jobs by state; those that ended are kept for a month."""
    grouped = select(t.jobs.c.state, func.count()).group_by(t.jobs.c.state)
    return {str(state): int(count) for state, count in connection.execute(grouped)}
