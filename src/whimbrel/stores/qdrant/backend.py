"""Where a collection is: in a folder of this process, or behind a server. Both have qdrant-client's calls, of the same
names and arguments; a folder's block, a server's are awaited."""

from __future__ import annotations

import asyncio
import inspect
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whimbrel.errors import (
    Conflict,
    DiskFull,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.stores.base import REBUILD, Reach
from whimbrel.stores.batches import Refused
from whimbrel.stores.qdrant import files
from whimbrel.stores.qdrant.folder import ELSEWHERE, Folder, import_qdrant
from whimbrel.stores.qdrant.rules import NAMES
from whimbrel.stores.qdrant.uri import Server, parse_server

OLDEST = (1, 10)
"""Of servers: the first with `query_points`."""
SAYS_METADATA = (1, 16)
"""The first whose collections have metadata of their own."""
_NOTHING_LOST = "Nothing is lost: what was not written waits in the catalog."
_CALLS = 8

Work = Callable[[Any], Any]
"""What is asked of the client; of a server's, it returns what is awaited."""


class Backend(ABC):
    single_process: bool
    shown: str
    """Where it is, for messages; no key."""

    async def is_there(self) -> bool:
        """Whether it can be asked without being made."""
        return True

    @abstractmethod
    async def do(self, work: Work) -> Any:
        """What the client answers. Raises `Refused` for too large a request, and what `whimbrel.stores.base` says."""

    @abstractmethod
    async def version(self) -> tuple[int, int]: ...

    async def made(self, name: str) -> None:
        """A collection was made."""

    async def erase(self) -> None:
        """Write out of the files what was deleted, where this can be asked for."""

    @abstractmethod
    async def close(self) -> None: ...


class LocalBackend(Backend):
    single_process = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = str(path)
        self._folder: Folder | None = None
        self._opening = asyncio.Lock()

    async def is_there(self) -> bool:
        return self._folder is not None or await asyncio.to_thread(files.is_there, self.path)

    async def do(self, work: Work) -> Any:
        folder = await self._opened()

        def call() -> Any:
            with folder.use() as client:
                return work(client)

        return await asyncio.to_thread(call)

    async def version(self) -> tuple[int, int]:
        return SAYS_METADATA

    async def made(self, name: str) -> None:
        """Its file gets a log: local mode commits each row by itself, which without one takes three times as long."""
        folder = await self._opened()
        await asyncio.to_thread(folder.log, name)

    async def erase(self) -> None:
        folder = await self._opened()
        await asyncio.to_thread(folder.vacuum)

    async def close(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(folder.release)

    async def _opened(self) -> Folder:
        if self._folder is None:
            async with self._opening:
                if self._folder is None:
                    self._folder = await asyncio.to_thread(Folder.take, self.path)
        return self._folder


class ServerBackend(Backend):
    single_process = False

    def __init__(self, server: Server, reach: Reach) -> None:
        self._server = server
        self._reach = reach
        self.shown = server.url
        self._client: Any = None
        self._version: tuple[int, int] | None = None
        self._turns = asyncio.Semaphore(reach.max_connections)
        self._greeting = asyncio.Lock()

    async def do(self, work: Work) -> Any:
        await self.version()
        return await self._ask(work)

    async def version(self) -> tuple[int, int]:
        """Asked once. Raises `StoreUnsupported` for one that is too old, `StoreRefused` for what is no Qdrant."""
        if self._version is None:
            async with self._greeting:
                if self._version is None:
                    self._version = await self._greet()
        return self._version

    async def close(self) -> None:
        client, self._client = self._client, None
        self._version = None
        if client is not None:
            await client.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _greet(self) -> tuple[int, int]:
        await asyncio.to_thread(import_qdrant)  # which may take longer than a server has to answer
        self._open()
        try:
            async with asyncio.timeout(self._reach.connect_timeout_s):
                found = await self._ask(lambda client: client.info())
        except TimeoutError:
            raise self._nobody() from None
        match = re.match(r"(\d+)\.(\d+)", str(found.version))
        if "qdrant" not in str(found.title).lower() or match is None:
            raise self._stranger()
        version = int(match[1]), int(match[2])
        if version < OLDEST:
            raise StoreUnsupported(
                f"The Qdrant server at {self.shown} is version {found.version[:20]}.",
                "Versions 1.10 and later are supported: update the server.",
            )
        return version

    async def _ask(self, work: Work) -> Any:
        async with self._turns:
            try:
                answer = work(self._open())
                return await answer if inspect.isawaitable(answer) else answer
            except (WhimbrelError, Refused):
                raise
            except Exception as error:
                raise self._translated(error) from None  # its message may quote the key, or a text

    def _open(self) -> Any:
        if self._client is None:
            import httpx

            qdrant_client = import_qdrant()
            server, most = self._server, self._reach.max_connections
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that a key goes over plain HTTP
                self._client = qdrant_client.AsyncQdrantClient(
                    url=server.url,
                    prefer_grpc=server.grpc_port is not None,
                    grpc_port=server.grpc_port or 6334,
                    api_key=server.key or None,
                    timeout=max(1, int(self._reach.timeout_s)),
                    check_compatibility=False,
                    limits=httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=40),
                )
        return self._client

    def _translated(self, error: Exception) -> Exception:
        import httpx
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        if isinstance(error, UnexpectedResponse):
            return self._status(error.status_code or 0, (error.content or b"").decode("utf-8", "replace"))
        if isinstance(error, ResponseHandlingException):
            return self._unanswered(error.source)
        if isinstance(error, httpx.HTTPError):
            return self._unanswered(error)
        if isinstance(error, ResourceExhaustedResponse):
            return StoreUnavailable(f"The Qdrant server at {self.shown} is busy.", _NOTHING_LOST)
        if hasattr(error, "code") and hasattr(error, "details"):  # grpc's
            return self._status(_HTTP.get(error.code().name, 500), str(error.details()))
        return error

    def _unanswered(self, error: Exception) -> WhimbrelError:
        import httpx

        said = f"{error} {error.__cause__ or ''}"
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return StoreRefused(
                f"The certificate of {self.shown} is not trusted.",
                "Set SSL_CERT_FILE to the certificate of the authority that signed it.",
            )
        if "WRONG_VERSION_NUMBER" in said or "record layer" in said.lower():
            return StoreRefused(
                f"The server at {self.shown} does not speak TLS.", "For one without TLS: `qdrant+http://...`."
            )
        if isinstance(error, httpx.RemoteProtocolError) and re.search("illegal|invalid|status line", said):
            return StoreRefused(
                f"What answers at {self.shown} does not speak HTTP.",
                "The port of HTTP is 6333 by default (gRPC's, 6334, goes into `?grpc_port=`); with TLS: "
                "`qdrant+https://...`.",
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return self._nobody()
        if isinstance(error, httpx.TimeoutException):
            return StoreUnavailable(f"The Qdrant server at {self.shown} did not answer in time.", _NOTHING_LOST)
        if isinstance(error, httpx.HTTPError):
            return StoreUnavailable(f"The Qdrant server at {self.shown} broke off.", _NOTHING_LOST)
        return self._stranger()  # an answer of another form

    def _nobody(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"Nobody answers at {self.shown}.",
            f"Start the Qdrant server, or check the host and the port. {_NOTHING_LOST}",
        )

    def _stranger(self) -> StoreRefused:
        return StoreRefused(
            f"What answers at {self.shown} is not a Qdrant server, or not one of today.",
            "Check the host and the port (6333 by default).",
        )

    def _status(self, status: int, said: str) -> Exception:
        """What a status other than success means. The server's message may quote a filter or a text."""
        lower = said.lower()
        if status in (401, 403):
            return StoreRefused(
                f"The Qdrant server at {self.shown} does not accept the key, or it may not do this.",
                "Put the key before the host in the URI, as `qdrant+https://KEY@HOST:6333`, or set QDRANT_API_KEY.",
            )
        if status == 413 or "larger than" in lower or "payload reached size limit" in lower:
            return Refused(f"{self.shown} takes no request as large as this one")
        if "already exists" in lower:
            return Conflict(f"There is a collection of that name at {self.shown} already. {_UNCHANGED}", ELSEWHERE)
        if status == 404:
            if "collection" in lower or not said:
                return ViewDamaged(f"The collection is not at {self.shown} any more.", REBUILD)
            return self._stranger()
        if "no space left" in lower or "disk full" in lower or "not enough space" in lower:
            return DiskFull(f"The disk of the Qdrant server at {self.shown} is full.", "Free some space there.")
        if "collection name" in lower and status in (400, 422):
            return StoreRefused("Qdrant does not take this as the name of a collection.", NAMES)
        if status == 429 or status >= 500:
            return StoreUnavailable(f"The Qdrant server at {self.shown} answers {status}.", _NOTHING_LOST)
        return ViewError(
            f"The Qdrant server at {self.shown} refused a request ({status}).",
            "Strict mode or limits there may forbid it; else this is a fault in Whimbrel: please report it.",
        )


_UNCHANGED = "Nothing was changed."
_HTTP = {
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "OUT_OF_RANGE": 413,
    "UNAVAILABLE": 503,
}
"""The status over HTTP that means the same as gRPC's."""


def open_backend(uri: str, base: Path, reach: Reach) -> Backend:
    """What `qdrant:PATH`, `qdrant+http://...` or `qdrant+https://...` names. Raises `ConfigError`."""
    if uri.startswith("qdrant:"):
        return LocalBackend(base / Path(uri.removeprefix("qdrant:") or "qdrant").expanduser())
    return ServerBackend(parse_server(uri), reach)
