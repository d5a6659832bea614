"""What a copy does with bad input, with changes meanwhile, with a target that is not its own, and after a crash."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chroma_server import ChromaServer
from copying import (
    Copies,
    at,
    chroma_client,
    files,
    fill_chroma,
    fill_chroma_folder,
    fill_lance,
    fill_parquet,
    fill_postgres,
    libpq,
    vectors,
)
from whimbrel.domain import Space
from whimbrel.errors import (
    AlreadyOwned,
    BadInput,
    ConfigError,
    Conflict,
    DiskFull,
    NotFound,
    StoreRefused,
    StoreUnavailable,
    SuspiciousChange,
    ViewDamaged,
)
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.foreign.base import Chosen
from whimbrel.stores.foreign.resolve import parse
from whimbrel.stores.foreign.values import differences
from whimbrel.stores.metrics import Metric
from whimbrel.stores.resolve import open_store

COSINE = Chosen(metric=Metric.COSINE)


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChromaServer]:
    made = ChromaServer(tmp_path / "served")
    made.start()
    yield made
    made.kill()


# --- what is told apart ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "scheme", "place", "collection"),
    [
        ("lancedb:/data/x/notes", "lancedb", "lancedb:/data/x", "notes"),
        ("lancedb:x/notes", "lancedb", "lancedb:x", "notes"),
        ("lancedb:s3://bucket/path/notes", "lancedb", "lancedb:s3://bucket/path", "notes"),
        ("lancedb:s3://bucket/path/notes?x=1", "lancedb", "lancedb:s3://bucket/path?x=1", "notes"),
        ("parquet:dir/notes", "parquet", "parquet:dir", "notes"),
        ("chroma:dir/*", "chroma", "chroma:dir", "*"),
        ("chroma+http://h:8000/a%2Fb?tenant=t", "chroma+http", "chroma+http://h:8000?tenant=t", "a/b"),
        ("postgres://u:p@h/db/notes?schema=s", "postgresql", "postgresql://u:p@h/db?schema=s", "notes"),
        ("postgresql://u@/db/notes?host=%2Ftmp", "postgresql", "postgresql://u@/db?host=%2Ftmp", "notes"),
    ],
)
def test_the_last_segment_is_the_collection(uri: str, scheme: str, place: str, collection: str) -> None:
    found = parse(uri)
    assert (found.scheme, found.place, found.collection) == (scheme, place, collection)


@pytest.mark.parametrize(
    "uri",
    ["", "notes", "lancedb:", "lancedb:notes", "chroma+http://host", "postgresql://h/db", "nosuch:x/y", "parquet:d/"],
)
def test_a_uri_without_a_collection_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        parse(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "parquet:pq/a?x=1",
        "lancedb:l/a?x=1",
        "llamaindex:d/*?x",
        "chroma:c/a?tenant=t",
        "qdrant:q/?grpc=1",
        "milvus:m.db/a?",
    ],
)
def test_what_would_be_an_option_is_no_part_of_a_folder_s_path(uri: str) -> None:
    with pytest.raises(ConfigError, match="takes no options"):
        parse(uri)


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("postgresql://user:hunter2@host/db")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in parse("postgresql://user:hunter2@host/db/t").shown


# --- refused before anything is written ------------------------------------------------------------------------------


async def test_a_target_that_is_not_this_copy_s_is_refused_and_left_alone(
    copies: Copies, server: ChromaServer, fresh_postgres: str, tmp_path: Path
) -> None:
    source = fill_parquet(tmp_path / "foreign")
    lance = fill_lance(tmp_path / "theirs", rows=5)
    chroma = fill_chroma_folder(tmp_path / "theirs_chroma", rows=5)
    parquet = fill_parquet(tmp_path / "theirs_parquet", rows=5)
    postgres = fill_postgres(fresh_postgres, rows=5)
    import chromadb

    fill_chroma(chromadb.HttpClient("127.0.0.1", server.port), rows=5)
    before = files(tmp_path / "theirs") | files(tmp_path / "theirs_parquet")
    for target in (lance, chroma, parquet, postgres, f"{server.uri}/notes"):
        with pytest.raises(Conflict) as caught:
            await copies.one(source, target, chosen=COSINE)
        assert "Nothing was changed" in str(caught.value)
        assert caught.value.hint
    assert files(tmp_path / "theirs") | files(tmp_path / "theirs_parquet") == before
    with psycopg.connect(libpq(fresh_postgres)) as connection:
        assert connection.execute("SELECT count(*) FROM notes").fetchone() == (5,)


async def test_a_target_that_another_copy_made_is_refused(copies: Copies, tmp_path: Path) -> None:
    one, two = fill_lance(tmp_path / "a", rows=5), fill_lance(tmp_path / "b", rows=5)
    target = f"parquet:{tmp_path}/out/notes"
    assert (await copies.one(one, target)).holds
    with pytest.raises(Conflict, match="another copy"):
        await copies.one(two, target)


@pytest.mark.parametrize("kind", ["lancedb", "parquet", "chroma", "qdrant", "milvus", "postgresql"])
async def test_a_copy_keeps_the_metric_that_it_was_made_with(
    kind: str, copies: Copies, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = fill_lance(tmp_path / "l", rows=20)
    target = f"{kind}:{tmp_path}/out{'.db' if kind == 'milvus' else ''}/notes"
    if kind == "postgresql":
        target = at(request.getfixturevalue("fresh_postgres"), "notes")
    for made, other in ((Metric.L2, Metric.COSINE), (Metric.COSINE, Metric.L2)):
        to = target.replace("notes", f"notes_{made}")
        assert (await copies.one(source, to, chosen=Chosen(metric=made))).metric == made
        with pytest.raises(Conflict, match=f"made with the metric {made}, not with {other}") as caught:
            await copies.one(source, to, chosen=Chosen(metric=other))
        assert f"with `--metric {made}`" in caught.value.hint
        again = await copies.one(source, to, chosen=Chosen(metric=made))
        assert again.holds
        assert (again.metric, again.written) == (made, 0)
    if kind in ("lancedb", "parquet", "postgresql"):  # the others ask for it each time
        assert (await copies.one(source, to)).metric == made


async def test_a_copy_of_no_metric_stays_one(copies: Copies, tmp_path: Path) -> None:
    source, target = fill_lance(tmp_path / "l"), f"parquet:{tmp_path}/out/notes"
    assert (await copies.one(source, target)).metric is None
    with pytest.raises(Conflict, match="made with no metric, not with l2") as caught:
        await copies.one(source, target, chosen=Chosen(metric=Metric.L2))
    assert "without `--metric`" in caught.value.hint
    index = lancedb.index.IvfPq(distance_type="l2", num_partitions=2, num_sub_vectors=2)
    lancedb.connect(tmp_path / "l").open_table("notes").create_index("emb", config=index)
    again = await copies.one(source, target)
    assert again.holds
    assert again.metric is None
    assert "says its metric now, l2" in again.notes[-1]


async def test_the_source_as_its_own_target_is_refused(copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    for source in (fill_lance(tmp_path / "l"), fill_chroma_folder(tmp_path / "c"), fill_postgres(fresh_postgres)):
        with pytest.raises(Conflict, match="is the source"):
            await copies.one(source, source, chosen=COSINE)
    (tmp_path / "link").symlink_to(tmp_path / "l")
    with pytest.raises(Conflict):
        await copies.one(f"lancedb:{tmp_path}/l/notes", f"lancedb:{tmp_path}/link/notes")


async def test_what_is_not_there_is_named_and_nothing_is_made(
    copies: Copies, fresh_postgres: str, tmp_path: Path
) -> None:
    fill_lance(tmp_path / "l", rows=3)
    with psycopg.connect(libpq(fresh_postgres), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    for source in (
        f"lancedb:{tmp_path}/l/typo", f"lancedb:{tmp_path}/none/x", f"parquet:{tmp_path}/none/x",
        f"parquet:{tmp_path}/none/*",
        f"chroma:{tmp_path}/none/x", f"lancedb:{tmp_path}/none/*", at(fresh_postgres, "typo"), at(fresh_postgres, "*"),
    ):  # fmt: skip
        with pytest.raises(NotFound) as absent:
            await copies.run(source, f"parquet:{tmp_path}/out/*")
        assert absent.value.hint or "*" in source
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (tmp_path / "l").iterdir()) == ["notes.lance"]


async def test_a_target_with_a_metric_asks_for_one(copies: Copies, tmp_path: Path) -> None:
    source = fill_lance(tmp_path / "l", rows=3)
    with pytest.raises(BadInput, match="metric") as caught:
        await copies.one(source, f"chroma:{tmp_path}/c/notes")
    assert "--metric" in caught.value.hint
    assert (await copies.one(source, f"chroma:{tmp_path}/c/notes", chosen=COSINE)).metric == "cosine"


async def test_columns_that_cannot_be_told_are_asked_for(copies: Copies, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors(4).reshape(-1)), 8)
    pq.write_table(
        pa.table({"a": ["w", "x", "y", "z"], "b": ["w", "x", "x", "z"], "v1": flat, "v2": flat}), folder / "t.parquet"
    )
    source, target = f"parquet:{folder}/t", f"lancedb:{tmp_path}/l/t"
    with pytest.raises(BadInput, match="vector") as caught:
        await copies.one(source, target)
    assert "v1, v2" in caught.value.hint
    with pytest.raises(BadInput, match="id"):
        await copies.one(source, target, chosen=Chosen(vector="v1"))
    with pytest.raises(BadInput, match="no column 'nope'"):
        await copies.one(source, target, chosen=Chosen(vector="v1", id="nope"))
    with pytest.raises(BadInput, match="twice"):
        await copies.one(source, target, chosen=Chosen(vector="v1", id="b"))
    assert (
        not (tmp_path / "l" / "t.lance").exists() or lancedb.connect(tmp_path / "l").open_table("t").count_rows() == 0
    )
    report = await copies.one(source, f"lancedb:{tmp_path}/l/u", chosen=Chosen(vector="v1", id="a", text="b"))
    assert report.holds
    assert list(report.notes) == ["the vectors of the column 'v2' are left out"]


async def test_a_source_that_is_another_now_is_not_mixed_with_the_old(copies: Copies, tmp_path: Path) -> None:
    """The copy is bound to its source: a table of the same name that was made anew with other columns is refused."""
    source, target = fill_lance(tmp_path / "l", rows=5), f"parquet:{tmp_path}/out/notes"
    assert (await copies.one(source, target)).holds
    shutil.rmtree(tmp_path / "l")
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors(4, 4).reshape(-1)), 4)
    lancedb.connect(tmp_path / "l").create_table("notes", pa.table({"id": ["w", "x", "y", "z"], "vector": flat}))
    with pytest.raises(Conflict, match="another collection"):
        await copies.one(source, target)


async def test_folders_that_other_programs_wrote_years_apart(copies: Copies, data_dir: Path, tmp_path: Path) -> None:
    counts = {}
    for number, folder in enumerate(sorted((data_dir / "vector_fixtures").glob("chroma_[01].[4-9]*"))):
        before = files(folder)
        reports = await copies.run(f"chroma:{folder}/*", f"lancedb:{tmp_path}/l{number}/*")
        assert all(report.holds for report in reports)
        assert files(folder) == before, "the source was touched"
        counts[folder.name] = [(report.rows, report.metric) for report in reports]
    assert counts == {
        "chroma_0.4.6-0.4.14_kaggle_report": [(190, "l2")],
        "chroma_0.4.6-0.4.14_webpages": [(22, "l2")],
        "chroma_0.5.4-0.5.5_lilianweng": [(264, "l2")],
        "chroma_0.6.3_wikipedia_jfk": [(157, "l2")],
    }


# --- rows that cannot go ---------------------------------------------------------------------------------------------


async def test_rows_that_cannot_go_are_named_with_the_reason_and_the_rest_goes(
    copies: Copies, fresh_postgres: str, tmp_path: Path
) -> None:
    given = vectors(6)
    given[1, 3] = np.nan
    lists: list[Any] = [list(map(float, row)) for row in given]
    lists[2], lists[4] = None, [1.0, 2.0]
    columns = {
        "id": [f"i{row}" for row in range(6)],
        "text": ["a", "b", "c", "NUL \0", "e", "f"],
        "vector": pa.array(lists, pa.list_(pa.float32())),
    }
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "p" / "t.parquet")
    report = await copies.one(f"parquet:{tmp_path}/p/t", at(fresh_postgres, "t"))
    assert not report.holds
    assert (report.rows, report.written, report.rejected) == (6, 2, 4)
    assert report.verified.holds
    said = [json.loads(line) for line in (Path(report.state) / "rejects.jsonl").read_text().splitlines()]
    assert {one["id"]: one["reason"] for one in said} == {
        "i1": "its vector has a component that is no finite number",
        "i2": "it has no vector",
        "i3": "its text has a NUL character, or is no valid Unicode",
        "i4": "its vector has 2 dimensions",
    }


async def test_a_key_that_is_a_column_too_is_rejected_not_overwritten(
    copies: Copies, second_postgres: str, tmp_path: Path
) -> None:
    with psycopg.connect(libpq(second_postgres), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, vector vector(2), site text, metadata jsonb)")
        connection.execute("""INSERT INTO t VALUES (1, '[1,2]', 'a', '{"x": 1}'), (2, '[1,2]', 'a', '{"site": 1}'),
                              (3, '[1,2]', NULL, '{"site": 1}'), (4, '[1,2]', 'a', '[1]')""")
    report = await copies.one(at(second_postgres, "t"), f"parquet:{tmp_path}/out/t")
    assert (report.written, report.rejected) == (2, 2)
    _, rows = await copies.read(f"parquet:{tmp_path}/out/t")
    assert dict(zip(rows.ids, rows.metadata, strict=True)) == {1: {"site": "a", "x": 1}, 3: {"site": 1}}


async def test_composed_keys_and_collections_without_texts(
    copies: Copies, second_postgres: str, fresh_postgres: str, tmp_path: Path
) -> None:
    with psycopg.connect(libpq(second_postgres), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE t (doc text, part int, v halfvec(3), PRIMARY KEY (doc, part))")
        connection.execute("INSERT INTO t SELECT 'd\"' || i / 3, i % 3, '[0.5,1,2]' FROM generate_series(0, 99) i")
    report = await copies.one(at(second_postgres, "t"), at(fresh_postgres, "t"), chosen=Chosen(metric=Metric.L2))
    assert report.holds
    table, rows = await copies.read(at(fresh_postgres, "t"))
    assert (table.metric, table.has_text, table.dimensions) == (Metric.L2, False, 3)
    assert rows.ids[0] == '["d\\"0", 0]'
    assert rows.metadata[0] == {"doc": 'd"0', "part": 0}
    again = await copies.one(at(second_postgres, "t"), at(fresh_postgres, "t"), chosen=Chosen(metric=Metric.L2))
    assert (again.written, again.unchanged) == (0, 100)


# --- again, meanwhile, and behind our back ---------------------------------------------------------------------------


async def test_a_second_run_without_changes_does_nothing(copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    source, target = fill_lance(tmp_path / "l"), f"parquet:{tmp_path}/out/notes"
    assert (await copies.one(source, target)).written == 300
    before = files(tmp_path / "out")
    report = await copies.one(source, target)
    assert (report.written, report.unchanged, report.removed, report.holds) == (0, 300, 0, True)
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["lancedb", "parquet", "chroma", "postgresql"])
async def test_a_second_run_brings_changes_over(kind: str, copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    source = fill_lance(tmp_path / "l")
    target = at(fresh_postgres, "notes") if kind == "postgresql" else f"{kind}:{tmp_path}/out/notes"
    assert (await copies.one(source, target, chosen=COSINE)).holds
    table = lancedb.connect(tmp_path / "l").open_table("notes")
    table.delete("doc_id < 20")
    table.update("doc_id = 30", {"content": "changed", "year": 1})
    table.update("doc_id = 31", {"emb": [9.0] * 8})
    more = table.search().limit(3).to_arrow().drop_columns(["doc_id"])
    table.add(more.append_column("doc_id", pa.array([1000, 1001, 1002])).select(table.schema.names))
    report = await copies.one(source, target, chosen=COSINE)
    assert (report.written, report.unchanged, report.removed) == (5, 288, 10)
    assert report.holds
    _, rows = await copies.read(target)
    by_id = dict(zip(rows.ids, rows.texts, strict=True))
    assert len(by_id) == 293
    assert by_id[30] == "changed"
    assert 15 not in by_id
    assert 1001 in by_id


async def test_most_rows_gone_is_asked_about(copies: Copies, tmp_path: Path) -> None:
    source, target = fill_lance(tmp_path / "l"), f"parquet:{tmp_path}/out/notes"
    assert (await copies.one(source, target)).holds
    lancedb.connect(tmp_path / "l").open_table("notes").delete("doc_id > 20")
    with pytest.raises(SuspiciousChange) as caught:
        await copies.one(source, target)
    assert "--allow-gone" in caught.value.hint
    assert len((await copies.read(target))[1]) == 300
    report = await copies.one(source, target, resume=True, allow_gone=True)
    assert (report.removed, report.holds) == (289, True)


async def test_deletes_and_writes_in_a_chroma_server_during_the_copy(
    copies: Copies, server: ChromaServer, tmp_path: Path
) -> None:
    """Offsets would shift: rows are found by their ids, and what came or went meanwhile is looked for at the end."""
    import chromadb

    client = chromadb.HttpClient("127.0.0.1", server.port)
    made = client.create_collection("notes", configuration={"hnsw": {"space": "l2"}}, embedding_function=None)
    given = vectors(12_000)
    for start in range(0, 12_000, 4_000):
        part = [str(row) for row in range(start, start + 4_000)]
        made.add(ids=part, embeddings=given[start : start + 4_000], documents=part)
    went = 0

    def meanwhile(what: str, done: int, total: int) -> None:
        nonlocal went
        if what == "copying" and went < 2:
            made.delete(ids=[str(row) for row in range(went * 100, went * 100 + 100)])
            made.add(ids=[f"new {went}"], embeddings=given[:1], documents=["new"])
            went += 1

    (report,) = await copies.run(f"{server.uri}/notes", f"lancedb:{tmp_path}/l/notes", on_step=meanwhile)
    assert went == 2
    assert report.holds, report.as_dict()
    _, rows = await copies.read(f"lancedb:{tmp_path}/l/notes")
    assert set(rows.ids) == {str(row) for row in range(200, 12_000)} | {"new 0", "new 1"}


async def test_a_source_that_changes_while_it_is_compared_is_told(
    copies: Copies, fresh_postgres: str, tmp_path: Path
) -> None:
    source = fill_postgres(fresh_postgres)

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "building the index":
            with psycopg.connect(libpq(fresh_postgres), autocommit=True) as connection:
                connection.execute("UPDATE notes SET content = 'newer' WHERE n = 7")

    (report,) = await copies.run(source, f"parquet:{tmp_path}/out/notes", on_step=meanwhile)
    assert report.source_changed
    assert not report.holds
    assert report.verified.changed == 3
    again = await copies.one(source, f"parquet:{tmp_path}/out/notes")
    assert (again.written, again.holds) == (3, True)


async def test_a_folder_that_is_written_to_meanwhile_is_told(copies: Copies, tmp_path: Path) -> None:
    source = fill_lance(tmp_path / "l")

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "copying":
            lancedb.connect(tmp_path / "l").open_table("notes").delete("doc_id = 11")

    (report,) = await copies.run(source, f"parquet:{tmp_path}/out/notes", on_step=meanwhile)
    assert report.source_changed
    assert report.rows == 300, "of one version, whatever came later"
    again = await copies.one(source, f"parquet:{tmp_path}/out/notes")
    assert (again.removed, again.holds) == (1, True)


@pytest.mark.parametrize("mode", ["full", "sample"])
async def test_a_target_that_loses_or_changes_rows_behind_our_back_is_found_out(
    mode: str, copies: Copies, tmp_path: Path
) -> None:
    source, target = fill_lance(tmp_path / "l"), f"lancedb:{tmp_path}/out/notes"
    assert (await copies.one(source, target)).holds
    table = lancedb.connect(tmp_path / "out").open_table("notes")
    table.delete("id = 12")
    table.update("id = 13", {"text": "other"})
    table.update("id = 14", {"vector": [0.0] * 8})
    table.update("id = 15", {"year": 3})
    row = table.search().limit(1).to_arrow().drop_columns(["id"])
    table.add(row.append_column("id", pa.array([7])).select(table.schema.names))
    report = await copies.one(source, target, verify=mode)
    assert not report.holds
    found = report.verified
    assert (found.missing, found.extra, found.differing) == (1, 1, 3)
    assert found.examples == {"12": "missing", "7": "not in the source", "13": "text", "14": "vector", "15": "metadata"}
    assert table.count_rows() == 300, "what is wrong is told, not mended"


async def test_equal_counts_do_not_hide_other_ids(copies: Copies, tmp_path: Path) -> None:
    source, target = fill_lance(tmp_path / "l"), f"lancedb:{tmp_path}/out/notes"
    await copies.one(source, target)
    table = lancedb.connect(tmp_path / "out").open_table("notes")
    table.update("id = 12", {"id": 9_999})
    assert table.count_rows() == 300
    found = (await copies.one(source, target)).verified
    assert (found.missing, found.extra) == (1, 1)


async def test_ids_that_look_alike_are_kept_apart(copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    """An id as text, quoted, cased, blank or in another Unicode form is another id, everywhere."""
    ids = [
        "",
        "1",
        "01",
        " 1",
        "A",
        "a",
        "é",
        "e\u0301",
        "'",
        '"',
        "\\",
        "%",
        "a'; --",
        "0" * 400,
        "whimbrel:id:x",
        "\n",
        "日本",
    ]
    columns = {
        "id": ids,
        "text": ids,
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors(len(ids)).reshape(-1)), 8),
    }
    lancedb.connect(tmp_path / "l").create_table("t", pa.table(columns))
    for target in (
        f"parquet:{tmp_path}/p/ttt",
        f"chroma:{tmp_path}/c/ttt",
        at(fresh_postgres, "ttt"),
        f"lancedb:{tmp_path}/m/ttt",
    ):
        report = await copies.one(f"lancedb:{tmp_path}/l/t", target, chosen=COSINE)
        assert report.holds
        _, rows = await copies.read(target)
        assert dict(zip(rows.ids, rows.texts, strict=True)) == dict(zip(ids, ids, strict=True))


async def test_every_kind_of_value_in_every_database(
    copies: Copies, server: ChromaServer, fresh_postgres: str, tmp_path: Path
) -> None:
    """What databases drop, change or refuse: null, NaN, nested, empty and mixed lists, large integers, taken names."""
    given: list[dict[str, Any]] = [
        {"null": None, "nan": math.nan, "inf": -math.inf, "zero": -0.0, "tiny": 5e-324, "huge": 1.7e308},
        {"int": 2**63, "more": -(2**200), "bool": True, "one": 1, "float": 1.0},
        {"empty": [], "mixed": [1, "a", None, 2.5], "deep": [[1], {"a": {"b": []}}], "object": {}},
        {"#hash": 1, "$ref": 2, "chroma:document": "x", "": "no name", "a.b": 1, "a": {"b": 2}, "whimbrel:more": "y"},
        {"nul": "a\0b", "$date": "no date", "$object": [], "nested": {"$uuid": 1, "$float": "nan"}},
        {"id": 1, "text": 2, "vector": 3, "metadata": 4, "whimbrel_more": 5, "document": 6, "ID": 7},
    ]
    store = open_store(f"lancedb:{tmp_path}/views", "v", Space("toy", "1", 8), base=tmp_path)
    await store.create()
    ids = [f"i{row}" for row in range(len(given))]
    await store.upsert(Records(ids, {DENSE: vectors(len(given))}, ids, given))
    await store.close()
    source = f"lancedb:{tmp_path}/views/v"
    _, rows = await copies.read(source)
    places = {
        "lancedb": f"lancedb:{tmp_path}/l/odd",
        "parquet": f"parquet:{tmp_path}/p/odd",
        "chroma": f"chroma:{tmp_path}/c/odd",
        "server": f"{server.uri}/odd",
        "postgresql": at(fresh_postgres, "odd"),
    }
    for target in places.values():
        report = await copies.one(source, target)
        assert report.holds, report.as_dict()
        _, found = await copies.read(target)
        assert not differences(rows, found, 1e-6)


async def test_a_row_that_is_too_large_for_the_server_is_rejected_and_the_others_go(
    copies: Copies, tmp_path: Path
) -> None:
    server = ChromaServer(tmp_path / "served", "max_payload_size_bytes: 300000")
    server.start()
    texts = [f"{row} " + "x" * (500_000 if row == 7 else 20_000) for row in range(60)]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors(60).reshape(-1)), 8)
    table = pa.table({"id": list(range(60)), "text": texts, "vector": flat})
    lancedb.connect(tmp_path / "l").create_table("notes", table)
    try:
        report = await copies.one(f"lancedb:{tmp_path}/l/notes", f"{server.uri}/notes", chosen=COSINE)
    finally:
        server.kill()
    assert (report.written, report.rejected) == (59, 1)
    assert report.verified.holds
    (line,) = (Path(report.state) / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "7"
    assert "too large" in json.loads(line)["reason"]
    assert "xxx" not in line


async def test_arrays_of_a_collection_that_was_dropped_do_not_turn_up(copies: Copies, tmp_path: Path) -> None:
    """Chroma leaves them behind, and gives its row numbers again."""
    client = chroma_client(tmp_path / "c")
    old = client.create_collection("old", embedding_function=None)
    ids = [f"r{row}" for row in range(300)]
    old.add(ids=ids, embeddings=vectors(300), metadatas=[{"left": [1, 2]}] * 300)
    client.delete_collection("old")
    client.close()
    report = await copies.one(fill_parquet(tmp_path / "p"), f"chroma:{tmp_path}/c/notes", chosen=COSINE)
    assert report.holds, report.as_dict()
    client = chroma_client(tmp_path / "c")
    assert client.get_collection("notes", embedding_function=None).get(where={"left": {"$contains": 1}})["ids"] == []
    client.close()


async def test_rows_that_all_vanish_are_no_error(copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    source = fill_postgres(fresh_postgres, rows=50)

    def empty(what: str, done: int, total: int) -> None:
        if what == "building the index":
            with psycopg.connect(libpq(fresh_postgres), autocommit=True) as connection:
                connection.execute("DELETE FROM notes")

    (report,) = await copies.run(source, f"parquet:{tmp_path}/out/notes", on_step=empty)
    assert report.source_changed
    assert report.verified.changed == 50


async def test_the_metric_is_the_source_s(copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    client = chroma_client(tmp_path / "c")
    for metric in ("l2", "ip", "cosine"):
        fill_chroma(client, f"by_{metric}", 20, metric)
    client.close()
    for metric, operators in (("l2", "l2"), ("ip", "ip"), ("cosine", "cosine")):
        report = await copies.one(f"chroma:{tmp_path}/c/by_{metric}", at(fresh_postgres, f"by_{metric}"))
        assert report.holds
        with psycopg.connect(libpq(fresh_postgres)) as connection:
            (index,) = connection.execute(
                "SELECT indexdef FROM pg_indexes WHERE tablename = %s AND indexdef LIKE '%%hnsw%%'", [f"by_{metric}"]
            ).fetchone()
        assert f"vector_{operators}_ops" in index
        back = await copies.one(at(fresh_postgres, f"by_{metric}"), f"chroma:{tmp_path}/d/by_{metric}")
        assert back.holds
        assert (await copies.read(f"chroma:{tmp_path}/d/by_{metric}"))[0].metric == (
            await copies.read(f"chroma:{tmp_path}/c/by_{metric}")
        )[0].metric


# --- a crash, an outage, a full disk ---------------------------------------------------------------------------------


async def test_a_copy_that_did_not_end_goes_on_only_when_asked_to(
    copies: Copies, server: ChromaServer, tmp_path: Path
) -> None:
    """The target's server is killed in the middle, and started again."""
    source, target = fill_parquet(tmp_path / "p", rows=6_000), f"{server.uri}/notes"

    def kill(what: str, done: int, total: int) -> None:
        if what == "copying" and done >= 2_000:
            server.kill()

    with pytest.raises(StoreUnavailable) as caught:
        await copies.run(source, target, on_step=kill, chosen=COSINE)
    assert "--resume" in caught.value.hint
    with pytest.raises(StoreUnavailable):
        await copies.one(source, target, chosen=COSINE, resume=True)
    server.start()
    with pytest.raises(Conflict) as refused:
        await copies.one(source, target, chosen=COSINE)
    assert "--resume" in refused.value.hint
    report = await copies.one(source, target, chosen=COSINE, resume=True)
    assert report.holds
    assert 0 < report.written < 6_000, "what was there was not written again"
    assert report.rows == 6_000


