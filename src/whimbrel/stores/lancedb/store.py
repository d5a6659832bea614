"""The store: one LanceDB table holding one view."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whimbrel.domain import Matches, Position, Space
from whimbrel.errors import Conflict, Forbidden, SpaceMismatch, StoreUnsupported, ViewDamaged
from whimbrel.filters import OPERATORS, Filter, matches
from whimbrel.stores.arrays import CodedMetadata, Texts
from whimbrel.stores.base import DENSE, OTHER_SPACE, REBUILD, Metric, Reach, Records, Store, StoreInfo
from whimbrel.stores.envelope import loads
from whimbrel.stores.lancedb import maintain
from whimbrel.stores.lancedb.columns import FIXED, ID, METADATA, TEXT, VECTOR, Columns, encode, table_schema
from whimbrel.stores.lancedb.library import checked, connect, lance_errors
from whimbrel.stores.lancedb.where import compile_filter, ids_in
from whimbrel.stores.metrics import scores
from whimbrel.stores.records import checked_query, writable

if TYPE_CHECKING:
    from lancedb.db import AsyncConnection
    from lancedb.table import AsyncTable

PROBES = 64
"""Partitions of the index, of about 4,000 rows each, that a search without a filter reads. Up to 250,000 rows that is
all of them; recall@10 on MiniLM vectors is 1.00 there, and 0.99 at 1,000,000 rows for half the time of reading all."""

CANDIDATES = 100
"""Rows whose distance is computed exactly, at least; and at least twice as many as are asked for. Each costs about a
read of the file, and most of a search's time goes into those."""

READ_AGAIN = 2
"""Times that a search of what seems damaged is made again: damage stays, a version that an erasure without grace took
away while it was read does not."""

_POSITION = "whimbrel:position"
_FORMAT_KEY, _FORMAT = b"whimbrel:format", 1
_IDS_PER_QUERY = 10_000
_MAX_TIES = 4_096


