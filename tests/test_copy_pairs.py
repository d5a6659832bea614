"""Every pair of databases: a collection that another program made is carried there, on, and back, and is the same."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

import pytest

from chroma_server import ChromaServer
from copying import (
    FIRST_PG_ID,
    ODD,
    Copies,
    at,
    chroma_client,
    files,
    fill_chroma_folder,
    fill_lance,
    fill_milvus_lite,
    fill_milvus_server,
    fill_parquet,
    fill_postgres,
    fill_qdrant_folder,
    libpq,
)
from whimbrel.stores.foreign.base import IdKind
from whimbrel.stores.foreign.values import differences
from whimbrel.stores.metrics import Metric

KINDS = ("lancedb", "parquet", "chroma", "server", "postgresql", "qdrant", "milvus", "milvus server")
FIRST = KINDS[:5]
PAIRS = [
    pytest.param(origin, by, marks=() if {origin, by} <= {*FIRST} or "lancedb" in (origin, by) else pytest.mark.soak)
    for origin in KINDS
    if origin != "server"
    for by in KINDS
]
"""All of them; those between the later kinds, but for a star through LanceDB, in the soak."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    made = ChromaServer(tmp_path_factory.mktemp("server") / "data")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path)


def place(kind: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a collection of a database of that kind."""
    if kind == "postgresql":
        return at(request.getfixturevalue("fresh_postgres"), name)
    if kind == "server":
        return f"{request.getfixturevalue('server').uri}/{name}"
    if kind == "milvus server":
        return f"{request.getfixturevalue('milvus_server').uri}/{name}"
    if kind == "milvus":
        return f"milvus:{tmp_path}/milvus.db/{name}"
    return f"{kind}:{tmp_path / kind}/{name}"


def fill(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "foreign"
    if kind == "postgresql":
        return fill_postgres(request.getfixturevalue("second_postgres"))
    if kind == "milvus server":
        return fill_milvus_server(request.getfixturevalue("milvus_server"))
    fills = {
        "lancedb": fill_lance, "parquet": fill_parquet, "chroma": fill_chroma_folder, "qdrant": fill_qdrant_folder,
        "milvus": fill_milvus_lite,
    }  # fmt: skip
    return fills[kind](folder)


@pytest.mark.parametrize(("origin", "by"), PAIRS)
async def test_there_on_and_back_is_the_same(
    origin: str, by: str, copies: Copies, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """From what another program made to `by`, from there to Parquet, and to a new place of the first kind."""
    source = fill(origin, request, tmp_path)
    table, rows = await copies.read(source)
    metric = table.metric or Metric.COSINE
    chosen = {} if table.metric else {"metric": metric}
    name, returned = (f"{way}_{origin}_{by}".replace(" ", "_") for way in ("copied", "back"))
    first = await copies.one(source, place(by, name, request, tmp_path), chosen=_chosen(chosen))
    assert first.holds
    assert (first.rows, first.written, first.unchanged, first.rejected) == (300, 300, 0, 0)
    onward = await copies.one(place(by, name, request, tmp_path), f"parquet:{tmp_path}/onward/notes")
    back = await copies.one(f"parquet:{tmp_path}/onward/notes", place(origin, returned, request, tmp_path))
    assert onward.holds
    assert back.holds
    told, found = await copies.read(place(origin, returned, request, tmp_path))
    assert told.ids is table.ids
    assert told.metric == metric
    assert told.has_text == table.has_text
    assert not differences(rows, found, 3e-6 if metric is Metric.COSINE else 0.0)
    assert len(found) == 300


def _chosen(given: dict[str, Metric]) -> object:
    from whimbrel.stores.foreign.base import Chosen

    return Chosen(**given)


async def test_what_another_program_put_into_lancedb_is_read_as_it_is(copies: Copies, tmp_path: Path) -> None:
    table, rows = await copies.read(fill_lance(tmp_path / "foreign"))
    assert (table.ids, table.dimensions, table.metric) == (IdKind.INT, 8, None)
    assert table.names.text == "content"
    assert rows.ids[0] == 10
    assert rows.texts[3] is None
    assert rows.metadata[0] == {
        "year": 2000, "tags": [], "seen": datetime(2024, 1, 1), "site": "s0", "depth": 0, "raw": b"\0"
    }  # fmt: skip
    assert rows.metadata[1]["score"] == 1 / 3


async def test_what_another_program_put_into_parquet_is_read_as_it_is(copies: Copies, tmp_path: Path) -> None:
    table, rows = await copies.read(fill_parquet(tmp_path / "foreign"))
    assert (table.ids, table.dimensions, table.names.id, table.names.text) == (IdKind.STR, 8, "uuid", "document")
    assert list(table.notes) == ["vectors of 64-bit numbers are rounded to 32 bits"]
    assert rows.metadata[1] == {
        "price": Decimal("0.01"), "on": date(2024, 1, 2), "at": datetime(2024, 1, 1, tzinfo=UTC), "kind": "k1",
        "flag": False, "nested": {"a": {"b": 1}, "c": [1.5, 1 / 7]},
    }  # fmt: skip


async def test_what_another_program_put_into_chroma_is_read_as_it_is(copies: Copies, tmp_path: Path) -> None:
    table, rows = await copies.read(fill_chroma_folder(tmp_path / "foreign", metric="ip"))
    assert (table.ids, table.dimensions, table.metric) == (IdKind.STR, 8, Metric.DOT)
    assert table.about == {"made by": "another program"}
    by_id = dict(zip(rows.ids, zip(rows.texts, rows.metadata, strict=True), strict=True))
    assert by_id["id '7\" \\ é"][0] is None
    assert by_id["id '8\" \\ é"][0] == ""
    assert by_id["id '0\" \\ é"][1] == {"chroma:uri": "file:0"}
    for row, given in ODD.items():
        assert by_id[f"id '{row}\" \\ é"][1].items() >= given.items()


async def test_what_another_program_put_into_postgres_is_read_as_it_is(copies: Copies, second_postgres: str) -> None:
    table, rows = await copies.read(fill_postgres(second_postgres))
    assert (table.ids, table.dimensions, table.metric) == (IdKind.UUID, 8, Metric.DOT)
    assert rows.ids[0] == FIRST_PG_ID
    first = rows.metadata[0]
    assert first["amount"] == Decimal("0.01")
    assert first["free"] == Decimal("1.000000000000000000001")
    assert first["at"] == datetime(2024, 5, 2, 10, 0, 0, 123456, tzinfo=UTC)
    assert first["plain_at"] == datetime(2024, 5, 1, 12)
    assert first["on"] == date(2024, 2, 28)
    assert first["t"] == time(12, 34, 56, 789000)
    assert first["raw"] == b"\0\1"
    assert (first["page"], first["none"], first["f"], first["deep"]) == (1, None, 0.1, [1, "a"])
    assert first["tags"] == ["a", "b'\"1"]
    assert first["numbers"] == [1, None]
    assert (first["feeling"], first["host"], first["odd % name"]) == ("odd", "10.0.0.1/32", "x%s")
    assert "numbers" not in rows.metadata[2]
    assert rows.metadata[4]["plain_at"] == "infinity"
    assert [note for note in table.notes if "copied as its text" in note] == [
        "the column 'feeling' (mood) is copied as its text",
        "the column 'host' (inet) is copied as its text",
        "the column 'long' (interval) is copied as its text",
    ]


async def test_other_programs_read_a_copy_as_their_own(
    copies: Copies, server: ChromaServer, fresh_postgres: str, tmp_path: Path
) -> None:
    import chromadb
    import lancedb
    import psycopg

    source = fill_lance(tmp_path / "foreign")
    for target in (f"{server.uri}/plain", at(fresh_postgres, "plain"), f"lancedb:{tmp_path}/l/plain"):
        assert (await copies.one(source, target, chosen=_chosen({"metric": Metric.L2}))).holds
    client = chromadb.HttpClient("127.0.0.1", server.port)
    found = client.get_collection("plain", embedding_function=None).get(ids=["11"])
    assert found["documents"] == ["text 1"]
    plain = {"year": 2001, "tags": ["a", "t1"], "site": "s1", "depth": 1, "seen": "2024-01-01T00:00:01"}
    assert found["metadatas"][0].items() >= plain.items()
    nearest = client.get_collection("plain", embedding_function=None).query(
        query_embeddings=[[0.0] * 8], n_results=3, where={"site": "s1"}
    )
    assert len(nearest["ids"][0]) == 3
    with psycopg.connect(libpq(fresh_postgres)) as connection:
        row = connection.execute(
            "SELECT id, text, year, tags, seen, depth FROM plain WHERE site = 's1' ORDER BY vector <-> "
            "(SELECT vector FROM plain WHERE id = 11) LIMIT 1"
        ).fetchone()
        assert row == (11, "text 1", 2001, ["a", "t1"], datetime(2024, 1, 1, 0, 0, 1), 1)
        types = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'plain'"
        ).fetchall()
        assert {("year", "integer"), ("tags", "ARRAY"), ("seen", "timestamp without time zone")} <= set(types)
    kept = lancedb.connect(tmp_path / "l").open_table("plain").search().where("year = 2001").limit(1).to_list()[0]
    assert (kept["id"], kept["text"], kept["tags"]) == (11, "text 1", ["a", "t1"])


async def test_a_view_of_ours_is_a_source(copies: Copies, fresh_postgres: str, tmp_path: Path) -> None:
    from copying import vectors
    from whimbrel.domain import Space
    from whimbrel.stores.base import DENSE, Records
    from whimbrel.stores.resolve import open_store

    given = [{"site": "docs", "odd": None, "deep": {"a": [1, "b"]}, "n": 2**70}, {}, {"list": []}]
    records = Records(["x", "", "whimbrel:id:z"], {DENSE: vectors(3)}, ["one", "", "two"], given)
    space = Space(model="toy", revision="1", dimensions=8)
    schema = "&schema=whimbrel" if "?" in libpq(fresh_postgres) else "?schema=whimbrel"
    stores = {
        f"lancedb:{tmp_path}/views": f"lancedb:{tmp_path}/views/view_1",
        f"chroma:{tmp_path}/chroma": f"chroma:{tmp_path}/chroma/view_1",
        f"qdrant:{tmp_path}/qdrant": f"qdrant:{tmp_path}/qdrant/view_1",
        libpq(fresh_postgres): at(fresh_postgres, "view_1") + schema,
    }
    for number, (uri, collection) in enumerate(stores.items()):
        store = open_store(uri, "view_1", space, base=tmp_path)
        await store.create()
        await store.upsert(records)
        await store.close()
        report = await copies.one(collection, f"parquet:{tmp_path}/out/v{number}")
        assert report.holds
        assert report.metric == "cosine"
        _, rows = await copies.read(f"parquet:{tmp_path}/out/v{number}")
        found = dict(zip(rows.ids, zip(rows.texts, rows.metadata, strict=True), strict=True))
        assert found == {"x": ("one", given[0]), "": ("", {}), "whimbrel:id:z": ("two", {"list": []})}


async def test_all_collections_in_one_call(copies: Copies, tmp_path: Path) -> None:
    client = chroma_client(tmp_path / "foreign")
    from copying import fill_chroma

    for name, metric in (("notes", "l2"), ("words", "cosine"), ("other", "ip")):
        fill_chroma(client, name, 50, metric)
    client.close()
    before = files(tmp_path / "foreign")
    reports = await copies.run(f"chroma:{tmp_path}/foreign/*", f"lancedb:{tmp_path}/all/*")
    assert [(report.rows, report.metric, report.holds) for report in reports] == [
        (50, "l2", True), (50, "dot", True), (50, "cosine", True)
    ]  # fmt: skip
    assert files(tmp_path / "foreign") == before
    again = await copies.run(f"chroma:{tmp_path}/foreign/*", f"lancedb:{tmp_path}/all/*")
    assert [(report.written, report.unchanged) for report in again] == [(0, 50)] * 3
