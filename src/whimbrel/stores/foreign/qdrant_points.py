"""Points of Qdrant as rows, and rows as points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from whimbrel.stores.foreign.base import Fetched, Id, IdKind, Rows, Table, VectorField, VectorKind
from whimbrel.stores.foreign.values import as_text, dumps, loads
from whimbrel.stores.metrics import Metric
from whimbrel.stores.qdrant.files import Sparse
from whimbrel.stores.qdrant.payload import ID, MORE, decode, is_exact
from whimbrel.stores.qdrant.rules import to_point

LENGTH = "whimbrel_length"
"""In a payload: of each vector of the metric cosine that had another length than 1, by its name; a list where the
vector is several."""
TEXT_KEY = "whimbrel:text"
"""In the metadata of a collection that a copy made: the key of the texts."""
TOLERANCE = 1e-6
"""Of a vector of the metric cosine: its direction and its length are kept apart, and multiplied again."""
_METRICS = {"Cosine": "cosine", "Dot": "dot", "Euclid": "l2", "Manhattan": "manhattan"}
_DISTANCES = {metric: name for name, metric in _METRICS.items()}


@dataclass(frozen=True, slots=True)
class Config:
    """What a collection says of itself."""

    vectors: Mapping[str, VectorField]
    """All of them, by name; the one without a name is empty."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Config:
        """Of the JSON of its parameters."""
        dense = said.get("vectors") or {}
        named = {"": dense} if "size" in dense and not isinstance(dense["size"], Mapping) else dense
        vectors = {str(name): _field(one) for name, one in named.items()}
        for name, one in (said.get("sparse_vectors") or {}).items():
            modifier = str((one or {}).get("modifier") or "")
            vectors[str(name)] = VectorField(VectorKind.SPARSE, modifier=modifier)
        return cls(vectors, said.get("metadata") or {})


def _field(said: Mapping[str, Any]) -> VectorField:
    several = said.get("multivector_config") or {}
    kind = VectorKind.MULTI if several else VectorKind.DENSE
    metric = _METRICS.get(str(said["distance"]), str(said["distance"]))
    return VectorField(kind, int(said["size"]), metric, str(several.get("comparator", "")))


def config_of(table: Table) -> tuple[Any, dict[str, Any]]:
    """(the dense and multi-vectors, the sparse ones) as `create_collection` takes them."""
    from qdrant_client import models

    default = str(table.metric or Metric.COSINE)
    dense: dict[str, Any] = {}
    if table.dimensions:
        dense[table.main] = models.VectorParams(size=table.dimensions, distance=models.Distance(_DISTANCES[default]))
    sparse: dict[str, Any] = {}
    for name, one in table.vectors.items():
        if one.kind is VectorKind.SPARSE:
            sparse[name] = models.SparseVectorParams(modifier=models.Modifier(one.modifier) if one.modifier else None)
            continue
        several = None
        if one.kind is VectorKind.MULTI:
            comparator = models.MultiVectorComparator(one.comparator or "max_sim")
            several = models.MultiVectorConfig(comparator=comparator)
        dense[name] = models.VectorParams(
            size=one.dimensions,
            distance=models.Distance(_DISTANCES[one.metric or default]),
            multivector_config=several,
        )
    return (dense[""] if set(dense) == {""} else dense), sparse


@dataclass(frozen=True, slots=True)
class Point:
    id: int | str
    payload: Mapping[str, Any] = field(default_factory=dict)
    vectors: Mapping[str, Any] = field(default_factory=dict)
    """As in `Rows.more`."""

    @classmethod
    def of(cls, id_: int | str, payload: Mapping[str, Any] | None, vector: Any) -> Point:
        named = vector if isinstance(vector, dict) else {} if vector is None else {"": vector}
        found = {name: _vector(one) for name, one in named.items() if one is not None}
        return cls(id_, payload or {}, found)

    def row_id(self, kind: IdKind, *, native: bool) -> Id:
        """`native`: the point's id is the row's, else the payload has it where that is a string."""
        if kind is IdKind.STR:
            return str(self.id) if native else str(self.payload.get(ID, self.id))
        return UUID(str(self.id)) if kind is IdKind.UUID else int(self.id)


def point_of(kind: IdKind, id_: Id, *, native: bool) -> int | str:
    """The id of a row's point."""
    if kind is IdKind.UUID:
        return str(id_)
    text = str(id_)
    if kind is IdKind.INT:
        return int(text)
    if native:
        return int(text) if text.removeprefix("-").isdecimal() else text
    return to_point(text)


def _vector(one: Any) -> Any:
    if isinstance(one, Sparse):
        one = one.said
    if isinstance(one, dict) or hasattr(one, "indices"):
        said = one if isinstance(one, dict) else {"indices": one.indices, "values": one.values}
        indices, values = np.array(said["indices"], np.int64), np.array(said["values"], np.float32)
        order = np.argsort(indices, kind="stable")
        return indices[order], values[order]
    return np.array(one, np.float32)


