"""Killed at any moment, a home loses nothing and doubles nothing, and searches go on meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash.rounds import run


@pytest.mark.timeout(240)
def test_a_home_whose_processes_are_killed_at_random_is_as_one_that_was_left_in_peace(tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", "20251"))
    figures = run(tmp_path, seed, 5, every=3, pause_s=0.2)
    assert figures.kills >= 2
    assert figures.searches >= 20