async def test_a_server_that_comes_back_soon_is_waited_for(
    copies: Copies, server: ChromaServer, tmp_path: Path
) -> None:
    source, target = fill_parquet(tmp_path / "p", rows=3_000), f"{server.uri}/notes"
    killed = False

    def restart(what: str, done: int, total: int) -> None:
        nonlocal killed
        if what == "copying" and not killed:
            killed = True
            server.kill()
            server.start()

    (report,) = await copies.run(source, target, on_step=restart, chosen=COSINE, retries_s=(0.2, 1, 3))
    assert killed
    assert report.holds


async def test_a_state_that_was_lost_is_made_anew_from_this_copy_s_own_target(copies: Copies, tmp_path: Path) -> None:
    source, target = fill_lance(tmp_path / "l"), f"lancedb:{tmp_path}/out/notes"
    assert (await copies.one(source, target)).holds
    shutil.rmtree(tmp_path / "copying")
    report = await copies.one(source, target)
    assert report.holds
    assert report.written == 300
    assert lancedb.connect(tmp_path / "out").open_table("notes").count_rows() == 300


async def test_a_target_that_was_dropped_is_filled_again(copies: Copies, tmp_path: Path) -> None:
    source, target = fill_lance(tmp_path / "l"), f"lancedb:{tmp_path}/out/notes"
    assert (await copies.one(source, target)).holds
    lancedb.connect(tmp_path / "out").drop_table("notes")
    report = await copies.one(source, target)
    assert (report.written, report.holds) == (300, True)