class LanceStore(Store):
    """A table named `name` in the LanceDB folder `folder`: a path, or a URI of object storage (`s3://BUCKET/PATH`).

    The score is that of the cosine similarity, computed from the full vectors. Handles in any number of
    processes see each commit at once; one process may write. Raises `ViewDamaged` when files are missing or are not
    what was written, `SpaceMismatch` when the table's vectors have other dimensions, `DiskFull`, and `HomeError` when
    the folder refuses.
    """

    def __init__(
        self,
        folder: Path | str,
        name: str,
        space: Space,
        *,
        read_only: bool = False,
        max_metadata_columns: int = 200,
    ) -> None:
        self._folder = folder
        self._name = name
        self._space = space
        self._read_only = read_only
        self._max_columns = max_metadata_columns
        self._connection: AsyncConnection | None = None
        self._table: AsyncTable | None = None
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._columns: tuple[int, Columns | None] = (-1, None)
        self._schema: pa.Schema | None = None
        self._maintain_from = 0.0
        self._in_bulk = False

    @classmethod
    def at(cls, uri: str, name: str, space: Space, *, base: Path, read_only: bool, reach: Reach) -> Self:
        """The store at `lancedb:PATH`, relative to `base`, or at `lancedb:s3://BUCKET/PATH`, whose keys and region come
        from the environment (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT`, ...)."""
        where = uri.partition(":")[2] or "views"
        folder = where if "://" in where else base / Path(where).expanduser()
        return cls(folder, name, space, read_only=read_only)

    @property
    def path(self) -> Path | None:
        """The table's own folder; None on object storage."""
        return self._folder / f"{self._name}.lance" if isinstance(self._folder, Path) else None

    # --- the table itself --------------------------------------------------------------------------------------------

    async def create(self) -> None:
        self._check_writable()
        taken = Conflict(
            f"There is a table {self._name!r} in {self._folder} already. Nothing was changed.", "Name another folder."
        )
        if await self.exists():
            raise taken
        schema = table_schema(
            self._space.dimensions, {_FORMAT_KEY.decode(): str(_FORMAT), "whimbrel:space": self._space.key}
        )
        with lance_errors(f"Table {self._name!r} could not be made"):
            self._connection = self._connection or await connect(self._folder)
            try:
                self._table = await self._connection.create_table(self._name, schema=schema)
            except ValueError as error:  # another was quicker
                raise (taken if "already exists" in str(error) else error) from error

    async def exists(self) -> bool:
        if self.path is None:
            return await self._exists_remotely()
        # A folder without a version is what a process leaves that was killed while making the table.
        versions = self.path / "_versions"
        return await asyncio.to_thread(lambda: versions.is_dir() and any(versions.iterdir()))

    async def _exists_remotely(self) -> bool:
        with lance_errors(f"Table {self._name!r} in {self._folder}: cannot be looked for"):
            connection = self._connection = self._connection or await connect(self._folder)
            try:
                (await connection.open_table(self._name)).close()  # type: ignore[no-untyped-call]
            except ValueError as error:
                if "was not found" in str(error):
                    return False
                raise
        return True

    async def drop(self) -> None:
        self._check_writable()
        await self.close()
        if self.path is not None and not await asyncio.to_thread(self.path.exists):
            return
        with lance_errors(f"Table {self._name!r} could not be dropped"):
            connection = await connect(self._folder)
            await connection.drop_table(self._name, ignore_missing=True)
            connection.close()  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        if self._table is not None:
            self._table.close()  # type: ignore[no-untyped-call]
        if self._connection is not None:
            self._connection.close()  # type: ignore[no-untyped-call]
        self._table = self._connection = self._schema = None

    def describe(self) -> StoreInfo:
        return StoreInfo(
            name="lancedb",
            metric=Metric.COSINE,
            dimensions=self._space.dimensions,
            filter_operators=OPERATORS,
            snapshots=True,
            cannot=["two processes that write at once", "data and position in one commit"],
        )

    async def count(self) -> int:
        table = await self._open()
        with lance_errors(self._cannot("count")):
            return await table.count_rows()

    # --- writing -----------------------------------------------------------------------------------------------------

    async def upsert(self, records: Records, *, new: bool = False) -> None:
        self._check_writable()
        if not len(records):
            return
        records = writable(records, self._space.dimensions)
        table = await self._open()
        async with self._writing:
            with lance_errors(self._cannot("write")):
                try:
                    batch = await self._batch(table, records)
                    if new:
                        await table.add(batch)
                    else:
                        merge = table.merge_insert(ID).when_matched_update_all().when_not_matched_insert_all()
                        await merge.execute(batch)
                except BaseException:
                    self._schema = None  # read it anew, in case that another wrote it
                    raise

    async def delete(self, ids: Sequence[str]) -> None:
        self._check_writable()
        if not ids:
            return
        table = await self._open()
        async with self._writing:
            with lance_errors(self._cannot("delete")):
                for start in range(0, len(ids), _IDS_PER_QUERY):
                    await table.delete(ids_in(ids[start : start + _IDS_PER_QUERY]))

    async def position(self) -> Position | None:
        table = await self._open()
        with lance_errors(self._cannot("read")):
            about = (await table.schema()).field(ID).metadata or {}
        stored = about.get(_POSITION.encode())
        return Position(*json.loads(stored)) if stored else None

    async def set_position(self, position: Position) -> None:
        """A commit of its own, of 1.4 ms: LanceDB takes no data and metadata in one. It comes after the data's, so that
        a process killed between the two leaves a position behind the data, and the batch is applied again."""
        self._check_writable()
        table = await self._open()
        stored = json.dumps([position.epoch, position.position, position.stamp])
        async with self._writing:
            with lance_errors(self._cannot("write")):
                await table.update_field_metadata({"path": ID, "metadata": {_POSITION: stored}})

    async def begin_bulk(self) -> None:
        self._check_writable()
        self._in_bulk = True

    async def end_bulk(self) -> None:
        """Train the index on all rows, where there are enough for one."""
        self._check_writable()
        self._in_bulk = False
        await self._maintain_where(maintain.is_unfinished)

    async def maintain(self, *, full: bool = False) -> None:
        """In a process of its own, when due: indexing and compaction peak at 0.4 to 1.1 GB. Reads go on meanwhile.
        Within a bulk load nothing is due but what keeps its commits small."""
        self._check_writable()
        began = time.monotonic()

        async def is_due(table: AsyncTable) -> bool:
            if full:
                return True
            if self._in_bulk:
                return await maintain.is_fragmented(table)
            return await maintain.is_due(table, self.path, put_off=began < self._maintain_from)

        if await self._maintain_where(is_due, full=full):
            ended = time.monotonic()
            self._maintain_from = ended + maintain.PAUSE * (ended - began)

    async def settle(self) -> None:
        """Index the last rows. A search reads the vectors of those that are not whole: 3,000 cost it 5 MB each time."""
        self._check_writable()
        await self._maintain_where(maintain.is_behind)

    async def _maintain_where(self, is_due: Callable[[AsyncTable], Awaitable[bool]], *, full: bool = False) -> bool:
        """Whether it was due, and has been done."""
        table = await self._open()
        async with self._writing:
            with lance_errors(self._cannot("maintain")):
                due = await is_due(table)
            if due:
                await maintain.run(self._folder, self._name, full=full)
        return due

    async def erase(self, *, grace_s: float) -> None:
        """Rewrites every data file that holds a deleted row, then removes versions older than `grace_s` and what killed
        writers left. A handle that still reads an older version fails: under an hour only where none is open."""
        self._check_writable()
        await self._open()
        async with self._writing:
            await maintain.run(self._folder, self._name, erase_grace_s=grace_s)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Records:
        table = await self._open()
        found: list[pa.RecordBatch] = []
        with lance_errors(self._cannot("read")):
            for start in range(0, len(ids), _IDS_PER_QUERY):
                query = table.query().where(ids_in(ids[start : start + _IDS_PER_QUERY])).select(list(FIXED))
                found += (await query.to_arrow()).to_batches()
        return Records.joined([self._records(rows) for rows in found], self._space.dimensions)

    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        table = await self._open()
        with lance_errors(self._cannot("read")):
            stream = await table.query().select(list(FIXED)).to_batches(max_batch_length=batch)
        async for rows in checked(self._cannot("read"), stream):
            if rows.num_rows:
                yield self._records(rows)

    async def ids(self) -> list[str]:
        table = await self._open()
        with lance_errors(self._cannot("read")):
            found: list[str] = (await table.query().select([ID]).to_arrow())[ID].to_pylist()
        return found

    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        vector = checked_query(vector, self._space.dimensions)
        if k <= 0 or (ids is not None and not ids):
            return Matches([], np.zeros(0, np.float32))
        for _ in range(READ_AGAIN):
            with suppress(ViewDamaged):
                return await self._search(vector, k, where, ids)
        return await self._search(vector, k, where, ids)

    async def _search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None, ids: Sequence[str] | None
    ) -> Matches:
        table = await self._open()
        with lance_errors(self._cannot("search")):
            if where is None:
                return await self._nearest(table, vector, k, None, Columns(), ids)
            columns = self._columns[1] or await self._known_columns(table)
            while True:
                found = await self._nearest(table, vector, k, where, columns, ids)
                # A column that another process added since is not in the SQL: ask again.
                latest = await self._known_columns(table)
                if latest == columns:
                    return found
                columns = latest

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _nearest(
        self,
        table: AsyncTable,
        vector: npt.NDArray[np.float32],
        k: int,
        where: Filter | None,
        columns: Columns,
        ids: Sequence[str] | None,
    ) -> Matches:
        compiled = compile_filter(where, columns) if where else None
        conditions = [compiled.sql] if compiled else []
        conditions += [ids_in(ids)] if ids is not None else []
        unchecked = where if compiled and not compiled.exact else None
        window = k + 1 if unchecked is None else 4 * k  # one more tells whether the last place is tied
        everywhere = bool(conditions)  # what passes a filter is spread over all partitions
        while True:
            query = table.query().nearest_to(vector).column(VECTOR).distance_type("cosine").limit(window)
            query = query.refine_factor(max(2, math.ceil(CANDIDATES / window))).nprobes(PROBES)
            if everywhere:
                query = query.maximum_nprobes(0)
            if conditions:
                query = query.where(" AND ".join(conditions))
            rows = await query.select([ID, "_distance", *([METADATA] if unchecked else [])]).to_arrow()
            hits = list(zip(rows["_distance"].to_pylist(), rows[ID].to_pylist(), strict=True))
            if unchecked:
                passing = [matches(unchecked, one) for one in map(loads, rows[METADATA].to_pylist())]
                hits = [hit for hit, passes in zip(hits, passing, strict=True) if passes]
            exhausted = rows.num_rows < window
            if exhausted and not everywhere:
                everywhere = True
                continue
            tied = not exhausted and len(hits) > k and hits[k - 1][0] == hits[-1][0] and window < max(_MAX_TIES, 2 * k)
            if exhausted or (len(hits) >= k and not tied):
                break
            window *= 4
        best = sorted(hits)[:k]
        similarities = 1.0 - np.array([distance for distance, _ in best], np.float64)
        return Matches([id_ for _, id_ in best], scores(Metric.COSINE, similarities))

    async def _open(self) -> AsyncTable:
        if self._table is not None:
            return self._table
        async with self._opening:
            if self._table is not None:
                return self._table
            if not await self.exists():
                raise ViewDamaged(f"There is no table {self._name!r} in {self._folder}.", REBUILD)
            with lance_errors(self._cannot("open")):
                self._connection = self._connection or await connect(self._folder)
                table = await self._connection.open_table(self._name)
                schema = await table.schema()
            self._check_schema(schema)
            self._table = table
            return table

    def _check_schema(self, schema: pa.Schema) -> None:
        missing = [name for name in FIXED if name not in schema.names]
        if missing:
            raise ViewDamaged(f"Table {self._name!r} lacks the columns {', '.join(missing)}.", REBUILD)
        vector, dimensions = schema.field(VECTOR).type, self._space.dimensions
        if not pa.types.is_fixed_size_list(vector) or vector.list_size != dimensions:
            raise SpaceMismatch(
                f"Table {self._name!r} holds {vector}; its view's space has {dimensions} dimensions.", OTHER_SPACE
            )
        key = (schema.metadata or {}).get(b"whimbrel:space", self._space.key.encode()).decode()
        if key != self._space.key:
            raise SpaceMismatch(
                f"Table {self._name!r} holds vectors of the space {key}; its view's is {self._space.key}, of "
                f"{self._space.model}.",
                OTHER_SPACE,
            )
        format_ = int((schema.metadata or {}).get(_FORMAT_KEY, _FORMAT))
        if format_ > _FORMAT:
            raise StoreUnsupported(
                f"Table {self._name!r} was written by a newer version of Whimbrel. Nothing was changed.",
                "Update Whimbrel here.",
            )

    async def _known_columns(self, table: AsyncTable) -> Columns:
        version = await table.version()
        known, columns = self._columns
        if version != known or columns is None:
            latest = Columns.read(await table.schema())
            # An equal value keeps its identity, so that comparing two is quick.
            columns = columns if columns == latest else latest
            self._columns = (version, columns)
        return columns

    async def _batch(self, table: AsyncTable, records: Records) -> pa.Table:
        """The rows under the table's whole schema, which gets the columns that they need first.

        What the schema was at the last write is remembered: no other process writes to it.
        """
        schema = self._schema or await table.schema()
        known = Columns.read(schema)
        encoded = encode(records.metadata, known, self._max_columns)
        if fields := encoded.columns.fields_beyond(known):
            await table.add_columns(pa.schema(fields))  # of nulls: a commit of 1 ms, no file is rewritten
            schema = await table.schema()
        self._schema = schema
        flat = pa.FixedSizeListArray.from_arrays(pa.array(records.vectors[DENSE].reshape(-1)), self._space.dimensions)
        arrays = {ID: Texts.of(records.ids).arrow, TEXT: Texts.of(records.texts).arrow, VECTOR: flat, **encoded.arrays}
        rows = len(records)
        return pa.table([arrays.get(f.name, pa.nulls(rows, f.type)) for f in schema], schema=schema)

    def _records(self, rows: pa.RecordBatch) -> Records:
        """The rows as they lie in the batch's arrays."""
        vectors = rows[VECTOR].flatten().to_numpy(zero_copy_only=False).reshape(-1, self._space.dimensions)
        metadata = CodedMetadata.from_json(rows[METADATA])
        return Records(Texts(rows[ID]), {DENSE: vectors}, Texts(rows[TEXT]), metadata)

    def _check_writable(self) -> None:
        if self._read_only:
            raise Forbidden(f"Table {self._name!r} was opened to be read only. Nothing was written.")

    def _cannot(self, verb: str) -> str:
        return f"Table {self._name!r} in {self._folder}: cannot {verb}"
