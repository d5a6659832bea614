"""What a copy knows: a folder with an SQLite file, so that a copy that ends at any point goes on from there.

| table | what |
|---|---|
| `about` | source, target, phase |
| `rows` | the manifest: every id of the source, in its order, with the digest of what was written |
| `cursors` | the one place up to which rows are written, and that up to which they may have been |
| `rejects` | rows that cannot go, with the reason; `rejects.jsonl` beside the file says the same |
| `gone` | ids of the manifest that the source does not have any more |
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from whimbrel.errors import AlreadyOwned, BadInput, DiskFull, HomeError
from whimbrel.stores.foreign.base import Id, IdKind

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, digest BLOB);
CREATE TABLE IF NOT EXISTS cursors (
    one INTEGER PRIMARY KEY CHECK (one = 1), done INTEGER NOT NULL, begun INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS rejects (id BLOB PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS gone (id BLOB PRIMARY KEY);
INSERT OR IGNORE INTO cursors VALUES (1, 0, 0);
"""
REJECTS = "rejects.jsonl"
REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Listed:
    """Rows of the manifest."""

    places: Sequence[int]
    ids: Sequence[Id]
    digests: Sequence[bytes | None]
    """Of what was written; None where nothing was."""

    def __len__(self) -> int:
        return len(self.ids)


