"""The indexes of a view's table: built when its rows are in, all at once.

Rows that come later are put into the graph one by one, at about a tenth of the rate at which a table without it takes
them. So as long as rows come faster than that, there is none.
"""

from __future__ import annotations

import psycopg

from whimbrel.stores.postgres.pool import Link
from whimbrel.stores.postgres.table import MAX_HALF_DIMENSIONS, MAX_HNSW_DIMENSIONS, Table

MIN_ROWS = 5_000
"""Fewer are compared one by one, in under 10 ms."""
MAX_MEMORY_KB = 1024 * 1024
"""Of the server's memory for a build, at most, unless its own `maintenance_work_mem` is larger. A graph that does not
fit is built on disk, much slower: a million vectors of 384 dimensions take 2.4 GB."""
_NODE_BYTES = 900


async def is_built(link: Link, table: Table) -> bool:
    found = await link.fetch(
        "SELECT a.amname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam "
        "WHERE i.indrelid = to_regclass(%s) AND i.indisvalid",
        [table.name],
    )
    return set(_definitions(table)) <= {method for (method,) in found}


async def build(link: Link, table: Table, rows: int) -> None:
    """Both indexes. Searches go on meanwhile, writes wait. `VACUUM (ANALYZE)` is due then: plans depend on it."""
    try:
        await _build(link, table, rows, parallel=True)
    except psycopg.errors.DiskFull:
        # Shared memory, not a disk: a container has 64 MB of it unless told otherwise. One process needs none.
        await _build(link, table, rows, parallel=False)


async def _build(link: Link, table: Table, rows: int, *, parallel: bool) -> None:
    needed = rows * (4 * table.dimensions + _NODE_BYTES) * 11 // 10 // 1024
    async with link.connection.transaction():
        await link.execute("SET LOCAL statement_timeout = 0")
        await link.execute(
            "SELECT set_config('maintenance_work_mem', greatest(setting::bigint, %s)::text || 'kB', true) "
            "FROM pg_settings WHERE name = 'maintenance_work_mem'",
            [min(needed, MAX_MEMORY_KB)],
        )
        if not parallel:
            await link.execute("SET LOCAL max_parallel_maintenance_workers = 0")
        for statement in _definitions(table).values():
            await link.execute(statement)


def _definitions(table: Table) -> dict[str, str]:
    """The statement that makes each index, by its method. Postgres names them: a name of ours could be a table's."""
    made = {"gin": f"CREATE INDEX ON {table.name} USING gin (facts jsonb_path_ops)"}
    if table.dimensions <= MAX_HNSW_DIMENSIONS:
        made["hnsw"] = f"CREATE INDEX ON {table.name} USING hnsw (vector vector_cosine_ops)"
    elif table.dimensions <= MAX_HALF_DIMENSIONS:
        half = f"(vector::halfvec({table.dimensions})) halfvec_cosine_ops"
        made["hnsw"] = f"CREATE INDEX ON {table.name} USING hnsw ({half})"
    return made
