"""What a copy asks of Milvus: its collections as any program made them, behind a server, in Milvus Lite, or in a file
of Milvus Lite 2. All calls block: they run in threads."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.errors import BadInput
from whimbrel.stores.base import Reach
from whimbrel.stores.milvus.backend import HNSW, MAX_CAPACITY, MAX_LENGTH, MAX_WINDOW
from whimbrel.stores.milvus.connection import NotLoaded, connect, import_pymilvus, translated
from whimbrel.stores.milvus.folder import Folder, import_lite, lite_errors
from whimbrel.stores.milvus.uri import Server
from whimbrel.stores.milvus.where import literal

Key = str | int
T = TypeVar("T")

CALL_S = 120.0
LOAD_S = 600.0
_LITE_ANY = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: str
    """As Milvus names it: `VARCHAR`, `FLOAT_VECTOR`, `ARRAY`, ..."""
    dimensions: int = 0
    is_key: bool = False
    metric: str = ""
    """Of its index."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A collection as it is declared."""

    name: str
    columns: Sequence[Column]
    dynamic: bool
    description: str = ""
    partitions: Sequence[str] = ()
    identity: str = ""
    resting: bool = False
    """It was not in its server's memory before it was to be read."""

    @property
    def key(self) -> Column:
        return next(one for one in self.columns if one.is_key)

    def said(self) -> Mapping[str, Any]:
        """The description, where it is an object of JSON: ours is."""
        try:
            said = json.loads(self.description or "{}")
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}


@dataclass(frozen=True, slots=True)
class Made:
    """What a copy makes."""

    name: str
    key: str
    """`VARCHAR` or `INT64`"""
    dimensions: int
    metric: str
    names: tuple[str, str, str]
    """Of the id, the vector and the text."""
    pieces: Sequence[str] = field(default_factory=list)
    """Arrays of strings."""
    description: str = ""


