"""The statements of a search.

First the index is followed, row by row, until enough have passed the filter (pgvector's iterative scan), unless the
planner finds that so few pass that comparing all of them is quicker. Where that finds fewer rows than were asked for,
the index was given up too early: all rows that pass are compared.
"""

from __future__ import annotations

from math import ceil, isnan
from typing import Any

import numpy as np

from whimbrel.domain import Matches
from whimbrel.stores.metrics import Metric, scores
from whimbrel.stores.postgres.pool import EF_SEARCH, Link, VectorBytes
from whimbrel.stores.postgres.table import MAX_HALF_DIMENSIONS, MAX_HNSW_DIMENSIONS, Table
from whimbrel.stores.postgres.where import Condition

LARGE = 100_000
"""Rows up to which `EF_SEARCH` candidates find what is near."""
_FEW = 4
"""Candidates by vectors in half precision, for each row that is asked for."""


def width(k: int, rows: int) -> int:
    """Candidates that a search of the index keeps: twice as many as are asked for, and the more the larger the table
    is. Of a million rows, 120 lead to .92 of the nearest ten and 200 or 300 to .97."""
    return max(2 * k, ceil(EF_SEARCH * (rows / LARGE) ** 0.4) if rows > LARGE else 0)


async def nearest(
    link: Link, table: Table, vector: VectorBytes, k: int, condition: Condition | None, rows: int = 0
) -> Matches:
    """The k nearest of the rows that pass; ties by id. `rows`: about as many as the table has."""
    await link.search_wide(width(k, rows))
    # A statement with a filter is planned for the values that it has now, one without needs planning once.
    prepare = None if condition is None else False
    found = []
    if table.dimensions <= MAX_HALF_DIMENSIONS:
        by_index, parameters = _by_index(table, vector, k, condition)
        found = await link.fetch(by_index, parameters, prepare=prepare)
    if len(found) < k:
        compared, parameters = _compared(table, vector, k, condition)
        found = await link.fetch(compared, parameters, prepare=prepare)
    # The distance is 1 - c, and NaN where a vector is all zeros: that is near to nothing.
    cosines = [0.0 if isnan(distance) else 1.0 - distance for _, distance in found]
    return Matches([id_ for id_, _ in found], scores(Metric.COSINE, np.array(cosines, np.float64)))


def _by_index(table: Table, vector: VectorBytes, k: int, condition: Condition | None) -> tuple[str, list[Any]]:
    where, parameters = _where(condition)
    if table.dimensions <= MAX_HNSW_DIMENSIONS:
        # Sorting by id within equal distances keeps the order of the index: no row is read for it but the ties.
        statement = (
            f"SELECT id, vector <=> %b::vector AS distance FROM {table.name} {where} ORDER BY distance, id LIMIT {k}"
        )
        return statement, [vector, *parameters]
    half = f"halfvec({table.dimensions})"
    statement = (
        f"SELECT id, vector <=> %b::vector AS distance FROM (SELECT id, vector FROM {table.name} {where} "
        f"ORDER BY vector::{half} <=> %b::vector::{half}, id LIMIT {_FEW * k}) candidates "
        f"ORDER BY distance, id LIMIT {k}"
    )
    return statement, [vector, *parameters, vector]


def _compared(table: Table, vector: VectorBytes, k: int, condition: Condition | None) -> tuple[str, list[Any]]:
    where, parameters = _where(condition)
    statement = (  # OFFSET 0: what is inside is not merged with what is around it, so no index gives the order
        f"SELECT id, distance FROM (SELECT id, vector <=> %b::vector AS distance FROM {table.name} {where} OFFSET 0) "
        f"compared ORDER BY distance, id LIMIT {k}"
    )
    return statement, [vector, *parameters]


def _where(condition: Condition | None) -> tuple[str, list[Any]]:
    return ("", []) if condition is None else (f"WHERE {condition.sql}", condition.parameters)