async def test_two_runs_of_one_copy_at_once(copies: Copies, tmp_path: Path) -> None:
    source, target = fill_lance(tmp_path / "l"), f"lancedb:{tmp_path}/out/notes"
    ended = await asyncio.gather(copies.one(source, target), copies.one(source, target), return_exceptions=True)
    assert sorted(type(one).__name__ for one in ended) == ["AlreadyOwned", "CopyReport"]


async def test_a_chroma_folder_that_a_program_has_open_is_refused(copies: Copies, tmp_path: Path) -> None:
    client = chroma_client(tmp_path / "c")
    fill_chroma(client, rows=5)
    for resume in (False, True):
        with pytest.raises(AlreadyOwned) as caught:
            await copies.run(f"chroma:{tmp_path}/c/*", f"lancedb:{tmp_path}/l/*", resume=resume)
        assert "chroma+http" in caught.value.hint
    client.close()


async def test_a_chroma_client_closed_just_now_is_waited_for(copies: Copies, tmp_path: Path) -> None:
    """Its connections are closed in the background."""
    client = chroma_client(tmp_path / "c")
    fill_chroma(client, rows=5)
    client.close()
    handle = (tmp_path / "c" / "chroma.sqlite3").open("rb")
    asyncio.get_running_loop().call_later(0.3, handle.close)
    (report,) = await copies.run(f"chroma:{tmp_path}/c/*", f"lancedb:{tmp_path}/l/*")
    assert (handle.closed, report.rows, report.holds) == (True, 5, True)


