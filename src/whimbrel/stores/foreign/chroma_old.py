"""Chroma before 0.4: a folder with two Parquet files, as its DuckDB wrote them. Read only.

    chroma-collections.parquet   uuid, name, metadata (JSON)
    chroma-embeddings.parquet    collection_uuid, uuid, id, document, metadata (JSON), embedding (double[])

It wrote both anew on each `persist`; no client of today opens them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whimbrel.errors import BadInput, StoreUnsupported, ViewDamaged
from whimbrel.stores.chroma.folder import DATABASE
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.arrow import dimensions_of, vectors_of
from whimbrel.stores.foreign.base import Chosen, Database, Fetched, Id, IdKind, Rows, Sink, Source, Table
from whimbrel.stores.foreign.layout import not_chosen
from whimbrel.stores.foreign.parquet import Stream, batches_of, parquet_errors, version_of
from whimbrel.stores.metrics import Metric

COLLECTIONS = "chroma-collections.parquet"
EMBEDDINGS = "chroma-embeddings.parquet"

_METRICS = {"l2": Metric.L2, "cosine": Metric.COSINE, "ip": Metric.DOT}
_SPACE = "hnsw:space"
_SAMPLE_ROWS = 200


def is_old(folder: Path) -> bool:
    """Whether it has only these files; a folder that Chroma's own tool has migrated has today's database as well."""
    return (folder / EMBEDDINGS).is_file() and not (folder / DATABASE).is_file()


class OldFolder(Database):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shown = f"the Chroma 0.3 folder {folder}"

    async def collections(self) -> Sequence[str]:
        return sorted(one.name for one in await asyncio.to_thread(_collections, self._folder))

    def source(self, name: str, chosen: Chosen) -> Source:
        not_chosen(chosen, self.shown, *(["id"] if chosen.id != "uuid" else []), "vector", "metric")
        return OldSource(self._folder, name, chosen)

    def sink(self, name: str) -> Sink:
        raise StoreUnsupported(
            f"{self._folder} is a folder of Chroma before 0.4, which is only read. Nothing was changed.",
            "Name another folder for the target.",
        )


@dataclass(frozen=True, slots=True)
class _Collection:
    uuid: str
    name: str
    metadata: Mapping[str, Any]


class OldSource(Source):
    def __init__(self, folder: Path, name: str, chosen: Chosen) -> None:
        self._folder = folder
        self._name = name
        self._chosen = chosen
        self._table: Table | None = None
        self._uuid = ""
        self._stream: Stream | None = None
        self._turn = asyncio.Lock()

    async def describe(self) -> Table:
        return await asyncio.to_thread(self._describe)

    async def version(self) -> str | None:
        return await asyncio.to_thread(self._version)

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        await self._known()
        rows = self._rows(["collection_uuid", "id", "uuid"])
        while (batch := await asyncio.to_thread(next, rows, None)) is not None:
            yield self._ids(batch)

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        table = await self._known()
        async with self._turn:
            if places is None:
                return await asyncio.to_thread(self._search, table, set(ids))
            return await asyncio.to_thread(self._take, table, places)

    async def close(self) -> None:
        self._stream = None

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _known(self) -> Table:
        return self._table or await self.describe()

    def _version(self) -> str:
        with parquet_errors(f"The folder {self._folder} cannot be read"):
            return version_of([self._folder / COLLECTIONS, self._folder / EMBEDDINGS])

    def _describe(self) -> Table:
        every = _collections(self._folder)
        named = [one for one in every if one.name == self._name]
        if not named:
            raise absent("collection", self._name, str(self._folder), [one.name for one in every])
        found = named[0]
        self._uuid = found.uuid
        said = found.metadata.get(_SPACE, "l2")
        if said not in _METRICS:
            raise BadInput(f"The collection {self._name!r} has the metric {said!r}, which is not known here.")
        self._table = Table(
            self._name,
            self._dimensions(),
            _METRICS[said],
            IdKind.STR,
            about=found.metadata,
            notes=["vectors of 64-bit numbers are rounded to 32 bits"],
            identity=f"chroma {found.uuid}",
            version=self._version(),
        )
        return self._table

    def _dimensions(self) -> int:
        for batch in self._rows(["collection_uuid", "embedding"]):
            if dimensions := dimensions_of(batch["embedding"].slice(0, _SAMPLE_ROWS)):
                return dimensions
        return 0

    def _rows(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Those of the collection, in their order."""
        for batch in batches_of(self._folder / EMBEDDINGS, columns):
            mine = batch.filter(pc.equal(pc.cast(batch["collection_uuid"], pa.string()), self._uuid))
            if mine.num_rows:
                yield mine

    def _ids(self, rows: pa.Table) -> list[Id]:
        """Chroma's own id of a row, where its user gave none, or where the user's is not unique (`--id uuid`)."""
        own = [str(one) for one in rows["uuid"].to_pylist()]
        if self._chosen.id == "uuid":
            return list(own)
        return [mine if given is None else str(given) for given, mine in zip(rows["id"].to_pylist(), own, strict=True)]

    def _take(self, table: Table, places: Sequence[int]) -> Fetched:
        if self._stream is None or places[0] < self._stream.at:
            self._stream = Stream(self._rows())
        return self._read(self._stream.take(places), table.dimensions)

    def _search(self, table: Table, ids: set[Id]) -> Fetched:
        parts = []
        for batch in self._rows():
            keep = [id_ in ids for id_ in self._ids(batch)]
            if any(keep):
                parts.append(batch.filter(pa.array(keep)))
        if not parts:
            return Fetched(Rows.none(table.dimensions))
        return self._read(pa.concat_tables(parts), table.dimensions)

    def _read(self, found: pa.Table, dimensions: int) -> Fetched:
        ids = self._ids(found)
        vectors, unfit = vectors_of(found["embedding"], dimensions)
        metadata = [_object(one, self._folder / EMBEDDINGS) for one in found["metadata"].to_pylist()]
        rows = Rows(ids, vectors.astype(np.float32, copy=False), found["document"].to_pylist(), metadata)
        if not unfit:
            return Fetched(rows)
        kept = [row for row in range(len(ids)) if row not in unfit]
        return Fetched(rows.taken(kept), {ids[row]: why for row, why in unfit.items()})


def _collections(folder: Path) -> list[_Collection]:
    file = folder / COLLECTIONS
    if not file.is_file():
        raise ViewDamaged(
            f"The folder {folder} of Chroma 0.3 lacks {COLLECTIONS}. Nothing was copied.",
            f"Without it: `whimbrel copy parquet:{folder}/chroma-embeddings ... --id uuid`.",
        )
    rows = [row for batch in batches_of(file, ["uuid", "name", "metadata"]) for row in batch.to_pylist()]
    return [_Collection(str(row["uuid"]), row["name"], _object(row["metadata"], file)) for row in rows]


def _object(written: str | None, file: Path) -> dict[str, Any]:
    try:
        said = json.loads(written) if written is not None else None
    except (ValueError, RecursionError) as error:
        raise ViewDamaged(f"{file} has metadata that is no JSON.", "Restore the file.") from error
    return said if isinstance(said, dict) else {}
