"""A cold copy: a Chroma folder's files, as they are. Exact and as quick as the disk, and of the whole folder only.

A server that is then started on the new folder (`chroma run --path NEW`) serves the same collections.
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
    for one in (source, target):
        if one.scheme != "chroma" or one.collection != ALL:
            raise BadInput(
                "A cold copy takes a whole Chroma folder to another. Nothing was copied.",
                "For example: `whimbrel copy --cold 'chroma:OLD/*' 'chroma:NEW/*'`; for a server, stop it, name its "
                "folder, and start it again.",
            )
    return await asyncio.to_thread(_copy, source.folder(base), target.folder(base), on_step)


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
