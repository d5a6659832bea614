"""A server that speaks Qdrant's HTTP API as its OpenAPI description has it: a stand-in, for there is no package of the
real one.

Each request is read by the model that qdrant-client has of the description's schema, which refuses keys that are not
in it; answers have the form of the schema. Rows are kept by local mode, in memory, with the rules of a server on ids
and sizes. A prefix of the path is a server of its own.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client import QdrantClient
from qdrant_client.http import models

from whimbrel.stores.qdrant.rules import point_id

VERSION = "1.16.0"


@dataclass
class Asked:
    """A request that was taken, as its model has it."""

    method: str
    path: str
    body: Any = None


class Refusal(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class State:
    """What one prefix holds."""

    client: Any = field(default_factory=lambda: QdrantClient(":memory:"))
    thresholds: dict[str, int] = field(default_factory=dict)
    building: dict[str, int] = field(default_factory=dict)
    """How many more times a collection says that it is being optimised."""
    indexes: dict[str, dict[str, str]] = field(default_factory=dict)
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict)


class _Listening(ThreadingHTTPServer):
    request_queue_size = 128  # of 5, those that come while the machine is busy would wait for seconds
    daemon_threads = True


class QdrantServer:
    def __init__(self, *, key: str = "", version: str = VERSION, most_bytes: int = 32 << 20) -> None:
        self.key = key
        self.version = version
        self.most_bytes = most_bytes
        self.asked: list[Asked] = []
        self.states: dict[str, State] = {}
        self.lock = threading.Lock()
        self.failing: int = 0
        """The status that everything is answered with; 0: none."""
        self.failing_times: int | None = None
        """How many more times; None: until it is told otherwise."""
        self._server = _Listening(("127.0.0.1", 0), _handler(self))
        self._server.handle_error = lambda request, address: None  # a client that broke off
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def uri(self) -> str:
        return f"qdrant+http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, method: str, path: str) -> list[Any]:
        """The bodies that came to a path, by its pattern."""
        return [one.body for one in self.asked if one.method == method and re.fullmatch(path, one.path)]

    def state(self, prefix: str = "") -> State:
        return self.states.setdefault(prefix, State())

    # --- requests ----------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: Mapping[str, list[str]], raw: bytes) -> Any:
        """The `result` of the answer. Raises `Refusal`."""
        for route, model, handle in ROUTES:
            verb, pattern = route.split(" ")
            found = re.fullmatch(rf"(?P<prefix>(?:/place\d+)?){pattern}", path)
            if verb != method or found is None:
                continue
            try:
                body = TypeAdapter(model).validate_json(raw) if model is not None else raw
            except ValidationError as error:
                raise Refusal(400, f"Format error in JSON body: {error.errors()[0]['msg']}") from None
            parts = {key: unquote(value) for key, value in found.groupdict().items()}
            state = self.state(parts.pop("prefix"))
            self.asked.append(Asked(method, path, body))
            with self.lock:
                return handle(state, body, query, **parts)
        raise Refusal(404, "")


def _collection(state: State, name: str) -> str:
    aliases = {one.alias_name: one.collection_name for one in state.client.get_aliases().aliases}
    name = aliases.get(name, name)
    if not state.client.collection_exists(name):
        raise Refusal(404, f"Not found: Collection `{name}` doesn't exist!")
    return name


def _names(state: State, body: Any, query: Any) -> Any:
    return state.client.get_collections()


def _exists(state: State, body: Any, query: Any, name: str) -> Any:
    aliases = {one.alias_name for one in state.client.get_aliases().aliases}
    return {"exists": state.client.collection_exists(name) or name in aliases}


def _create(state: State, body: models.CreateCollection, query: Any, name: str) -> Any:
    if state.client.collection_exists(name):
        raise Refusal(409, f"Wrong input: Collection `{name}` already exists!")
    if len(name) > 255 or re.search(r'[<>:"/\\|?*\x00-\x1f]', name):
        raise Refusal(422, f"Validation error in path parameters: [name: collection name cannot contain {name!r}]")
    state.client.create_collection(
        name, vectors_config=body.vectors, sparse_vectors_config=body.sparse_vectors, metadata=body.metadata
    )
    said = body.optimizers_config.indexing_threshold if body.optimizers_config else None
    state.thresholds[name] = 10_000 if said is None else said
    return True


def _get(state: State, body: Any, query: Any, name: str) -> Any:
    name = _collection(state, name)
    info = state.client.get_collection(name)
    info.config.optimizer_config.indexing_threshold = state.thresholds.get(name, 10_000)
    made = state.indexes.get(name, {}).items()
    info.payload_schema = {
        field: models.PayloadIndexInfo(data_type=kind.rpartition(".")[2].lower(), points=0) for field, kind in made
    }
    if state.building.get(name, 0) > 0:
        state.building[name] -= 1
        info.status = models.CollectionStatus.YELLOW
    return info


def _patch(state: State, body: models.UpdateCollection, query: Any, name: str) -> Any:
    name = _collection(state, name)
    if body.optimizers_config is not None and body.optimizers_config.indexing_threshold is not None:
        state.thresholds[name] = body.optimizers_config.indexing_threshold
        state.building[name] = 3 if body.optimizers_config.indexing_threshold else 0
    if body.metadata is not None:
        state.client.update_collection(name, metadata=body.metadata)
    return True


def _delete(state: State, body: Any, query: Any, name: str) -> Any:
    return state.client.delete_collection(name)


def _index(state: State, body: models.CreateFieldIndex, query: Any, name: str) -> Any:
    state.indexes.setdefault(_collection(state, name), {})[body.field_name] = str(body.field_schema)
    return _done(query)


def _put(state: State, body: Any, query: Any, name: str) -> Any:
    points = body.batch if isinstance(body, models.PointsBatch) else body.points
    ids = points.ids if isinstance(points, models.Batch) else [one.id for one in points]
    for id_ in ids:
        try:
            point_id(id_)
        except ValueError as error:
            raise Refusal(400, f"Format error in JSON body: {id_!r} is not a valid point ID: {error}") from None
    state.client.upsert(_collection(state, name), points=points)
    return _done(query)


def _remove(state: State, body: Any, query: Any, name: str) -> Any:
    state.client.delete(_collection(state, name), points_selector=body)
    return _done(query)


def _done(query: Mapping[str, list[str]]) -> Any:
    return {"operation_id": 1, "status": "completed" if query.get("wait") == ["true"] else "acknowledged"}


def _retrieve(state: State, body: models.PointRequest, query: Any, name: str) -> Any:
    name = _collection(state, name)
    return state.client.retrieve(
        name, ids=body.ids, with_payload=_or(body.with_payload, True), with_vectors=_or(body.with_vector, False)
    )


def _scroll(state: State, body: models.ScrollRequest, query: Any, name: str) -> Any:
    points, offset = state.client.scroll(
        _collection(state, name),
        scroll_filter=body.filter,
        limit=_or(body.limit, 10),
        offset=body.offset,
        with_payload=_or(body.with_payload, True),
        with_vectors=_or(body.with_vector, False),
    )
    return {"points": _plain(points), "next_page_offset": offset}


def _query(state: State, body: models.QueryRequest, query: Any, name: str) -> Any:
    return state.client.query_points(
        _collection(state, name),
        query=body.query,
        using=body.using,
        query_filter=body.filter,
        limit=_or(body.limit, 10),
        with_payload=_or(body.with_payload, False),
        with_vectors=_or(body.with_vector, False),
    )


def _count(state: State, body: models.CountRequest, query: Any, name: str) -> Any:
    return state.client.count(_collection(state, name), count_filter=body.filter, exact=_or(body.exact, True))


def _set_payload(state: State, body: models.SetPayload, query: Any, name: str) -> Any:
    state.client.set_payload(_collection(state, name), payload=body.payload, points=body.points)
    return _done(query)


def _delete_payload(state: State, body: models.DeletePayload, query: Any, name: str) -> Any:
    state.client.delete_payload(_collection(state, name), keys=body.keys, points=body.points)
    return _done(query)


def _aliases(state: State, body: Any, query: Any) -> Any:
    return state.client.get_aliases()


def _change_aliases(state: State, body: models.ChangeAliasesOperation, query: Any) -> Any:
    return state.client.update_collection_aliases(body.actions)


def _take_snapshot(state: State, body: Any, query: Any, name: str) -> Any:
    """Of this stand-in: the configuration and the points as JSON."""
    name = _collection(state, name)
    config = state.client.get_collection(name).config
    points, _ = state.client.scroll(name, limit=1_000_000, with_payload=True, with_vectors=True)
    held = {"config": _plain(config.params), "metadata": config.metadata, "points": _plain(points)}
    kept = state.snapshots.setdefault(name, {})
    said = f"{name}-{len(kept)}-2026.snapshot"
    kept[said] = json.dumps(held).encode()
    return {"name": said, "creation_time": "2026-01-01T00:00:00", "size": len(kept[said])}


def _list_snapshots(state: State, body: Any, query: Any, name: str) -> Any:
    kept = state.snapshots.get(_collection(state, name), {})
    return [{"name": one, "creation_time": None, "size": len(data)} for one, data in kept.items()]


def _get_snapshot(state: State, body: Any, query: Any, name: str, snapshot: str) -> bytes:
    return state.snapshots[name][snapshot]


def _drop_snapshot(state: State, body: Any, query: Any, name: str, snapshot: str) -> Any:
    return state.snapshots[name].pop(snapshot) is not None


def _upload_snapshot(state: State, body: bytes, query: Any, name: str) -> Any:
    """A form of several parts, the file in `snapshot`."""
    head, _, rest = body.partition(b"\r\n\r\n")
    if b'name="snapshot"' not in head:
        raise Refusal(400, "the form has no part `snapshot`")
    held = json.loads(rest[: rest.rindex(b"\r\n--")])
    if state.client.collection_exists(name):
        state.client.delete_collection(name)
    config = models.CollectionParams(**held["config"])
    state.client.create_collection(
        name,
        vectors_config=config.vectors,
        sparse_vectors_config=config.sparse_vectors,
        metadata=held["metadata"],
    )
    points = [models.PointStruct(id=one["id"], payload=one["payload"], vector=one["vector"]) for one in held["points"]]
    if points:
        state.client.upsert(name, points=points)
    return True


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


_NAME = r"/collections/(?P<name>[^/]+)"
ROUTES: list[tuple[str, Any, Callable[..., Any]]] = [
    ("GET /collections", None, _names),
    ("POST /collections/aliases", models.ChangeAliasesOperation, _change_aliases),
    ("GET /aliases", None, _aliases),
    (f"GET {_NAME}/exists", None, _exists),
    (f"PUT {_NAME}", models.CreateCollection, _create),
    (f"GET {_NAME}", None, _get),
    (f"PATCH {_NAME}", models.UpdateCollection, _patch),
    (f"DELETE {_NAME}", None, _delete),
    (f"PUT {_NAME}/index", models.CreateFieldIndex, _index),
    (f"PUT {_NAME}/points", models.PointsBatch | models.PointsList, _put),
    (f"POST {_NAME}/points", models.PointRequest, _retrieve),
    (f"POST {_NAME}/points/delete", models.PointIdsList | models.FilterSelector, _remove),
    (f"POST {_NAME}/points/scroll", models.ScrollRequest, _scroll),
    (f"POST {_NAME}/points/query", models.QueryRequest, _query),
    (f"POST {_NAME}/points/count", models.CountRequest, _count),
    (f"POST {_NAME}/points/payload", models.SetPayload, _set_payload),
    (f"POST {_NAME}/points/payload/delete", models.DeletePayload, _delete_payload),
    (f"POST {_NAME}/snapshots", None, _take_snapshot),
    (f"GET {_NAME}/snapshots", None, _list_snapshots),
    (f"POST {_NAME}/snapshots/upload", None, _upload_snapshot),
    (f"GET {_NAME}/snapshots/(?P<snapshot>[^/]+)", None, _get_snapshot),
    (f"DELETE {_NAME}/snapshots/(?P<snapshot>[^/]+)", None, _drop_snapshot),
]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _handler(server: QdrantServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _any(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            root = re.fullmatch(r"(/place\d+)?/", parts.path)
            if server.key and self.headers.get("api-key") != server.key:
                self._send(401, b"Must provide an API key or an Authorization bearer token")
            elif server.failing:
                self._send_json(server.failing, {"status": {"error": "Service internal error: failing"}, "time": 0.0})
                if server.failing_times is not None:
                    server.failing_times -= 1
                    server.failing = server.failing if server.failing_times else 0
            elif len(raw) > server.most_bytes and not parts.path.endswith("/upload"):
                said = f"Payload error: JSON payload ({len(raw)} bytes) is larger than allowed"
                self._send_json(413, {"status": {"error": said}, "time": 0.0})
            elif root:
                title = "qdrant - vector search engine"
                self._send_json(200, {"title": title, "version": server.version, "commit": "0" * 40})
            else:
                self._route(parts.path, parse_qs(parts.query), raw)

        def _route(self, path: str, query: Mapping[str, list[str]], raw: bytes) -> None:
            began = time.monotonic()
            try:
                result = server.answer(self.command, path, query, raw)
            except Refusal as refusal:
                self._send_json(refusal.status, {"status": {"error": str(refusal)}, "time": 0.0})
                return
            except ValueError as error:  # what local mode refuses
                self._send_json(400, {"status": {"error": f"Wrong input: {error}"}, "time": 0.0})
                return
            if isinstance(result, bytes):
                self._send(200, result)
                return
            said = {"result": _plain(result), "status": "ok", "time": time.monotonic() - began}
            self._send_json(200, said)

        def _send_json(self, status: int, said: Any) -> None:
            self._send(status, json.dumps(said).encode(), "application/json")

        def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _any

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler
