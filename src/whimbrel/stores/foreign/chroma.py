"""Chroma: each collection of a folder, or of a server's database.

Opening a folder with chromadb writes to it, and upgrades an old one. So a source in a folder is read from a copy of its
files, which is taken while no program has it open; the folder itself is only ever read. One of Chroma before 0.4 is
read by `whimbrel.stores.foreign.chroma_old`.

A row's URI, where it has one, is its metadata under `chroma:uri`.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from whimbrel.errors import BadInput, Conflict, DiskFull, StoreRefused, StoreUnavailable, ViewDamaged
from whimbrel.stores.base import Reach
from whimbrel.stores.chroma.backend import NAMES, Backend, Collection, UnknownId, as_vectors
from whimbrel.stores.chroma.embedded import EmbeddedBackend
from whimbrel.stores.chroma.folder import DATABASE
from whimbrel.stores.chroma.metadata import ENVELOPE, LISTS, ODD, OURS, decode
from whimbrel.stores.chroma.rows import from_chroma, get, present, to_chroma
from whimbrel.stores.chroma.server import ServerBackend
from whimbrel.stores.chroma.uri import parse_server
from whimbrel.stores.envelope import Dialect
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.base import (
    MARK,
    Chosen,
    Database,
    Fetched,
    Id,
    IdKind,
    Limits,
    Mark,
    Rows,
    Sink,
    Source,
    Table,
)
from whimbrel.stores.foreign.chroma_files import Snapshot
from whimbrel.stores.foreign.chroma_old import OldFolder, is_old
from whimbrel.stores.foreign.values import as_text, dumps, loads
from whimbrel.stores.metrics import Metric, scores

URI = "chroma:uri"
TOLERANCE = 1e-6
"""Of a vector under the metric cosine: Chroma keeps its direction and its length apart, and multiplies them again."""

_MORE = "whimbrel:more"
_FROM = {"cosine": Metric.COSINE, "l2": Metric.L2, "ip": Metric.DOT}
_TO = {metric: name for name, metric in _FROM.items()}
_READ_ROWS = 2_000
_ROOM = 4 << 20
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Whole:
    """Rows as Chroma has them."""

    ids: list[str]
    texts: Sequence[str | None] = ()
    metadata: Sequence[Mapping[str, Any] | None] = ()
    uris: Sequence[str | None] = ()
    vectors: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))


class _Everything(Backend):
    """What a copy asks of Chroma beyond what a view does."""

    @abstractmethod
    async def names(self) -> list[str]: ...

    @abstractmethod
    async def make(self, name: str, metric: str, metadata: Mapping[str, Any]) -> Collection: ...

    @abstractmethod
    async def read(self, collection: Collection, ids: Sequence[str]) -> Whole: ...

    @abstractmethod
    async def put(self, collection: Collection, rows: Whole) -> None: ...


class _Folder(EmbeddedBackend, _Everything):
    async def names(self) -> list[str]:
        if self._folder is None and not await asyncio.to_thread((self._path / DATABASE).is_file):
            return []  # opening it would make it
        return await self._do(lambda client: [one.name for one in client.list_collections()])

    async def make(self, name: str, metric: str, metadata: Mapping[str, Any]) -> Collection:
        def make(client: Any) -> Collection:
            made = client.create_collection(
                name, metadata=dict(metadata), configuration={"hnsw": {"space": metric}}, embedding_function=None
            )
            return Collection(str(made.id), made.name, metric, None, metadata)

        return await self._do(make)

    async def read(self, collection: Collection, ids: Sequence[str]) -> Whole:
        def read(handle: Any) -> Whole:
            found = handle.get(ids=list(ids), include=["documents", "metadatas", "embeddings", "uris"])
            vectors = as_vectors(found["embeddings"])
            return Whole(found["ids"], found["documents"], found["metadatas"], found["uris"], vectors)

        return await self._in(collection, read)

    async def put(self, collection: Collection, rows: Whole) -> None:
        await self._in(
            collection,
            lambda handle: handle.upsert(
                ids=rows.ids,
                embeddings=rows.vectors,
                documents=list(rows.texts),
                metadatas=list(rows.metadata),
                uris=list(rows.uris) if any(one is not None for one in rows.uris) else None,
            ),
        )


class _Server(ServerBackend, _Everything):
    async def names(self) -> list[str]:
        await self._greet()
        names: list[str] = []
        while True:
            page = await self._ask("GET", f"/collections?limit={_PAGE}&offset={len(names)}")
            names += [one["name"] for one in page]
            if len(page) < _PAGE:
                return names

    async def make(self, name: str, metric: str, metadata: Mapping[str, Any]) -> Collection:
        await self._greet()
        about = {"name": name, "metadata": dict(metadata), "configuration": {"hnsw": {"space": metric}}}
        status, answer = await self._send("POST", f"{self._database}/collections", about)
        if status in (400, 422) and "name" in str(answer):
            raise StoreRefused(f"Chroma does not take {name!r} as the name of a collection.", NAMES)
        self._check(status, answer)
        return Collection(answer["id"], name, metric, None, metadata)

    async def read(self, collection: Collection, ids: Sequence[str]) -> Whole:
        wanted = {"ids": ids, "include": ["documents", "metadatas", "embeddings", "uris"]}
        found = await self._ask("POST", f"/collections/{quote(collection.id)}/get", wanted)
        vectors = await asyncio.to_thread(as_vectors, found["embeddings"])
        nothing = [None] * len(found["ids"])
        return Whole(found["ids"], found["documents"], found["metadatas"], found.get("uris") or nothing, vectors)

    async def put(self, collection: Collection, rows: Whole) -> None:
        await self._greet()
        written = {
            "ids": rows.ids,
            "embeddings": self._vectors(rows.vectors),
            "documents": rows.texts,
            "metadatas": rows.metadata,
            "uris": rows.uris if any(one is not None for one in rows.uris) else None,
        }
        await self._put(collection, written)

    def _vectors(self, vectors: npt.NDArray[np.float32]) -> Any:
        from whimbrel.stores.chroma.server import _as_base64

        return _as_base64(vectors) if self._base64 else vectors


class ChromaDatabase(Database):
    def __init__(self, backend: _Everything, snapshot: Snapshot | None = None, folder: Path | None = None) -> None:
        """`snapshot`: of the folder, where that is a source. `folder`: where that is a target."""
        self.folder = folder
        self.backend = backend
        self.snapshot = snapshot
        self.shown = f"Chroma at {snapshot.folder if snapshot else backend.shown}"

    async def collections(self) -> Sequence[str]:
        await self.ready()
        return sorted(await self.backend.names())

    def source(self, name: str, chosen: Chosen) -> Source:
        return ChromaSource(self, name, chosen)

    def sink(self, name: str) -> Sink:
        return ChromaSink(self, name)

    async def close(self) -> None:
        await self.backend.close()

    async def ready(self) -> None:
        if self.snapshot is not None:
            await asyncio.to_thread(self.snapshot.take)
            if self.copied is None:
                await self._upgraded()
            self.copied = self.snapshot.copy

    async def _upgraded(self) -> None:
        """Opening the copy of an older folder upgrades it, and a query that was prepared before then fails: of some
        thirty openings with chromadb 1.5.9, one."""
        for _ in range(2):
            try:
                await self.backend.names()
                return
            except ViewDamaged:
                await self.backend.close()
        await self.backend.names()

    async def find(self, name: str) -> Collection | None:
        await self.ready()
        return await self.backend.find(name)


class ChromaSource(Source):
    def __init__(self, database: ChromaDatabase, name: str, chosen: Chosen) -> None:
        self._database = database
        self._backend = database.backend
        self._name = name
        self._chosen = chosen
        self._collection: Collection | None = None
        self._kind = IdKind.STR

    async def describe(self) -> Table:
        found = await self._database.find(self._name)
        if found is None:
            raise absent("collection", self._name, self._database.shown, await self._backend.names())
        if found.metric not in _FROM:
            raise BadInput(f"The collection {self._name!r} has the metric {found.metric!r}, which is not known here.")
        mark = Mark.read(found.metadata.get(MARK))
        self._collection, self._kind = found, mark.ids if mark else IdKind.STR
        about = {key: value for key, value in found.metadata.items() if not key.startswith(OURS)}
        return Table(
            self._name,
            await self._dimensions(found),
            _FROM[found.metric],
            self._kind,
            has_text=mark.text if mark else True,
            about=mark.about if mark else about,
            identity=f"chroma {found.id}",
            version=await self.version(),
        )

    async def version(self) -> str | None:
        """Of a folder: of its files. A server does not tell."""
        snapshot = self._database.snapshot
        return await asyncio.to_thread(snapshot.version) if snapshot else None

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        """All at once: Chroma's offsets shift when rows are deleted meanwhile."""
        collection = await self._known()
        found = await self._backend.get(collection)
        yield [self._from(id_) for id_ in found.ids]

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        collection = await self._known()
        parts = []
        for start in range(0, len(ids), _READ_ROWS):
            found = await self._read(
                collection, [_to_chroma(self._kind, one) for one in ids[start : start + _READ_ROWS]]
            )
            parts.append(found)
        whole = [part for part in parts if part.ids]
        rows = Rows(
            [self._from(id_) for part in whole for id_ in part.ids],
            np.concatenate([part.vectors for part in whole]) if whole else np.zeros((0, 0), np.float32),
            [text for part in whole for text in part.texts],
            [read_metadata(one, uri) for part in whole for one, uri in zip(part.metadata, part.uris, strict=True)],
        )
        return Fetched(rows)

    async def nearest(
        self, vector: npt.NDArray[np.float32], k: int, among: Sequence[Id] | None = None
    ) -> Sequence[tuple[Id, float]]:
        collection = await self._known()
        wanted = None if among is None else [_to_chroma(self._kind, one) for one in among]
        for attempt in range(20):
            some = wanted if wanted is None else await present(self._backend, collection, wanted)
            if k <= 0 or (some is not None and not some):
                return []
            try:
                found = await self._backend.query(collection, vector, k, ids=some)
                break
            except UnknownId:  # deleted within the query
                await asyncio.sleep(0.02 * attempt)
        else:
            raise StoreUnavailable(f"{self._database.shown}: rows are deleted faster than they are read.", "Try again.")
        metric = _FROM[collection.metric]
        distances = np.array(found.distances, np.float64)
        measured = np.sqrt(np.maximum(distances, 0.0)) if metric is Metric.L2 else 1.0 - distances
        known = scores(metric, measured, normalised=self.normalised)
        return list(zip([self._from(id_) for id_ in found.ids], known.tolist(), strict=True))

    async def close(self) -> None:
        self._collection = None

    async def _read(self, collection: Collection, ids: Sequence[str]) -> Whole:
        """A row that is deleted within the read fails it: it is asked again."""
        for attempt in range(20):
            try:
                return await self._backend.read(collection, ids)
            except UnknownId:
                await asyncio.sleep(0.02 * attempt)
        raise StoreUnavailable(f"{self._database.shown}: rows are deleted faster than they are read.", "Try again.")

    async def _dimensions(self, found: Collection) -> int:
        if found.dimensions is not None:
            return found.dimensions
        ids = (await self._backend.get(found)).ids[:1]
        return int((await self._backend.read(found, ids)).vectors.shape[1]) if ids else 0

    async def _known(self) -> Collection:
        if self._collection is None:
            await self.describe()
        assert self._collection is not None
        return self._collection

    def _from(self, id_: str) -> Id:
        return self._kind.parse(from_chroma(id_))