class Collections(ABC):
    """What both say, and do."""

    local: bool = False
    """A file of this machine, which one program may have open."""

    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def shape(self, name: str) -> Shape | None: ...

    @abstractmethod
    def keys(self, shape: Shape) -> Iterator[list[Key]]:
        """Every key once, of all partitions."""

    def some_keys(self, shape: Shape, count: int) -> list[Key]:
        """As many, or all that there are."""
        return next(self.keys(shape), [])[:count]

    @abstractmethod
    def rows(self, shape: Shape, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """Whole, dynamic fields among the others."""

    @abstractmethod
    def nearest(self, shape: Shape, column: Column, vector: npt.NDArray[np.float32], k: int, where: str) -> list[Key]:
        """By its index."""

    @abstractmethod
    def make(self, made: Made) -> None: ...

    @abstractmethod
    def put(self, shape: Shape, rows: list[dict[str, Any]]) -> None: ...

    @abstractmethod
    def delete(self, shape: Shape, keys: Sequence[Key]) -> None: ...

    @abstractmethod
    def finish(self, shape: Shape) -> None:
        """All rows have come."""

    @abstractmethod
    def close(self) -> None: ...


def among(shape: Shape, keys: Sequence[Key]) -> str:
    return f"{shape.key.name} in [{', '.join(map(_literal, keys))}]"


def _literal(key: Key) -> str:
    return str(key) if isinstance(key, int) else literal(key)


class ServerCollections(Collections):
    """A collection that was not in the server's memory is loaded, and stays there. A server does not tell who else has
    come to search it meanwhile, and counts nobody: released by one, it is gone for all."""

    def __init__(self, server: Server, reach: Reach) -> None:
        self._server = server
        self._reach = reach
        self._client: Any = None
        self._loaded: set[str] = set()
        """Collections that were not in the server's memory before."""

    def names(self) -> list[str]:
        return list(self._call(lambda client: client.list_collections(timeout=CALL_S)))

    def shape(self, name: str) -> Shape | None:
        def shape(client: Any) -> Shape | None:
            if not client.has_collection(name, timeout=CALL_S):
                return None
            found = client.describe_collection(name, timeout=CALL_S)
            indexes = [client.describe_index(name, one, timeout=CALL_S) for one in client.list_indexes(name)]
            metrics = {one["field_name"]: one.get("metric_type") or "" for one in indexes if one}
            columns = [
                Column(
                    one["name"],
                    one["type"].name.lstrip("_"),
                    int(one["params"].get("dim") or 0),
                    bool(one.get("is_primary")),
                    metrics.get(one["name"], ""),
                )
                for one in found["fields"]
            ]
            return Shape(
                name,
                columns,
                bool(found.get("enable_dynamic_field")),
                found.get("description") or "",
                client.list_partitions(name, timeout=CALL_S),
                f"milvus {found.get('collection_id')}",
                name in self._loaded or client.get_load_state(name, timeout=CALL_S)["state"].name == "NotLoad",
            )

        return self._call(shape)

    def keys(self, shape: Shape) -> Iterator[list[Key]]:
        """By a cursor of our own, escaped: pymilvus' iterator breaks off at a quote."""
        after: Key | None = None
        while True:
            where = "" if after is None else f"{shape.key.name} > {_literal(after)}"
            rows = self._read(shape, where, [shape.key.name], limit=MAX_WINDOW, level="Strong")
            found = sorted(row[shape.key.name] for row in rows)
            if not found:
                return
            yield found
            after = found[-1]

    def rows(self, shape: Shape, keys: Sequence[Key]) -> list[dict[str, Any]]:
        return self._read(shape, among(shape, keys), ["*"])

    def nearest(self, shape: Shape, column: Column, vector: npt.NDArray[np.float32], k: int, where: str) -> list[Key]:
        def search(client: Any) -> list[Key]:
            (hits,) = client.search(
                shape.name, [vector], where, k, [], timeout=CALL_S, anns_field=column.name,
                search_params={"metric_type": column.metric, "params": {"ef": max(200, k)}},
            )  # fmt: skip
            return [hit["id"] for hit in hits]

        return self._in(shape.name, search)

    def make(self, made: Made) -> None:
        def make(client: Any) -> None:
            kinds = import_pymilvus().DataType
            schema = client.create_schema(auto_id=False, enable_dynamic_field=True, description=made.description)
            id_, vector, text = made.names
            length = {"max_length": MAX_LENGTH} if made.key == "VARCHAR" else {}
            schema.add_field(id_, kinds[made.key], is_primary=True, **length)
            schema.add_field(vector, kinds.FLOAT_VECTOR, dim=made.dimensions)
            schema.add_field(text, kinds.VARCHAR, max_length=MAX_LENGTH)
            for name in made.pieces:
                sizes = {"max_length": MAX_LENGTH, "max_capacity": MAX_CAPACITY}
                schema.add_field(name, kinds.ARRAY, element_type=kinds.VARCHAR, **sizes)
            client.create_collection(made.name, schema=schema, consistency_level="Strong", timeout=CALL_S)
            index = client.prepare_index_params()
            index.add_index(vector, index_type="HNSW", metric_type=made.metric, params=dict(HNSW))
            client.create_index(made.name, index, timeout=CALL_S)
            client.load_collection(made.name, timeout=LOAD_S)

        self._call(make)

    def put(self, shape: Shape, rows: list[dict[str, Any]]) -> None:
        self._in(shape.name, lambda client: client.upsert(shape.name, rows, CALL_S))

    def delete(self, shape: Shape, keys: Sequence[Key]) -> None:
        self._in(shape.name, lambda client: client.delete(shape.name, filter=among(shape, keys), timeout=CALL_S))

    def finish(self, shape: Shape) -> None:
        """Nothing: Milvus gathers rows and indexes them by itself."""

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _read(
        self, shape: Shape, where: str, fields: list[str], *, limit: int | None = None, level: str = "Session"
    ) -> list[dict[str, Any]]:
        more = {} if limit is None else {"limit": limit}

        def read(client: Any) -> list[dict[str, Any]]:
            found = client.query(shape.name, where, fields, CALL_S, consistency_level=level, **more)
            return list(map(dict, found))

        return self._in(shape.name, read)

    def _in(self, name: str, work: Callable[[Any], T]) -> T:
        try:
            return self._call(work)
        except NotLoaded:
            self._load(name)
            return self._call(work)

    def _load(self, name: str) -> None:
        if not self._call(lambda client: client.list_indexes(name)):
            raise BadInput(
                f"The collection {name!r} at {self._server.url} has no index, and Milvus reads none without. Nothing "
                "was copied.",
                "Make one there for its vectors (`create_index`), then copy.",
            )
        self._call(lambda client: client.load_collection(name, timeout=LOAD_S))
        self._loaded.add(name)

    def _call(self, work: Callable[[Any], T]) -> T:
        if self._client is None:
            self._client = connect(self._server, self._reach)
        try:
            return work(self._client)
        except Exception as error:
            raise translated(self._server, self._reach, error) from None  # its message may quote a text


class LiteCollections(Collections):
    local = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: Folder | None = None

    def names(self) -> list[str]:
        with self._use() as db:
            return list(db.list_collections())

    def shape(self, name: str) -> Shape | None:
        if self._folder is None and not self._path.exists():
            return None  # opening it would make it
        with self._use() as db:
            if not db.has_collection(name):
                return None
            found = db.get_collection(name)
            columns = [
                Column(
                    one.name,
                    one.dtype.name,
                    one.dim or 0,
                    one.is_primary,
                    str((found.get_index_info(one.name) or {}).get("metric_type") or ""),
                )
                for one in found.schema.fields
            ]
            said = {key: _as_json(value) for key, value in found.schema.properties.items()}
            return Shape(
                name,
                columns,
                found.schema.enable_dynamic_field,
                json.dumps(said),
                found.list_partitions(),
                f"milvus lite {self._path.resolve()} {name}",
            )

    def keys(self, shape: Shape) -> Iterator[list[Key]]:
        with self._use() as db:
            key = shape.key.name
            found = [row[key] for row in self._loaded(db, shape).query(None, [key])]
        yield found

    def some_keys(self, shape: Shape, count: int) -> list[Key]:
        with self._use() as db:
            key = shape.key.name
            return [row[key] for row in self._loaded(db, shape).query(None, [key], limit=count)]

    def rows(self, shape: Shape, keys: Sequence[Key]) -> list[dict[str, Any]]:
        with self._use() as db:
            found = self._loaded(db, shape).get(list(keys))
        json_columns = [one.name for one in shape.columns if one.kind == "JSON"]
        for row in found:
            for name in json_columns:
                row[name] = _as_json(row.get(name))
            for name in ("$meta", "_partition"):
                row.pop(name, None)
        return found  # type: ignore[no-any-return]

    def nearest(self, shape: Shape, column: Column, vector: npt.NDArray[np.float32], k: int, where: str) -> list[Key]:
        with self._use() as db:
            (hits,) = self._loaded(db, shape).search(
                [vector], k, expr=where or None, output_fields=[], anns_field=column.name, search_params={"ef": 4_000}
            )
            return [hit["id"] for hit in hits]

    def make(self, made: Made) -> None:
        lite = import_lite()
        kinds, column = lite.DataType, lite.FieldSchema
        id_, vector, text = made.names
        columns = [
            column(id_, kinds[made.key], is_primary=True, max_length=MAX_LENGTH if made.key == "VARCHAR" else None),
            column(vector, kinds.FLOAT_VECTOR, dim=made.dimensions),
            column(text, kinds.VARCHAR, max_length=_LITE_ANY),
        ]
        for name in made.pieces:
            sizes = {"max_length": MAX_LENGTH, "max_capacity": MAX_CAPACITY}
            columns.append(column(name, kinds.ARRAY, element_type=kinds.VARCHAR, **sizes))
        with self._use(alone=True) as db:
            schema = lite.CollectionSchema(columns, enable_dynamic_field=True)
            properties = {key: json.dumps(value) for key, value in json.loads(made.description or "{}").items()}
            found = db.create_collection(made.name, schema, properties=properties)
            found.create_index(vector, {"index_type": "HNSW", "metric_type": made.metric, "params": dict(HNSW)})
            found.load()

    def put(self, shape: Shape, rows: list[dict[str, Any]]) -> None:
        with self._use(alone=True) as db:
            self._loaded(db, shape).insert(rows)  # of one key the last one counts, whole

    def delete(self, shape: Shape, keys: Sequence[Key]) -> None:
        with self._use(alone=True) as db:
            self._loaded(db, shape).delete(list(keys))

    def finish(self, shape: Shape) -> None:
        with self._use(alone=True) as db:
            self._loaded(db, shape).flush()

    def close(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.release()

    def _use(self, *, alone: bool = False) -> Any:
        if self._folder is None:
            self._folder = Folder.take(self._path)
        return _Used(self._folder, alone)

    def _loaded(self, db: Any, shape: Shape) -> Any:
        found = db.get_collection(shape.name)
        found.load()
        return found


class _Used:
    def __init__(self, folder: Folder, alone: bool) -> None:
        self._within = folder.alone() if alone else folder.together()
        self._errors = lite_errors(folder.path)

    def __enter__(self) -> Any:
        db = self._within.__enter__()
        self._errors.__enter__()
        return db

    def __exit__(self, *error: Any) -> None:
        try:
            self._errors.__exit__(*error)
        finally:
            self._within.__exit__(*error)


def _as_json(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