class State:
    """Open in one process at a time. Raises `AlreadyOwned`, `DiskFull`, `HomeError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _locked(folder / "lock")
            try:
                self._db = sqlite3.connect(folder / "state.db", isolation_level=None)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.executescript(_SCHEMA)
            except BaseException:
                self._lock.close()
                raise
        self.kind = IdKind.STR

    def close(self) -> None:
        self._db.close()
        self._lock.close()

    # --- about -------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> str:
        """Empty where it was never set."""
        found = self._db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else ""

    def put(self, **values: str) -> None:
        with self._writing():
            self._db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", list(values.items()))

    # --- the manifest ------------------------------------------------------------------------------------------------

    async def list_anew(self, ids: AsyncIterator[Sequence[Id]]) -> None:
        """Takes the ids that the source has now for the manifest. What is known of those that were in it stays known;
        the others are `gone`. Raises `BadInput` for an id that comes twice: the manifest is as it was then."""
        with self._writing():
            self._db.execute("CREATE TABLE fresh (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, digest BLOB)")
            at = 0
            async for some in ids:
                try:
                    rows = [(at + number, self._blob(id_)) for number, id_ in enumerate(some)]
                    self._db.executemany("INSERT INTO fresh (n, id) VALUES (?, ?)", rows)
                except sqlite3.IntegrityError:
                    raise BadInput(
                        "An id comes twice in the source, so that its rows cannot be told apart. Nothing was copied.",
                        "Name a column whose values are unique: `--id COLUMN`.",
                    ) from None
                at += len(some)
            self._db.execute("UPDATE fresh SET digest = (SELECT digest FROM rows WHERE rows.id = fresh.id)")
            self._db.execute("INSERT OR IGNORE INTO gone SELECT id FROM rows WHERE id NOT IN (SELECT id FROM fresh)")
            self._db.execute("DELETE FROM gone WHERE id IN (SELECT id FROM fresh)")
            self._db.execute("DROP TABLE rows")
            self._db.execute("ALTER TABLE fresh RENAME TO rows")
            self._db.execute("DELETE FROM rejects")
            # What may have been written before may be anywhere now.
            self._db.execute("UPDATE cursors SET done = 0, begun = CASE WHEN begun > 0 THEN ? ELSE 0 END", (at,))

    def forget_written(self) -> None:
        """The target is not there any more, or what is in it is not known."""
        with self._writing():
            self._db.execute("UPDATE rows SET digest = NULL")
            self._db.execute("UPDATE cursors SET done = 0, begun = 0")
            self._db.execute("DELETE FROM gone")

    def distrust(self) -> None:
        """Any row may be in the target already."""
        with self._writing():
            self._db.execute("UPDATE cursors SET begun = (SELECT coalesce(max(n), 0) + 1 FROM rows)")

    @property
    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM rows").fetchone()[0])

    @property
    def done(self) -> int:
        """The place up to which rows are written."""
        return int(self._db.execute("SELECT done FROM cursors").fetchone()[0])

    @property
    def begun(self) -> int:
        """The place from which on no row can be in the target."""
        return int(self._db.execute("SELECT begun FROM cursors").fetchone()[0])

    def after(self, place: int, limit: int) -> Listed:
        """The next rows from `place` on."""
        return self._listed("n >= ? ORDER BY n LIMIT ?", (place, limit))

    def at(self, places: Sequence[int]) -> Listed:
        """Rows of ascending places."""
        return self._listed("n IN (SELECT value FROM json_each(?)) ORDER BY n", (json.dumps(list(places)),))

    def begin(self, stop: int) -> None:
        """Rows up to `stop` are about to be written."""
        with self._writing():
            self._db.execute("UPDATE cursors SET begun = max(begun, ?)", (stop,))

    def wrote(self, digests: Mapping[int, bytes], rejects: Mapping[Id, str], stop: int) -> None:
        """In one commit: what was written at which places, what cannot be, and the cursor."""
        with self._writing():
            self._db.executemany("UPDATE rows SET digest = ? WHERE n = ?", [(d, n) for n, d in digests.items()])
            reasons = [(self._blob(id_), why) for id_, why in rejects.items()]
            self._db.executemany("INSERT OR REPLACE INTO rejects VALUES (?, ?)", reasons)
            self._db.execute("UPDATE cursors SET done = ?, begun = max(begun, ?)", (stop, stop))

    # --- what is not as it should be ---------------------------------------------------------------------------------

    def gone(self, limit: int) -> list[Id]:
        found = self._db.execute("SELECT id FROM gone LIMIT ?", (limit,)).fetchall()
        return [self._id(id_) for (id_,) in found]

    @property
    def gone_count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM gone").fetchone()[0])

    def removed(self, ids: Sequence[Id]) -> None:
        with self._writing():
            self._db.executemany("DELETE FROM gone WHERE id = ?", [(self._blob(id_),) for id_ in ids])

    def rejects(self) -> Iterator[tuple[Id, str]]:
        for id_, reason in self._db.execute("SELECT id, reason FROM rejects ORDER BY id"):
            yield self._id(id_), reason

    @property
    def reject_count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM rejects").fetchone()[0])

    def is_rejected(self, ids: Sequence[Id]) -> set[Id]:
        wanted = [self._blob(id_) for id_ in ids]
        if not self.reject_count:
            return set()
        marks = ", ".join("?" * len(wanted))
        return {self._id(id_) for (id_,) in self._db.execute(f"SELECT id FROM rejects WHERE id IN ({marks})", wanted)}

    async def compared(self, found: AsyncIterator[Sequence[Id]], limit: int) -> tuple[int, int, list[Id], list[Id]]:
        """Of the ids that a target has: how many are missing, how many are not of this copy, and some of each."""
        with self._writing():
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS found (id BLOB PRIMARY KEY)")
            self._db.execute("DELETE FROM found")
            async for some in found:
                rows = [(self._blob(id_),) for id_ in some]
                self._db.executemany("INSERT OR IGNORE INTO found VALUES (?)", rows)
        missing = "FROM rows WHERE id NOT IN (SELECT id FROM found) AND id NOT IN (SELECT id FROM rejects)"
        extra = "FROM found WHERE id NOT IN (SELECT id FROM rows)"
        return (
            self._db.execute(f"SELECT count(*) {missing}").fetchone()[0],
            self._db.execute(f"SELECT count(*) {extra}").fetchone()[0],
            [self._id(id_) for (id_,) in self._db.execute(f"SELECT id {missing} LIMIT ?", (limit,))],
            [self._id(id_) for (id_,) in self._db.execute(f"SELECT id {extra} LIMIT ?", (limit,))],
        )

    # --- files -------------------------------------------------------------------------------------------------------

    def write_rejects(self) -> Path | None:
        """`rejects.jsonl` as it is now; None, and no file, where there are none."""
        path = self.folder / REJECTS
        with _errors(self.folder):
            if not self.reject_count:
                path.unlink(missing_ok=True)
                return None
            lines = (json.dumps({"id": self.kind.text(id_), "reason": why}) for id_, why in self.rejects())
            _write(path, "".join(f"{line}\n" for line in lines))
        return path

    def write_report(self, report: Mapping[str, object]) -> Path:
        path = self.folder / REPORT
        with _errors(self.folder):
            _write(path, json.dumps(report, indent=1) + "\n")
        return path

    # --- inside ------------------------------------------------------------------------------------------------------

    def _listed(self, condition: str, parameters: tuple[object, ...]) -> Listed:
        found = self._db.execute(f"SELECT n, id, digest FROM rows WHERE {condition}", parameters).fetchall()
        return Listed([n for n, _, _ in found], [self._id(id_) for _, id_, _ in found], [one for _, _, one in found])

    def _blob(self, id_: Id) -> bytes:
        return self.kind.text(id_).encode("utf-8", "surrogatepass")

    def _id(self, blob: bytes) -> Id:
        return self.kind.parse(blob.decode("utf-8", "surrogatepass"))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _errors(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _locked(path: Path) -> TextIO:
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        who = lock.read().strip() or "?"
        lock.close()
        raise AlreadyOwned(
            f"Process {who} runs this copy now. Nothing was changed.", "Wait for it, or stop it."
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise DiskFull(f"No space left for what the copy knows, in {folder}.", "Free some space.") from error
        raise HomeError(f"What the copy knows cannot be kept in {folder}: {error}.", "Check the folder.") from error
    except OSError as error:
        if error.errno == 28:
            raise DiskFull(f"No space left for what the copy knows, in {folder}.", "Free some space.") from error
        raise HomeError(
            f"What the copy knows cannot be kept in {folder}: {error.strerror}.", "Check the folder."
        ) from error