def read_rows(points: Sequence[Point], table: Table, text: str, *, view: bool, native: bool) -> Fetched:
    """`text`: the key of the texts. Points without the vector of `Rows.vectors` are unfit."""
    ids, vectors, texts, metadata = [], [], [], []
    more: dict[str, list[Any]] = {name: [] for name in table.vectors}
    unfit: dict[Id, str] = {}
    for point in points:
        id_ = point.row_id(table.ids, native=native)
        lengths = {} if native else point.payload.get(LENGTH) or {}
        held = {name: _lengthened(one, lengths.get(name)) for name, one in point.vectors.items()}
        main = held.get(table.main)
        if table.dimensions and (main is None or main.shape != (table.dimensions,)):
            unfit[id_] = "it has no vector" + (f" {table.main!r}" if table.main else "")
            continue
        ids.append(id_)
        vectors.append(main if table.dimensions else np.zeros(0, np.float32))
        for name, values in more.items():
            values.append(held.get(name))
        said = point.payload.get(text) if text else None
        texts.append(said if isinstance(said, str) else None)
        key = text if isinstance(said, str) else None
        metadata.append(dict(decode(point.payload)) if view else _metadata(point.payload, key, native=native))
    matrix = np.array(vectors, np.float32).reshape(len(ids), table.dimensions)
    return Fetched(Rows(ids, matrix, texts, metadata, more), unfit)


def _metadata(payload: Mapping[str, Any], text: str | None, *, native: bool) -> dict[str, Any]:
    if native:
        return {key: value for key, value in payload.items() if key != text}
    found = {key: value for key, value in payload.items() if key not in (text, ID, LENGTH, MORE)}
    if MORE in payload:
        found |= loads(payload[MORE])
    return found


def _lengthened(vector: Any, length: Any) -> Any:
    if length is None or isinstance(vector, tuple):
        return vector
    scale = np.asarray(length, np.float64)
    return (vector.astype(np.float64) * (scale[:, np.newaxis] if vector.ndim == 2 else scale)).astype(np.float32)


def write_rows(rows: Rows, table: Table, kind: IdKind) -> list[dict[str, Any]]:
    """`id`, `vector` and `payload` of each row's point."""
    cosine = {name for name, one in table.vectors.items() if (one.metric or table.metric) == "cosine"}
    if table.metric is Metric.COSINE:
        cosine.add(table.main)
    found = []
    for row, id_ in enumerate(rows.ids):
        vectors = {name: values[row] for name, values in rows.more.items() if values[row] is not None}
        if table.dimensions:
            vectors[table.main] = rows.vectors[row]
        payload = write_payload(rows.metadata[row], table.names.text, rows.texts[row])
        if kind is IdKind.STR:
            payload[ID] = str(id_)
        written: dict[str, Any] = {}
        lengths: dict[str, Any] = {}
        for name, vector in vectors.items():
            if isinstance(vector, tuple):
                written[name] = {"indices": vector[0].tolist(), "values": vector[1].tolist()}
                continue
            unit, length = _directed(vector) if name in cosine else (vector, None)
            written[name] = unit.tolist()
            if length is not None:
                lengths[name] = length
        if lengths:
            payload[LENGTH] = lengths
        found.append({"id": point_of(kind, id_, native=False), "vector": written, "payload": payload})
    return found


def _directed(vector: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], Any]:
    """(of length 1; what it was, None where that is 1 or 0)"""
    lengths = np.linalg.norm(vector.astype(np.float64), axis=-1)
    if ((np.abs(lengths - 1.0) < TOLERANCE / 2) | (lengths == 0.0)).all():
        return vector, None
    safe = np.where(lengths == 0.0, 1.0, lengths)
    unit = (vector / (safe[:, np.newaxis] if vector.ndim == 2 else safe)).astype(np.float32)
    return unit, safe.tolist()


def write_payload(metadata: Mapping[str, Any], text_key: str, text: str | None) -> dict[str, Any]:
    """What Qdrant cannot say exactly is in `whimbrel_more`, and readable beside it where it has a form for that."""
    said: dict[str, Any] = {}
    odd: dict[str, Any] = {}
    for key, value in metadata.items():
        taken = not _is_utf8(key) or key.startswith("whimbrel_") or key == text_key
        exact, plain = (False, None) if taken else _sayable(value)
        if not exact:
            odd[key] = value
        if not taken and (exact or plain is not None):
            said[key] = plain
    if text is not None:
        said[text_key] = text
    if odd:
        said[MORE] = dumps(odd)
    return said


def _sayable(value: Any) -> tuple[bool, Any]:
    """(whether it comes back as it is, how it is readable; None: not)"""
    match value:
        case None | bool():
            return True, value
        case str():
            return (True, value) if _is_utf8(value) else (False, None)
        case int():
            return (True, value) if -(2**63) <= value < 2**64 else (False, None)
        case float():
            return is_exact(value), value if np.isfinite(value) else None
        case list() | tuple():
            inner = [_sayable(one) for one in value]
            return all(exact for exact, _ in inner), [plain for _, plain in inner]
        case dict():
            pairs = {key: _sayable(one) for key, one in value.items() if _is_utf8(key)}
            exact = len(pairs) == len(value) and all(one for one, _ in pairs.values())
            return exact, {key: plain for key, (_, plain) in pairs.items()}
    return False, as_text(value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
