"""What a process of ours frees goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def printed(code: str, **environment: str) -> list[float]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC", "ARROW"))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**kept, "PYTHONPATH": str(REPOSITORY / "src"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [float(line) for line in done.stdout.split()]


BATCHES = """
    import sys
    from pathlib import Path
    import numpy as np
    from whimbrel.memory import bound_memory

    def anonymous_mb():
        return next(
            int(line.split()[1]) / 1024
            for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
        )

    bound_memory()
    before = anonymous_mb()
    held = []
    np.ones(2_000_000)
    for number in range(40):  # each a bit larger than the hole of the last one; something small stays behind it
        batch = np.ones(500_000 + 10_000 * number)
        held.append(np.ones(2_000))
        del batch
    print(before, anonymous_mb())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_batch_of_vectors_leaves_nothing_behind() -> None:
    before, after = printed(BATCHES)
    assert after - before < 6


@pytest.mark.parametrize(("set_to", "pool"), [("", "system"), ("mimalloc", "mimalloc")])
def test_arrow_takes_the_allocator_of_the_system_unless_told_otherwise(set_to: str, pool: str) -> None:
    code = f"""
        from whimbrel.memory import bound_memory
        bound_memory()
        import pyarrow
        print(int(pyarrow.default_memory_pool().backend_name == {pool!r}))
    """
    environment = {"ARROW_DEFAULT_MEMORY_POOL": set_to} if set_to else {}
    assert printed(code, **environment) == [1]
