"""How a source stands, and whether it is still what was adopted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.adopt import grouping
from whimbrel.adopt.fields import Fields
from whimbrel.adopt.opening import adopting, files_of
from whimbrel.catalog import adoptions, collections
from whimbrel.catalog.adoptions import Adoption, AdoptionState
from whimbrel.catalog.documents import batched, text_hash
from whimbrel.catalog.engine import Catalog, now
from whimbrel.domain import row_id
from whimbrel.errors import CatalogUnavailable, Fenced, WhimbrelError
from whimbrel.owner.frozen import address_of, chosen_of
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign import chroma_files
from whimbrel.stores.foreign.base import Source
from whimbrel.stores.foreign.resolve import Address, open_database

LISTING_S = 900.0
"""Between two listings of all ids, where a database does not say whether it has changed."""
SAMPLE = 1_000
"""Rows that are read again at each of those, whole; others each time."""
_READ = 250
"""Of them, in one go."""
_SAME = 0.999
"""Cosine. What is read twice is equal, but for what a client does to its numbers on the way."""


@dataclass(frozen=True, slots=True)
class Stand:
    """How a source stands at one moment."""

    version: str | None
    """Another after each change; None where its database does not tell."""
    rows: int
    digest: str
    """Of all ids, whatever their order."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def stand_of(source: Source, address: Address, base: Path) -> Stand:
    """Reads every id."""
    version = await version_of(source, address, base)
    rows, digest = 0, np.zeros(2, np.uint64)
    kind = (await source.describe()).ids
    async for some in source.ids():
        rows += len(some)
        digest += await asyncio.to_thread(_digest, [row_id(kind.text(id_)) for id_ in some])
    return Stand(version, rows, digest.tobytes().hex())


async def version_of(source: Source, address: Address, base: Path) -> str | None:
    folder = files_of(address, base)
    if folder is not None:
        return await asyncio.to_thread(chroma_files.version, folder)
    return await source.version()


