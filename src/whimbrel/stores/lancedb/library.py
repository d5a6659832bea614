"""The lancedb package: its import, and its errors as ours."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from whimbrel.errors import (
    DiskFull,
    HomeError,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.memory import LIBRARIES, keep_pandas_out
from whimbrel.stores.base import REBUILD
from whimbrel.stores.lancedb.remote import translate_remote

if TYPE_CHECKING:
    from lancedb.db import AsyncConnection


_INDEX_CACHE_BYTES = 256 * 2**20  # a million rows of 384 dimensions take about 80 MB of index
_METADATA_CACHE_BYTES = 64 * 2**20
_READ_AHEAD_BYTES = 32 * 2**20  # a scan's, for a reader that is slower than the disk; 2 GiB unless it is told otherwise

_session: Any = None


async def connect(folder: Path | str) -> AsyncConnection:
    """A connection that sees other processes' commits at once. Makes the folder, so ask for the table's before."""
    lancedb = await asyncio.to_thread(import_lancedb)
    global _session
    if _session is None:  # one for all stores of the process: its caches are bounded together
        _session = lancedb.Session(_INDEX_CACHE_BYTES, _METADATA_CACHE_BYTES)
    connection: AsyncConnection = await lancedb.connect_async(
        str(folder), read_consistency_interval=timedelta(0), session=_session
    )
    return connection


def import_lancedb() -> Any:
    """The module, without the REST client of a remote catalog: 160 modules of validators that take more than half of
    its import (0.45 of 0.8 s) and are never called here; and without the checks that its classes override what is there
    to be overridden (0.15 s). Where a program has imported them already, they stay."""
    os.environ.setdefault("LANCE_LOG", "error")  # its notes on its own internals go to stderr
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(_READ_AHEAD_BYTES))
    with LIBRARIES:
        if "lancedb" not in sys.modules and _CLIENT not in sys.modules:
            absent = _Absent()
            keep_pandas_out()
            sys.meta_path.insert(0, absent)
            try:
                with _unchecked():
                    import lancedb
            finally:
                sys.meta_path.remove(absent)
                for name in absent.made:  # who needs the client later gets the real one
                    sys.modules.pop(name, None)
        import lancedb
    return lancedb


_CLIENT = "lance_namespace_urllib3_client"


@contextmanager
def _unchecked() -> Iterator[None]:
    """`overrides.override` marks its method only, without looking at it. It is the real module, as another thread may
    import a library that needs it."""
    import overrides

    checked = overrides.override
    overrides.override = _marked
    try:
        yield
    finally:
        overrides.override = checked


def _marked(method: Any = None, **_: bool) -> Any:
    if method is None:
        return _marked
    method.__override__ = True
    return method


class _Absent(MetaPathFinder, Loader):
    """Finds modules of the client as empty ones, whose every name is a class that cannot be made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == _CLIENT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.made.append(spec.name)
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _refuse})


def _refuse(self: object, *_: object, **__: object) -> None:
    raise StoreUnavailable(f"{type(self).__name__}: remote LanceDB catalogs are not used here.", "Use a local folder.")


@contextmanager
def lance_errors(what: str) -> Iterator[None]:
    """Raises what LanceDB raises inside as one of our errors, whose message begins with `what`."""
    try:
        yield
    except WhimbrelError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise translate(what, error) from error
    except BaseException as error:
        if type(error).__name__ not in _PANICS:
            raise
        raise translate(what, error) from error


def translate(what: str, error: BaseException) -> WhimbrelError:
    text = re.sub(r"\s+", " ", str(error))
    said = text if len(text) <= 300 else text[:300] + "…"
    if (remote := translate_remote(what, text)) is not None:
        return remote
    lower = text.lower()
    if "os error 28" in lower or "no space left" in lower or "os error 122" in lower:
        return DiskFull(f"{what}: no space left on the disk. What was committed before is safe.", "Free some space.")
    if "os error 30" in lower or "os error 13" in lower or "permission denied" in lower:
        return HomeError(f"{what}: the folder cannot be written or read: {said}", "Check its owner and permissions.")
    if "os error 20" in lower:
        return HomeError(
            f"{what}: something that is no folder is in the way. Nothing was changed.", "Name another folder."
        )
    if "upgrade lance" in lower or "newer version of lance" in lower:
        return StoreUnsupported(
            f"{what}: it was written by a newer version of LanceDB. Nothing was changed.",
            "Update it here: pip install --upgrade lancedb.",
        )
    if "invalid table name" in lower:
        return StoreRefused(
            f"{what}: LanceDB does not take its name.", "Names have a-z, A-Z, 0-9, `_`, `-` and `.` only."
        )
    if any(sign in lower for sign in _MAY_PASS):
        return StoreUnavailable(f"{what}: {said}", "Nothing was lost; try again.")
    if any(sign in lower for sign in _REFUSED):
        # Without the raw text: it quotes the query.
        return ViewError(f"{what}: LanceDB refused the query.", "This is a fault in Whimbrel; please report it.")
    return ViewDamaged(f"{what}: {said}", REBUILD)


_PANICS = ("PanicException", "RustPanic")
"""Rust's panics, in a call and in a future. The first passes by `except Exception`; neither's class can be imported."""

_MAY_PASS = ("commit conflict", "retryable", "concurrent", "os error 24", "os error 12", "timeout")
_REFUSED = ("error parsing", "error resolving", "invalid user input", "schema error", "error during planning")


async def checked(what: str, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The stream, with the errors of each step as ours."""
    while True:
        with lance_errors(what):
            try:
                item = await anext(stream)
            except StopAsyncIteration:
                return
        yield item
