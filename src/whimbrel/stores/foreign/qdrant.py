"""Qdrant: each collection of a folder of its local mode, or of a server.

A folder that is a source is read as files: nothing of it is loaded by qdrant-client, and it is never written to.

A point's payload is its row's metadata; the text is the key that a user names, or that has the usual name. Vectors of
the metric cosine are brought to length 1 by Qdrant: a sink writes the length that a vector had into the payload,
where it was another, and a source gives it back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.errors import BadInput
from whimbrel.stores.base import Reach
from whimbrel.stores.extras import check_client
from whimbrel.stores.foreign import layout
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.base import (
    MARK,
    Chosen,
    Database,
    Fetched,
    Id,
    IdKind,
    Mark,
    Names,
    Sink,
    Source,
    Table,
    VectorField,
    VectorKind,
)
from whimbrel.stores.foreign.qdrant_points import TEXT_KEY, Config, point_of, read_rows
from whimbrel.stores.foreign.qdrant_reading import FolderReader, Reader, ServerReader
from whimbrel.stores.foreign.qdrant_sink import QdrantSink
from whimbrel.stores.metrics import Metric, scores
from whimbrel.stores.qdrant.backend import Backend, LocalBackend, ServerBackend
from whimbrel.stores.qdrant.payload import TEXT
from whimbrel.stores.qdrant.uri import parse_server

_SAMPLE_ROWS = 200


class QdrantDatabase(Database):
    def __init__(self, backend: Backend, reader: Reader) -> None:
        self.backend = backend
        self.reader = reader
        self.shown = f"Qdrant at {backend.shown}"

    async def collections(self) -> Sequence[str]:
        return sorted(await self.reader.names())

    def source(self, name: str, chosen: Chosen) -> Source:
        layout.not_chosen(chosen, self.shown, "id", "metric")
        return QdrantSource(self.reader, self.backend, name, chosen)

    def sink(self, name: str) -> Sink:
        return QdrantSink(self.backend, name)

    async def close(self) -> None:
        await self.backend.close()


@dataclass(frozen=True, slots=True)
class _Form:
    """What is what in the points of a collection."""

    table: Table
    text: str
    """The key of the payload; empty where there is none."""
    view: bool
    """A view of ours."""
    native: bool
    """The points' ids are the rows'; else a string is in the payload."""


class QdrantSource(Source):
    def __init__(self, reader: Reader, backend: Backend, name: str, chosen: Chosen) -> None:
        self._reader = reader
        self._backend = backend
        self._name = name
        self._chosen = chosen
        self._form: _Form | None = None

    async def describe(self) -> Table:
        config = await self._reader.config(self._name)
        if config is None:
            there = None if isinstance(self._reader, ServerReader) else await self._reader.names()
            raise absent("collection", self._name, f"Qdrant at {self._backend.shown}", there)
        mark = Mark.read(config.metadata.get(MARK))
        view = await self._reader.is_view(self._name)
        main, vectors = self._vectors(config)
        dense = config.vectors.get(main) if main is not None else None
        text = TEXT if view else await self._text(config, mark)
        kind, notes = await self._kind(mark, view)
        if self._chosen.vector:
            left = sorted(set(config.vectors) - {main})
            notes += [f"the vectors {name!r} are left out" for name in left]
        table = Table(
            self._name,
            dense.dimensions if dense else 0,
            self._metric(dense, vectors),
            kind,
            Names(text=text or TEXT),
            has_text=bool(text),
            main=main or "",
            vectors=vectors,
            about=mark.about
            if mark
            else {key: one for key, one in config.metadata.items() if key not in (MARK, TEXT_KEY)},
            notes=notes,
            identity=f"qdrant {self._backend.shown} {self._name} {sorted(config.vectors.items())} {main}",
            version=await self._reader.version(self._name),
        )
        self._form = _Form(table, text, view, native=mark is None and not view)
        return table

    async def version(self) -> str | None:
        return await self._reader.version(self._name)

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        form = await self._known()
        async for points in self._reader.ids(self._name):
            found = [point.row_id(form.table.ids, native=form.native) for point in points]
            if found:
                yield found

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        form = await self._known()
        wanted = dict.fromkeys(point_of(form.table.ids, id_, native=form.native) for id_ in ids)
        points = await self._reader.fetch(self._name, list(wanted))
        found = read_rows(points, form.table, form.text, view=form.view, native=form.native)
        asked = set(ids)
        if all(id_ in asked for id_ in found.rows.ids):
            return found
        return Fetched(found.rows.taken([row for row, id_ in enumerate(found.rows.ids) if id_ in asked]), found.unfit)

    @property
    def indexed(self) -> bool:
        return isinstance(self._reader, ServerReader)  # local mode compares all of them, and holds the folder

    async def nearest(
        self, vector: npt.NDArray[np.float32], k: int, among: Sequence[Id] | None = None
    ) -> Sequence[tuple[Id, float]]:
        """By Qdrant's index where a server is asked; a folder is read and compared exactly."""
        form = await self._known()
        if not form.table.dimensions:
            raise BadInput(f"The rows of {self._name!r} have no single vector to be compared with.")
        if not isinstance(self._reader, ServerReader):
            return await super().nearest(vector, k, among)
        assert form.table.metric is not None
        points = None if among is None else [point_of(form.table.ids, id_, native=form.native) for id_ in among]
        hits = await self._reader.nearest(self._name, form.table.main, vector, k, points)
        said = scores(form.table.metric, np.array([score for _, score in hits]), normalised=self.normalised).tolist()
        ids = [point.row_id(form.table.ids, native=form.native) for point, _ in hits]
        return sorted(zip(ids, said, strict=True), key=lambda hit: (-hit[1], str(hit[0])))[:k]

    async def close(self) -> None:
        self._form = None

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _known(self) -> _Form:
        if self._form is None:
            await self.describe()
        assert self._form is not None
        return self._form

    def _vectors(self, config: Config) -> tuple[str | None, dict[str, VectorField]]:
        """(the name of the vector of `Rows.vectors`, the further ones)"""
        dense = [name for name, one in config.vectors.items() if one.kind is VectorKind.DENSE]
        if self._chosen.vector:
            if self._chosen.vector not in dense:
                raise BadInput(
                    f"The collection {self._name!r} has no dense vector {self._chosen.vector!r}. Nothing was copied.",
                    f"Those that can be named: {', '.join(sorted(dense)) or 'none'}.",
                )
            return self._chosen.vector, {}
        usual = (name for name in ("", *layout.VECTORS) if name in dense)
        main = next(usual, min(dense, default=None))
        return main, {name: one for name, one in sorted(config.vectors.items()) if name != main}

    def _metric(self, dense: VectorField | None, vectors: Mapping[str, VectorField]) -> Metric | None:
        said = dense.metric if dense else next((one.metric for one in vectors.values() if one.metric), "")
        if dense is not None and said not in set(Metric):
            raise BadInput(f"The collection {self._name!r} has the metric {said!r}, which is not known here.")
        return Metric(said) if said in set(Metric) else None

    async def _text(self, config: Config, mark: Mark | None) -> str:
        """The key of the texts, empty where there is none: of a sample, those whose values are all strings."""
        if mark is not None and not self._chosen.text:
            return str(config.metadata.get(TEXT_KEY) or TEXT) if mark.text else ""
        sample = await self._reader.sample(self._name, _SAMPLE_ROWS)
        texts: Counter[str] = Counter()
        others: set[str] = set()
        for point in sample:
            for key, value in point.payload.items():
                texts[key] += isinstance(value, str)
                if value is not None and not isinstance(value, str):
                    others.add(key)
        candidates = [key for key, count in texts.items() if key not in others and 2 * count >= len(sample)]
        if self._chosen.text:
            candidates = [self._chosen.text] if self._chosen.text in texts else candidates
        return layout.text_column(candidates, self._chosen, f"The collection {self._name!r}") or ""

    async def _kind(self, mark: Mark | None, view: bool) -> tuple[IdKind, list[str]]:
        if mark is not None or view:
            return (mark.ids if mark else IdKind.STR), []
        kinds = await self._reader.kinds(self._name)
        if len(kinds) > 1:
            return IdKind.STR, ["its ids are integers and UUIDs: both are carried as texts"]
        return next(iter(kinds), IdKind.UUID), []


def opener(rest: str, base: Path, *, scheme: str, scratch: Path | None, reach: Reach) -> QdrantDatabase:
    """`scratch`: of a source, where a copy of a file may lie that a killed program left half written; None: a
    target."""
    if scheme != "qdrant" or not scratch:
        check_client(scheme)
    if scheme != "qdrant":
        server = ServerBackend(parse_server(f"{scheme}:{rest}"), reach)
        return QdrantDatabase(server, ServerReader(server))
    folder = base / Path(rest or "qdrant").expanduser()
    backend = LocalBackend(folder)
    return QdrantDatabase(backend, FolderReader(folder, scratch) if scratch else ServerReader(backend))
