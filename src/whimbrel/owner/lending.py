"""Stores that allow one process: the owner has them open, and answers the other processes of the home's user.

Over a Unix socket in the home, which only that user can open; one question a connection. Both directions: a line of
JSON. A question is `{"call", "view", ...}`, an answer `{"found": ...}` or an error as the API says it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel import errors
from whimbrel.catalog import adoptions, vectors
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.domain import Matches, Position
from whimbrel.errors import AlreadyOwned, Forbidden, StoreUnavailable, WhimbrelError, place
from whimbrel.filters import Filter, parse, to_json
from whimbrel.home import Home
from whimbrel.owner.frozen import frozen_store
from whimbrel.owner.lock import lease_of
from whimbrel.stores.base import DENSE, Reach, Records, Store, StoreInfo
from whimbrel.stores.envelope import dumps, loads
from whimbrel.stores.resolve import open_store

T = TypeVar("T")

logger = logging.getLogger("whimbrel.owner")

MAX_LINE = 256 << 20
"""Bytes of one question or answer; 10,000 rows of 1,024 dimensions take about 80 MiB."""
PATIENCE_S = 10.0
"""How long a search waits for an owner that is just starting, or for another process that has the store open."""
_AGAIN_S = 0.1


# --- the owner -------------------------------------------------------------------------------------------------------


class Lender:
    """Answers from the stores that the owner has open. Begins to listen with the first that allows one process."""

    def __init__(self, path: Path, store_of: Callable[[int], Store | None]) -> None:
        self._path = path
        self._store_of = store_of
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Only the owner of the home calls this: a socket that is there was left by a dead one."""
        if self._server is not None:
            return
        with suppress(FileNotFoundError):
            self._path.unlink()
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(str(self._path))
        # Nobody can connect before it listens, so it is never open to others.
        self._path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        self._server = await asyncio.start_unix_server(self._answer, sock=bound, limit=MAX_LINE)

    async def close(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
            with suppress(OSError):
                self._path.unlink()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = json.loads(await reader.readline())
            try:
                answer = {"found": await self._found(**question)}
            except WhimbrelError as error:
                answer = error.as_dict()
            except Exception as defect:  # ours, or a library's: its message may quote a text
                logger.error("a search for another process failed: %s", place(defect))
                answer = StoreUnavailable(f"{type(defect).__name__} in the owner; its log has the details.").as_dict()
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ValueError, ConnectionError):  # who asked has gone, or is no process of ours
            pass
        finally:
            writer.close()

    async def _found(self, call: str, view: int, **arguments: Any) -> Any:
        store = self._store_of(view)
        if store is None:
            raise StoreUnavailable(f"The owner has not opened view {view} yet.", "Try again shortly.")
        match call:
            case "search":
                raw = arguments["where"]
                vector = np.frombuffer(base64.b64decode(arguments["vector"]), "<f4")
                found = await store.search(vector, arguments["k"], parse(raw), ids=arguments["ids"])
                return {"ids": list(found.ids), "scores": _packed(found.scores)}
            case "fetch":
                return _row_columns(await store.fetch(arguments["ids"]))
            case "ids":
                return list(await store.ids())
            case "count":
                return await store.count()
            case "exists":
                return await store.exists()
            case "position":
                position = await store.position()
                return asdict(position) if position is not None else None
        raise StoreUnavailable(
            f"The owner does not know the question {call!r}.", "Restart it: it is of another version."
        )


