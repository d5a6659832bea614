"""What a process frees goes back to the system: one that moves a collection, or serves one, runs for weeks."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder

own_process = False
"""Whether nobody else's code runs in this process: what is set for all of it is then set for us alone."""

ARENAS = 2
"""Heaps of the C library's allocator, instead of eight for each core: a search runs on a dozen threads, and what they
free stays with their heap."""
MAPPED_BYTES = 1 << 20
"""What is as large has pages of its own, which go when it is freed: a batch of vectors has some MB. The allocator
raises this to 32 MB by itself, and such batches leave holes in its heaps then."""
KEPT_BYTES = 16 << 20
"""Free at the end of a heap, kept for what comes next."""

# Of glibc's malloc.h: the option, the variable by which an operator sets it, and what is set here.
_OPTIONS = (
    (-8, "MALLOC_ARENA_MAX", ARENAS),
    (-3, "MALLOC_MMAP_THRESHOLD_", MAPPED_BYTES),
    (-1, "MALLOC_TRIM_THRESHOLD_", KEPT_BYTES),
)


def bound_memory() -> None:
    """For a process of our own, before it imports anything large; an operator's variables stand. Arrow's allocator
    keeps what it has had, so Arrow is told to take the C library's.

    A move of 100,000 chunks into LanceDB peaks at 130 MB above idle then, and at 370 MB without.
    """
    global own_process
    own_process = True
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, variable, value in _OPTIONS:
        if variable not in os.environ:
            mallopt(option, value)


@contextmanager
def importing() -> Iterator[None]:
    """Importing makes much and drops nothing: without the collector it takes a tenth to a quarter less time. What it
    made is never looked at again, which keeps pauses of many milliseconds out of searches."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


LIBRARIES = threading.RLock()
"""Held by who imports the client of a database: two threads that import libraries which need the same others may each
get half of one from the other, and what is set aside for one import is not there for the other."""


def keep_pandas_out() -> None:
    """Out of Arrow, in a process of our own: it looks for pandas when it makes its first array, takes in all of it
    where it is installed (0.2 s and 33 MB), and does not look again. Nobody here hands it a data frame, and whoever
    imports pandas for itself gets it."""
    if not own_process or "pandas" in sys.modules:
        return
    import pyarrow

    absent = _NoPandas(threading.get_ident())
    sys.meta_path.insert(0, absent)
    try:
        pyarrow.array([0])
    finally:
        sys.meta_path.remove(absent)


class _NoPandas(MetaPathFinder):
    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "pandas" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("pandas is not wanted here", name=name)
