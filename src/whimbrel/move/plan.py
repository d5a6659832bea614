"""What a move would take: rows and bytes, what would be lost, how long, on what disk. Changes nothing."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whimbrel.catalog import rows, sizes
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.sizes import Sizes
from whimbrel.config import mask_url
from whimbrel.errors import BadInput
from whimbrel.guards.prices import Prices
from whimbrel.home import Home
from whimbrel.models.embedders.base import Embedder
from whimbrel.move import losses
from whimbrel.move.estimates import Cut, Embedding, cut_sample, embed_sample
from whimbrel.move.leftovers import Leftovers, Opener
from whimbrel.move.losses import Loss
from whimbrel.move.trial import Trial, folder_of, tried
from whimbrel.move.wish import Wish
from whimbrel.stores.base import DENSE, Records, Store, StoreInfo
from whimbrel.stores.envelope import dumps

PLACES, EACH = 20, 100
"""Rows that are tried: so many runs of so many, evenly over the collection; and the largest."""
LARGEST = 20
VECTOR_BYTES = 4
"""Of one component."""

Tell = Callable[[str], None]
"""Called with what is being done."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of the move."""

    uri: str
    """Without a secret."""
    store: str
    embedder: str
    dimensions: int
    chunking: str


@dataclass(frozen=True, slots=True)
class Bytes:
    """Of all rows, as they travel: before what a database adds."""

    vectors: int
    texts: int
    metadata: int

    @property
    def total(self) -> int:
        return self.vectors + self.texts + self.metadata


@dataclass(frozen=True, slots=True)
class Seconds:
    """From a sample, on this machine as busy as it is now; None where nothing could be measured."""

    cutting: float | None
    embedding: float | None
    reading: float | None
    writing: float | None
    indexing: float | None
    verifying: float | None

    @property
    def total(self) -> float | None:
        """Of all parts, one after another. None where one that is needed could not be measured."""
        parts = [self.cutting, self.embedding, self.reading, self.writing, self.indexing, self.verifying]
        return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class Room:
    """What one place has to take."""

    what: str
    """`target`, or `catalog`, which keeps the vectors of record."""
    needed: int
    """Bytes."""
    free: int | None
    """Bytes; None where that cannot be told from here: on a server."""


@dataclass(frozen=True, slots=True)
class Plan:
    collection: str
    source: End
    target: End
    documents: int
    rows: int
    """Chunks that the target would hold; an estimate where `cut` says so."""
    bytes: Bytes
    losses: Sequence[Loss]
    cut: Cut | None
    """Set where the chunking changes."""
    embedding: Embedding | None
    """Set where texts have no vector of record in the target's space, or may have none."""
    seconds: Seconds
    room: Sequence[Room]
    sampled: int
    """Rows that were written to a scratch table and read again; 0 where the target cannot take them."""

    @property
    def stopped(self) -> bool:
        """Something that the losses name stands in the move's way."""
        return any(loss.stops for loss in self.losses)

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        found = asdict(self)
        found["bytes"]["total"] = self.bytes.total
        found["seconds"]["total"] = self.seconds.total
        found["seconds"] = {name: None if of is None else round(of, 3) for name, of in found["seconds"].items()}
        return {**found, "stopped": self.stopped}


def cheap(found: Sizes, wish: Wish, source: StoreInfo | None, target: StoreInfo) -> dict[str, Any]:
    """What the row of a move keeps of its plan: counted, not measured. `source`: None where it cannot be asked."""
    vectors = found.chunks * wish.space.dimensions * VECTOR_BYTES
    return {
        "rows": found.chunks,
        "documents": found.documents,
        "bytes": {"vectors": vectors, "text_chars": found.chunk_chars},
        "losses": [asdict(one) for one in losses.of_store(wish, source, target)] if source is not None else None,
    }