class ChromaSink(Sink):
    def __init__(self, database: ChromaDatabase, name: str) -> None:
        self._database = database
        self._backend = database.backend
        self._name = name
        self._collection: Collection | None = None
        self._kind = IdKind.STR
        self.limits = Limits(rows=1_000, bytes=8 << 20, needs_metric=True)

    async def mark(self) -> Mark | None:
        found = await self._backend.find(self._name)
        if found is None:
            return None
        mark = Mark.read(found.metadata.get(MARK))
        if mark is None:
            raise Conflict(
                f"There is a collection {self._name!r} in {self._database.shown} already that this copy did not make. "
                "Nothing was changed.",
                "Name another collection or database for the target.",
            )
        self._collection = found
        return mark

    async def create(self, table: Table, mark: Mark) -> None:
        assert table.metric is not None, "a collection of Chroma has a metric"
        about = {key: value for key, value in table.about.items() if _sayable(key, value)}
        self._collection = await self._backend.make(self._name, _TO[table.metric], {**about, MARK: mark.written()})
        self._kind = mark.ids

    async def open(self, table: Table, mark: Mark) -> None:
        self._kind = mark.ids

    def refused(self, rows: Rows) -> Mapping[int, str]:
        finite = np.isfinite(rows.vectors).all(axis=1)
        found = {int(row): "its vector has a component that is no finite number" for row in np.flatnonzero(~finite)}
        for row, (id_, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
            if not _is_utf8(str(id_)) or not _is_utf8(text or ""):
                found[row] = "its id or text is no valid Unicode"
        return found

    async def write(self, rows: Rows, *, fresh: bool) -> None:
        collection = self._known()
        ids = [_to_chroma(self._kind, id_) for id_ in rows.ids]
        written = [write_metadata(one) for one in rows.metadata]
        if not fresh:  # keys that a row had before would stay
            await self._backend.delete(collection, ids)
        most = await self._backend.max_rows()
        for start in range(0, len(ids), most):
            end = start + most
            part = Whole(
                ids[start:end],
                rows.texts[start:end],
                [one or None for one, _ in written[start:end]],
                [uri for _, uri in written[start:end]],
                rows.vectors[start:end],
            )
            try:
                await self._backend.put(collection, part)
                await self._remove_stale_keys(collection, part)
            except ViewDamaged as error:  # what Chroma says does not name a full disk
                if self._database.folder is not None and shutil.disk_usage(self._database.folder).free < _ROOM:
                    raise DiskFull(
                        f"No space left for {self._database.shown}. What was written before is safe.",
                        "Free some space.",
                    ) from error
                raise

    async def delete(self, ids: Sequence[Id]) -> None:
        await self._backend.delete(self._known(), [_to_chroma(self._kind, id_) for id_ in ids])

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        async for some in self._source().ids():
            yield some

    async def fetch(self, ids: Sequence[Id]) -> Rows:
        return (await self._source().fetch(ids)).rows

    def tolerance(self, table: Table) -> float:
        return TOLERANCE if table.metric is Metric.COSINE else 0.0

    async def close(self) -> None:
        self._collection = None

    async def _remove_stale_keys(self, collection: Collection, rows: Whole) -> None:
        """Arrays that a collection which was dropped has left behind turn up at new rows (chroma-core/chroma issue
        7594)."""
        there = await get(self._backend, collection, ids=rows.ids, include=["metadatas"])
        number = {id_: row for row, id_ in enumerate(rows.ids)}
        mended: dict[int, dict[str, Any]] = {}
        for id_, stored in zip(there.ids, there.metadata, strict=True):
            wanted = rows.metadata[number[id_]] or {}
            if stale := [key for key in stored or {} if key not in wanted]:
                mended[number[id_]] = {**wanted, **dict.fromkeys(stale)}
        if mended:
            places = list(mended)
            some = Whole(
                [rows.ids[row] for row in places],
                [rows.texts[row] for row in places],
                list(mended.values()),
                [rows.uris[row] for row in places],
                rows.vectors[places],
            )
            await self._backend.put(collection, some)

    def _source(self) -> ChromaSource:
        return ChromaSource(self._database, self._name, Chosen())

    def _known(self) -> Collection:
        assert self._collection is not None, "neither made nor opened"
        return self._collection


def _to_chroma(kind: IdKind, id_: Id) -> str:
    return to_chroma(kind.text(id_))


def write_metadata(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """(a row's metadata in Chroma, its URI). What Chroma cannot say is in `whimbrel:more`, and readable beside it where
    it has a text: a date, a decimal."""
    uri = metadata.get(URI)
    rest = {key: value for key, value in metadata.items() if key != URI} if isinstance(uri, str) else metadata
    plain = {key: value for key, value in rest.items() if _sayable(key, value)}
    odd = {key: value for key, value in rest.items() if key not in plain}
    if odd:
        plain |= {key: text for key, value in odd.items() if DIALECT.takes_key(key) and (text := as_text(value))}
        plain[_MORE] = dumps(odd)
    return plain, uri if isinstance(uri, str) else None


def read_metadata(stored: Mapping[str, Any] | None, uri: str | None) -> dict[str, Any]:
    found = dict(stored or {})
    if any(key in found for key in (ENVELOPE, LISTS, ODD)):  # a row of a view
        found = dict(decode(found))
    more = found.pop(_MORE, None)
    if more is not None:
        found |= loads(more)
    if uri is not None:
        found[URI] = uri
    return found


def _takes_key(key: str) -> bool:
    return bool(key) and not key.startswith(("#", "$", "chroma:", "whimbrel:")) and _is_utf8(key)


def _takes_float(value: float) -> bool:
    """Its server reads decimals of more than 15 digits a last bit off."""
    if not math.isfinite(value) or repr(value) == "-0.0":
        return False
    mantissa, _, exponent = repr(value).partition("e")
    digits = mantissa.replace("-", "").replace(".", "").strip("0")
    power = int(exponent or 0) - len(mantissa.partition(".")[2])
    return len(digits) <= 15 and -22 <= power <= 22


DIALECT = Dialect(
    takes_key=_takes_key,
    min_int=-(2**63),
    max_int=2**63 - 1,
    takes_float=_takes_float,
    takes_text=lambda text: _is_utf8(text),
)


def _sayable(key: str, value: Any) -> bool:
    return DIALECT.takes_key(key) and DIALECT.takes(value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def opener(rest: str, base: Path, *, scheme: str, scratch: Path | None, reach: Reach) -> Database:
    """`scratch`: where the copy of a folder that is a source may lie; None for a target."""
    if scheme != "chroma":
        return ChromaDatabase(_Server(parse_server(f"{scheme}:{rest}"), reach))
    folder = base / Path(rest or "chroma").expanduser()
    if is_old(folder):
        return OldFolder(folder)
    if scratch is None:
        return ChromaDatabase(_Folder(folder), folder=folder)
    snapshot = Snapshot(folder, scratch)
    return ChromaDatabase(_Folder(snapshot.copy), snapshot)
