"""A collection that is written to and searched all the time moves between databases, whatever is killed meanwhile.

`make soak` goes between every two of them, at times to another embedder or chunking, and while disks are full, for
`SOAK_ROUNDS` (150) moves or as many as begin in `SOAK_SECONDS`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash.databases import NAMES
from crash.harness import opened, verified
from crash.moving import moving
from crash.moving_round import Course, run, take
from running import until
from small_disk import small_disk
from whimbrel.domain import MoveState

pytest.importorskip("chromadb")
pytest.importorskip("qdrant_client")

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "150"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "inf"))
SEED = int(os.environ.get("CRASH_SEED", "1"))


STAR: dict[str, tuple[Course, Course]] = {
    "postgres": (
        Course("postgres", [("copying", "target")], armed=("target.apply:after", 1), rate=60),
        Course("lancedb", [("switched", "source")], armed=("move.try:after", 1)),
    ),
    "chroma folder": (
        Course("chroma folder", [("copying", "owner"), ("ready", "writer")], rate=60),
        Course("lancedb", armed=("move.switch:before", 1)),
    ),
    "chroma server": (
        Course("chroma server", [("verifying", "target")], {"rollback"}, auto_switch=True),
        Course("lancedb", [("copying", "source")], {"pause"}, armed=("move.check:before", 1), rate=60),
    ),
    "qdrant folder": (
        Course("qdrant folder", [("copying", "owner"), ("ready", "writer")], rate=60),
        Course("lancedb", armed=("move.switch:before", 1)),
    ),
    "milvus lite": (
        Course("milvus lite", [("copying", "owner"), ("ready", "writer")], rate=60),
        Course("lancedb", armed=("move.switch:before", 1)),
    ),
    "milvus server": (
        Course("milvus server", [("verifying", "target")], {"rollback"}, auto_switch=True),
        Course("lancedb", [("copying", "source")], {"pause"}, armed=("move.check:before", 1), rate=60),
    ),
}
"""From LanceDB to each of the others, and back."""
QUICK = ("postgres", "chroma folder", "chroma server")
"""The others go with `make soak`."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.soak) for name in STAR])
def test_a_collection_moves_away_and_back(name: str, tmp_path: Path) -> None:
    if name not in NAMES:
        pytest.skip("the server's package `milvus` is not installed here")
    with moving(tmp_path, SEED, [name], ["first"], pause_s=0.4) as made:
        for course in STAR[name]:
            assert take(made, course)
        print(made.figures)
        assert made.figures.kills.total() >= 1
        assert made.figures.server_kills >= ("folder" not in name and name != "milvus lite")
        assert made.figures.searches >= 20


@pytest.mark.soak
@pytest.mark.parametrize("catalog", ["sqlite", "postgres"])
def test_hundreds_of_moves(
    catalog: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    settings = {} if catalog == "sqlite" else {"catalog": request.getfixturevalue("fresh_postgres")}
    with capsys.disabled():
        figures = run(tmp_path, SEED, ROUNDS, seconds=SECONDS, **settings)
    assert figures.kills.total() > figures.rounds / 2
    pairs = len(NAMES) * (len(NAMES) - 1)
    assert len(figures.pairs) == pairs or figures.rounds < 3 * pairs


@pytest.mark.parametrize("scheme", ["lancedb", "chroma", pytest.param("qdrant", marks=pytest.mark.soak)])
def test_a_full_disk_under_the_target(scheme: str, tmp_path: Path) -> None:
    """The move says so and waits; the collection is searched and written to; it goes on when there is room."""
    with small_disk(tmp_path / "disk", 8) as disk, opened(tmp_path / "home") as whimbrel:
        whimbrel.add([{"id": f"n{number}", "text": f"Note {number} on curlews."} for number in range(60)])
        full = disk / "full"
        full.write_bytes(bytes(8 * 2**20 - 40_000))
        _, job = whimbrel.start_move("default", to=f"{scheme}:{disk}/target")
        until(lambda: "pace" in whimbrel.move("default").error, "the move says that no space is left")
        assert whimbrel.move("default").state is MoveState.COPYING
        whimbrel.delete(["n7"])
        whimbrel.add([{"id": "late", "text": "A late note on godwits."}])
        assert whimbrel.search("late godwits").hits[0].uri == "text:late"
        assert not whimbrel.search("late godwits").degraded

        full.unlink()
        whimbrel.finish(job, timeout_s=240)
        move = whimbrel.move("default")
        assert (move.state, move.error) == (MoveState.READY, "")
        whimbrel.finish(whimbrel.switch_move(move), timeout_s=240)
        verified(whimbrel)
        assert whimbrel.search("late godwits", mode="dense").hits[0].uri == "text:late"
