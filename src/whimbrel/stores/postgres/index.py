"""The indexes of a view's table: built when its rows are in, all at once.

Rows that come later are put into the graph one by one, at about a tenth of the rate at which a table without it takes
them. So as long as rows come faster than that, there is none.
"""

from __future__ import annotations

import re

import psycopg

from whimbrel.stores.postgres.pool import Link
from whimbrel.stores.postgres.table import MAX_HALF_DIMENSIONS, MAX_HNSW_DIMENSIONS, Table

MIN_ROWS = 5_000
"""Fewer are compared one by one, in under 10 ms."""
MAX_MEMORY_KB = 1024 * 1024
"""Of the server's memory for a build, at most, unless its own `maintenance_work_mem` is larger, or half of what it has
left is. A graph that does not fit is built on disk: a million vectors of 384 dimensions, which take 2.4 GB, in 13
minutes instead of 3, and searches with 200 candidates find .87 of the nearest instead of .97."""
_NODE_BYTES = 900
_FILES = (
    "/proc/meminfo",
    *("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    *("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""What a Linux server says of its memory; of its container's, in the second and the first version of control groups."""


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
    most = MAX_MEMORY_KB if needed <= MAX_MEMORY_KB else max(MAX_MEMORY_KB, await _left_kb(link) // 2)
    async with link.connection.transaction():
        await link.execute("SET LOCAL statement_timeout = 0")
        await link.execute(
            "SELECT set_config('maintenance_work_mem', greatest(setting::bigint, %s)::text || 'kB', true) "
            "FROM pg_settings WHERE name = 'maintenance_work_mem'",
            [min(needed, most)],
        )
        if not parallel:
            await link.execute("SET LOCAL max_parallel_maintenance_workers = 0")
        for statement in _definitions(table).values():
            await link.execute(statement)


async def _left_kb(link: Link) -> int:
    """Of the server's memory, and of what its container may take; 0 where it is not said: hardly a role but a
    superuser reads the server's files."""
    try:
        ((system, *groups),) = await link.fetch(_MEMORY)
    except (psycopg.ProgrammingError, psycopg.NotSupportedError):
        return 0
    found = re.search(r"^MemAvailable:\s*(\d+) kB", system or "", re.MULTILINE)
    left = int(found[1]) if found else 0
    for most, taken in zip(groups[::2], groups[1::2], strict=True):
        if (most or "").strip().isdigit() and (taken or "").strip().isdigit():
            left = min(left, max(0, int(most) - int(taken)) // 1024)
    return left


_MEMORY = f"""
SELECT {", ".join(f"pg_read_file('{name}', 0, 10000, true)" for name in _FILES)}
"""


def _definitions(table: Table) -> dict[str, str]:
    """The statement that makes each index, by its method. Postgres names them: a name of ours could be a table's."""
    made = {"gin": f"CREATE INDEX ON {table.name} USING gin (facts jsonb_path_ops)"}
    if table.dimensions <= MAX_HNSW_DIMENSIONS:
        made["hnsw"] = f"CREATE INDEX ON {table.name} USING hnsw (vector vector_cosine_ops)"
    elif table.dimensions <= MAX_HALF_DIMENSIONS:
        half = f"(vector::halfvec({table.dimensions})) halfvec_cosine_ops"
        made["hnsw"] = f"CREATE INDEX ON {table.name} USING hnsw ({half})"
    return made
