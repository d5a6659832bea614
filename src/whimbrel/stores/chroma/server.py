"""A Chroma server, over its HTTP API (v2): pooled connections, bounded in number and in time.

Not through chromadb's own client: that waits for an answer without end, and takes 0.8 s to import.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from whimbrel.errors import (
    Conflict,
    DiskFull,
    MissingExtra,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.stores.base import REBUILD, Reach
from whimbrel.stores.batches import Refused
from whimbrel.stores.chroma.backend import (
    ELSEWHERE,
    HNSW,
    NAMES,
    Backend,
    Collection,
    Nearest,
    Rows,
    UnknownId,
    as_vectors,
    metric_of,
)
from whimbrel.stores.chroma.uri import Server

API = "/api/v2"
WRITE_PATIENCE = 4
"""Times as long as for a read: a write waits for the index too."""
_NOTHING_LOST = "Nothing is lost: what was not written waits in the catalog."
_ANEW = "Chroma keeps a transaction open that its disk had no room for: it writes again when it has been started anew."
_WERE_FULL: set[str] = set()
"""Servers that had no room, and have not written since: by their URLs."""

BREAKS = 3
"""Times that a server which answers otherwise may break a write off before it is taken for too large: some close the
connection before they have read all of it, and their refusal is lost."""
_WRITING = ("/upsert", "/delete")
_BROKEN = (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError)


class ServerBackend(Backend):
    single_process = False

    def __init__(self, server: Server, reach: Reach) -> None:
        self._server = server
        self._reach = reach
        self._client: httpx.AsyncClient | None = None
        self._turns = asyncio.Semaphore(reach.max_connections)
        self._greeting = asyncio.Lock()
        self._max_rows = 0
        self._base64 = False

    @property
    def shown(self) -> str:
        return self._server.url

    @property
    def _database(self) -> str:
        return f"/tenants/{quote(self._server.tenant, safe='')}/databases/{quote(self._server.database, safe='')}"

    # --- collections -------------------------------------------------------------------------------------------------

    async def max_rows(self) -> int:
        await self._greet()
        return self._max_rows

    async def find(self, name: str) -> Collection | None:
        await self._greet()
        status, answer = await self._send("GET", f"{self._database}/collections/{quote(name, safe='')}")
        if status == 404:
            return None
        self._check(status, answer)
        return _collection(answer)

    async def create(self, name: str, metadata: Mapping[str, Any]) -> Collection:
        await self._greet()
        about = {"name": name, "metadata": dict(metadata), "configuration": {"hnsw": dict(HNSW)}}
        status, answer = await self._send("POST", f"{self._database}/collections", about)
        if status == 409 or (status >= 400 and "already exists" in _said(answer)):
            raise Conflict(f"There is a collection {name!r} at {self.shown} already. Nothing was changed.", ELSEWHERE)
        if status in (400, 422) and "name" in _said(answer):
            raise StoreRefused(f"Chroma does not take {name!r} as the name of a collection.", NAMES)
        self._check(status, answer)
        return _collection(answer)

    async def describe(self, collection: Collection, metadata: Mapping[str, Any]) -> None:
        await self._ask("PUT", f"/collections/{collection.id}", {"new_metadata": dict(metadata)})

    async def drop(self, collection: Collection) -> None:
        status, answer = await self._send("DELETE", f"{self._database}/collections/{quote(collection.name, safe='')}")
        if status != 404:
            self._check(status, answer)

    async def count(self, collection: Collection) -> int:
        return int(await self._ask("GET", f"/collections/{collection.id}/count"))

    # --- rows --------------------------------------------------------------------------------------------------------

    async def upsert(
        self,
        collection: Collection,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        texts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None],
    ) -> None:
        await self._greet()
        written = {
            "ids": ids,
            "embeddings": _as_base64(vectors) if self._base64 else vectors,
            "documents": texts,
            "metadatas": metadata,
            "uris": None,
        }
        await self._put(collection, written)

    async def _put(self, collection: Collection, written: Mapping[str, Any]) -> None:
        """Write rows, as columns. Raises `Refused` also where the refusal was lost."""
        for _ in range(BREAKS):
            try:
                path = f"/collections/{collection.id}/upsert"
                await self._ask_whole("POST", path, written, patience=WRITE_PATIENCE)
                return
            except StoreUnavailable as error:
                if not isinstance(error.__context__, _BROKEN) or not await self._answers():
                    raise
        raise Refused(f"{self.shown} breaks the connection off")

    async def _answers(self) -> bool:
        try:
            status, _ = await self._send("GET", "/heartbeat")
        except StoreUnavailable:
            return False
        return status == 200

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        await self._ask("POST", f"/collections/{collection.id}/delete", {"ids": ids}, patience=WRITE_PATIENCE)

    async def get(
        self,
        collection: Collection,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        include: Sequence[str] = (),
    ) -> Rows:
        wanted = {"ids": ids, "where": where, "include": include}
        found = await self._ask("POST", f"/collections/{collection.id}/get", wanted)
        vectors = found.get("embeddings")
        return Rows(
            found["ids"],
            found.get("documents") or [],
            found.get("metadatas") or [],
            await asyncio.to_thread(as_vectors, vectors) if vectors else as_vectors(None),
        )

    async def query(
        self,
        collection: Collection,
        vector: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        metadata: bool = False,
    ) -> Nearest:
        include = ["distances", *(["metadatas"] if metadata else [])]
        wanted = {"query_embeddings": [vector], "n_results": k, "ids": ids, "where": where, "include": include}
        found = await self._ask("POST", f"/collections/{collection.id}/query", wanted)
        return Nearest(found["ids"][0], found["distances"][0], (found.get("metadatas") or [[]])[0])

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, path: str, body: Any = None, *, patience: int = 1) -> Any:
        """The answer of the database's `path`. What is asked so may be asked twice: after a request that it refuses, a
        server closes the connection, and the next request may have been sent by it."""
        try:
            try:
                return await self._ask_whole(method, path, body, patience=patience)
            except StoreUnavailable as error:
                if not isinstance(error.__context__, _BROKEN) or not await self._answers():
                    raise
                return await self._ask_whole(method, path, body, patience=patience)
        except Refused as refused:
            raise StoreRefused(
                f"{refused}.",
                f"Raise `max_payload_size_bytes` there, or the limit of the proxy before it. {_NOTHING_LOST}",
            ) from None

    async def _ask_whole(self, method: str, path: str, body: Any, *, patience: int) -> Any:
        """As `_ask`. Raises `Refused` for what may be asked in parts."""
        status, answer = await self._send(method, self._database + path, body, patience=patience)
        self._check(status, answer)
        return answer

    async def _greet(self) -> None:
        """Once: what is there, of which version, and what it takes."""
        if self._max_rows:
            return
        async with self._greeting:
            if self._max_rows:
                return
            status, version = await self._send("GET", "/version")
            if status in (401, 403, 429) or status >= 500:
                self._check(status, version)
            if status != 200 or not isinstance(version, str) or not re.match(r"\d+\.", version):
                raise await self._stranger()
            if int(version.partition(".")[0]) < 1:
                raise StoreUnsupported(f"The Chroma server at {self.shown} is version {version[:20]}.", _SUPPORTED)
            status, limits = await self._send("GET", "/pre-flight-checks")
            self._check(status, limits)
            status, answer = await self._send("GET", self._database)
            if status in (400, 404, 422):  # a name that no database can have is a bad request
                raise StoreRefused(
                    f"The Chroma server at {self.shown} has no database {self._server.database!r} of the tenant "
                    f"{self._server.tenant!r}.",
                    "Make it there, or name another: `?tenant=...&database=...` in the URI.",
                )
            self._check(status, answer)
            self._base64 = bool(limits.get("supports_base64_encoding"))
            self._max_rows = max(1, int(limits.get("max_batch_size") or 1_000))

    async def _stranger(self) -> WhimbrelError:
        """Who answers there, if it is not a Chroma of today."""
        status, version = await self._send("GET", "/version", api="/api/v1")
        if status == 200 and isinstance(version, str):
            return StoreUnsupported(f"The Chroma server at {self.shown} is version {version[:20]}.", _SUPPORTED)
        return StoreRefused(
            f"What answers at {self.shown} is not a Chroma server.", "Check the host and the port (8000 by default)."
        )

    async def _send(
        self, method: str, path: str, body: Any = None, *, api: str = API, patience: int = 1
    ) -> tuple[int, Any]:
        """(status, what the body says, as JSON or else as text). Raises what `_unanswered` makes of no answer."""
        orjson = _import_orjson()
        content = None
        if body is not None:
            if len(body.get("ids") or ()) > _LARGE:
                content = await asyncio.to_thread(orjson.dumps, body, option=orjson.OPT_SERIALIZE_NUMPY)
            else:
                content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        async with self._turns:
            try:
                timeout = httpx.Timeout(patience * self._reach.timeout_s, connect=self._reach.connect_timeout_s)
                url = f"{self._server.url}{api}{path}"
                response = await self._open().request(method, url, content=content, timeout=timeout)
                if response.is_success and path.endswith(_WRITING):
                    _WERE_FULL.discard(self._server.url)
            except (httpx.HTTPError, ssl.SSLError) as error:
                raise self._unanswered(error) from None  # its message may quote the URL
        if response.is_redirect:
            raise StoreRefused(f"{self.shown} sends requests elsewhere.", "Name the server's own address.")
        try:
            answer = response.content
            return response.status_code, (
                await asyncio.to_thread(orjson.loads, answer) if len(answer) > 100_000 else orjson.loads(answer)
            )
        except ValueError:
            if response.is_success and path != "/version":
                raise StoreUnavailable(
                    f"The Chroma server at {self.shown} sent half an answer.", _NOTHING_LOST
                ) from None
            return response.status_code, response.text[:300]

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            most = self._reach.max_connections
            self._client = httpx.AsyncClient(
                headers={"Content-Type": "application/json", **self._server.headers},
                timeout=httpx.Timeout(self._reach.timeout_s, connect=self._reach.connect_timeout_s),
                limits=httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=40),
            )
        return self._client

    def _unanswered(self, error: Exception) -> WhimbrelError:
        said = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return StoreRefused(
                f"The certificate of {self.shown} is not trusted.",
                "Set SSL_CERT_FILE to the certificate of the authority that signed it.",
            )
        if "WRONG_VERSION_NUMBER" in said or "record layer" in said.lower():
            return StoreRefused(
                f"The server at {self.shown} does not speak TLS.", "For one without TLS: `chroma+http://...`."
            )
        if isinstance(error, httpx.RemoteProtocolError) and "illegal" in said.lower():
            return StoreRefused(
                f"What answers at {self.shown} does not speak HTTP.", "For a server with TLS: `chroma+https://...`."
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            _WERE_FULL.discard(self._server.url)  # it is being started anew
            return StoreUnavailable(
                f"Nobody answers at {self.shown}.",
                f"Start the Chroma server, or check the host and the port. {_NOTHING_LOST}",
            )
        if isinstance(error, httpx.TimeoutException):
            return self._unavailable("did not answer in time")
        return StoreUnavailable(f"The Chroma server at {self.shown} broke off.", _NOTHING_LOST)

    def _unavailable(self, what: str) -> StoreUnavailable:
        were_full = self._server.url in _WERE_FULL
        hint = f"Its disk was full. {_ANEW} {_NOTHING_LOST}" if were_full else _NOTHING_LOST
        return StoreUnavailable(f"The Chroma server at {self.shown} {what}.", hint)

    def _check(self, status: int, answer: Any) -> None:
        """Raises what a status other than success means. The server's message may quote a filter or a text."""
        if status < 400:
            return
        said = _said(answer)
        if status in (401, 403):
            raise StoreRefused(
                f"The Chroma server at {self.shown} does not accept the key.",
                "Put a token or `user:password` before the host in the URI, or set CHROMA_API_KEY.",
            )
        if status == 413 or "batch size" in said.lower():
            raise Refused(f"{self.shown} takes no request as large as this one")
        if "Error finding id" in said:
            raise UnknownId
        if status == 404:
            raise ViewDamaged(f"The collection is not at {self.shown} any more.", REBUILD)
        if "disk is full" in said or "No space left" in said:
            _WERE_FULL.add(self._server.url)
            raise DiskFull(f"The disk of the Chroma server at {self.shown} is full.", f"Free some space there. {_ANEW}")
        if status == 429 or status >= 500:
            raise self._unavailable(f"answers {status}")
        kind = answer.get("error") if isinstance(answer, dict) else None
        raise ViewError(
            f"The Chroma server at {self.shown} refused a request ({status} {str(kind or '')[:40]}).",
            "This is a fault in Whimbrel; please report it.",
        )


_SUPPORTED = "Versions 1.0 and later are supported: update the server."
_LARGE = 200
"""Rows of a request whose JSON is made outside the event loop."""


def _collection(answer: Any) -> Collection:
    metadata = answer.get("metadata") or {}
    metric = metric_of(answer.get("configuration_json"), metadata)
    return Collection(answer["id"], answer["name"], metric, answer.get("dimension"), metadata)


def _said(answer: Any) -> str:
    return str(answer.get("message", "") if isinstance(answer, dict) else answer)


def _as_base64(vectors: npt.NDArray[np.float32]) -> list[str]:
    return [b64encode(row).decode() for row in np.ascontiguousarray(vectors, "<f4")]


def _import_orjson() -> Any:
    try:
        import orjson
    except ImportError:
        raise MissingExtra("The package of Chroma is not installed.", "pip install 'whimbrel[chroma]'") from None
    return orjson
