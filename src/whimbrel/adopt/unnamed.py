"""A URI that names a database where a collection of it is wanted: the error names those that there are."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path

from whimbrel.adopt import inspecting
from whimbrel.config import mask_url
from whimbrel.errors import ConfigError, NotFound, WhimbrelError
from whimbrel.stores.base import Reach
from whimbrel.stores.chroma.folder import DATABASE
from whimbrel.stores.foreign import chroma_old, resolve
from whimbrel.stores.foreign.absent import listed
from whimbrel.stores.foreign.resolve import Address, open_database

_ASKED = Reach(timeout_s=10.0)
"""Of a server that is asked for the names alone."""


def parse(uri: str, base: Path) -> Address:
    """As `resolve.parse`; where the URI names no collection, the `ConfigError` names those of the database."""
    try:
        return resolve.parse(uri)
    except ConfigError as error:
        with suppress(WhimbrelError, OSError):
            names = asyncio.run(_names(inspecting.parse(uri), base))
            if names is not None:
                error.hint = _hint(names)
        raise


@asynccontextmanager
async def noticed(address: Address, base: Path) -> AsyncIterator[None]:
    """Where a collection is not found since the whole path is a database's folder, the error says so."""
    try:
        yield
    except NotFound as error:
        whole = replace(address, place=f"{address.place}/{address.collection}", collection=resolve.ALL)
        names = None
        if address.is_folder and address.collection != resolve.ALL:
            with suppress(WhimbrelError, OSError):
                names = await _names(whole, base)
        if names is None:
            raise
        raise ConfigError(f"{mask_url(whole.place)!r} names no collection.", _hint(names)) from error


def _hint(names: Sequence[str]) -> str:
    if not names:
        return "Put one behind it, after a `/`: `whimbrel inspect` with this URI names those that there are."
    return f"Put one behind it, after a `/`. {listed(names)}"


async def _names(whole: Address, base: Path) -> Sequence[str] | None:
    """None where there is no such database. None of its files is copied: where their names take that, there are none
    in the list."""
    folder = whole.folder(base)
    if whole.is_folder and not folder.exists():
        return None
    if whole.is_folder and whole.scheme == "chroma" and not chroma_old.is_old(folder):
        return _of_chroma(folder / DATABASE)
    if whole.is_folder and whole.scheme == "milvus" and folder.is_dir():
        return [] if (folder / "collections").is_dir() else None
    database = open_database(whole, base=base, scratch=None, reach=_ASKED)
    try:
        return await database.collections() or (None if whole.is_folder else [])
    finally:
        await database.close()


def _of_chroma(file: Path) -> list[str] | None:
    if not file.is_file():
        return None
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.resolve().as_uri()}?immutable=1", uri=True)) as found:
        return [str(name) for (name,) in found.execute("SELECT name FROM collections ORDER BY name")]
    return []
