"""What is asked again and again while a move goes on does not read the whole collection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, event

from support import collection, document, write
from whimbrel.catalog import collections, moves, vectors
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.migrate import ensure_schema
from whimbrel.domain import Space, ViewKind


def plan(connection: Connection, ask: Callable[[], object]) -> list[str]:
    """Each step that SQLite takes for what is asked."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    try:
        ask()
    finally:
        event.remove(connection, "before_cursor_execute", note)
    steps = []
    for statement, parameters in asked:
        explained = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        steps += [str(row.detail) for row in explained]
    return steps


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """Only SQLite: Postgres has figures of its tables, and reads a small one whole whatever it has."""
    made = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    ensure_schema(made, copies=tmp_path / "copies")
    yield made
    made.close()


def test_refused_texts_and_rows_are_counted_by_an_index(catalog: Catalog) -> None:
    place = collection(catalog)
    write(catalog, place, document("memory:1", "one\n\ntwo\n\nthree"))
    with catalog.write() as connection:
        space = vectors.space_id(connection, Space("mini", "1", 4), "onnx:mini")
        texts = vectors.missing(connection, space, [1, 2, 3]).text_ids
        vectors.put(connection, space, [], np.zeros((0, 4), np.float32), dict.fromkeys(texts, "too long"))
        found = collections.by_id(connection, place[0])
        assert found is not None
        row = collections.add_view(
            connection, found, ViewKind.STORE, uri="lancedb:", space_id=space, chunking_id=place[1]
        )
        moves.reject(connection, row.id, "0" * 32, "too large")
        steps = plan(connection, lambda: vectors.refusals(connection, space, *place))
        steps += plan(connection, lambda: moves.rejects(connection, row))
        assert vectors.refusals(connection, space, *place) == len(texts) == 3
    assert len(steps) >= 4
    assert not [step for step in steps if "SCAN" in step and ("chunks" in step or "vectors" in step)]
    assert not [step for step in steps if "chunks" in step and step.endswith("(collection_id=?)")]
