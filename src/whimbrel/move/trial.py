"""Real rows written to a scratch table beside the target, and read again: how long it takes, and what comes back."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from whimbrel.domain import Space
from whimbrel.errors import RowRefused
from whimbrel.move.leftovers import PREFIX, Opener, noted
from whimbrel.stores.base import DENSE, Records, Store
from whimbrel.stores.envelope import dumps
from whimbrel.stores.resolve import parse_uri

PIECE = 2_000
"""Rows written at once, as a copy writes them."""
TOLERANCE = 1e-6
"""Of each component of a vector of length 1, in a store that does not keep vectors bit for bit."""


@dataclass(slots=True)
class Trial:
    table: str
    """Where the rows were tried: the name of a table, dropped since."""
    rows: int = 0
    """Written; those that were refused are not among them."""
    writing_s: float = 0.0
    indexing_s: float = 0.0
    """What was left until all rows were there."""
    verifying_s: float = 0.0
    stored_bytes: int | None = None
    """Of a folder; None where the target is a server."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(chunk id, reason)."""
    changed: list[str] = field(default_factory=list)
    """Chunk ids of rows that did not come back as they went."""


async def tried(uri: str, space: Space, records: Records, opened: Opener, plans: Path) -> Trial:
    """Write rows to a scratch table at `uri`, and compare what comes back.

    The table is dropped in every case; while it is there, a note in the folder `plans` says so. One of a folder lies in
    a temporary folder, so that no process that has the real one open is met. Raises `StoreUnavailable`, `StoreRefused`.
    """
    async with _scratch(uri, space, opened, plans) as (store, trial, folder):
        await store.begin_bulk()
        began = time.perf_counter()
        written = await _write(store, records, trial)
        trial.writing_s = time.perf_counter() - began
        trial.rows = len(written)
        began = time.perf_counter()
        await store.end_bulk()
        trial.indexing_s = time.perf_counter() - began
        began = time.perf_counter()
        await _compare(store, written, trial)
        trial.verifying_s = time.perf_counter() - began
        if folder is not None:
            trial.stored_bytes = await asyncio.to_thread(_size, folder)
        return trial


def folder_of(uri: str, base: Path) -> Path | None:
    """The folder that a store's URI names; None where it is a server's or object storage."""
    _, rest = parse_uri(uri)
    where = rest.partition("?")[0]
    return None if "//" in where else base / Path(where or "views").expanduser()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@asynccontextmanager
async def _scratch(
    uri: str, space: Space, opened: Opener, plans: Path
) -> AsyncIterator[tuple[Store, Trial, Path | None]]:
    name = f"{PREFIX}{secrets.token_hex(4)}"
    folder = Path(tempfile.gettempdir()) / name if folder_of(uri, Path()) is not None else None
    store = opened(uri if folder is None else f"{parse_uri(uri)[0]}:{folder}", name, space)
    with noted(plans, name, uri=uri, space=space, folder=folder) as note:
        try:
            if folder is not None:
                folder.mkdir(mode=0o700)
            await store.create()
            yield store, Trial(name), folder
        finally:
            try:
                await store.drop()
                note.done()
            finally:
                await store.close()
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    note.done()


async def _write(store: Store, records: Records, trial: Trial) -> Records:
    """The rows that were not refused."""
    refused: set[str] = set()
    new = True
    for start in range(0, len(records), PIECE):
        piece = records.between(start, start + PIECE)
        while len(piece):
            try:
                await store.upsert(piece, new=new)
                break
            except RowRefused as error:
                if error.row not in piece.ids:
                    raise
                refused.add(error.row)
                trial.refused.append((error.row, error.message))
                piece = piece.taken([row for row, id_ in enumerate(piece.ids) if id_ != error.row])
                new = False  # rows before it may have been written
    return records.taken([row for row, id_ in enumerate(records.ids) if id_ not in refused]) if refused else records


async def _compare(store: Store, written: Records, trial: Trial) -> None:
    exact = store.describe().exact_vectors
    at = {id_: row for row, id_ in enumerate(written.ids)}
    async for found in store.scan():
        for row, id_ in enumerate(found.ids):
            due = at.pop(id_, None)
            if due is None or not _same(written, due, found, row, exact=exact):
                trial.changed.append(id_)
    trial.changed.extend(at)


def _same(one: Records, at: int, other: Records, row: int, *, exact: bool) -> bool:
    texts = one.texts[at] == other.texts[row]
    metadata = _canonical(one, at) == _canonical(other, row)
    return texts and metadata and _same_vector(one, at, other, row, exact=exact)


def _canonical(records: Records, row: int) -> str:
    return dumps(dict(sorted(records.metadata[row].items())))


def _same_vector(one: Records, at: int, other: Records, row: int, *, exact: bool) -> bool:
    before, after = one.vectors[DENSE][at], other.vectors[DENSE][row]
    if exact:
        return bool(np.array_equal(before, after))
    lengths = [max(float(np.linalg.norm(vector)), 1e-30) for vector in (before, after)]
    return bool(np.max(np.abs(before / lengths[0] - after / lengths[1]), initial=0.0) <= TOLERANCE)
