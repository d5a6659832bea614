"""What a view in LanceDB promises: exact round trips, exact filters, k hits, durability, and no silent damage."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whimbrel.domain import Position, Space
from whimbrel.errors import (
    BadInput,
    ConfigError,
    Conflict,
    DiskFull,
    HomeError,
    SpaceMismatch,
    StoreRefused,
    StoreUnsupported,
    ViewDamaged,
    ViewError,
)
from whimbrel.filters import And, Compare, Filter, Not, Op, Or, flatten, matches, parse
from whimbrel.stores.arrays import CodedMetadata, Texts
from whimbrel.stores.base import DENSE, Records, Store
from whimbrel.stores.lancedb import LanceStore, maintain
from whimbrel.stores.lancedb.columns import VECTOR, table_schema
from whimbrel.stores.lancedb.library import connect, translate
from whimbrel.stores.resolve import open_store
from whimbrel.testing import Place, StoreConformance
from whimbrel.testing.base import NewPlace
from whimbrel.testing.texts import QUERIES, embedded

DIMENSIONS = 16
SPACE = Space("test", "1", DIMENSIONS)


def unit_vectors(count: int, seed: int = 0, dimensions: int = DIMENSIONS) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def records(metadata: Sequence[dict[str, Any]], *, first: int = 0, text: str = "text") -> Records:
    count = len(metadata)
    ids = [f"{i:06d}" for i in range(first, first + count)]
    return Records(ids, {DENSE: unit_vectors(count, first)}, [f"{text} {i}" for i in ids], metadata)


@pytest.fixture
async def store(tmp_path: Path):
    store = LanceStore(tmp_path, "view", SPACE)
    await store.create()
    yield store
    await store.close()


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that has made `store`, a handle on the table "view" in the folder given first."""
    prelude = """
        import asyncio, sys
        import numpy as np
        from pathlib import Path
        from whimbrel.domain import Position, Space
        from whimbrel.stores.base import DENSE, Records
        from whimbrel.stores.lancedb import LanceStore
        store = LanceStore(Path(sys.argv[1]), "view", Space("test", "1", 16))
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(code)
    path = os.pathsep.join(filter(None, [str(Path(maintain.__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


class TestLanceDB(StoreConformance):
    """LanceDB passes the suite that every store passes."""

    name = "LanceDB"

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
        return lambda: Place("lancedb:views", tmp_path_factory.mktemp("lancedb"))


# --- rows ------------------------------------------------------------------------------------------------------------

AWKWARD: list[dict[str, Any]] = [
    {},
    {"none": None, "empty": [], "nested": {"empty": {}, "list": [[], {}]}},
    {
        "big": 2**63 - 1,
        "small": -(2**63),
        "odd": 2**53 + 1,
        "zero": -0.0,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
    },
    {"id": "not the id", "text": 1, "vector": [1.0], "metadata": True, "_rowid": 3, "_distance": 0.5, "ID": "upper"},
    {"key": 1, "Key": "one", "KEY": [True]},
    {"a.b": 1, "a": {"b": 2, "c": [{"d": "x"}, {"d": "y"}]}},
    {"quote'\"`": "'; DROP TABLE view; --", "back\\slash": "\\'", "": "empty key", "línea\n😀": "\uffff\U00010000"},
    {"mixed": [1, 2.5, "two", True, None, {"deep": [1]}], "long": "x" * 60_000},
]


async def test_metadata_comes_back_as_it_was_given(store: LanceStore) -> None:
    rows = records(AWKWARD)
    await store.upsert(rows, new=True)
    await store.upsert(records(AWKWARD, first=100))
    found = await store.fetch(rows.ids)
    by_id = dict(zip(found.ids, found.metadata, strict=True))
    assert [by_id[i] for i in rows.ids] == AWKWARD
    assert math.copysign(1, by_id["000002"]["zero"]) == -1
    assert [type(v) for v in by_id["000007"]["mixed"][:4]] == [int, float, str, bool]


async def test_awkward_values_are_found_by_filters(store: LanceStore) -> None:
    await store.upsert(records(AWKWARD), new=True)
    for row, metadata in enumerate(AWKWARD):
        for path, scalars in flatten(metadata).items():
            for scalar in scalars:
                found = await store.search(unit_vectors(1)[0], 20, Compare(path, Op.EQ, (scalar,)))
                assert f"{row:06d}" in found.ids


async def test_other_programs_find_plain_columns(store: LanceStore, tmp_path: Path) -> None:
    import lancedb

    await store.upsert(records([{"year": 2020, "site": "docs", "tags": ["a", "b"]}]), new=True)
    table = lancedb.connect(tmp_path).open_table("view")
    (row,) = table.search().where("year = 2020 AND site = 'docs'").to_list()
    assert (row["id"], row["text"], row["tags"]) == ("000000", "text 000000", ["a", "b"])


async def test_wrong_vectors_are_refused(store: LanceStore, tmp_path: Path) -> None:
    bad = unit_vectors(1)
    bad[0, 3] = np.nan
    with pytest.raises(BadInput):
        await store.upsert(Records(["a"], {DENSE: bad}, ["t"], [{}]))
    with pytest.raises(SpaceMismatch):
        await store.upsert(Records(["a"], {DENSE: unit_vectors(1, dimensions=8)}, ["t"], [{}]))
    with pytest.raises(SpaceMismatch):
        await store.search(unit_vectors(1, dimensions=8)[0], 1)
    with pytest.raises(SpaceMismatch) as mismatch:
        await LanceStore(tmp_path, "view", Space("other", "1", DIMENSIONS)).count()
    assert "Nothing was changed" in mismatch.value.hint
    assert await store.count() == 0


async def test_a_table_of_a_newer_version_is_not_opened(tmp_path: Path) -> None:
    connection = await connect(tmp_path)
    about = {"whimbrel:format": "2", "whimbrel:space": SPACE.key}
    await connection.create_table("view", schema=table_schema(DIMENSIONS, about))
    with pytest.raises(StoreUnsupported, match="newer version of Whimbrel"):
        await LanceStore(tmp_path, "view", SPACE).count()
    said = "This dataset cannot be read by this version of Lance. Please upgrade Lance to read this dataset."
    error = translate("Table 'view': cannot open", ValueError(said))
    assert isinstance(error, StoreUnsupported)
    assert "pip install --upgrade lancedb" in error.hint


async def test_a_file_in_the_way_and_a_name_that_is_refused_are_no_damage(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(HomeError, match="no folder"):
        await LanceStore(tmp_path / "note.txt" / "views", "view", SPACE).create()
    with pytest.raises(StoreRefused, match="name"):
        await LanceStore(tmp_path / "views", "a/b", SPACE).create()


async def test_a_table_is_made_once_and_dropped_alone(store: LanceStore, tmp_path: Path) -> None:
    other = LanceStore(tmp_path, "other", SPACE)
    await other.create()
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(Conflict):
        await LanceStore(tmp_path, "view", SPACE).create()
    await store.drop()
    await store.drop()
    assert not await store.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["note.txt", "other.lance"]
    await store.create()
    assert await store.count() == 0
    await other.close()


def test_a_uri_names_its_store(tmp_path: Path) -> None:
    relative = open_store("lancedb:views/a", "v", SPACE, base=tmp_path)
    assert isinstance(relative, LanceStore)
    assert relative.path == tmp_path / "views/a/v.lance"
    absolute = open_store(f"lancedb:{tmp_path}/b", "v", SPACE, base=Path("elsewhere"))
    assert isinstance(absolute, LanceStore)
    assert absolute.path == tmp_path / "b/v.lance"
    with pytest.raises(ConfigError, match="'lancedb'"):
        open_store("lance:views", "v", SPACE, base=tmp_path)
    default = open_store("lancedb:", "v", SPACE, base=tmp_path)
    assert isinstance(default, LanceStore)
    assert default.path == tmp_path / "views/v.lance"
    with pytest.raises(ConfigError):
        open_store("lancedb", "v", SPACE, base=tmp_path)


# --- search ----------------------------------------------------------------------------------------------------------


async def test_scores_are_cosines_and_best_first(store: LanceStore) -> None:
    rows = records([{}] * 400)
    await store.upsert(rows, new=True)
    query = unit_vectors(1, seed=99)[0]
    cosines = rows.vectors[DENSE] @ query
    best = np.argsort(-cosines)[:10]
    found = await store.search(query, 10)
    assert found.ids == [rows.ids[i] for i in best]
    assert found.scores.dtype == np.float32
    assert np.allclose(found.scores, cosines[best], atol=1e-6)
    everything = await store.search(query, 1_000)
    assert len(everything.ids) == 400
    assert everything.scores.min() == 0.0


PATHS = [
    "a",
    "A",
    "a.b",
    "id",
    "Text",
    "vector",
    "metadata",
    "metadata_more",
    "_rowid",
    "b c",
    "q`'\"",
    "",
    "select",
    "é",
]
SCALARS = st.one_of(
    st.sampled_from(["", "a", "b", "A", "é", "\uffff", "\U00010000", "it's", "1", "true", "a\\"]),
    st.sampled_from([-(2**63), -(2**63) + 1, -1, 0, 1, 2, 2**53, 2**53 + 1, 2**63 - 1, 2**63 - 2]),
    st.sampled_from([-1e300, -(2.0**63), -0.5, -0.0, 0.0, 0.5, 1.0, 2.0**53, 2.0**63, 5e-324, 1e300, 0.1]),
    st.booleans(),
)
VALUES = st.recursive(
    SCALARS | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("b"), inner, max_size=1),
    max_leaves=4,
)
METADATA = st.dictionaries(st.sampled_from(PATHS), VALUES, max_size=4)
ORDERED = SCALARS.filter(lambda value: not isinstance(value, bool))
COMPARISONS = st.one_of(
    st.builds(lambda p, v: Compare(p, Op.EQ, (v,)), st.sampled_from(PATHS), SCALARS),
    st.builds(lambda p, v: Compare(p, Op.IN, tuple(v)), st.sampled_from(PATHS), st.lists(SCALARS, max_size=4)),
    st.builds(lambda p: Compare(p, Op.EXISTS), st.sampled_from(PATHS)),
    st.builds(
        lambda p, op, v: Compare(p, op, (v,)),
        st.sampled_from(PATHS),
        st.sampled_from([Op.GT, Op.GTE, Op.LT, Op.LTE]),
        ORDERED,
    ),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(lambda t: And(tuple(t)), st.lists(inner, max_size=3)),
        st.builds(lambda t: Or(tuple(t)), st.lists(inner, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(METADATA, min_size=1, max_size=12), st.lists(FILTERS, min_size=1, max_size=8), st.sampled_from([0, 3, 200])
)
def test_filters_mean_what_the_evaluator_says(
    tmp_path_factory: pytest.TempPathFactory, metadata: list[dict[str, Any]], filters: list[Filter], max_columns: int
) -> None:
    """With columns for all paths, for a few, and for none."""
    folder = tmp_path_factory.mktemp("filters")

    async def check() -> None:
        store = LanceStore(folder, "view", SPACE, max_metadata_columns=max_columns)
        await store.create()
        half = len(metadata) // 2
        await store.upsert(records(metadata[:half]), new=True)
        await store.upsert(records(metadata[half:], first=half), new=True)
        for where in filters:
            expected = [f"{i:06d}" for i, one in enumerate(metadata) if matches(where, one)]
            found = await store.search(unit_vectors(1)[0], 50, where)
            assert sorted(found.ids) == expected, where
        await store.close()

    try:
        asyncio.run(check())
    finally:
        shutil.rmtree(folder)


async def test_the_deepest_and_the_widest_filters_are_answered(store: LanceStore) -> None:
    await store.upsert(records([{"n": i, "s": str(i)} for i in range(40)]), new=True)
    deep: Any = {"n": 5}
    for level in range(30):
        deep = {"$not": deep} if level % 3 == 2 else {"$or" if level % 2 else "$and": [deep, {"n": {"$gte": -level}}]}
    wide = {"$or": [{"n": i} for i in range(0, 2_000, 2)]}
    long = {"s": {"$in": [str(i) for i in range(0, 20_000, 2)]}}
    for raw in (deep, wide, long):
        where = parse(raw)
        assert where
        found = await store.search(unit_vectors(1)[0], 50, where)
        assert sorted(found.ids) == [f"{i:06d}" for i in range(40) if matches(where, {"n": i, "s": str(i)})]


async def test_hits_are_found_behind_many_that_fail_a_check(tmp_path: Path) -> None:
    store = LanceStore(tmp_path, "view", SPACE, max_metadata_columns=0)
    await store.create()
    await store.upsert(records([{"n": i} for i in range(3_000)]), new=True)
    query = unit_vectors(1, seed=5)[0]
    found = await store.search(query, 10, parse({"n": {"$gte": 2_980}}))
    assert len(found.ids) == 10
    assert set(found.ids) <= {f"{i:06d}" for i in range(2_980, 3_000)}
    assert (await store.search(query, 10, parse({"n": 7}))).ids == ["000007"]
    await store.close()


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """30,000 clustered rows with an index; `one` marks 1 %, `rare` 0.01 %."""
    folder = tmp_path_factory.mktemp("indexed")
    generator = np.random.default_rng(7)
    centres = generator.normal(size=(300, 64))
    vectors = centres[generator.integers(0, 300, 30_000)] + 0.6 * generator.normal(size=(30_000, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    metadata = [{"one": i % 100 == 0, "rare": i % 10_000 == 3, "n": i % 50} for i in range(30_000)]

    async def fill() -> None:
        store = LanceStore(folder, "view", Space("test", "1", 64))
        await store.create()
        for start in range(0, 30_000, 10_000):
            rows = slice(start, start + 10_000)
            ids = [f"{i:06d}" for i in range(30_000)[rows]]
            await store.upsert(Records(ids, {DENSE: vectors[rows]}, ids, metadata[rows]), new=True)
        await store.maintain()
        await store.close()

    asyncio.run(fill())
    return folder, vectors


async def test_a_bulk_load_is_indexed_at_its_end(tmp_path: Path) -> None:
    store = LanceStore(tmp_path, "view", Space("test", "1", 64))
    await store.create()
    await store.begin_bulk()
    for start in range(0, 30_000, 10_000):
        ids = [f"{row:06d}" for row in range(start, start + 10_000)]
        vectors = unit_vectors(10_000, seed=start, dimensions=64)
        await store.upsert(Records(ids, {DENSE: vectors}, ids, [{}] * 10_000), new=True)
        await store.maintain()
        assert not await (await store._open()).list_indices(), "it would be trained again and again"
    await store.close()
    another = LanceStore(tmp_path, "view", Space("test", "1", 64))
    await another.end_bulk()
    table = await another._open()
    assert {"id", "vector"} == {column for index in await table.list_indices() for column in index.columns}
    assert await maintain.unindexed(table) == 0
    version = await table.version()
    await another.end_bulk()
    assert await table.version() == version, "there is nothing left to do"
    await another.close()


async def test_the_end_of_a_small_load_changes_nothing(store: LanceStore) -> None:
    await store.begin_bulk()
    await store.upsert(records([{}] * 100), new=True)
    version = await (await store._open()).version()
    await store.end_bulk()
    assert await (await store._open()).version() == version


async def test_rows_of_one_table_go_into_another_as_arrays(store: LanceStore, tmp_path: Path) -> None:
    await store.upsert(records([{"n": row // 5, "tags": ["a", "b"], "odd": None} for row in range(50)]), new=True)
    other = LanceStore(tmp_path / "other", "view", SPACE)
    await other.create()
    async for batch in store.scan(20):
        assert isinstance(batch.ids, Texts)
        assert isinstance(batch.metadata, CodedMetadata)
        await other.upsert(batch.between(0, 7))
        await other.upsert(batch.between(7, len(batch)), new=True)
    ids = [f"{row:06d}" for row in range(50)]
    mine, theirs = await store.fetch(ids), await other.fetch(ids)
    order = [list(theirs.ids).index(id_) for id_ in mine.ids]
    found = theirs.taken(order)
    assert (found.ids, found.texts, found.metadata) == (mine.ids, mine.texts, mine.metadata)
    assert np.array_equal(found.vectors[DENSE], mine.vectors[DENSE])
    assert len((await other.search(unit_vectors(1)[0], 50, parse({"n": 3, "tags": "b"}))).ids) == 5
    await other.close()


async def test_an_index_finds_what_exact_search_finds(indexed: tuple[Path, np.ndarray]) -> None:
    folder, vectors = indexed
    store = LanceStore(folder, "view", Space("test", "1", 64))
    table = await store._open()
    assert {"id", "vector"} == {column for index in await table.list_indices() for column in index.columns}
    hit = 0
    for row in range(0, 30_000, 600):
        found = await store.search(vectors[row], 10)
        cosines = vectors @ vectors[row]
        hit += len({int(i) for i in found.ids} & set(np.argsort(-cosines)[:10].tolist()))
        assert np.allclose(found.scores, [cosines[int(i)] for i in found.ids], atol=1e-6)
    assert hit / 500 >= 0.97
    await store.close()


async def test_an_index_of_real_embeddings_finds_what_exact_search_finds(tmp_path: Path) -> None:
    """The suite has too few of them for an index, which begins at 25,000 rows: here it is built all the same."""
    texts, vectors, space = embedded()
    rows, queries = vectors[:-QUERIES], vectors[-QUERIES:]
    store = LanceStore(tmp_path, "view", space)
    await store.create()
    ids = [f"{row:06d}" for row in range(len(rows))]
    await store.upsert(Records(ids, {DENSE: rows}, texts[:-QUERIES], [{}] * len(ids)), new=True)
    table = await store._open()
    await maintain._build_index(table, len(rows))
    assert VECTOR in {column for index in await table.list_indices() for column in index.columns}
    found = 0
    for query in queries:
        best = np.argsort(-(rows @ query))[:10]
        found += len({int(id_) for id_ in (await store.search(query, 10)).ids} & set(best.tolist()))
    assert found / (10 * len(queries)) >= 0.95
    await store.close()


async def test_selective_filters_still_give_k_hits(indexed: tuple[Path, np.ndarray]) -> None:
    folder, vectors = indexed
    store = LanceStore(folder, "view", Space("test", "1", 64))
    for raw, rows, k in (({"one": True}, range(0, 30_000, 100), 50), ({"rare": True}, range(3, 30_000, 10_000), 3)):
        subset = np.array(rows)
        for query in vectors[5:15]:
            best = subset[np.argsort(-(vectors[subset] @ query))[:k]]
            found = await store.search(query, k, parse(raw))
            assert len(found.ids) == k
            assert len({int(i) for i in found.ids} & set(best.tolist())) >= 0.95 * k
    assert len((await store.search(vectors[0], 10, parse({"rare": True}))).ids) == 3
    await store.close()


async def test_rows_written_after_the_index_are_found(indexed: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = indexed
    shutil.copytree(folder, tmp_path / "copy")
    store = LanceStore(tmp_path / "copy", "view", Space("test", "1", 64))
    new = unit_vectors(100, seed=1, dimensions=64)
    ids = [f"new{i}" for i in range(100)]
    await store.upsert(Records(ids, {DENSE: new}, ids, [{"fresh": True}] * 100))
    await store.delete(["000000"])
    for i in (0, 50, 99):
        assert (await store.search(new[i], 1)).ids == [ids[i]]
    assert len((await store.search(new[0], 100, parse({"fresh": True}))).ids) == 100
    assert not await maintain.is_due(await store._open(), store.path)
    await store.maintain(full=True)
    for i in (0, 50, 99):
        assert (await store.search(new[i], 1)).ids == [ids[i]]
    assert await store.count() == 30_099
    await store.close()


# --- other processes -------------------------------------------------------------------------------------------------


def maintenance_of(process: psutil.Process) -> psutil.Process | None:
    """The child that maintains a table: a process may have others, such as a database that other tests use."""
    for child in process.children():
        with suppress(psutil.Error):
            if "whimbrel.stores.lancedb" in child.cmdline():
                return child
    return None


async def test_reads_go_on_during_maintenance_and_a_killed_one_harms_nothing(tmp_path: Path) -> None:
    store = LanceStore(tmp_path, "view", SPACE)
    await store.create()
    for start in range(0, 30_000, 1_000):
        await store.upsert(records([{"n": i} for i in range(1_000)], first=start), new=True)
    reader = LanceStore(tmp_path, "view", SPACE, read_only=True)
    query = unit_vectors(1, seed=3)[0]
    before = await reader.search(query, 10)

    written = set(store.path.rglob("*"))
    killed = asyncio.create_task(store.maintain(full=True))
    while not (maintainer := maintenance_of(psutil.Process())):
        await asyncio.sleep(0.01)
    while set(store.path.rglob("*")) == written:  # until it has begun to write
        await asyncio.sleep(0.001)
    maintainer.kill()
    with pytest.raises(ViewError):
        await killed
    assert len(set((await reader.search(query, 10)).ids) & set(before.ids)) >= 9

    whole = asyncio.create_task(store.maintain(full=True))
    while not whole.done():
        assert len((await reader.search(query, 10)).ids) == 10
        assert await reader.count() == 30_000
        await asyncio.sleep(0.02)
    await whole
    assert len(set((await reader.search(query, 10)).ids) & set(before.ids)) >= 9
    assert sorted(await reader.ids()) == sorted(await store.ids())
    await reader.close()
    await store.close()


async def test_maintenance_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    code = """
        async def main():
            await store.create()
            vectors = np.random.default_rng(0).normal(size=(60_000, 16)).astype(np.float32)
            ids = [f"{i:06d}" for i in range(60_000)]
            await store.upsert(Records(ids, {DENSE: vectors}, ids, [{}] * 60_000), new=True)
            print("written", flush=True)
            await store.maintain()
        asyncio.run(main())
    """
    owner = run_python(code, tmp_path)
    assert owner.stdout
    assert owner.stdout.readline() == "written\n"
    while not (children := psutil.Process(owner.pid).children()):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    store = LanceStore(tmp_path, "view", SPACE)
    assert await store.count() == 60_000
    await store.close()


async def test_many_small_commits_are_compacted_when_due(store: LanceStore) -> None:
    table = await store._open()
    for i in range(maintain.MAX_FRAGMENTS + 1):
        await store.upsert(records([{"n": i}], first=i), new=True)
    await store.maintain()
    assert (await table.stats())["fragment_stats"]["num_fragments"] == 1
    assert await store.count() == maintain.MAX_FRAGMENTS + 1


async def test_maintenance_that_has_just_been_is_put_off_until_it_cannot_wait(
    store: LanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintain, "PAUSE", 1e6)
    monkeypatch.setattr(maintain, "MOST_FRAGMENTS", 2 * maintain.MAX_FRAGMENTS)
    table = await store._open()

    async def commit(first: int, count: int) -> int:
        for i in range(first, first + count):
            await store.upsert(records([{"n": i}], first=i), new=True)
        await store.maintain()
        return int((await table.stats())["fragment_stats"]["num_fragments"])

    more = maintain.MAX_FRAGMENTS + 1
    assert await commit(0, more) == 1
    assert await commit(more, more) == 1 + more, "it ran a moment ago"
    assert await commit(2 * more, more) == 1, "so many fragments cannot wait"
    assert await store.count() == 3 * more


async def test_a_store_at_rest_indexes_the_last_rows(indexed: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = indexed
    shutil.copytree(folder, tmp_path / "copy")
    store = LanceStore(tmp_path / "copy", "view", Space("test", "1", 64))
    table = await store._open()

    async def add(count: int, name: str) -> list[str]:
        ids = [f"{name}{i}" for i in range(count)]
        new = unit_vectors(count, seed=len(name), dimensions=64)
        await store.upsert(Records(ids, {DENSE: new}, ids, [{}] * count), new=True)
        await store.settle()
        return (await store.search(new[-1], 1)).ids

    few, many = maintain.MAX_UNINDEXED_AT_REST, maintain.MAX_UNINDEXED_AT_REST + 1
    assert await add(few, "few") == [f"few{few - 1}"]
    assert await maintain.unindexed(table) == few, "so few cost a search nothing"
    assert await add(many, "many") == [f"many{many - 1}"]
    assert await maintain.unindexed(table) == 0
    assert await store.count() == 30_000 + few + many
    await store.close()


async def test_erasure_leaves_no_trace_in_the_files(store: LanceStore) -> None:
    secret = "unforgettable-secret"
    rows = records([{"n": i} for i in range(2_000)])
    texts = [secret if i in (3, 1_999) else text for i, text in enumerate(rows.texts)]
    await store.upsert(Records(rows.ids, rows.vectors, texts, rows.metadata), new=True)
    await store.maintain(full=True)
    await store.set_position(Position("e", 1, "s"))

    def traces() -> int:
        return sum(secret.encode() in p.read_bytes() for p in store.path.rglob("*") if p.is_file())

    assert traces()
    await store.delete(["000003", "001999"])
    await store.erase(grace_s=3_600)
    assert traces(), "older versions are kept for the grace"
    await store.erase(grace_s=0)
    assert not traces()
    assert await store.count() == 1_998
    assert await store.position() == Position("e", 1, "s")
    assert (await store.search(rows.vectors[DENSE][5], 1)).ids == ["000005"]


# --- damage ----------------------------------------------------------------------------------------------------------


def _remove_data(table: Path) -> None:
    for file in (table / "data").iterdir():
        file.unlink()


def _truncate_data(table: Path) -> None:
    for file in (table / "data").iterdir():
        os.truncate(file, file.stat().st_size // 2)


def _zero_data(table: Path) -> None:
    for file in (table / "data").iterdir():
        file.write_bytes(bytes(file.stat().st_size))


def _truncate_versions(table: Path) -> None:
    for file in (table / "_versions").iterdir():
        os.truncate(file, file.stat().st_size // 2)


def _remove_table(table: Path) -> None:
    shutil.rmtree(table)


@pytest.mark.parametrize(
    ("damage", "opened"),
    [
        *((damage, True) for damage in (_remove_data, _truncate_data, _zero_data, _remove_table)),
        *((damage, False) for damage in (_remove_data, _truncate_data, _zero_data, _truncate_versions, _remove_table)),
    ],
)
async def test_damage_is_an_error_and_never_an_empty_result(
    tmp_path: Path, damage: Callable[[Path], None], opened: bool
) -> None:
    store: Store = LanceStore(tmp_path, "view", SPACE)
    await store.create()
    await store.upsert(records([{"n": i} for i in range(500)]), new=True)
    if not opened:
        await store.close()
        store = LanceStore(tmp_path, "view", SPACE)
    damage(tmp_path / "view.lance")

    async def scan() -> list[Records]:
        return [batch async for batch in store.scan()]

    query = unit_vectors(1)[0]
    reads: list[Callable[[], Any]] = [
        lambda: store.search(query, 3),
        lambda: store.search(query, 3, parse({"n": {"$lt": 9}})),
        lambda: store.fetch(["000001"]),
        store.ids,
        scan,
    ]
    for read in reads:
        with pytest.raises(ViewDamaged) as caught:
            await read()
        assert "whimbrel view rebuild" in caught.value.hint
    await store.drop()
    await store.create()
    assert await store.count() == 0
    await store.close()


async def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    store = LanceStore(folder, "view", SPACE)
    await store.create()
    await store.upsert(records([{}] * 20))
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        assert await store.count() == 20
        for write in (store.upsert(records([{}], first=90)), store.delete(["000000"]), store.maintain(full=True)):
            with pytest.raises(HomeError, match="cannot be written"):
                await write
        await store.close()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def test_a_missing_table_is_not_made_by_reading(tmp_path: Path) -> None:
    store = LanceStore(tmp_path / "unmounted", "view", SPACE)
    assert not await store.exists()
    for read in (store.count, store.position, store.ids):
        with pytest.raises(ViewDamaged):
            await read()
    assert not (tmp_path / "unmounted").exists()


async def test_a_full_disk_is_said_and_what_was_written_stays(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        store = LanceStore(small, "view", SPACE)
        await store.create()
        await store.upsert(records([{}] * 100), new=True)

        async def fill() -> None:
            for start in range(1_000, 100_000, 1_000):
                await store.upsert(records([{}] * 1_000, first=start, text=os.urandom(1_000).hex()))

        with pytest.raises(DiskFull):
            await fill()
        assert (await store.search(unit_vectors(1)[0], 3)).ids
        assert await store.count() >= 100
        await store.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# --- the library -----------------------------------------------------------------------------------------------------


def test_importing_the_library_leaves_others_alone() -> None:
    code = """
        import pydantic
        before = pydantic.validate_call

        class NoPandas:  # as where it is not installed
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "pandas":
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, NoPandas())
        from whimbrel.stores.lancedb.library import import_lancedb
        assert "lancedb" not in sys.modules
        import_lancedb()
        assert pydantic.validate_call is before
        import overrides
        assert overrides.final
    """
    assert run_python(code, ".").wait() == 0


@pytest.mark.parametrize("where", ["overrides", "overrides.enforce", "overrides.overrides", "chromadb.api"])
def test_another_thread_may_import_chroma_meanwhile(where: str) -> None:
    code = f"""
        import threading, time
        from whimbrel import memory
        from whimbrel.stores.lancedb.library import import_lancedb
        memory.own_process = True

        class InTheMiddle:  # where Chroma imports what it needs, LanceDB is imported
            thread = None
            def find_spec(self, name, path=None, target=None):
                if name == {where!r} and self.thread is None:
                    self.thread = threading.Thread(target=import_lancedb)
                    self.thread.start()
                    time.sleep(0.05)

        sys.meta_path.insert(0, middle := InTheMiddle())
        import chromadb
        middle.thread.join()
        import lancedb
        import overrides
        assert overrides.override.__module__.startswith("overrides"), overrides.override
        import pandas
    """
    assert run_python(code, ".").wait() == 0


@pytest.mark.parametrize("own", [False, True])
def test_a_process_of_our_own_does_without_pandas_and_another_keeps_it(own: bool) -> None:
    code = f"""
        from whimbrel import memory
        from whimbrel.stores.lancedb.library import import_lancedb
        memory.own_process = {own}
        import_lancedb()
        import pyarrow
        pyarrow.array([1, 2])
        assert ("pandas" in sys.modules) == (not {own})
        import pandas
        assert pandas.Series([1, 2]).sum() == 3
        assert {own} or pyarrow.array(pandas.Series([1, None])).to_pylist() == [1, None]
    """
    assert run_python(code, ".").wait() == 0
