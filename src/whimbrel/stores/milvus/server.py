"""A Milvus server, through pymilvus: its calls block, and run in threads, bounded in number and in time.

Milvus shows a write to readers a moment later, when its time ticks (0.2 s by default). Waiting for that with each read
would make a search take that long. So each read waits for what this process has written, no more; and the writer waits,
once for each batch, until all readers see it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.errors import Conflict, StoreRefused, StoreUnavailable, WhimbrelError
from whimbrel.stores.base import Reach
from whimbrel.stores.batches import Refused
from whimbrel.stores.milvus.backend import (
    ABOUT,
    EF,
    ELSEWHERE,
    FACTS,
    HNSW,
    ID,
    LOOSE,
    MAX_CAPACITY,
    MAX_LENGTH,
    MAX_WINDOW,
    METADATA,
    MORE,
    POSITION,
    ROWS,
    TEXT,
    VECTOR,
    Backend,
    Collection,
    Hit,
)
from whimbrel.stores.milvus.connection import NotLoaded, connect, import_pymilvus, translated
from whimbrel.stores.milvus.shares import Shares
from whimbrel.stores.milvus.uri import Server
from whimbrel.stores.milvus.where import ArrayFacts, both, ids_in, literal

T = TypeVar("T")
logger = logging.getLogger("whimbrel.stores")

WRITE_PATIENCE = 4
"""Times as long as for a read."""
LOAD_S = 300.0
"""Until a collection is in the server's memory, or its index is built."""
HANDOVER_S = 60.0
"""Until a new index is what searches use; they find rows meanwhile too."""
MIN_INDEXED = 1_024
"""Rows of a segment that Milvus indexes at all."""
_OWN, _ALL = "Session", "Strong"
"""What a read waits for: the writes of this process, or all."""


class _Whole(str):
    """A text that gives itself when it is gone over: pymilvus 3.0 checks each character of a row's texts as if it were
    a text of its own, which takes a fourth of the time of making a request."""

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        return iter((str(self),))


