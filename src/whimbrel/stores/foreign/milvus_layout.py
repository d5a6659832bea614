"""What is what in a collection of Milvus, and its rows as those of a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whimbrel.errors import BadInput
from whimbrel.stores.foreign.base import MARK, MORE, Chosen, Fetched, Id, IdKind, Mark, Names, Rows, Table
from whimbrel.stores.foreign.layout import text_column, vector_column
from whimbrel.stores.foreign.milvus_collections import Column, Key, Shape
from whimbrel.stores.foreign.values import loads
from whimbrel.stores.metrics import Metric
from whimbrel.stores.milvus import rows as ours
from whimbrel.stores.milvus.backend import ABOUT, FORMAT_KEY

TEXT_REST, NO_TEXT = "whimbrel_text", "whimbrel_no_text"
FROM = {"COSINE": Metric.COSINE, "L2": Metric.L2, "IP": Metric.DOT}
TO = {metric: name for name, metric in FROM.items()}


class Layout:
    """What is what in a collection."""

    def __init__(self, shape: Shape, vector: Column, text: str | None, mark: Mark | None, view: bool) -> None:
        self.shape = shape
        self.vector = vector
        self.text = text
        self.mark = mark
        self.view = view
        """It is a view of Whimbrel's."""
        self.metric = FROM.get(vector.metric)
        kind = IdKind.INT if shape.key.kind == "INT64" else IdKind.STR
        self.ids = mark.ids if mark else kind
        self._vectors = {one.name for one in shape.columns if "VECTOR" in one.kind}

    @classmethod
    def of(cls, shape: Shape, chosen: Chosen, sample: Sequence[Mapping[str, Any]], where: str) -> Layout:
        said = shape.said()
        mark = Mark.read(said[MARK]) if isinstance(said.get(MARK), str) else None
        view = FORMAT_KEY in (said.get(ABOUT) or {}) if isinstance(said.get(ABOUT), dict) else False
        candidates = {one.name: one for one in shape.columns if one.kind == "FLOAT_VECTOR"}
        if len(candidates) > 1 and not chosen.vector:
            raise BadInput(
                f"{where} has several vectors of each row: {', '.join(candidates)}. Nothing was copied.",
                "Name the one to copy with `--vector NAME`.",
            )
        vector = candidates[vector_column(list(candidates), chosen, where)]
        strings = [one.name for one in shape.columns if one.kind == "VARCHAR" and not one.is_key]
        declared = {one.name for one in shape.columns}
        strings += sorted({key for row in sample for key, value in row.items() if isinstance(value, str)} - declared)
        if chosen.id and chosen.id != shape.key.name:
            raise BadInput(
                f"{where} has the key {shape.key.name!r}; no other column can be the id.", "Leave out `--id`."
            )
        text = strings[0] if mark and strings else text_column(strings, chosen, where)
        return cls(shape, vector, text, mark, view)

    def table(self, chosen: Chosen) -> Table:
        names = Names(self.shape.key.name, self.text or "text", self.vector.name)
        about = self.mark.about if self.mark else {} if self.view else self.shape.said()
        if not about and self.shape.description and not self.mark and not self.view:
            about = {"description": self.shape.description} if not self.shape.said() else self.shape.said()
        return Table(
            self.shape.name,
            self.vector.dimensions,
            chosen.metric or self.metric,
            self.ids,
            names,
            has_text=self.mark.text if self.mark else self.text is not None,
            about=about,
            notes=self._notes(),
            identity=self.shape.identity,
        )

    def _notes(self) -> list[str]:
        if self.view:
            return []
        others = sorted(self._vectors - {self.vector.name})
        notes = [f"the vectors {name!r} are not copied" for name in others]
        parts = [name for name in self.shape.partitions if name != "_default"]
        if parts:
            notes.append(f"which of its {len(parts) + 1} partitions a row is in is not kept")
        if self.shape.resting:
            notes.append("it was not in the server's memory: it was loaded to be read, and stays there")
        return notes

    def id_of(self, key: Key) -> Id:
        if self.view:
            return ours.from_milvus(str(key))
        if isinstance(key, int):
            return key
        return self.ids.parse(ours.from_milvus(key) if self.mark else key)

    def key_of(self, id_: Id) -> Key:
        if self.view:
            return ours.to_milvus(str(id_))
        if isinstance(id_, int) and self.shape.key.kind == "INT64":
            return id_
        text = self.ids.text(id_)
        return ours.to_milvus(text) if self.mark else text

    def fetched(self, found: Sequence[Mapping[str, Any]]) -> Fetched:
        unfit = {
            self.id_of(row[self.shape.key.name]): "it has no vector" for row in found if not _has(row, self.vector)
        }
        rows = [row for row in found if _has(row, self.vector)]
        vectors = np.asarray([row[self.vector.name] for row in rows], np.float32)
        ids = [self.id_of(row[self.shape.key.name]) for row in rows]
        if not rows:
            return Fetched(Rows.none(self.vector.dimensions), unfit)
        if self.view:
            decoded = ours.decode(rows, self.vector.dimensions)
            return Fetched(Rows(ids, vectors, list(decoded.texts), list(decoded.metadata)), unfit)
        return Fetched(Rows(ids, vectors, [*map(self._text, rows)], [*map(self._metadata, rows)]), unfit)

    def _text(self, row: Mapping[str, Any]) -> str | None:
        if self.text is None or row.get(NO_TEXT):
            return None
        first = row.get(self.text)
        return "".join([first, *row.get(TEXT_REST, [])]) if isinstance(first, str) else None

    def _metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        known = {self.shape.key.name, *self._vectors, NO_TEXT}
        if isinstance(row.get(self.text or ""), str):
            known.add(self.text or "")
        if self.mark:
            known |= {TEXT_REST, MORE}
        found = {key: _plain(value) for key, value in row.items() if key not in known}
        more = "".join(row.get(MORE) or []) if self.mark else ""
        if more:
            found |= loads(more)
        return {key: value for key, value in found.items() if value is not None or key in _nulls(more)}


def _has(row: Mapping[str, Any], vector: Column) -> bool:
    return row.get(vector.name) is not None and len(row[vector.name]) == vector.dimensions


def _plain(value: Any) -> Any:
    return list(value) if hasattr(value, "append") else value.item() if isinstance(value, np.generic) else value


def _nulls(more: str) -> set[str]:
    return {key for key, value in loads(more).items() if value is None} if more else set()
