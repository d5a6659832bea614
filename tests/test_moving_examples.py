"""The worked examples of docs/moving.md, run by a shell as they are written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chroma_server import ChromaServer
from milvus_server import MilvusServer
from own_postgres import own_postgres

pytestmark = pytest.mark.timeout(300)

REPOSITORY = Path(__file__).parents[1]
EXAMPLE = re.compile(r"<!-- example: (\w+) -->\n```sh\n(.*?)```", re.DOTALL)
YOURS = re.compile(r"^export (\w+)=(\S+)\s+# yours$", re.MULTILINE)


def example(name: str) -> str:
    found = dict(EXAMPLE.findall((REPOSITORY / "docs" / "moving.md").read_text()))
    assert name in found, f"docs/moving.md has no example {name}"
    return str(found[name])


def ran(name: str, folder: Path, **yours: str) -> str:
    """What the example prints; every line of it must succeed."""
    script = example(name)
    assert {one for one, _ in YOURS.findall(script)} == set(yours), "which lines are marked as yours"
    script = YOURS.sub(lambda line: f"export {line[1]}={yours[line[1]]}", script)
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("WHIMBREL", "CHROMA", "DATABASE", "MILVUS"))
    }
    environment = {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    environment["WHIMBREL_INGEST_WORKERS"] = "1"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def notes(tmp_path: Path) -> str:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.md").write_text(
            f"# Note {number}\n\nTo back up number {number}, copy it to a safe place.\n"
        )
    return str(folder)


def test_from_a_folder_of_chroma_to_its_server(tmp_path: Path, notes: str) -> None:
    server = ChromaServer(tmp_path / "server")
    server.start()
    try:
        printed = ran("chroma", tmp_path, DOCUMENTS=notes, SERVER=server.uri)
    finally:
        server.kill()
    assert "is ready" in printed
    assert "To back up number" in printed
    assert re.search(r"store\s+live .*chroma\+http|chroma\+http.*live", printed), printed
    assert "retired" in printed


def test_from_a_milvus_server_to_chroma(tmp_path: Path, notes: str, milvus_server: MilvusServer) -> None:
    printed = ran("milvus", tmp_path, DOCUMENTS=notes, MILVUS=milvus_server.uri)
    assert "equal (missing 0, extra 0, different 0)" in printed
    assert "is ready" in printed
    assert "To back up number" in printed
    assert re.search(r"store\s+live .*chroma:|chroma:.*live", printed), printed
    assert "retired" in printed


def test_from_files_to_postgres(tmp_path: Path, notes: str) -> None:
    with own_postgres() as server:
        server.start()
        printed = ran("postgres", tmp_path, DOCUMENTS=notes, DATABASE=server.uri)
        server.stop()
    assert '"state":"switched"' in printed.replace(" ", "")
    assert "8 rows at position" in printed
    assert "equal (missing 0, extra 0, different 0)" in printed
    assert "To back up number" in printed


def test_four_collections_of_qdrant(tmp_path: Path) -> None:
    """To what stands in for a server: see `qdrant_server`."""
    pytest.importorskip("qdrant_client")
    from qdrant_server import QdrantServer
    from test_copy_qdrant import fill_four

    counts = fill_four(tmp_path / "theirs")
    server = QdrantServer()
    server.start()
    printed = ran("qdrant", tmp_path, FOLDER=str(tmp_path / "theirs"), SERVER=server.uri)
    server.stop()
    for name, rows in counts.items():
        assert f"{name!r}: {rows} rows of" in printed
        assert server.state().client.count(name).count == rows
    assert printed.count("the same") == 4
    assert json.loads(printed.splitlines()[-1])["holds"]


def test_a_change_of_chunking(tmp_path: Path, notes: str) -> None:
    printed = ran("chunking", tmp_path, DOCUMENTS=notes)
    assert printed.count("equal (missing 0, extra 0, different 0)") >= 2, "the store and the lexicon"
    assert "is rolled_back" in printed
    assert "is finalised" in printed
    assert "To back up" in printed
