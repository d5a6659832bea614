"""A cold copy: what is there as it is, index and all, exact and as quick as the disk.

Of Chroma, the files of a whole folder: a server that is then started on the new one (`chroma run --path NEW`) serves
the same collections. Of Qdrant, from server to server: each collection's snapshot.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from whimbrel.errors import BadInput, Conflict, ViewDamaged
from whimbrel.move.copy.copier import Step
from whimbrel.stores.chroma.folder import DATABASE
from whimbrel.stores.foreign import chroma_files
from whimbrel.stores.foreign.resolve import ALL, Address


@dataclass(frozen=True, slots=True)
class ColdReport:
    source: str
    target: str
    files: int
    bytes: int
    collections: Mapping[str, int]
    """Rows of each, as Chroma's own tables say."""

    def as_dict(self) -> dict[str, object]:
        return {
            "source": self.source,
            "target": self.target,
            "holds": True,
            "files": self.files,
            "bytes": self.bytes,
            "collections": dict(self.collections),
        }


async def copy_cold(source: Address, target: Address, *, base: Path, on_step: Step) -> ColdReport:
    """Copies every file and reads each back: the same bytes, or an error.

    Raises `BadInput` for anything but two Chroma folders whole, `AlreadyOwned` where a program has the source open,
    `Conflict` where there is something at the target, `DiskFull`.
    """
    if source.scheme.startswith("qdrant+") and target.scheme.startswith("qdrant+"):
        return await _copy_snapshots(source, target, base, on_step)
    for one in (source, target):
        if one.scheme != "chroma" or one.collection != ALL:
            raise BadInput(
                "A cold copy takes a whole Chroma folder to another, or collections of a Qdrant server to another. "
                "Nothing was copied.",
                "For example: `whimbrel copy --cold 'chroma:OLD/*' 'chroma:NEW/*'`; for a Chroma server, stop it, name "
                "its folder, and start it again.",
            )
    return await asyncio.to_thread(_copy, source.folder(base), target.folder(base), on_step)


async def _copy_snapshots(source: Address, target: Address, base: Path, on_step: Step) -> ColdReport:
    from whimbrel.stores.foreign.qdrant_snapshots import Snapshots

    if (source.collection == ALL) != (target.collection == ALL):
        raise BadInput(
            "Both ends name one collection, or all. Nothing was copied.", "Let both end in `/*`, or neither."
        )
    if source.bare(base) == target.bare(base) and source.collection == target.collection:
        raise Conflict("The target is the source. Nothing was changed.", "Name another server or collection.")
    snapshots = Snapshots(source.place, target.place)
    try:
        names = await snapshots.names() if source.collection == ALL else [source.collection]
        await snapshots.check(names if source.collection == ALL else [target.collection])
        counts, size = {}, 0
        for done, name in enumerate(names):
            to = name if target.collection == ALL else target.collection
            on_step("copying snapshots", done, len(names))
            counts[to], bytes_ = await snapshots.carry(name, to)
            size += bytes_
        on_step("copying snapshots", len(names), len(names))
    finally:
        await snapshots.close()
    return ColdReport(source.shown, target.shown, len(counts), size, counts)


def _copy(folder: Path, target: Path, on_step: Step) -> ColdReport:
    if folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise Conflict("The target is the source, or within it. Nothing was changed.", "Name another folder.")
    chroma_files.check(folder)
    before = chroma_files.version(folder)
    on_step("copying files", 0, 0)
    sums = chroma_files.copy_files(folder, target)
    if chroma_files.version(folder) != before:
        raise Conflict(
            f"The folder {folder} was written to while it was copied. What is in {target} is of no use.",
            f"Remove {target}, stop the program that writes, and copy again.",
        )
    for done, (name, sum_) in enumerate(sums.items()):
        if chroma_files.digest(target / name) != sum_:
            raise ViewDamaged(f"The file {name} in {target} is not what was read.", "Check the disk, and copy again.")
        on_step("verifying files", done + 1, len(sums))
    size = sum((target / name).stat().st_size for name in sums)
    return ColdReport(str(folder), str(target), len(sums), size, _collections(target))


def _collections(folder: Path) -> dict[str, int]:
    query = (
        "SELECT c.name, (SELECT count(*) FROM embeddings e JOIN segments s ON s.id = e.segment_id WHERE s.collection = "
        "c.id AND s.scope = 'METADATA') FROM collections c ORDER BY c.name"
    )
    with closing(sqlite3.connect(f"{(folder / DATABASE).as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        return dict(database.execute(query).fetchall())