class Planner:
    """`embedder` gives that of the target's space, where one is needed. `opened(uri, table, space)` opens a store for
    writing; nothing but scratch tables is ever made with it."""

    def __init__(
        self,
        catalog: Catalog,
        wish: Wish,
        opened: Opener,
        embedder: Callable[[], Embedder],
        prices: Prices,
        home: Home,
        tell: Tell,
    ) -> None:
        self._catalog = catalog
        self._wish = wish
        self._opened = opened
        self._embedder = embedder
        self._prices = prices
        self._base = home.path
        self._plans = home.plans
        self._tell = tell
        self._key = (wish.collection.id, wish.store.view.chunking_id)

    async def plan(self) -> Plan:
        """Raises `StoreUnavailable` and `StoreRefused` where the target cannot be asked."""
        wish = self._wish
        found = await asyncio.to_thread(self._sizes)
        source = self._opened(wish.store.view.uri, wish.store.view.name, wish.source_space)
        lost, target = self._losses(source.describe())
        self._tell("reading a sample")
        reading_s, records = await asyncio.to_thread(self._read_sample)
        cut, sample, embedding = None, None, None
        if wish.other_chunking:
            self._tell("cutting a sample")
            cut, records, read = await asyncio.to_thread(cut_sample, self._catalog, wish, self._embedder(), found)
            sample = (cut, read)
        if wish.other_space or wish.other_chunking:
            self._tell("embedding a sample")
            embedding, more = await embed_sample(self._catalog, wish, self._embedder(), self._prices, sample)
            lost += more
        count = cut.chunks if cut is not None else found.chunks
        trial = None
        if target is not None and not any(one.stops and one.what == "dimensions" for one in lost):
            await Leftovers(self._plans, self._opened).drop(wish.request.uri)
            self._tell("writing and reading a sample")
            given = self._with_vectors(records)
            trial = await tried(wish.request.uri, wish.space, given, self._opened, self._plans)
            lost += self._of_trial(trial, records)
        weight = self._bytes(records, count)
        return Plan(
            wish.collection.name,
            self._end(source.describe(), wish.store.view.uri, before=True),
            self._end(target, wish.request.uri, before=False),
            found.documents,
            count,
            weight,
            lost,
            cut,
            embedding,
            self._seconds(count, reading_s, cut, embedding, trial),
            self._room(weight, records, embedding, trial, count),
            trial.rows if trial is not None else 0,
        )

    def _sizes(self) -> Sizes:
        with self._catalog.read() as connection:
            return sizes.sizes(connection, *self._key)

    def _losses(self, source: StoreInfo) -> tuple[list[Loss], StoreInfo | None]:
        """And what the target says of itself; None where it cannot be made for such vectors."""
        try:
            store: Store = self._opened(self._wish.request.uri, "whimbrel-plan", self._wish.space)
        except BadInput as error:  # of some, that many dimensions are no table at all
            return [Loss("dimensions", error.message, stops=True)], None
        return losses.of_store(self._wish, source, store.describe()), store.describe()

    # --- rows to be tried --------------------------------------------------------------------------------------------

    def _read_sample(self) -> tuple[float, Records]:
        """(seconds for each row, rows with their vectors in the source's space)."""
        view = self._wish.store.view
        with self._catalog.read() as connection:
            spread = sizes.spread_keys(connection, *self._key, PLACES, EACH)
            large = sizes.largest_keys(connection, *self._key, LARGEST)
            rows.load_chunks(connection, spread[:1], view.space_id)  # what a first read opens is not a later one's time
            began = time.perf_counter()
            found, _, _ = rows.load_chunks(connection, spread, view.space_id)
            took = time.perf_counter() - began
            more, _, _ = rows.load_chunks(connection, sorted(set(large) - set(spread)), view.space_id)
        parts = [
            Records(one.ids, {DENSE: one.vectors}, one.texts, one.metadata)
            for one in (found, more)
            if len(one) and one.vectors is not None
        ]
        return took / max(len(found), 1), Records.joined(parts, self._wish.source_space.dimensions)

    def _with_vectors(self, records: Records) -> Records:
        """The rows as the target would hold them. Of another space, and of new chunks, there are no vectors yet: any of
        that many components take as long to be written."""
        if not (self._wish.other_space or self._wish.other_chunking):
            return records
        made = np.random.default_rng(0).standard_normal((len(records), self._wish.space.dimensions), np.float32)
        made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-30)
        return Records(records.ids, {DENSE: made}, records.texts, records.metadata)

    def _of_trial(self, trial: Trial, records: Records) -> list[Loss]:
        uris = {id_: str(one.get("_uri", "")) for id_, one in zip(records.ids, records.metadata, strict=True)}
        refused = [(uris[id_], reason) for id_, reason in trial.refused]
        return losses.of_rows(refused, [uris.get(id_, id_) for id_ in trial.changed], len(records))

    # --- what is told ------------------------------------------------------------------------------------------------

    def _end(self, info: StoreInfo | None, uri: str, *, before: bool) -> End:
        wish = self._wish
        space, embedder, chunking = (
            (wish.source_space, wish.source_embedder, wish.source_chunking)
            if before
            else (wish.space, wish.request.embedder, wish.request.chunking)
        )
        name = info.name if info is not None else uri.partition(":")[0]
        return End(mask_url(uri), name, embedder, space.dimensions, chunking)

    def _bytes(self, records: Records, count: int) -> Bytes:
        sampled = max(len(records), 1)
        texts = sum(len(text.encode("utf-8", "surrogatepass")) for text in records.texts)
        metadata = sum(len(dumps(one)) for one in records.metadata)
        return Bytes(
            vectors=count * self._wish.space.dimensions * VECTOR_BYTES,
            texts=round(texts / sampled * count),
            metadata=round(metadata / sampled * count),
        )

    def _seconds(
        self, count: int, reading_s: float, cut: Cut | None, embedding: Embedding | None, trial: Trial | None
    ) -> Seconds:
        """A row is read to be written, and again to be verified."""

        def of(took: float) -> float | None:
            return took / trial.rows * count if trial is not None and trial.rows else None

        verifying = of(trial.verifying_s) if trial is not None else None
        return Seconds(
            cutting=cut.seconds if cut is not None else 0.0,
            embedding=embedding.seconds if embedding is not None else 0.0,
            reading=reading_s * count,
            writing=of(trial.writing_s) if trial is not None else None,
            indexing=of(trial.indexing_s) if trial is not None else None,
            verifying=verifying + reading_s * count if verifying is not None else None,
        )

    def _room(
        self, weight: Bytes, records: Records, embedding: Embedding | None, trial: Trial | None, count: int
    ) -> list[Room]:
        needed = weight.total
        if trial is not None and trial.stored_bytes is not None and trial.rows:
            needed = max(needed, round(trial.stored_bytes / trial.rows * count))
        folder = folder_of(self._wish.request.uri, self._base)
        found = [Room("target", needed, _free(folder))]
        if embedding is not None and embedding.texts:
            vectors = embedding.texts * self._wish.space.dimensions * VECTOR_BYTES
            found.append(Room("catalog", vectors, _free(self._catalog.path)))
        return found


def _free(place: Path | None) -> int | None:
    """Bytes on the disk that a path is on, or would be."""
    while place is not None and not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free if place is not None else None
