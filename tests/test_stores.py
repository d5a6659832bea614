"""What all stores share: scores, the envelope, batches, and the way from a URI to a store."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.config import mask_url
from whimbrel.config.values import without_credentials
from whimbrel.domain import Space
from whimbrel.errors import BadInput, ConfigError, SpaceMismatch, TooLarge
from whimbrel.filters import OPERATORS, matches, operators, parse
from whimbrel.stores.base import DENSE, Metric, Reach, Records
from whimbrel.stores.batches import Batches, Refused
from whimbrel.stores.envelope import Dialect, dumps, joined, loads, split
from whimbrel.stores.lancedb import LanceStore
from whimbrel.stores.metrics import measure, measure_of, scores
from whimbrel.stores.records import checked_query, writable
from whimbrel.stores.resolve import open_store, parse_uri, same_place
from whimbrel.testing import StoreConformance

SPACE = Space("test", "1", 8)


def some_records(count: int, *, text: str = "text", metadata: dict[str, Any] | None = None) -> Records:
    vectors = np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)
    return Records([f"{i}" for i in range(count)], {DENSE: vectors}, [text] * count, [metadata or {}] * count)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", list(Metric))
def test_of_unit_vectors_every_metric_scores_the_cosine(metric: Metric) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = scores(metric, measure(metric, vectors, vectors[0]))
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(1.0)
    assert np.allclose(found, np.maximum(0.0, vectors @ vectors[0]), atol=1e-6)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("metric", list(Metric))
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(0.001, 0.999))
def test_scores_are_0_to_1_keep_the_order_and_have_an_inverse(
    metric: Metric, normalised: bool, values: list[float], score: float
) -> None:
    nearer = [-abs(v) for v in values] if metric is Metric.L2 else values
    ordered = np.array(sorted(nearer))
    found = scores(metric, np.abs(ordered) if metric is Metric.L2 else ordered, normalised=normalised)
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    assert (np.diff(found) >= 0).all()
    bound = measure_of(metric, score, normalised=normalised)
    assert scores(metric, np.array([bound]), normalised=normalised)[0] == pytest.approx(score, rel=1e-5)


def test_a_score_of_0_bounds_nothing() -> None:
    assert measure_of(Metric.COSINE, 0.0) == measure_of(Metric.DOT, 0.0, normalised=False) == -math.inf
    assert measure_of(Metric.L2, 0.0) == math.inf
    assert measure_of(Metric.DOT, 1.0, normalised=False) == math.inf


def test_a_vector_of_zeros_is_like_nothing() -> None:
    assert measure(Metric.COSINE, np.zeros((2, 3)), np.ones(3)).tolist() == [0.0, 0.0]


# --- the envelope ----------------------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "$float", "$dict", "", "#", "chroma:document"]), inner, max_size=3)
    ),
    max_leaves=8,
)
METADATA = st.dictionaries(st.sampled_from(["year", "", "$float", "$dict", "#x"]) | st.text(max_size=3), ANYTHING)
DIALECTS = st.builds(
    Dialect,
    takes_key=st.sampled_from([bool, lambda key: key.isalnum(), lambda key: False]),
    lists=st.booleans(),
    takes_text=st.sampled_from([lambda text: True, str.isascii]),
)


def same(left: Any, right: Any) -> bool:
    """Equal in value and type, NaN to NaN and -0.0 to -0.0."""
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)


@given(METADATA, DIALECTS)
def test_metadata_comes_back_exactly(metadata: dict[str, Any], dialect: Dialect) -> None:
    assert same(loads(dumps(metadata)), metadata)
    assert "\0" not in dumps(metadata).encode().decode()
    plain, envelope = split(metadata, dialect)
    assert all(dialect.takes_key(key) and dialect.takes(value) for key, value in plain.items())
    assert (envelope is None) == (len(plain) == len(metadata))
    assert same(joined(plain, envelope), metadata)


def test_plain_keys_stay_plain() -> None:
    whole = {"year": 2024, "site": "docs", "tags": ["a", "b"], "ratio": 0.5, "draft": False}
    assert split(whole, Dialect()) == (whole, None)
    odd = {"none": None, "nan": math.nan, "nested": {"a": 1}, "empty": [], "mixed": [1, "a"], "big": 2**53 + 1, "": 1}
    odd |= {"lists": [[1]], "bools": [True, 1], "zero": -0.0}
    plain, envelope = split({**whole, **odd}, Dialect())
    assert plain == whole
    assert envelope
    assert loads(envelope).keys() == odd.keys()


def test_numbers_that_no_filter_can_name_are_carried_and_not_found() -> None:
    metadata = {"nan": math.nan, "big": 2**70, "list": [math.inf, 1]}
    assert not matches(parse({"nan": {"$exists": True}}), metadata)
    assert not matches(parse({"big": {"$gt": 0}}), metadata)
    assert matches(parse({"list": 1}), metadata)


def test_a_filters_operators_are_those_of_its_tree() -> None:
    where = parse({"$or": [{"a": {"$ne": 1}}, {"b": {"$gte": 1, "$lt": 2}}, {"c": {"$contains": "x"}}]})
    assert where
    assert operators(where) == {"$or", "$not", "$eq", "$and", "$gte", "$lt"}
    assert operators(where) <= OPERATORS


# --- rows ------------------------------------------------------------------------------------------------------------


def test_of_an_id_that_comes_twice_the_last_row_is_written() -> None:
    rows = some_records(3)
    twice = Records(["a", "b", "a"], rows.vectors, ["old", "b", "new"], [{}, {}, {"n": 1}])
    kept = writable(twice, 8)
    assert dict(zip(kept.ids, kept.texts, strict=True)) == {"a": "new", "b": "b"}
    assert np.array_equal(kept.vectors[DENSE][list(kept.ids).index("a")], rows.vectors[DENSE][2])


def test_vectors_that_cannot_be_compared_are_refused() -> None:
    rows = some_records(2)
    with pytest.raises(SpaceMismatch):
        writable(rows, 9)
    with pytest.raises(SpaceMismatch):
        checked_query(np.zeros((1, 8), np.float32), 8)
    bad = rows.vectors[DENSE].copy()
    bad[1, 3] = math.inf
    with pytest.raises(BadInput):
        writable(Records(rows.ids, {DENSE: bad}, rows.texts, rows.metadata), 8)
    with pytest.raises(BadInput):
        checked_query(bad[1], 8)


@given(st.lists(st.integers(0, 3_000), max_size=30), st.integers(1, 10), st.integers(1, 5_000))
def test_batches_hold_every_row_once_and_stay_below_their_limits(sizes: list[int], rows: int, size: int) -> None:
    whole = some_records(len(sizes))
    whole = Records(whole.ids, whole.vectors, ["x" * length for length in sizes], whole.metadata)
    batches = Batches(rows=rows, bytes=size)
    cut = list(batches.cut(whole))
    assert [id_ for batch in cut for id_ in batch.ids] == list(whole.ids)
    for batch in cut:
        assert 1 <= len(batch) <= rows
        assert len(batch) == 1 or sum(batches.weights(batch)) <= size


async def test_a_refused_batch_is_halved_and_the_refusal_remembered() -> None:
    written: list[str] = []
    refusals = 0

    async def write(batch: Records) -> None:
        nonlocal refusals
        if len(batch) > 5:
            refusals += 1
            raise Refused("too many rows")
        written.extend(batch.ids)

    batches = Batches(rows=64)
    await batches.write(some_records(64), write)
    assert written == [f"{i}" for i in range(64)]
    met = refusals
    await batches.write(some_records(64), write)
    assert refusals == met
    assert len(written) == 128


async def test_a_row_that_is_refused_alone_is_named() -> None:
    async def write(batch: Records) -> None:
        if "3" in batch.ids:
            raise Refused("413 Payload Too Large")

    with pytest.raises(TooLarge, match=r"'3'.*413"):
        await Batches(rows=10).write(some_records(8), write)


async def test_batches_are_on_their_way_at_once_and_none_is_left_behind() -> None:
    """The second is refused as it runs beside others: those have ended when that is told."""
    written: list[str] = []
    most = running = 0

    async def write(batch: Records) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.01 if "1" in batch.ids else 0.05)
            if "1" in batch.ids:
                raise Refused("413 Payload Too Large")
            written.extend(batch.ids)
        finally:
            running -= 1

    batches = Batches(rows=1)
    with pytest.raises(TooLarge, match=r"'1'.*413"):
        await batches.write(some_records(8), write, at_once=3)
    assert (most, running) == (3, 0)
    assert written[0] == "0"
    assert set(written) <= {"0", "2", "3"}
    assert len(written) == len(set(written))
    del written[:]
    rest = some_records(8).between(2, 8)
    await batches.write(rest, write, at_once=3)
    assert sorted(written) == list(rest.ids)


async def test_batches_on_their_way_end_with_who_wrote_them() -> None:
    running = 0

    async def write(batch: Records) -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.sleep(3_600)
        finally:
            running -= 1

    writing = asyncio.create_task(Batches(rows=1).write(some_records(8), write, at_once=3))
    while running < 3:
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not running


# --- from a URI to a store -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("lancedb:views", "lancedb:views"),
        ("lancedb:s3://bucket/path", "lancedb:s3://bucket/path"),
        ("postgresql://me:pw@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgres://me:p%40w@h1,h2/db?sslmode=require", "postgresql://me@h1,h2/db?sslmode=require"),
        ("postgresql+psycopg://postgres:@/postgres?host=/tmp/x", "postgresql://postgres@/postgres?host=/tmp/x"),
        ("postgresql://host/db?password=pw&schema=s", "postgresql://host/db?schema=s"),
        ("chroma+http://s3cret@host:8000", "chroma+http://host:8000"),
        ("chroma+https://me:pw@host/prefix?tenant=t&token=pw", "chroma+https://host/prefix?tenant=t"),
        (" chroma:folder ", "chroma:folder"),
        ("qdrant+https://s3cret@host:6333/prefix?grpc=1", "qdrant+https://host:6333/prefix?grpc=1"),
        ("Qdrant:folder", "qdrant:folder"),
    ],
)
def test_the_catalog_keeps_no_credentials(uri: str, kept: str) -> None:
    assert without_credentials(uri) == kept
    assert same_place(uri, kept)
    assert parse_uri(kept)
    assert "pw" not in mask_url(uri)
    assert "s3cret" not in mask_url(uri)


def test_credentials_come_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, Reach]] = []

    def opener(uri: str, name: str, space: Space, *, base: Path, read_only: bool, reach: Reach) -> LanceStore:
        opened.append((uri, reach))
        return LanceStore(base, name, space, read_only=read_only)

    _add_package(tmp_path, monkeypatch, opener)
    configured = ["other://me:old@elsewhere/x", "other://me:new@host/x"]
    reach = Reach(max_connections=2)
    store = open_store("other://me@host/x", "v", SPACE, base=tmp_path, reach=reach, configured=configured)
    assert isinstance(store, LanceStore)
    open_store("other://me:own@host/x", "v", SPACE, base=tmp_path, configured=configured)
    open_store("other://me@unknown/x", "v", SPACE, base=tmp_path, configured=configured)
    assert [uri for uri, _ in opened] == [configured[1], "other://me:own@host/x", "other://me@unknown/x"]
    assert opened[0][1] == reach


def test_a_package_that_is_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _add_package(tmp_path, monkeypatch, None)
    with pytest.raises(ConfigError, match="'other' cannot be loaded: AttributeError"):
        open_store("other:x", "v", SPACE, base=tmp_path)
    with pytest.raises(ConfigError, match=r"no store 'anothr'\. Did you mean 'other'"):
        parse_uri("anothr:x")


def _add_package(folder: Path, monkeypatch: pytest.MonkeyPatch, opener: Any) -> None:
    """An installed distribution with an entry point, which names `opener` of a module of its own."""
    about = folder / "other-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[whimbrel.stores]\nother = whimbrel_other_store:opener\n")
    monkeypatch.syspath_prepend(folder)
    module = ModuleType("whimbrel_other_store")
    if opener is not None:
        module.opener = opener  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("chroma+http:host", "names no server"),
        ("chroma+https:///path", "names no server"),
        ("qdrant+http:host", "names no server"),
        ("postgresql:db", "names no server"),
        ("postgresql://me:pw/x@host/db", "%2F"),
        ("lancedb", "not a store's URI"),
        ("chroma:dir?tenant=t", "no options: '?tenant=t'"),
        ("lancedb:vectors?token=pw", "no options"),
        ("qdrant:dir/inner?grpc=1", "no options"),
        ("milvus:/data/x.db?database=d", "no options"),
        ("lance:x", "'lancedb'"),
        ("qdrnt://x", "no store 'qdrnt'"),
    ],
)
def test_a_uri_that_names_no_store_is_refused_without_its_secret(uri: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_uri(uri)
    assert said in refused.value.message + refused.value.hint
    assert "pw" not in refused.value.message + refused.value.hint


def test_a_port_and_an_at_sign_in_an_option_are_no_password() -> None:
    assert parse_uri("postgresql://host:5432/db?application_name=a@b")


# --- the documentation ----------------------------------------------------------------------------------------------


def test_the_table_of_behaviour_has_every_promise_of_the_suite() -> None:
    page = (Path(__file__).parents[1] / "docs" / "stores" / "behaviour.md").read_text(encoding="utf-8")
    tests = [test for name, test in inspect.getmembers(StoreConformance) if name.startswith("test_")]
    assert len(tests) > 30
    for test in tests:
        promise = " ".join((inspect.getdoc(test) or "").split())
        assert promise, f"{test.__name__} says not what it promises"
        assert f"| {promise} |" in page, "`make stores` writes docs/stores/behaviour.md"


# --- LanceDB on object storage: a folder, through the code that reads buckets -----------------------------------------


async def test_lancedb_takes_the_uri_of_a_bucket(tmp_path: Path) -> None:
    uri = f"lancedb:file-object-store://{tmp_path}/bucket"
    store = open_store(uri, "view", SPACE, base=Path("/nowhere"))
    assert isinstance(store, LanceStore)
    assert store.path is None
    assert not await store.exists()
    await store.drop()
    await store.create()
    rows = some_records(50, metadata={"n": 1})
    await store.upsert(rows, new=True)
    assert await store.exists()
    assert (await store.search(rows.vectors[DENSE][7], 1, parse({"n": 1}))).ids == ["7"]
    await store.maintain(full=True)
    await store.delete(["7"])
    await store.erase(grace_s=0)
    other = open_store(uri, "view", SPACE, base=Path("/elsewhere"), read_only=True)
    assert await other.count() == 49
    await other.close()
    await store.drop()
    assert not await store.exists()
    await store.close()
