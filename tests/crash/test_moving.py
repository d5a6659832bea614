"""A collection that is written to and searched all the time moves between databases, whatever is killed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash.moving import run

pytest.importorskip("chromadb")

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "150"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "inf"))
SEED = int(os.environ.get("CRASH_SEED", "1"))


@pytest.mark.soak
def test_hundreds_of_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        figures = run(tmp_path, SEED, ROUNDS, seconds=SECONDS)
    assert figures.kills.total() > figures.rounds / 2
