"""Stores whose client is not installed: each command says which extra to install, before anything is begun."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from commands import Ran, Shell
from copying import fill_chroma_folder, fill_lance, fill_milvus_lite, fill_qdrant_folder
from running import files

pytestmark = pytest.mark.timeout(180)

# What an installation without extras has not.
CLIENTS = ("chromadb", "milvus_lite", "psycopg", "pymilvus", "qdrant_client")
BARE = f"""
import sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {CLIENTS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Bare())
"""
EXTRAS = {
    "chroma": "chroma",
    "chroma+http://127.0.0.1:9": "chroma",
    "qdrant": "qdrant",
    "qdrant+http://127.0.0.1:9": "qdrant",
    "milvus": "milvus",
    "milvus+http://127.0.0.1:9": "milvus",
    "postgresql://whimbrel@127.0.0.1:9/app": "postgres",
}
READ_WITHOUT = {"qdrant": ("inspect", "copy from", "adopt")}
"""What reads the files themselves."""
COMMANDS = ("inspect", "copy from", "copy to", "move plan", "move start", "adopt")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Ran]:
    """What each command says for each store, and what is there afterwards; all in one process."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "block").mkdir()
    (folder / "block" / "sitecustomize.py").write_text(BARE)
    lance = fill_lance(folder / "l", rows=5)
    theirs = {
        "chroma": fill_chroma_folder(folder / "c", rows=5),
        "qdrant": fill_qdrant_folder(folder / "q", rows=5),
        "milvus": fill_milvus_lite(folder / "m", rows=5),
    }
    files(folder / "notes", 2)
    shell = Shell(folder / "home", PYTHONPATH=str(folder / "block"))
    lines: dict[tuple[str, str], list[str]] = {}
    for number, place in enumerate(EXTRAS):
        here = theirs.get(place, f"{place}/notes")
        new = f"{place}:{folder}/new/{number}{'.db' if place == 'milvus' else ''}" if place in theirs else place
        lines[place, "inspect"] = ["inspect", here]
        lines[place, "copy from"] = ["copy", here, f"lancedb:{folder}/out/{number}"]
        lines[place, "copy to"] = ["copy", lance, f"{new}/notes", "--metric", "cosine"]
        lines[place, "move plan"] = ["move", "plan", "default", "--to", new]
        lines[place, "move start"] = ["move", "start", "default", "--to", new]
        lines[place, "adopt"] = ["adopt", here, "-c", f"adopted{number}", "--embedder", "none"]
    ingest, *ran, status = shell.several(
        ["ingest", str(folder / "notes")],
        *([*line, "--json"] for line in lines.values()),
        ["move", "status", "default", "--json"],
    )
    assert ingest.status == 0, ingest
    assert not (folder / "new").exists()
    assert status.json["error"] == "MoveNotFound"
    return dict(zip(lines, ran, strict=True))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", EXTRAS)
def test_a_client_that_is_not_installed(bare: Mapping[tuple[str, str], Ran], place: str, command: str) -> None:
    ran = bare[place, command]
    assert "Traceback" not in ran.err, ran.err
    if command in READ_WITHOUT.get(place, ()):
        assert ran.status == 0, ran
        return
    assert ran.status == 2, ran
    assert ran.json["error"] == "MissingExtra"
    assert f"pip install 'whimbrel[{EXTRAS[place]}]'" in ran.json["hint"]
