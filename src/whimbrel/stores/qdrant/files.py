"""A folder of Qdrant's local mode as files: `meta.json`, and for each collection an SQLite file whose rows are pickles.

qdrant-client unpickles every row when it opens a folder, and a pickle may run any program. So rows are read here by an
unpickler that knows the classes of a point by name alone: none of Qdrant's code runs, and whatever else a row names is
refused before anything of it is made. `check` reads all of a folder like that before qdrant-client is let near it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID, SafeUUID

from whimbrel.errors import NotFound, StoreRefused, ViewDamaged, WhimbrelError
from whimbrel.stores.folders import Kind
from whimbrel.stores.qdrant.rules import check_name

META, LOCK, STORAGE = "meta.json", ".lock", "storage.sqlite"
COLLECTIONS = "collection"
KIND = Kind("Qdrant folder", "Qdrant", "qdrant")
_PAGE = 500
_ROOM = 1 << 20


class _Fixed(type):
    """A class that a pickle cannot change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the class {cls.__name__} would be changed")


class Point(metaclass=_Fixed):
    """Stands for `PointStruct` and `SparseVector` of qdrant-client: holds what a pickle says of one."""

    said: Mapping[str, Any]

    def __setstate__(self, state: Any) -> None:
        said = state.get("__dict__", state) if isinstance(state, dict) else None
        if not isinstance(said, dict):
            raise pickle.UnpicklingError("a point of another form")
        self.__dict__["said"] = said


class Sparse(Point):
    pass


_MODULES = ("qdrant_client.http.models.models", "qdrant_client.models", "qdrant_openapi_client.models.models")
_ALLOWED: Mapping[tuple[str, str], Any] = {
    **{(module, "PointStruct"): Point for module in _MODULES},
    **{(module, "SparseVector"): Sparse for module in _MODULES},
    ("uuid", "UUID"): UUID,
    ("uuid", "SafeUUID"): SafeUUID,
    **{("datetime", one.__name__): one for one in (date, datetime, time, timedelta, timezone)},
}
"""Older clients kept a payload's dates and UUIDs as Python has them."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it names something outside")


@dataclass(frozen=True, slots=True)
class Row:
    """A point as the folder has it."""

    id: int | str
    """A UUID as it is written there."""
    vector: Any
    """A list of numbers, a list of such lists, or an object of those and `Sparse` by name."""
    payload: Mapping[str, Any]


def is_there(folder: Path) -> bool:
    return (folder / META).is_file()


def collections(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """What `meta.json` says of each collection, by its name. Raises `NotFound`, `ViewDamaged`, `StoreRefused`."""
    if not is_there(folder):
        raise NotFound(f"There is no Qdrant folder {folder}.", "Check the path after `qdrant:`.")
    try:
        found = json.loads((folder / META).read_text())["collections"]
        names = {str(name): dict(said) for name, said in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ViewDamaged(f"{folder / META} cannot be read: {type(error).__name__}.", "Restore the folder.") from error
    for name in names:
        check_name(name)
        place = storage(folder, name)
        if place.exists() and folder.resolve() not in place.resolve().parents:
            raise StoreRefused(f"The collection {name!r} of {folder} lies outside of it. Nothing was read.", _WAY_OUT)
    return names


def storage(folder: Path, name: str) -> Path:
    return folder / COLLECTIONS / name / STORAGE


def check(folder: Path) -> int:
    """Reads every row of every collection. Returns their number. Raises `StoreRefused` where a row is not what Qdrant
    writes; nothing of it was loaded then."""
    if not is_there(folder):
        return 0
    count = 0
    for name in collections(folder):
        place = storage(folder, name)
        if place.is_file():
            with closing(_connect(place, write=True)) as database:  # what a killed writer left is rolled back
                for _ in _points(database, place):
                    count += 1
    return count


def recover(place: Path) -> None:
    """Undoes what a killed writer left half done. Writes to the file."""
    with closing(_connect(place, write=True)) as database:
        for _ in _all(database, "SELECT count(*) FROM points", place):
            pass


def rows(place: Path) -> Iterator[tuple[int, Row]]:
    """(number, point) of every row of a collection's file, in the order of the numbers: of a point that comes twice, as
    some older clients left one, the last is it."""
    with closing(_connect(place)) as database:
        yield from _points(database, place)


def some(place: Path, numbers: Sequence[int]) -> Iterator[Row]:
    """The rows of these numbers that are there."""
    with closing(_connect(place)) as database:
        for start in range(0, len(numbers), _PAGE):
            page = [int(number) for number in numbers[start : start + _PAGE]]
            query = f"SELECT point FROM points WHERE rowid IN ({', '.join(map(str, page))})"
            for (pickled,) in _all(database, query, place):
                yield loads(pickled, place)


def loads(pickled: Any, place: Path) -> Row:
    """Raises `StoreRefused` for what is no point."""
    try:
        point = _Unpickler(io.BytesIO(pickled)).load()
        said = point.said if type(point) is Point else None
        if said is None or not isinstance(said["id"], int | str | UUID) or isinstance(said["id"], bool):
            raise pickle.UnpicklingError("it is no point")
        payload = said.get("payload")
        payload = {} if payload is None else payload
        if not isinstance(payload, dict):
            raise pickle.UnpicklingError("its payload is no object")
        return Row(str(said["id"]) if isinstance(said["id"], UUID) else said["id"], said.get("vector"), payload)
    except WhimbrelError:
        raise
    except Exception as error:  # a broken pickle raises anything
        why = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise StoreRefused(
            f"A row in {place} is not what Qdrant writes: {why[:120]}. It was not loaded, and nothing was changed.",
            _WAY_OUT,
        ) from None


_WAY_OUT = (
    "Do not open this folder with qdrant-client: a row like that may run a program. Take it from whom you trust again."
)


def _points(database: sqlite3.Connection, place: Path) -> Iterator[tuple[int, Row]]:
    query = "SELECT rowid, point FROM points ORDER BY rowid"
    for number, pickled in _all(database, query, place):
        yield number, loads(pickled, place)


def _all(database: sqlite3.Connection, query: str, place: Path) -> Iterator[tuple[Any, ...]]:
    try:
        yield from database.execute(query)
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return
        raise _failed(place, error) from error
    except sqlite3.DatabaseError as error:
        raise _failed(place, error) from error


def _connect(place: Path, *, write: bool = False) -> sqlite3.Connection:
    writable = write and os.access(place, os.W_OK) and os.access(place.parent, os.W_OK)
    how = "mode=rw" if writable else "mode=ro&immutable=1" if _has_log(place) else "mode=ro"
    try:
        return sqlite3.connect(f"{place.resolve().as_uri()}?{how}", uri=True)
    except sqlite3.Error as error:
        raise _failed(place, error) from error


def _has_log(place: Path) -> bool:
    """Whether SQLite writes its commits to a log: then even a reader would write, files beside it."""
    with place.open("rb") as file:
        return file.read(20)[18:] == b"\2\2"


def is_full(said: str, path: Path) -> bool:
    """Whether SQLite, which writes a log beside a file also to read it, said so for want of room."""
    lower = said.lower()
    if "disk i/o error" not in lower:
        return "disk is full" in lower
    try:
        return shutil.disk_usage(path).free < _ROOM
    except OSError:  # it is not there any more
        return False


def _failed(place: Path, error: sqlite3.Error) -> WhimbrelError:
    if is_full(str(error), place):
        return KIND.full(place.parent.parent.parent)
    return ViewDamaged(f"{place} cannot be read: {error}.", "Restore the folder; a view is built again by itself.")