def _digest(ids: list[str]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Two sums over the halves of all ids: the same for the same ids in any order."""
    whole = np.frombuffer(bytes.fromhex("".join(ids)), "<u8").reshape(-1, 2)
    found: np.ndarray[Any, np.dtype[np.uint64]] = whole.sum(axis=0, dtype=np.uint64)
    return found


def alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    return one.shape == other.shape and bool(one @ other >= _SAME * np.linalg.norm(one) * np.linalg.norm(other))


@dataclass(frozen=True, slots=True)
class Unlike:
    """Rows of a sample that say otherwise than when they were adopted."""

    rows: int
    """Of the sample."""
    texts: int
    vectors: int
    compared: int
    """Rows whose vectors were."""

    @property
    def embedded_anew(self) -> bool:
        return 2 * self.vectors > self.compared

    @property
    def drift(self) -> dict[str, Any]:
        """Where it was embedded anew."""
        of = f"of {self.rows:,} rows that were read again are others, under the same ids"
        said = _said(f"the vectors of {self.vectors:,} {of}", sampled=True, way_out=_EMBEDDED_ANEW)
        return {**said, "embedded_anew": True}


async def unlike(catalog: Catalog, adoption: Adoption, source: Source) -> Unlike:
    """Read rows of a sample again, and compare them with the catalog."""

    def sample() -> adoptions.Sample:
        with catalog.read() as connection:
            view = collections.view(connection, adoption.view_id)
            return adoptions.sample(connection, view, SAMPLE, os.urandom(16))

    held = await asyncio.to_thread(sample)
    kind, fields = (await source.describe()).ids, Fields.read(adoption.fields)
    named = list(held.source_ids.items())
    texts = vectors = 0
    for some in batched(named, _READ):
        fetched = await source.fetch([kind.parse(source_id) for _, source_id in some], None)
        where, looked = str(adoption.source["uri"]), grouping.Looked()
        read = await asyncio.to_thread(grouping.read_rows, fetched.rows, kind, fields, where, looked)
        rows: dict[str, list[grouping.Row]] = {}
        for row in read:
            rows.setdefault(row.public_id, []).append(row)
        texts += len(fetched.unfit) + len(looked.rejects.keys() - rows.keys())
        for key, same_id in rows.items():
            same = [row for row in same_id if text_hash(row.text) == held.texts[key]]
            texts += not same
            vectors += bool(same) and key in held.vectors and not alike(same[0].vector, held.vectors[key])
    return Unlike(len(named), texts, vectors, len(held.vectors))


class Watch:
    """Looks now and then whether adopted sources are what they were, and writes down where they are not."""

    def __init__(self, catalog: Catalog, base: Path, adopted: Path, reach: Reach, configured: Iterable[str]) -> None:
        self._catalog = catalog
        self._base = base
        self._adopted = adopted
        self._reach = reach
        self._configured = list(configured)
        self._due: dict[int, float] = {}
        """When all ids of a source are listed again whose database tells no version."""

    async def look(self, fence: int | None = None) -> None:
        """Write down how each source that is served differs from what was adopted, where that is news. What a database
        does not tell by itself is looked for every `LISTING_S` seconds."""
        for adoption in await asyncio.to_thread(self._served):
            if now() < self._due.get(adoption.view_id, 0.0):
                continue
            if adoption.counts.get("stand", {}).get("version") is None:
                self._due[adoption.view_id] = now() + LISTING_S
            drift = _lasting(adoption, await self._drift(adoption))
            if drift.get("said") != adoption.drift.get("said"):
                await asyncio.to_thread(note, self._catalog, adoption, drift, fence)

    async def drifts(self) -> list[tuple[Adoption, Mapping[str, Any]]]:
        """How each source that is served differs now; empty where it does not. Writes nothing."""
        return [(one, _lasting(one, await self._drift(one))) for one in await asyncio.to_thread(self._served)]

    def _served(self) -> list[Adoption]:
        with self._catalog.read() as connection:
            live = {one.store_view_id for one in collections.every(connection)}
            every = adoptions.every(connection)
        return [one for one in every if one.view_id in live and one.state is AdoptionState.ADOPTED]

    async def _drift(self, adoption: Adoption) -> Mapping[str, Any]:
        before = adoption.counts.get("stand", {})
        address = address_of(adoption.source, self._configured, served=False)
        try:
            folder = files_of(address, self._base)
            if folder is not None:
                changed = await asyncio.to_thread(chroma_files.version, folder) != before.get("version")
                return _said("its files have changed") if changed else {}
            with adopting():
                return await self._compared(adoption, address, before)
        except (CatalogUnavailable, Fenced):
            raise
        except WhimbrelError as error:
            return {"said": f"the source cannot be read: {error.message}", "at": now()}

    async def _compared(self, adoption: Adoption, address: Address, before: Mapping[str, Any]) -> Mapping[str, Any]:
        scratch = self._adopted / str(adoption.source["scratch"])
        database = open_database(address, base=self._base, scratch=scratch, reach=self._reach)
        source = database.source(address.collection, chosen_of(adoption.source))
        try:
            version = await version_of(source, address, self._base)
            if version is not None and version == before.get("version"):
                return {}
            stand = await stand_of(source, address, self._base)
            same = (stand.rows, stand.digest) == (before.get("rows"), before.get("digest"))
            unlike = await self._unlike(adoption, source) if same and version is None else {}
        finally:
            await source.close()
            await database.close()
        if stand.rows != before.get("rows"):
            more = stand.rows - int(before.get("rows", 0))
            return _said(f"it has {abs(more):,} rows {'more' if more > 0 else 'fewer'}", stand)
        if stand.digest != before.get("digest"):
            return _said("other rows are in it, as many as before", stand)
        if stand.version is not None and stand.version != before.get("version"):
            return _said("it was written to, with the same ids", stand)
        return unlike

    async def _unlike(self, adoption: Adoption, source: Source) -> Mapping[str, Any]:
        found = await unlike(self._catalog, adoption, source)
        if found.texts:
            of = f"of {found.rows:,} rows that were read again are others, under the same ids"
            return _said(f"the texts of {found.texts:,} {of}", sampled=True)
        return found.drift if found.embedded_anew else {}


def note(catalog: Catalog, adoption: Adoption, drift: Mapping[str, Any], fence: int | None) -> None:
    """Write down how a source differs, to be shown with its view."""
    with catalog.write(fence=fence) as connection:
        latest = adoptions.get(connection, adoption.view_id)
        if latest.counts.get("generation") != adoption.counts.get("generation"):
            return  # it was adopted again meanwhile
        adoptions.change(connection, adoption.view_id, drift=dict(drift))
        error = str(drift["said"]) if drift else ""
        collections.set_view(connection, adoption.view_id, error=error)


_AGAIN = "`whimbrel adopt` again takes in what is new"
_EMBEDDED_ANEW = "adopt it as another collection: `whimbrel adopt ... -c NAME`"


def _said(what: str, stand: Stand | None = None, *, sampled: bool = False, way_out: str = _AGAIN) -> dict[str, Any]:
    said = f"the source has changed since it was adopted: {what}; {way_out}"
    return {
        "said": said,
        "at": now(),
        **({"rows": stand.rows} if stand else {}),
        **({"sampled": True} if sampled else {}),
    }


def _lasting(adoption: Adoption, drift: Mapping[str, Any]) -> Mapping[str, Any]:
    """What one sample has found, the next one does not take back, or count anew: that is for adopting again. Nothing
    else that is found takes the place of vectors of another model."""
    seen = adoption.drift.get("sampled") and (not drift or drift.get("sampled"))
    seen = seen or adoption.drift.get("embedded_anew")
    return adoption.drift if seen else drift
