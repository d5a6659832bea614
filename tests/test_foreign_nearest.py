"""The nearest rows of other programs' databases, by each metric that they have: as exact search finds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from adopting import D, Table, fill_chroma, fill_lance, fill_parquet
from copying import at, libpq
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign import exact
from whimbrel.stores.foreign.base import Chosen, Id, Source
from whimbrel.stores.foreign.resolve import open_database, parse
from whimbrel.stores.metrics import Metric, measure, scores

pytestmark = pytest.mark.timeout(120)

ROWS = 400
K = 12
_PG = {Metric.COSINE: "cosine", Metric.L2: "l2", Metric.DOT: "ip"}


def made(*, normalised: bool) -> Table:
    rng = np.random.default_rng(11)
    vectors = rng.normal(size=(ROWS, D)).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / lengths if normalised else vectors * rng.uniform(0.2, 2.0, size=(ROWS, 1)).astype(np.float32)
    return Table([f"id '{row}" for row in range(ROWS)], ["text"] * ROWS, vectors, [{"n": row} for row in range(ROWS)])


def fill(kind: str, folder: Path, table: Table, metric: Metric, url: str) -> tuple[str, Chosen]:
    if kind == "lancedb":
        return fill_lance(folder, table), Chosen(metric=metric)
    if kind == "parquet":
        return fill_parquet(folder, table), Chosen(metric=metric)
    if kind == "chroma":
        return fill_chroma(folder, table, metric=_PG[metric]), Chosen()
    return _postgres(url, table, metric, "halfvec" if kind == "halfvec" else "vector"), Chosen()


def _postgres(url: str, table: Table, metric: Metric, type_: str) -> str:
    import psycopg

    with psycopg.connect(libpq(url), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f'CREATE TABLE "odd % log" (id text PRIMARY KEY, e {type_}({D}))'.replace(" %", "").encode())
        with connection.cursor() as cursor:
            rows = [(id_, str(vector.tolist())) for id_, vector in zip(table.ids, table.vectors, strict=True)]
            cursor.executemany(f'INSERT INTO "odd log" VALUES (%s, %s::{type_})'.encode(), rows)
        connection.execute(f'CREATE INDEX ON "odd log" USING hnsw (e {type_}_{_PG[metric]}_ops)'.encode())
    return at(url, "odd log")


async def nearest(uri: str, chosen: Chosen, vector: Any, k: int, scratch: Path, **asked: Any) -> Sequence[Any]:
    address = parse(uri)
    database = open_database(address, base=Path.cwd(), scratch=scratch, reach=Reach())
    source: Source = database.source(address.collection, chosen)
    source.normalised = asked.pop("normalised")
    try:
        await source.describe()
        return await source.nearest(vector, k, **asked)
    finally:
        await source.close()
        await database.close()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("kind", ["lancedb", "parquet", "chroma", "vector", "halfvec"])
async def test_as_exact_search(
    kind: str, metric: Metric, normalised: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    table = made(normalised=normalised)
    url = str(request.getfixturevalue("fresh_postgres")) if kind in ("vector", "halfvec") else ""
    uri, chosen = fill(kind, tmp_path / "theirs", table, metric, url)
    query = table.vectors[7] + 0.1 * table.vectors[8]
    if normalised:
        query = query / np.linalg.norm(query)
    known = scores(metric, measure(metric, table.vectors, query), normalised=normalised)
    exactly = measure(metric, table.vectors, query)
    order = np.argsort(exactly if metric is Metric.L2 else -exactly, kind="stable")
    right = [table.ids[row] for row in order[:K]]

    found = await nearest(uri, chosen, query, K, tmp_path / "s", normalised=normalised)
    tolerance = 2e-3 if kind == "halfvec" else 2e-5
    overlap = len({id_ for id_, _ in found} & set(right))
    assert len(found) == K
    assert overlap >= K - 1, "an index finds nearly all; this one has few rows"
    by_id: dict[Id, float] = {id_: float(known[row]) for row, id_ in enumerate(table.ids)}
    assert found[0][0] == right[0]
    for id_, score in found:
        assert score == pytest.approx(by_id[id_], abs=tolerance)
        assert 0 <= score <= 1

    some = [table.ids[row] for row in order[100:140]]
    among = await nearest(uri, chosen, query, 5, tmp_path / "s", normalised=normalised, among=[*some, "not there"])
    assert among[0][0] in some[:2]
    assert {id_ for id_, _ in among} <= set(some)
    assert len(among) == 5
    assert not await nearest(uri, chosen, query, 5, tmp_path / "s", normalised=normalised, among=[])


async def test_an_index_of_lancedb_is_used_and_its_vectors_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(3_000, D)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), D)
    table = lancedb.connect(tmp_path / "theirs").create_table(
        "log", pa.table({"id": list(range(3_000)), "vector": flat, "text": ["t"] * 3_000})
    )
    table.create_index(metric="l2", num_partitions=4, num_sub_vectors=8)
    query = vectors[17] * 1.01
    found = await nearest(f"lancedb:{tmp_path / 'theirs'}/log", Chosen(), query, 5, tmp_path / "s", normalised=False)
    assert found[0][0] == 17
    distance = float(np.linalg.norm(vectors[17] - query))
    assert found[0][1] == pytest.approx(1 / (1 + distance), abs=1e-4)


def test_the_exact_index_finds_what_is_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(40_000, D)).astype(np.float32)
    ids = [f"{row:032x}" for row in rng.permutation(40_000).tolist()]
    batches = [(ids[start : start + 7_000], vectors[start : start + 7_000]) for start in range(0, 40_000, 7_000)]
    exact.build(tmp_path / "index", batches)
    exact.build(tmp_path / "index", batches)  # another process was quicker: its files stay
    index = exact.ExactIndex.read(tmp_path / "index", D)
    assert len(index) == 40_000
    query = vectors[5] + vectors[6]
    cosines = measure(Metric.COSINE, vectors, query)
    right = [ids[row] for row in np.argsort(-cosines)[:20]]
    assert [id_ for id_, _ in index.nearest(query, 20)] == right
    some = [ids[row] for row in range(100, 30_000, 3)]
    inside = sorted(range(100, 30_000, 3), key=lambda row: -cosines[row])[:20]
    assert [id_ for id_, _ in index.nearest(query, 20, [*some, "f" * 32])] == [ids[row] for row in inside]
    assert index.nearest(query, 20, ["e" * 32]) == []
    assert index.nearest(np.zeros(D, np.float32), 20) == []
