"""From the row of a frozen view to the store that serves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whimbrel.catalog import adoptions, collections, log
from whimbrel.catalog.adoptions import AdoptionState
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.config.values import without_credentials
from whimbrel.domain import Position
from whimbrel.errors import NotFound
from whimbrel.stores.base import Reach, Vectors
from whimbrel.stores.foreign.base import Chosen, Database, IdKind, Source
from whimbrel.stores.foreign.frozen import FrozenStore, Shape
from whimbrel.stores.foreign.resolve import Address, open_database
from whimbrel.stores.metrics import Metric
from whimbrel.stores.resolve import same_place


class _Record:
    def __init__(self, catalog: Catalog, row: ViewRow, adopted: Path) -> None:
        self._catalog = catalog
        self._row = row
        self._adopted = adopted

    def source_ids(self, public_ids: Sequence[str]) -> Mapping[str, str]:
        with self._catalog.read() as connection:
            return adoptions.source_ids(connection, self._row, public_ids)

    def count(self) -> int:
        with self._catalog.read() as connection:
            return adoptions.count(connection, self._row)

    def position(self) -> Position | None:
        with self._catalog.read() as connection:
            try:
                view = collections.view(connection, self._row.id).view
            except NotFound:
                return None
            stamp = log.stamp_at(connection, view.collection_id, view.position)
        return Position(view.epoch, view.position, stamp or "")

    def folder(self) -> Path:
        """While rows are being taken in: another each time that they have doubled."""
        with self._catalog.read() as connection:
            adoption = adoptions.get(connection, self._row.id)
            view = collections.view(connection, self._row.id).view
        name = f"{view.name}-{int(adoption.counts.get('generation', 0))}"
        growing = adoption.state is AdoptionState.ADOPTING
        return self._adopted / (f"{name}-{view.position.bit_length()}" if growing else name)

    def coming(self) -> int | None:
        with self._catalog.read() as connection:
            if adoptions.get(connection, self._row.id).state is AdoptionState.ADOPTED:
                return None
            return collections.view(connection, self._row.id).view.position

    def generation(self) -> int:
        with self._catalog.read() as connection:
            return int(adoptions.get(connection, self._row.id).counts.get("generation", 0))

    def forget(self) -> None:
        shutil.rmtree(self.folder(), ignore_errors=True)
        with self._catalog.read() as connection:
            every = adoptions.every(connection)
        mine = next(one.source["scratch"] for one in every if one.view_id == self._row.id)
        if not any(one.source["scratch"] == mine for one in every if one.view_id != self._row.id):
            shutil.rmtree(self._adopted / str(mine), ignore_errors=True)

    def vectors(self) -> Iterator[tuple[Sequence[str], Vectors]]:
        with self._catalog.read() as connection:
            yield from adoptions.each_vector(connection, self._row)


def shape_of(source: Mapping[str, Any]) -> Shape:
    return Shape(
        name=str(source["scheme"]),
        dimensions=int(source["dimensions"]),
        metric=Metric(source["metric"] or Metric.COSINE),
        ids=IdKind(source["ids"]),
        normalised=bool(source["normalised"]),
        single_process=bool(source["single_process"]),
        indexed=bool(source["indexed"]),
        copied=bool(source.get("served")),
    )


def chosen_of(source: Mapping[str, Any]) -> Chosen:
    named = dict(source["chosen"])
    metric = named.pop("metric", None)
    return Chosen(**named, metric=Metric(metric) if metric else None)


def address_of(source: Mapping[str, Any], configured: Iterable[str], *, served: bool = True) -> Address:
    """Where the collection is, with the credentials that the configuration has for it. `served`: where it is searched,
    which is a copy of ours where opening the files themselves would change them."""
    if served and source.get("served"):
        return Address(str(source["scheme"]), str(source["served"]), str(source["collection"]))
    place = str(source["place"])
    whole = next((one for one in configured if without_credentials(one) != one and same_place(one, place)), place)
    return Address(str(source["scheme"]), whole, str(source["collection"]))


def frozen_store(
    row: ViewRow, catalog: Catalog, *, base: Path, adopted: Path, reach: Reach, configured: Iterable[str]
) -> FrozenStore:
    """Opens nothing yet."""
    with catalog.read() as connection:
        shape = shape_of(adoptions.get(connection, row.id).source)
    known = list(configured)

    def open_it() -> tuple[Database, Source]:
        with catalog.read() as connection:  # as it is now: another copy may have taken the place of the one before
            source = adoptions.get(connection, row.id).source
        address = address_of(source, known)
        database = open_database(address, base=base, scratch=None, reach=reach)
        return database, database.source(address.collection, chosen_of(source))

    return FrozenStore(shape, _Record(catalog, row, adopted), open_it)
