"""What is in a database: shown, and nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from adopting import D, Table, fill_chroma, fill_lance, fill_milvus, fill_parquet, fill_postgres, fill_qdrant, sightings
from chroma_server import ChromaServer
from commands import Shell
from copying import at, chroma_client, files
from whimbrel.app import Whimbrel
from whimbrel.errors import AlreadyOwned, ConfigError, NotFound, ViewDamaged

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path / "home") as whimbrel:
        yield whimbrel


@pytest.mark.parametrize("filler", [fill_lance, fill_parquet, fill_chroma])
def test_a_folder(home: Whimbrel, tmp_path: Path, filler: object) -> None:
    assert callable(filler)
    uri = filler(tmp_path / "theirs", sightings(60))
    filler(tmp_path / "theirs", sightings(7), "others")
    before = files(tmp_path / "theirs")
    found = home.inspect(uri.rpartition("/")[0])
    assert found["store"] == uri.rpartition("/")[0]
    assert [(one["name"], one["count"]) for one in found["collections"]] == [("log", 60), ("others", 7)]
    first = found["collections"][0]
    assert first["dimensions"] == D
    assert first["vectors"][0]["dimensions"] == D
    assert first["fields"].keys() == {"source", "title", "chunk_index", "year"}
    assert first["metric"] == ("cosine" if filler is fill_chroma else None)
    (one,) = home.inspect(uri)["collections"]
    assert one == first
    assert files(tmp_path / "theirs") == before
    assert not list((tmp_path / "home").glob("adopted/*"))


def test_a_server(home: Whimbrel, fresh_postgres: str) -> None:
    uri = fill_postgres(fresh_postgres, sightings(60))
    (found,) = home.inspect(uri)["collections"]
    assert (found["name"], found["count"], found["dimensions"], found["metric"]) == ("log", 60, D, "cosine")
    assert found["fields"] == {"source": "string", "title": "string", "chunk_index": "int", "year": "int"}
    head, mark, query = uri.partition("?")
    assert home.inspect(f"{head.rpartition('/')[0]}{mark}{query}")["collections"] == [found]


def test_a_collection_without_rows(home: Whimbrel, tmp_path: Path) -> None:
    uri = fill_chroma(tmp_path / "theirs", Table([], [], np.zeros((0, D), np.float32), []))
    (found,) = home.inspect(uri)["collections"]
    assert (found["count"], found["fields"]) == (0, {})


@pytest.mark.parametrize("scheme", ["lancedb", "parquet", "chroma", "qdrant", "llamaindex"])
@pytest.mark.parametrize("ending", ["", "/*"])
def test_a_folder_without_collections(home: Whimbrel, tmp_path: Path, scheme: str, ending: str) -> None:
    (tmp_path / "theirs").mkdir()
    uri = f"{scheme}:{tmp_path / 'theirs'}"
    assert home.inspect(uri + ending) == {"store": uri, "collections": []}
    assert list((tmp_path / "theirs").iterdir()) == []
    with pytest.raises(NotFound):
        home.inspect(f"{uri}-not{ending}")


def test_a_server_without_collections(home: Whimbrel, tmp_path: Path, fresh_postgres: str) -> None:
    server = ChromaServer(tmp_path / "served")
    server.start()
    try:
        assert home.inspect(f"{server.uri}/*") == {"store": server.uri, "collections": []}
        plain, as_json, copied = Shell(tmp_path / "home").several(
            ["inspect", f"{server.uri}/*"],
            ["inspect", f"{server.uri}/*", "--json"],
            ["copy", f"{server.uri}/*", f"lancedb:{tmp_path / 'to'}/*", "--json"],
        )
    finally:
        server.kill()
    assert (plain.status, as_json.status) == (0, 0)
    assert "no collection with vectors" in plain.out
    assert as_json.json == {"store": server.uri, "collections": []}
    assert (copied.status, copied.json["error"]) == (2, "NotFound")
    assert "nothing to copy" in copied.json["hint"]
    assert home.inspect(at(fresh_postgres, "*"))["collections"] == []


def test_all_collections_of_a_folder(home: Whimbrel, tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings(5)).rpartition("/")[0]
    fill_lance(tmp_path / "theirs", sightings(7), "others")
    assert home.inspect(f"{uri}/*") == home.inspect(uri)


def test_a_damaged_collection_beside_others(home: Whimbrel, tmp_path: Path) -> None:
    fill_parquet(tmp_path / "theirs", sightings(5))
    (tmp_path / "theirs" / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    broken, log = home.inspect(f"parquet:{tmp_path / 'theirs'}")["collections"]
    assert "damaged" in broken["error"]
    assert log["count"] == 5
    uri = fill_qdrant(tmp_path / "q", sightings(5))
    (tmp_path / "q" / "collection" / "log" / "storage.sqlite").unlink()
    with pytest.raises(ViewDamaged, match="is not there"):
        home.inspect(uri)


def test_what_is_not_there(home: Whimbrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        home.inspect(f"lancedb:{tmp_path / 'nowhere'}")
    with pytest.raises(NotFound):
        home.inspect(f"chroma:{tmp_path / 'nowhere'}")
    with pytest.raises(NotFound, match=r"nowhere\.db"):
        home.inspect(f"milvus:{tmp_path / 'nowhere.db'}")
    fill_lance(tmp_path / "theirs", sightings(5))
    with pytest.raises(NotFound):
        home.inspect(f"lancedb:{tmp_path / 'theirs'}/nothing")
    monkeypatch.chdir(tmp_path)
    for uri in ("chroma:nowhere", "qdrant:nowhere", "lancedb:nowhere"):
        with pytest.raises(NotFound, match="nothing at"):
            home.inspect(uri)
    with pytest.raises(ConfigError, match="Did you mean 'lancedb'"):
        home.inspect("lancedbb:somewhere")
    with pytest.raises(ConfigError, match="no store 'theirs'"):  # as it was typed
        home.inspect("theirs")
    for scheme, meant in (("parket", "parquet"), ("llama-index", "llamaindex")):
        with pytest.raises(ConfigError, match=f"Did you mean '{meant}'") as refused:
            home.inspect(f"{scheme}:somewhere")
        assert "parquet, llamaindex" in refused.value.hint


@pytest.mark.parametrize("filler", [fill_lance, fill_parquet, fill_chroma, fill_qdrant, fill_milvus])
def test_a_name_that_is_mistyped_is_told_from_those_that_are_there(
    home: Whimbrel, tmp_path: Path, filler: object
) -> None:
    assert callable(filler)
    uri = filler(tmp_path / "theirs", sightings(5), "sightings")
    before = files(tmp_path / "theirs")
    with pytest.raises(NotFound, match="'sigthings'") as refused:
        home.inspect(uri.replace("/sightings", "/sigthings"))
    assert refused.value.hint == "Did you mean 'sightings'? Those that are there: 'sightings'."
    assert files(tmp_path / "theirs") == before


def test_a_folder_that_a_program_has_open(home: Whimbrel, tmp_path: Path) -> None:
    fill_chroma(tmp_path / "theirs", sightings(5))
    client = chroma_client(tmp_path / "theirs")
    client.get_collection("log").count()
    try:
        with pytest.raises(AlreadyOwned, match="is open in process"):
            home.inspect(f"chroma:{tmp_path / 'theirs'}")
    finally:
        client.close()


def test_on_the_command_line(tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings(60))
    shell = Shell(tmp_path / "home")
    plain, as_json, none = shell.several(
        ["inspect", uri.rpartition("/")[0]], ["inspect", uri, "--json"], ["inspect", f"{uri}x", "--json"]
    )
    assert "log: 60 rows" in plain.out
    assert as_json.json["collections"][0]["name"] == "log"
    assert (none.status, none.json["error"]) == (2, "NotFound")


@pytest.mark.parametrize("filler", [fill_lance, fill_chroma])
def test_the_command_makes_no_home(filler: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(filler)
    uri = filler(tmp_path / "theirs", sightings(5))
    (tmp_path / "tmp").mkdir()
    ran = Shell(tmp_path / "home", TMPDIR=str(tmp_path / "tmp")).run("inspect", uri, "--json")
    assert ran.json["collections"][0]["count"] == 5
    assert not (tmp_path / "home").exists()
    assert not list((tmp_path / "tmp").iterdir()), "a copy of the files was left behind"


FIXTURES = {
    "chroma_0.3_chatdata": [("langchain", 13, 384)],
    "llamaindex_circleci": [("default", 22, 1536)],
    "chroma_0.4.6-0.4.14_kaggle_report": [("langchain", 190, 384)],
    "chroma_0.4.6-0.4.14_webpages": [("langchain", 22, 384)],
    "chroma_0.5.4-0.5.5_lilianweng": [("langchain", 264, 384)],
    "chroma_0.6.3_wikipedia_jfk": [("langchain", 157, 384)],
    "chroma_1.0-1.2_articles": [("langchain", 74, 1024)],
    "chroma_1.3plus_svelte_docs": [("documentation_chunks_v5", 41, 384), ("documentation_chunks_v6", 41, 384)],
    "qdrant_local_ghnkrk": [("documents", 125, 384), ("test_docs", 198, 384)],
    "parquet_feast_city_wikipedia": [("city_wikipedia_summaries_with_embeddings", 811, 384)],
}
"""Databases that other programs wrote, years apart: their collections, rows and dimensions."""


def _copied(data_dir: Path, name: str, tmp_path: Path) -> str:
    """The URI of a copy, so that whatever opens it leaves the original alone."""
    folder = tmp_path / "theirs"
    shutil.copytree(data_dir / "vector_fixtures" / name, folder)
    if name.startswith("parquet"):
        return f"parquet:{next(folder.rglob('*.parquet')).parent}"
    if name.startswith("qdrant"):
        return f"qdrant:{folder}"
    if name.startswith("llamaindex"):
        return f"llamaindex:{folder}"
    if old := next(folder.rglob("chroma-embeddings.parquet"), None):
        return f"chroma:{old.parent}"
    return f"chroma:{next(folder.rglob('chroma.sqlite3')).parent}"


@pytest.mark.parametrize("name", FIXTURES)
def test_databases_of_other_programs_are_adopted_with_every_row(
    home: Whimbrel, data_dir: Path, tmp_path: Path, name: str
) -> None:
    uri = _copied(data_dir, name, tmp_path)
    before = files(tmp_path / "theirs")
    found = home.inspect(uri)["collections"]
    assert [(one["name"], one["count"], one["dimensions"]) for one in found] == FIXTURES[name]
    for collection, rows, dimensions in FIXTURES[name]:
        named = {"text_field": "sentence_chunks"} if name.startswith("parquet") else {}
        embedder = "minilm" if dimensions == 384 else "none"
        told = home.adopt(f"{uri}/{collection}", collection[:40], embedder=embedder, **named)
        assert (told["rows"], told["adopted"], told["rejected"]) == (rows, rows, 0)
        mode = "hybrid" if embedder == "minilm" else "lexical"
        found_there = home.search("what is this about", collection[:40], mode=mode)
        assert found_there.hits
        assert not found_there.degraded
    assert files(tmp_path / "theirs") == before


def test_a_file_of_milvus_lite_2_is_adopted_but_for_rows_without_a_text(
    home: Whimbrel, data_dir: Path, tmp_path: Path
) -> None:
    written = data_dir / "vector_fixtures" / "milvus_lite_bennykillua" / "milvus_demo.db"
    mine = tmp_path / "old.db"
    shutil.copy(written, mine)
    told = home.adopt(f"milvus:{mine}/my_rag_collection", "rag", embedder="none")
    assert (told["rows"], told["adopted"], told["rejected"]) == (246, 240, 6)
    assert all("it has no text" in reason for reason in told["examples"])
    assert home.search("milvus", "rag", mode="lexical").hits
    assert mine.read_bytes() == written.read_bytes()