def _packed(values: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _row_columns(records: Records) -> dict[str, Any]:
    return {
        "ids": list(records.ids),
        "texts": list(records.texts),
        "metadata": [dumps(one) for one in records.metadata],
        "vectors": _packed(records.vectors[DENSE]),
    }


# --- the others ------------------------------------------------------------------------------------------------------


class BorrowedStore(Store):
    """A view whose store allows one process, for reading, wherever this process stands: it asks the owner; is the
    owner; or, where there is none, opens the store for as long as a call takes."""

    def __init__(
        self, own: Store, view: int, path: Path, *, is_owner: Callable[[], bool], is_owned: Callable[[], bool]
    ) -> None:
        """`is_owner`: whether this process owns the home; `is_owned`: whether any does."""
        self._own = own
        self._view = view
        self._path = path
        self._is_owner = is_owner
        self._is_owned = is_owned
        self._alone = asyncio.Lock()
        self._held = False

    def describe(self) -> StoreInfo:
        return self._own.describe()

    def answers(self, where: Filter) -> bool:
        return self._own.answers(where)

    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        raw = to_json(where) if where is not None else None
        listed = list(ids) if ids is not None else None
        question = {"k": k, "where": raw, "ids": listed, "vector": _packed(vector)}

        def read(found: Any) -> Matches:
            return Matches(found["ids"], np.frombuffer(base64.b64decode(found["scores"]), "<f4"))

        return await self._ask("search", question, lambda: self._own.search(vector, k, where, ids=ids), read)

    async def fetch(self, ids: Sequence[str]) -> Records:
        def read(found: Any) -> Records:
            vectors = np.frombuffer(base64.b64decode(found["vectors"]), "<f4")
            shaped = vectors.reshape(len(found["ids"]), self.describe().dimensions)
            return Records(found["ids"], {DENSE: shaped}, found["texts"], [loads(one) for one in found["metadata"]])

        return await self._ask("fetch", {"ids": list(ids)}, lambda: self._own.fetch(ids), read)

    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        every = await self.ids()
        for start in range(0, len(every), batch):
            found = await self.fetch(every[start : start + batch])
            if len(found):
                yield found

    async def ids(self) -> list[str]:
        return await self._ask("ids", {}, self._own.ids, list)

    async def count(self) -> int:
        return await self._ask("count", {}, self._own.count, int)

    async def exists(self) -> bool:
        return await self._ask("exists", {}, self._own.exists, bool)

    async def position(self) -> Position | None:
        return await self._ask("position", {}, self._own.position, lambda found: found and Position(**found))

    async def close(self) -> None:
        await self._own.close()

    # --- writing is the owner's --------------------------------------------------------------------------------------

    async def create(self) -> None:
        raise _read_only()

    async def upsert(self, records: Records, *, new: bool = False) -> None:
        raise _read_only()

    async def delete(self, ids: Sequence[str]) -> None:
        raise _read_only()

    async def set_position(self, position: Position) -> None:
        raise _read_only()

    async def maintain(self, *, full: bool = False) -> None:
        raise _read_only()

    async def erase(self, *, grace_s: float) -> None:
        raise _read_only()

    async def drop(self) -> None:
        raise _read_only()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _ask(
        self, call: str, question: dict[str, Any], here: Callable[[], Awaitable[T]], read: Callable[[Any], T]
    ) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if self._is_owner():
                self._held = True
                return await here()
            if self._held:  # this process was the owner: the next one waits for what it has open
                self._held = False
                await self._own.close()
            answer = await _asked(self._path, {"call": call, "view": self._view, **question})
            if answer is not None:
                return read(answer["found"])
            try:
                if not await asyncio.to_thread(self._is_owned):
                    return await self._for_a_moment(here)
                error: WhimbrelError = StoreUnavailable(
                    f"View {self._view} is in a database that one process may open, the owner, and that does not "
                    "answer in this home.",
                    "Search through the owner's machine, or look at the owner's log.",
                )
            except AlreadyOwned as owned:  # by another that found no owner either, or an owner that starts just now
                error = owned
            if time.monotonic() > deadline:
                raise error
            await asyncio.sleep(_AGAIN_S)

    async def _for_a_moment(self, here: Callable[[], Awaitable[T]]) -> T:
        async with self._alone:
            try:
                return await here()
            finally:
                await self._own.close()  # an owner may come


async def _asked(path: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """The owner's answer; None when nobody listens, or stopped doing so meanwhile. Raises the error that it says."""
    if not os.path.lexists(path):
        return None
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
    except OSError:
        return None
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
        answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
    except (OSError, ValueError):
        return None
    finally:
        writer.close()
    if "error" in answer:
        kind = getattr(errors, str(answer["error"]), StoreUnavailable)
        raise kind(str(answer.get("message", "")), str(answer.get("hint", "")))
    return answer if "found" in answer else None


def store_of(row: ViewRow, catalog: Catalog, settings: Settings, home: Home, *, read_only: bool) -> Store:
    """The store of a view, as the configuration reaches it. Opens nothing yet."""
    assert row.view.space_id is not None
    if adoptions.is_frozen(row):
        return frozen_store(
            row,
            catalog,
            base=home.path,
            adopted=home.adopted,
            reach=Reach(*settings.stores.reach),
            configured=settings.configured_stores(),
        )
    with catalog.read() as connection:
        space, _ = vectors.read_space(connection, row.view.space_id)
    return open_store(
        row.view.uri,
        row.view.name,
        space,
        base=home.path,
        read_only=read_only,
        reach=Reach(*settings.stores.reach),
        configured=settings.configured_stores(),
    )


def borrowed(
    store: Store, view: int, home: Home, catalog: Catalog, *, is_owner: Callable[[], bool] = lambda: False
) -> Store:
    """A store for reading as any process of a home opens it: itself, unless it allows one process."""
    if not store.describe().single_process:
        return store
    return BorrowedStore(
        store, view, home.owner_socket, is_owner=is_owner, is_owned=lambda: lease_of(home, catalog) is not None
    )


def _read_only() -> Forbidden:
    return Forbidden("The view was opened to be read only. Nothing was written.")
