"""Index, compaction and erasure, in a child process: `python -m whimbrel.stores.lancedb`.

Indexing peaks at 0.4 to 1.1 GB, which would never come back to the process that serves. The child ends when its parent
does, and a killed one leaves the table as it was: each step is one commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whimbrel import errors, memory
from whimbrel.errors import StoreUnavailable, WhimbrelError
from whimbrel.stores.lancedb.columns import ID, TEXT, VECTOR
from whimbrel.stores.lancedb.library import connect, import_lancedb, lance_errors

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

INDEX_FROM_ROWS = 25_000
"""Below, a search reads every vector: exact, and about 10 ms."""
ID_INDEX_FROM_ROWS = 10_000
RETRAIN_GROWTH = 4
"""An index keeps the partitions that it was trained with: made anew when there are so many times more rows."""
MAX_SEGMENTS = 8
"""Rows that come later are a segment of their own at each update of the index, and a search reads each."""
MAX_FRAGMENTS = 60
MAX_UNINDEXED_SHARE = 0.2
MAX_UNINDEXED_ROWS = 20_000
MAX_UNINDEXED_AT_REST = 500
PAUSE = 10
"""Times as long as maintenance took, it is put off for where it can be: LanceDB writes the whole table again each time
(up to its 1,048,576 rows a fragment), and keeps the files of before for an hour. Until it cannot be put off:"""
MOST_FRAGMENTS = 300
MOST_UNINDEXED_SHARE = 0.25
MAX_VERSIONS = 500
KEEP_VERSIONS = timedelta(hours=1)
"""A handle on a version that is removed is broken for good, so no reader may hold one longer."""

NICE = 15
"""Searches go before an index that is being built."""

_TRAINED = "whimbrel:trained-rows"


async def is_due(table: AsyncTable, path: Path | None, *, put_off: bool = False) -> bool:
    """Whether there is something to do, from what the manifest says. `put_off`: only what cannot wait any longer."""
    rows = await table.count_rows()
    if not rows:
        return False
    fragments = _fragments(await table.stats())
    waiting = await unindexed(table)
    if put_off:
        late = waiting > max(MOST_UNINDEXED_SHARE * rows, MAX_UNINDEXED_ROWS)
        return late or fragments > MOST_FRAGMENTS or await _index_due(table, rows // 2)
    if fragments > MAX_FRAGMENTS or await _index_due(table, rows):
        return True
    if waiting > MAX_UNINDEXED_ROWS or waiting > max(MAX_UNINDEXED_SHARE * rows, 1_000):
        return True
    if path is None:
        return len(await table.list_versions()) > MAX_VERSIONS  # type: ignore[no-untyped-call]
    return await asyncio.to_thread(_expired_versions, path) > MAX_VERSIONS


async def is_fragmented(table: AsyncTable) -> bool:
    """Whether there are so many fragments that each commit is slowed by naming them."""
    return _fragments(await table.stats()) > MOST_FRAGMENTS


async def is_unfinished(table: AsyncTable) -> bool:
    """Whether a table that was just filled lacks an index of all of its rows."""
    return await _index_due(table, await table.count_rows()) or await is_behind(table)


async def is_behind(table: AsyncTable) -> bool:
    return await unindexed(table) > MAX_UNINDEXED_AT_REST


async def unindexed(table: AsyncTable) -> int:
    """Rows that a vector search reads one by one though there is an index."""
    counts = [index.num_unindexed_rows or 0 for index in await table.list_indices() if VECTOR in index.columns]
    return max(counts, default=0)


async def run(folder: Path | str, name: str, *, full: bool = False, erase_grace_s: float | None = None) -> None:
    """Do it in a child and wait. Raises what the child reports; `StoreUnavailable` if it was killed."""
    task = json.dumps(asdict(_Task(str(folder), name, full, erase_grace_s)))
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", __package__, task),
        stdin=asyncio.subprocess.PIPE,  # its end is how the child learns that this process has
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        out, err = await _output(child)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == 0:
        return
    try:
        report = json.loads(out)
    except ValueError:
        said = err.decode(errors="replace").strip().splitlines()[-1:] or ["nothing was said"]
        raise StoreUnavailable(
            f"Maintenance of table {name!r} ended with status {child.returncode}: {said[0][:300]}",
            "The table is as it was before; it will be tried again.",
        ) from None
    raise getattr(errors, report["error"], errors.ViewError)(report["message"], report["hint"])


async def _output(child: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    assert child.stdout
    assert child.stderr
    out, err = await asyncio.gather(child.stdout.read(), child.stderr.read())
    await child.wait()
    return out, err


# --- in the child ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Task:
    folder: str
    name: str
    full: bool
    erase_grace_s: float | None


def main(arguments: Sequence[str]) -> int:
    memory.own_process = True
    task = _Task(**json.loads(arguments[0]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError, AttributeError):
        os.nice(NICE)
    try:
        asyncio.run(_work(task))
    except WhimbrelError as error:
        sys.stdout.write(json.dumps(error.as_dict()))
        return 1
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1):  # by descriptor: a lock on sys.stdin would be held when the interpreter ends
        pass
    os._exit(3)


async def _work(task: _Task) -> None:
    path = None if "://" in task.folder else Path(task.folder) / f"{task.name}.lance"
    with lance_errors(f"Table {task.name!r} in {task.folder}: cannot maintain"):
        table = await (await connect(task.folder)).open_table(task.name)
        if task.erase_grace_s is None:
            await _maintain(table, full=task.full)
        else:
            await _erase(table, path, timedelta(seconds=task.erase_grace_s))


async def _maintain(table: AsyncTable, *, full: bool) -> None:
    await table.optimize(cleanup_older_than=KEEP_VERSIONS)
    rows = await table.count_rows()
    indexed = {column for index in await table.list_indices() for column in index.columns}
    if ID not in indexed and (full or rows >= ID_INDEX_FROM_ROWS) and rows:
        await table.create_index(ID, config=import_lancedb().index.BTree())
    if rows >= INDEX_FROM_ROWS and (full or await _index_due(table, rows)):
        await _build_index(table, rows)


async def _build_index(table: AsyncTable, rows: int) -> None:
    # RaBitQ codes: 1 to 3 s at 100,000 rows, where HNSW takes 46 s. Four bits for each of 384 dimensions rank so well
    # that exact distances of 2 k rows find more than those of 5 k rows with two bits (recall@100 0.996, 0.972), for two
    # thirds of a search's time; recall@10 is 1.00. Fewer dimensions need more bits to hold as much.
    dimensions: int = (await table.schema()).field(VECTOR).type.list_size
    config = import_lancedb().index.IvfRq(distance_type="cosine", num_bits=min(8, -(-1_536 // dimensions)))
    await table.create_index(VECTOR, config=config, replace=True)
    await table.update_field_metadata({"path": VECTOR, "metadata": {_TRAINED: str(rows)}})


async def _erase(table: AsyncTable, path: Path | None, grace: timedelta) -> None:
    """Compaction leaves a fragment alone of which less than a tenth is deleted, and LanceDB cannot be told otherwise.
    So the rows of such a fragment are written again, unchanged, which drops the old one whole."""
    await table.optimize()
    for fragment in await _fragments_with_deletions(table, path):
        first = fragment << 32
        await table.update(updates_sql={TEXT: TEXT}, where=f"_rowid >= {first} AND _rowid < {first + 2**32}")
    await table.optimize(cleanup_older_than=grace, delete_unverified=True)


async def _fragments_with_deletions(table: AsyncTable, path: Path | None) -> list[int]:
    """From the names of the deletion files, `{fragment}-{version}-{random}.arrow` or `.bin`; all of them on object
    storage, which is not listed here."""
    rows = await table.query().select([ID]).with_row_id().to_arrow()
    living = {int(row) >> 32 for row in rows["_rowid"].to_numpy()}
    if path is None:
        return sorted(living)
    names = [entry.name for entry in path.joinpath("_deletions").glob("*-*-*.*")]
    deleted = {int(found[1]) for name in names if (found := re.match(r"(\d+)-", name))}
    return sorted(deleted & living)


async def _index_due(table: AsyncTable, rows: int) -> bool:
    if rows < INDEX_FROM_ROWS:
        return False
    segments = [index.num_segments or 1 for index in await table.list_indices() if VECTOR in index.columns]
    about = (await table.schema()).field(VECTOR).metadata or {}
    trained = int(about.get(_TRAINED.encode(), b"0"))
    return not segments or max(segments) > MAX_SEGMENTS or rows > RETRAIN_GROWTH * trained


def _fragments(stats: Any) -> int:
    return int(stats["fragment_stats"]["num_fragments"])


def _expired_versions(path: Path) -> int:
    before = time.time() - KEEP_VERSIONS.total_seconds()
    with os.scandir(path / "_versions") as entries:
        return sum(entry.stat().st_mtime < before for entry in entries)