class ServerBackend(Backend):
    single_process = False
    writes_at_once = 2
    facts = ArrayFacts()

    def __init__(self, server: Server, reach: Reach) -> None:
        self._server = server
        self._reach = reach
        self._client: Any = None
        self._threads: ThreadPoolExecutor | None = None
        self._connecting = asyncio.Lock()
        self._shares = Shares()
        self._counting: set[asyncio.Task[None]] = set()

    @property
    def shown(self) -> str:
        return self._server.url

    # --- collections -------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> Collection | None:
        def find(client: Any) -> Collection | None:
            if not client.has_collection(name, timeout=self._reach.timeout_s):
                return None
            return _described(client, name, self._reach.timeout_s)

        return await self._do(find)

    async def create(self, name: str, dimensions: int, about: Mapping[str, Any]) -> None:
        patience = WRITE_PATIENCE * self._reach.timeout_s

        def create(client: Any) -> None:
            if client.has_collection(name, timeout=patience):
                raise Conflict(
                    f"There is a collection {name!r} at {self.shown} already. Nothing was changed.", ELSEWHERE
                )
            schema = _schema(dimensions, json.dumps({ABOUT: about}))
            client.create_collection(name, schema=schema, consistency_level=_OWN, timeout=patience)
            client.create_partition(name, ABOUT, timeout=patience)
            index = client.prepare_index_params()
            index.add_index(VECTOR, index_type="HNSW", metric_type="COSINE", params=dict(HNSW))
            client.create_index(name, index, timeout=patience)
            client.load_collection(name, timeout=LOAD_S)

        await self._do(create)

    async def drop(self, name: str) -> None:
        await self._do(lambda client: client.drop_collection(name, timeout=WRITE_PATIENCE * self._reach.timeout_s))

    async def count(self, name: str) -> int:
        rows = await self._query(name, "", ["count(*)"], level=_ALL)
        return int(rows[0]["count(*)"])

    # --- rows --------------------------------------------------------------------------------------------------------

    async def write(self, name: str, rows: Sequence[dict[str, Any]], *, more: bool) -> None:
        """Always an upsert: an insert keeps both rows of a key."""
        whole = [{**row, ID: _Whole(row[ID]), TEXT: _Whole(row[TEXT])} for row in rows]
        await self._write(name, lambda client, patience: client.upsert(name, whole, patience, ROWS))

    async def delete(self, name: str, ids: Sequence[str]) -> None:
        await self._write(
            name,
            lambda client, patience: client.delete(name, filter=ids_in(ids), timeout=patience, partition_name=ROWS),
        )

    async def get(self, name: str, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        try:
            return await self._query(name, ids_in(ids), fields)
        except Refused as refused:  # what it would answer is too large
            if len(ids) <= 1:
                raise StoreRefused(f"{refused}.", "Raise the server's limits on messages.") from None
        half = len(ids) // 2
        return [*await self.get(name, ids[:half], fields), *await self.get(name, ids[half:], fields)]

    async def ids(self, name: str, where: str = "") -> list[str]:
        """By a cursor of the key: Milvus' offsets end at 16,384."""
        found: list[str] = []
        level, after = _ALL, ""
        while True:
            beyond = f"id > {literal(after)}" if found else ""
            rows = await self._query(name, both(where, beyond), [ID], limit=MAX_WINDOW, level=level)
            if not rows:
                return found
            found += sorted(row[ID] for row in rows)
            after, level = found[-1], _OWN

    async def scan(self, name: str, page: int) -> AsyncIterator[list[dict[str, Any]]]:
        """The next page is on its way while one is worked on."""
        coming = asyncio.create_task(self._page(name, None, page))
        try:
            while True:
                rows, page = await coming
                if not rows:
                    return
                coming = asyncio.create_task(self._page(name, max(row[ID] for row in rows), page))
                yield rows
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _page(self, name: str, after: str | None, size: int) -> tuple[list[dict[str, Any]], int]:
        """The next rows by their keys, and as many as one page may have: fewer where they were too large."""
        beyond = "" if after is None else f"id > {literal(after)}"
        while True:
            try:
                return await self._query(name, beyond, ["*"], limit=size), size
            except Refused as refused:
                if size == 1:
                    raise StoreRefused(f"{refused}.", "Raise the server's limits on messages.") from None
                size = max(1, size // 2)

    async def search(
        self, name: str, vector: npt.NDArray[np.float32], k: int, where: str, fields: Sequence[str]
    ) -> list[Hit]:
        ef = max(self._shares.ef(name, where) if where else EF, k)

        def search(client: Any) -> list[Hit]:
            (hits,) = client.search(
                name,
                [vector],
                where,
                k,
                list(fields),
                {"metric_type": "COSINE", "params": {"ef": ef}},
                self._reach.timeout_s,
                anns_field=VECTOR,
                partition_names=[ROWS],
                consistency_level=_OWN,
            )
            return [Hit(hit["id"], hit["distance"], hit["entity"]) for hit in hits]

        found = await self._loaded(name, search)
        if where and self._shares.is_due(name, where):
            counting = asyncio.create_task(self._count_passing(name, where))
            self._counting.add(counting)
            counting.add_done_callback(self._counting.discard)
        return found

    async def _count_passing(self, name: str, where: str) -> None:
        """For the next searches with this condition. Nobody waits for it."""
        try:
            passing, rows = [
                int((await self._query(name, condition, ["count(*)"]))[0]["count(*)"]) for condition in (where, "")
            ]
        except (WhimbrelError, Refused) as error:  # searches look at as many rows as before
            self._shares.failed(name, where)
            logger.debug("%s: rows that pass a filter were not counted: %s", self.shown, type(error).__name__)
        else:
            self._shares.learned(name, where, passing, rows)

    # --- position ----------------------------------------------------------------------------------------------------

    async def read_position(self, name: str) -> str | None:
        rows = await self._query(name, ids_in([POSITION]), [TEXT], partition=ABOUT, level=_ALL)
        return str(rows[0][TEXT]) if rows else None

    async def write_position(self, name: str, dimensions: int, said: str, *, wait: bool) -> None:
        vector = [1.0, *[0.0] * (dimensions - 1)]
        row = {ID: POSITION, VECTOR: vector, TEXT: said, MORE: [], METADATA: [], FACTS: [], LOOSE: False}
        await self._write(name, lambda client, patience: client.upsert(name, [row], patience, ABOUT))
        if wait:
            await self.read_position(name)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    async def settle(self, name: str, *, wait: bool) -> None:
        """Milvus gathers rows, and indexes them when there are enough; a flush gathers those that there are."""
        if not wait:
            return

        def settle(client: Any) -> None:
            client.flush(name, timeout=LOAD_S)
            deadline = time.monotonic() + LOAD_S
            while int(client.describe_index(name, VECTOR, timeout=self._reach.timeout_s)["pending_index_rows"]):
                if time.monotonic() > deadline:
                    raise StoreUnavailable(f"The index at {self.shown} is not ready yet.", "It is built on.")
                time.sleep(0.1)
            deadline = time.monotonic() + HANDOVER_S
            while not self._is_served(client, name) and time.monotonic() < deadline:
                time.sleep(0.1)

        await self._do(settle)

    def _is_served(self, client: Any, name: str) -> bool:
        """Whether searches use the index: until then, an interim one of Milvus' own, which overlooks more."""
        written = [one.num_rows for one in client.list_persistent_segments(name, timeout=self._reach.timeout_s)]
        if all(rows < MIN_INDEXED for rows in written):
            return True
        loaded = client.list_loaded_segments(name, timeout=self._reach.timeout_s)
        served = sum(one.num_rows for one in loaded if one.index_name or one.num_rows < MIN_INDEXED)
        return bool(served >= sum(written))

    async def erase(self, name: str) -> None:
        def erase(client: Any) -> None:
            client.flush(name, timeout=LOAD_S)
            client.compact(name, timeout=self._reach.timeout_s)

        await self._do(erase)

    async def close(self) -> None:
        for counting in self._counting:
            counting.cancel()
        client, self._client = self._client, None
        threads, self._threads = self._threads, None
        if client is not None:
            await asyncio.to_thread(client.close)
        if threads is not None:
            threads.shutdown(wait=False)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _query(
        self,
        name: str,
        where: str,
        fields: Sequence[str],
        *,
        limit: int | None = None,
        partition: str = ROWS,
        level: str = _OWN,
    ) -> list[dict[str, Any]]:
        more = {} if limit is None else {"limit": limit}

        def query(client: Any) -> list[dict[str, Any]]:
            found = client.query(
                name,
                where,
                list(fields),
                self._reach.timeout_s,
                partition_names=[partition],
                consistency_level=level,
                **more,
            )
            return list(map(dict, found))

        return await self._loaded(name, query)

    async def _write(self, name: str, work: Callable[[Any, float], Any]) -> None:
        patience = WRITE_PATIENCE * self._reach.timeout_s
        await self._loaded(name, lambda client: work(client, patience))

    async def _loaded(self, name: str, work: Callable[[Any], T]) -> T:
        """A server that was started anew has no collection in its memory before it is told."""
        try:
            return await self._do(work)
        except NotLoaded:
            await self._do(lambda client: client.load_collection(name, timeout=LOAD_S))
            try:
                return await self._do(work)
            except NotLoaded:
                raise StoreUnavailable(f"The collection {name!r} at {self.shown} is not loaded yet.", "") from None

    async def _do(self, work: Callable[[Any], T]) -> T:
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    self._client = await asyncio.to_thread(connect, self._server, self._reach)
                    self._threads = ThreadPoolExecutor(self._reach.max_connections, "milvus")
        client = self._client

        def call() -> T:
            try:
                return work(client)
            except Exception as error:
                raise translated(self._server, self._reach, error) from None  # its message may quote a text

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _schema(dimensions: int, description: str) -> Any:
    pymilvus = import_pymilvus()
    kinds = pymilvus.DataType
    schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True, description=description)
    schema.add_field(ID, kinds.VARCHAR, is_primary=True, max_length=MAX_LENGTH)
    schema.add_field(VECTOR, kinds.FLOAT_VECTOR, dim=dimensions)
    schema.add_field(TEXT, kinds.VARCHAR, max_length=MAX_LENGTH)
    for name in (MORE, METADATA):
        schema.add_field(
            name, kinds.ARRAY, element_type=kinds.VARCHAR, max_length=MAX_LENGTH, max_capacity=MAX_CAPACITY
        )
    schema.add_field(FACTS, kinds.ARRAY, element_type=kinds.INT64, max_capacity=MAX_CAPACITY)
    schema.add_field(LOOSE, kinds.BOOL)
    return schema


def _described(client: Any, name: str, timeout: float) -> Collection:
    found = client.describe_collection(name, timeout=timeout)
    dimensions = next((f["params"].get("dim") for f in found["fields"] if f["name"] == VECTOR), None)
    about: Mapping[str, Any] = {}
    try:
        said = json.loads(found.get("description") or "{}")
        about = said.get(ABOUT) or {} if isinstance(said, dict) else {}
    except ValueError:
        pass  # of another program
    metric = ""
    if VECTOR in client.list_indexes(name, VECTOR, timeout=timeout):
        metric = str(client.describe_index(name, VECTOR, timeout=timeout).get("metric_type") or "")
    return Collection(name, metric, None if dimensions is None else int(dimensions), about)
