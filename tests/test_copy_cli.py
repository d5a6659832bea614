"""`whimbrel copy` as a user runs it: what it prints, how it ends, `kill -9` at any point, and the cold copy."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chroma_server import ChromaServer
from commands import Shell
from copying import at, chroma_client, files, fill_chroma, fill_chroma_folder, fill_lance


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


def test_it_says_what_it_did(shell: Shell, tmp_path: Path) -> None:
    source = fill_lance(tmp_path / "l")
    ran = shell.run("copy", source, f"parquet:{tmp_path}/out/notes")
    assert "300 rows of 8 dimensions, no metric said" in ran.out
    assert "300 written, 0 as they were, 0 removed, 0 rejected" in ran.out
    assert "Verified, all ids and every row, bit for bit: the same." in ran.out
    told = shell.run("copy", source, f"parquet:{tmp_path}/out/notes", "--verify", "sample", "--json").json
    assert told["holds"] is True
    (one,) = told["collections"]
    assert (one["rows"], one["written"], one["unchanged"]) == (300, 0, 300)
    assert one["verified"]["mode"] == "sample"
    assert one["verified"]["seed"] is not None


def test_the_status_says_whether_it_holds(shell: Shell, tmp_path: Path) -> None:
    source, target = fill_lance(tmp_path / "l"), f"lancedb:{tmp_path}/out/notes"
    shell.run("copy", source, target)
    lancedb.connect(tmp_path / "out").open_table("notes").delete("id = 12")
    ran = shell.run("copy", source, target, ok=False)
    assert ran.status == 1
    assert "1 missing, 0 too many, 0 differ" in ran.out
    assert "12: missing" in ran.out
    refused = shell.run("copy", source, source, "--json", ok=False)
    assert refused.status == 2
    assert refused.json["error"] == "Conflict"


def test_a_source_without_a_collection_is_told_from_those_that_there_are(shell: Shell, tmp_path: Path) -> None:
    fill_lance(tmp_path / "l", rows=3)
    for source in ("lancedb:l", f"lancedb:{tmp_path}/l"):
        refused = shell.run("copy", source, "parquet:out/renamed", ok=False)
        assert refused.status == 2
        assert f"'{source}' names no collection" in refused.err
        assert "'notes'" in refused.err
    assert not (tmp_path / "out").exists()


def test_relative_paths_are_of_the_working_directory(shell: Shell, tmp_path: Path) -> None:
    fill_lance(tmp_path / "l", rows=3)
    shell.run("copy", "lancedb:l/notes", "parquet:out/renamed")
    assert (tmp_path / "out" / "renamed").is_dir()


def test_all_collections_and_the_hint_at_a_cold_copy(shell: Shell, tmp_path: Path) -> None:
    client = chroma_client(tmp_path / "c")
    for name in ("one", "two"):
        fill_chroma(client, name, 20)
    client.close()
    ran = shell.run("copy", f"chroma:{tmp_path}/c/*", f"chroma:{tmp_path}/d/*")
    assert "--cold" in ran.err
    assert ran.out.count("the same.") == 2


def test_what_keeps_one_collection_from_going_keeps_no_other(shell: Shell, tmp_path: Path) -> None:
    """One without ids, one whose name is taken in the target, one whose ids come twice, between two that go."""
    for name in "ace":
        fill_lance(tmp_path / "l", name, 20)
    database = lancedb.connect(tmp_path / "l")
    rows = database.open_table("a").to_arrow().slice(0, 5)
    database.create_table("b", rows.drop_columns("doc_id"))
    database.create_table("d", pa.concat_tables([rows, rows]))
    fill_lance(tmp_path / "out", "c", 3)
    ran = shell.run("copy", f"lancedb:{tmp_path}/l/*", f"lancedb:{tmp_path}/out/*", ok=False)
    assert ran.status == 1
    assert ran.out.count("the same.") == 2
    for name in "bcd":
        assert f"l {name!r} -> lancedb:{tmp_path}/out {name!r}: did not go." in ran.err
    assert ran.err.index("'c': did not go") < ran.err.index("'d': did not go"), "what can be told first is"
    assert "Nothing was" not in ran.err
    assert "--resume" not in ran.err, "of these, it would help none"
    assert "2 of 5 collections were copied" in ran.err

    ran = shell.run("copy", f"lancedb:{tmp_path}/l/*", f"lancedb:{tmp_path}/out/*", "--json", ok=False)
    assert (ran.status, ran.json["holds"]) == (1, False)
    told = {one["source"][-3:]: one for one in ran.json["collections"]}
    assert list(told) == ["'a'", "'b'", "'c'", "'d'", "'e'"]
    assert [one["holds"] for one in told.values()] == [True, False, False, False, True]
    assert told["'e'"]["unchanged"] == 20
    assert told["'c'"]["error"] == "Conflict"
    assert told["'c'"]["target"].endswith("out 'c'")
    assert told["'d'"]["error"] == "BadInput"
    assert "--id COLUMN" in told["'d'"]["hint"]
    assert lancedb.connect(tmp_path / "out").open_table("c").count_rows() == 3


def test_a_cold_copy_is_what_a_server_serves(shell: Shell, tmp_path: Path) -> None:
    fill_chroma_folder(tmp_path / "c", rows=1_500, metric="cosine")
    before = files(tmp_path / "c")
    told = shell.run("copy", "--cold", f"chroma:{tmp_path}/c/*", f"chroma:{tmp_path}/served/*", "--json").json
    assert told["collections"] == {"notes": 1_500}
    assert files(tmp_path / "c") == before
    server = ChromaServer(tmp_path / "served")
    server.start()
    try:
        ran = shell.run("copy", f"{server.uri}/notes", f"parquet:{tmp_path}/a/notes")
        assert "1,500 written" in ran.out
    finally:
        server.kill()
    shell.run("copy", f"chroma:{tmp_path}/c/notes", f"parquet:{tmp_path}/b/notes")
    one, two = (pq.read_table(tmp_path / folder / "notes").sort_by("id") for folder in "ab")
    assert one.equals(two)


def test_a_cold_copy_is_refused_where_it_would_not_be_exact(shell: Shell, tmp_path: Path) -> None:
    client = chroma_client(tmp_path / "c")
    fill_chroma(client, rows=5)
    cold = ("copy", "--cold", f"chroma:{tmp_path}/c/*", f"chroma:{tmp_path}/d/*", "--json")
    assert shell.run(*cold, ok=False).json["error"] == "AlreadyOwned"
    assert not (tmp_path / "d").exists()
    client.close()
    shell.run(*cold[:-1])
    assert shell.run(*cold, ok=False).json["error"] == "Conflict"
    into = ("copy", "--cold", f"chroma:{tmp_path}/c/*", f"chroma:{tmp_path}/c/inner/*", "--json")
    assert shell.run(*into, ok=False).json["error"] == "Conflict"
    one = ("copy", "--cold", f"chroma:{tmp_path}/c/notes", f"chroma:{tmp_path}/e/notes", "--json")
    assert shell.run(*one, ok=False).json["error"] == "BadInput"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lancedb", "parquet", "chroma", "postgresql"])
def test_killed_at_any_point_it_goes_on_and_loses_nothing(
    kind: str, shell: Shell, fresh_postgres: str, tmp_path: Path
) -> None:
    """A `kill -9` at random points, until one run comes to its end."""
    rows = 20_000 if kind != "chroma" else 6_000
    source, target = fill_lance(tmp_path / "l", rows=rows), f"{kind}:{tmp_path}/out/notes"
    if kind == "postgresql":
        target = at(fresh_postgres, "notes")
    chance = random.Random(5)
    kills = 0
    while kills < 4:
        command = [sys.executable, "-m", "whimbrel", "copy", source, target, "--resume", "--metric", "cosine"]
        process = subprocess.Popen(
            command, env=dict(shell.env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
        )
        wanted = chance.randrange(0, rows)
        while process.poll() is None and written(shell.home) < wanted:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills
    told = shell.run("copy", source, target, "--resume", "--metric", "cosine", "--json").json
    (one,) = told["collections"]
    assert told["holds"], one
    assert one["rows"] == one["verified"]["rows"] == rows
    assert one["written"] < rows, "what was written before was not written again"


def written(home: Path) -> int:
    """Rows that the copy's state says are written."""
    for state in (home / "copying").glob("*/state.db"):
        try:
            with sqlite3.connect(f"{state.as_uri()}?mode=ro", uri=True, timeout=5) as database:
                return int(database.execute("SELECT done FROM cursors").fetchone()[0])
        except (sqlite3.OperationalError, TypeError):
            return 0
    return 0
