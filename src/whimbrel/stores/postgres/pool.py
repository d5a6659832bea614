"""Connections to one database, shared by all stores of an event loop that name it.

Bounded: `Reach.max_connections` statements run at once, the others wait for their turn. A connection is made when it
is needed, is kept for the next, and is looked at before it is used again, so that a server that was restarted costs no
failed search.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format, TransactionStatus

from whimbrel.errors import StoreUnavailable, StoreUnsupported
from whimbrel.stores.base import Reach
from whimbrel.stores.postgres.address import Address
from whimbrel.stores.postgres.faults import postgres_errors

T = TypeVar("T")

EF_SEARCH = 120
"""Candidates that a search of the index keeps, at least; and at least twice as many as are asked for."""
MAX_SCAN_TUPLES = 20_000
"""Rows that a search with a filter follows the index to before the filtered rows are compared one by one."""

MIN_SERVER = 140_000
MIN_PGVECTOR = (0, 8, 0)
"""The first with iterative scans: before, a filter that keeps 1 % of the rows left a search with none of them."""


class VectorBytes(bytes):
    """A vector as pgvector sends it; see `rows.pack_vector`."""


class _VectorDumper(Dumper):
    format = Format.BINARY
    oid = 0  # the server takes the type from the cast: `%b::vector`

    def dump(self, obj: VectorBytes) -> bytes:
        return obj


@dataclass(slots=True)
class Link:
    """One connection, in autocommit mode."""

    connection: psycopg.AsyncConnection[tuple[Any, ...]]
    server: int = 0
    """As 180004."""
    encoding: str = ""
    pgvector: str | None = None
    """Version of the extension in this database; None where it is not."""
    ef_search: int = EF_SEARCH

    async def greet(self, timeout_s: float) -> None:
        """Learn what the server is, and tell it our settings: one round trip. The server ends a statement that takes
        longer than `timeout_s`."""
        ((self.server, self.encoding, self.pgvector, *_),) = await self.fetch(_GREETING, [f"{timeout_s * 1000:.0f}"])
        self.ef_search = EF_SEARCH

    async def fetch(self, query: str, parameters: Any = None, *, prepare: bool | None = None) -> list[tuple[Any, ...]]:
        """All rows, as binary: one round trip."""
        cursor = self.connection.cursor(binary=True)
        await cursor.execute(query.encode(), parameters, prepare=prepare)
        return await cursor.fetchall()

    async def execute(self, query: str, parameters: Any = None) -> int:
        """The number of rows that it changed."""
        return (await self.connection.execute(query.encode(), parameters)).rowcount

    async def vacuum(self, statement: str) -> None:
        """A statement that stands outside of transactions, and takes as long as it takes."""
        ((limit,),) = await self.fetch("SELECT current_setting('statement_timeout')")
        await self.execute("SET statement_timeout = 0")
        await self.execute(statement)
        await self.execute(f"SET statement_timeout = '{limit}'")

    async def search_wide(self, candidates: int) -> None:
        """Let searches of the index keep as many candidates, from `EF_SEARCH` to pgvector's 1,000."""
        wanted = EF_SEARCH if candidates <= EF_SEARCH else min(1_000, -(-candidates // 100) * 100)
        if wanted != self.ef_search:
            await self.execute(f"SET hnsw.ef_search = {wanted}")
            self.ef_search = wanted

    def check(self, where: str) -> None:
        """Raises `StoreUnsupported` for a server, an extension or an encoding that cannot hold a view."""
        if self.server < MIN_SERVER:
            raise StoreUnsupported(
                f"{where} is of version {self.server // 10_000}; {MIN_SERVER // 10_000} is the first that can be used.",
                "Upgrade the server, or name another.",
            )
        if self.encoding != "UTF8":
            raise StoreUnsupported(
                f"The database ({where}) is encoded in {self.encoding}, which cannot hold every text.",
                "Make a database with ENCODING 'UTF8', and name that.",
            )
        if self.pgvector is None:
            raise StoreUnsupported(
                f"The database ({where}) has no extension `vector`.",
                "Install pgvector on the server, then run `CREATE EXTENSION vector` in the database.",
            )
        if _version(self.pgvector) < MIN_PGVECTOR:
            needed = ".".join(map(str, MIN_PGVECTOR))
            raise StoreUnsupported(
                f"The database ({where}) has pgvector {self.pgvector}; {needed} is the first that can be used.",
                "Install a newer one on the server, then run `ALTER EXTENSION vector UPDATE` in the database.",
            )


class Pool:
    def __init__(self, address: Address, reach: Reach) -> None:
        self.address = address
        self.reach = reach
        self.users = 0
        self._free = asyncio.Semaphore(reach.max_connections)
        self._idle: list[Link] = []
        self._behind: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """A connection for this block alone. Raises `StoreUnavailable` and `StoreRefused`."""
        await self._turn()
        try:
            link = await self._take() or await self._connect()
            try:
                yield link
            finally:
                await self._give(link)
        finally:
            self._free.release()

    async def read(self, what: str, work: Callable[[Link], Awaitable[T]]) -> T:
        """What `work` reads with a connection. Who is cancelled, or has waited too long, goes at once: the statement
        is cancelled behind him, which may take seconds where the server does not answer."""

        async def run() -> T:
            async with self.link() as link:
                with postgres_errors(what):
                    return await work(link)

        task = asyncio.ensure_future(run())
        try:
            done, _ = await asyncio.wait({task}, timeout=self.reach.connect_timeout_s + 2 * self.reach.timeout_s)
        except asyncio.CancelledError:
            self._leave_behind(task)
            raise
        if not done:
            self._leave_behind(task)
            raise _no_answer(what)
        return task.result()

    async def close(self) -> None:
        await asyncio.gather(*self._behind, return_exceptions=True)
        while self._idle:
            await self._idle.pop().connection.close()

    def _leave_behind(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def _turn(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(self.reach.timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnavailable(
                f"{self.address.shown}: all {self.reach.max_connections} connections were in use for "
                f"{self.reach.timeout_s:.0f} s.",
                "Try again later.",
            ) from None

    async def _take(self) -> Link | None:
        while self._idle:
            link = self._idle.pop()
            if not _has_news(link.connection.fileno()):
                return link
            await link.connection.close()
        return None

    async def _give(self, link: Link) -> None:
        usable = not link.connection.closed and link.connection.info.transaction_status == TransactionStatus.IDLE
        if usable and self.users:
            self._idle.append(link)
        else:
            await link.connection.close()

    async def _connect(self) -> Link:
        given = psycopg.conninfo.conninfo_to_dict(self.address.conninfo)
        connecting = {"connect_timeout": max(2, round(self.reach.connect_timeout_s)), **_CONNECTING}  # 2: libpq's least
        with postgres_errors(f"{self.address.shown}: cannot connect"):
            connection = await psycopg.AsyncConnection.connect(
                self.address.conninfo,
                autocommit=True,
                **{name: value for name, value in connecting.items() if name not in given},
                client_encoding="utf8",
            )
            connection.adapters.register_dumper(VectorBytes, _VectorDumper)
            link = Link(connection)
            try:
                await link.greet(self.reach.timeout_s)
            except BaseException:
                await connection.close()
                raise
        return link


_CONNECTING: dict[str, Any] = {
    "application_name": "whimbrel",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}

_GREETING = f"""
SELECT current_setting('server_version_num')::int,
       (SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()),
       (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
       set_config('search_path', 'pg_catalog, ' || coalesce((
           SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
           WHERE extname = 'vector'), 'public'), false),
       set_config('statement_timeout', %s, false),
       set_config('idle_in_transaction_session_timeout', '0', false),
       set_config('jit', 'off', false),
       set_config('hnsw.ef_search', '{EF_SEARCH}', false),
       set_config('hnsw.iterative_scan', 'relaxed_order', false),
       set_config('hnsw.max_scan_tuples', '{MAX_SCAN_TUPLES}', false)
"""
"""Compiling a plan (jit) costs more than any of ours takes."""


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, Reach], Pool]] = WeakKeyDictionary()


def pool_of(address: Address, reach: Reach) -> Pool:
    """The running loop's pool for a database, with one more user. Each calls `leave` once."""
    pools = _pools.setdefault(asyncio.get_running_loop(), {})
    pool = pools.get((address.conninfo, reach))
    if pool is None:
        pool = pools[address.conninfo, reach] = Pool(address, reach)
    pool.users += 1
    return pool


async def leave(pool: Pool) -> None:
    """The last user closes the connections."""
    pool.users -= 1
    if not pool.users:
        _pools.get(asyncio.get_running_loop(), {}).pop((pool.address.conninfo, pool.reach), None)
        await pool.close()


@asynccontextmanager
async def bounded(seconds: float, what: str) -> AsyncIterator[None]:
    """For what the server should have ended itself: raises `StoreUnavailable` where it does not answer at all."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise _no_answer(what) from None


def _no_answer(what: str) -> StoreUnavailable:
    return StoreUnavailable(f"{what}: the server does not answer.", "Nothing was lost. Try again later.")


def _has_news(socket: int) -> bool:
    """Whether something came on a connection that asked for nothing: mostly that the server has closed it."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([socket], [], [], 0)[0])
    poller = select.poll()
    poller.register(socket, select.POLLIN)
    return bool(poller.poll(0))


def _version(said: str) -> tuple[int, ...]:
    return tuple(int(part) for part in said.split(".") if part.isdigit())