async def test_a_damaged_source_is_an_error_not_an_empty_copy(copies: Copies, tmp_path: Path) -> None:
    fill_parquet(tmp_path / "p")
    whole = (tmp_path / "p" / "notes.parquet").read_bytes()
    (tmp_path / "p" / "notes.parquet").write_bytes(whole[:-100])
    with pytest.raises(ViewDamaged):
        await copies.one(f"parquet:{tmp_path}/p/notes", f"lancedb:{tmp_path}/l/notes")
    fill_lance(tmp_path / "l2")
    for file in (tmp_path / "l2" / "notes.lance" / "data").iterdir():
        file.unlink()
    with pytest.raises(ViewDamaged) as caught:
        await copies.one(f"lancedb:{tmp_path}/l2/notes", f"lancedb:{tmp_path}/l/notes")
    assert "view rebuild" not in caught.value.hint


async def test_names_that_a_target_does_not_take(copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    source = fill_lance(tmp_path / "l", rows=5)
    with pytest.raises(StoreRefused, match="name"):
        await copies.one(source, f"chroma:{tmp_path}/c/a b", chosen=COSINE)
    with pytest.raises(BadInput, match="name"):
        await copies.one(source, at(fresh_postgres, "n" * 64))
    with pytest.raises(BadInput, match="name"):
        await copies.one(source, f"lancedb:{tmp_path}/m/a b")


async def test_more_dimensions_than_the_target_holds(copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors(2, 16_001).reshape(-1)), 16_001)
    lancedb.connect(tmp_path / "l").create_table("t", pa.table({"id": ["a", "b"], "vector": flat}))
    with pytest.raises(BadInput, match="16,000"):
        await copies.one(f"lancedb:{tmp_path}/l/t", at(fresh_postgres, "t"))


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here, so a full one was not tried")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["lancedb", "parquet", "chroma"])
async def test_a_full_disk_is_named_and_the_copy_goes_on_when_there_is_room(
    kind: str, copies: Copies, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors(8_000, 384).reshape(-1)), 384)
    pq.write_table(pa.table({"id": list(map(str, range(8_000))), "vector": flat}), folder / "t.parquet")
    with small_disk(tmp_path / "disk", 8) as disk:
        target = f"{kind}:{disk}/t/ttt"
        with pytest.raises(DiskFull) as caught:
            await copies.one(f"parquet:{folder}/t", target, chosen=COSINE)
        assert "--resume" in caught.value.hint
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True, capture_output=True)
        if kind == "chroma":  # which breaks its own files when they cannot be written
            with pytest.raises(ViewDamaged, match="cannot be read") as damaged:
                await copies.one(f"parquet:{folder}/t", target, chosen=COSINE, resume=True)
            assert "drop it" in damaged.value.hint
            shutil.rmtree(disk / "t")
        report = await copies.one(f"parquet:{folder}/t", target, chosen=COSINE, resume=True)
        assert report.holds
        assert report.rows == 8_000


async def test_the_state_lists_what_it_wrote(copies: Copies, tmp_path: Path) -> None:
    report = await copies.one(fill_lance(tmp_path / "l"), f"parquet:{tmp_path}/out/notes", verify="none")
    assert report.verified.mode == "none"
    with sqlite3.connect(Path(report.state) / "state.db") as state:
        assert state.execute("SELECT count(*), count(digest) FROM rows").fetchone() == (300, 300)
    assert json.loads((Path(report.state) / "report.json").read_text())["written"] == 300
