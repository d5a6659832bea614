"""A Milvus server and pymilvus' errors as ours."""

from __future__ import annotations

import logging
import re
import socket
import ssl
from base64 import b64encode
from typing import Any

from whimbrel.errors import (
    DiskFull,
    MissingExtra,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.memory import LIBRARIES
from whimbrel.stores.base import REBUILD, Reach
from whimbrel.stores.batches import Refused
from whimbrel.stores.milvus.backend import NAMES
from whimbrel.stores.milvus.uri import Server

OLDEST = (2, 3, 2)
"""The first with arrays."""
_NOTHING_LOST = "Nothing is lost: what was not written waits in the catalog."

_NO_COLLECTION, NOT_LOADED, _NO_DATABASE, _NO_RIGHT = (4, 100), (101, 106, 503, 3), 800, (1400, 1401, 1402)
_RATE, _UNREADY = (8, 9, 18, 49), (1, 2, 10, 13, 200, 201, 503)


class NotLoaded(Exception):
    """The collection is there, and not in the server's memory: it was started anew."""


def connect(server: Server, reach: Reach) -> Any:
    """pymilvus' client, greeted. Raises `StoreUnavailable`, `StoreRefused` and `StoreUnsupported`."""
    pymilvus = import_pymilvus()
    try:
        client = pymilvus.MilvusClient(
            server.url, token=server.token, db_name=server.database, timeout=reach.connect_timeout_s, dedicated=True
        )
        version = str(client.get_server_version(timeout=reach.timeout_s))
        if server.database and server.database not in client.list_databases(timeout=reach.timeout_s):
            raise _no_database(server)  # some versions take the name for that of an empty one
    except Exception as error:
        raise translated(server, reach, error) from None  # its message may quote the token
    known = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    if known and tuple(map(int, known.groups())) < OLDEST:
        client.close()
        raise StoreUnsupported(
            f"The Milvus server at {server.url} is version {version[:20]}.",
            f"Versions {'.'.join(map(str, OLDEST))} and later are supported: update the server.",
        )
    return client


def import_pymilvus() -> Any:
    try:
        with LIBRARIES:
            import pymilvus
    except ImportError:
        raise MissingExtra("The package of Milvus is not installed.", "pip install 'whimbrel[milvus]'") from None
    # It logs each error with what was asked for, which may be a text, and raises it too.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return pymilvus


def translated(server: Server, reach: Reach, error: Exception) -> Exception:
    """What pymilvus or gRPC raised, as one of ours."""
    if isinstance(error, WhimbrelError | Refused | NotLoaded):
        return error
    status = getattr(error, "code", None)
    status = status() if callable(status) else status
    name = getattr(status, "name", "")
    said = str(getattr(error, "message", None) or error)
    code = status if isinstance(status, int) else None
    lower = said.lower()
    if "fail connecting" in lower or name == "UNAVAILABLE":
        return unanswered(server, reach)
    if name == "UNAUTHENTICATED" or "auth check failure" in lower or "unauthenticated" in lower or code == 1800:
        return _no_token(server)
    if name == "PERMISSION_DENIED" or "permission deny" in lower or code in _NO_RIGHT:
        return StoreRefused(
            f"The Milvus server at {server.url} does not allow this.", "Give this user the right to do so there."
        )
    if name == "DEADLINE_EXCEEDED" or "deadline" in lower or "timeout" in lower:
        return StoreUnavailable(f"The Milvus server at {server.url} did not answer in time.", _NOTHING_LOST)
    if name == "RESOURCE_EXHAUSTED" or "larger than max" in lower or "exceeds the limit" in lower:
        return Refused(f"{server.url} takes no request as large as this one")
    if name == "UNIMPLEMENTED":
        return StoreUnsupported(f"What answers at {server.url} is not a Milvus server that we know.", _CHECK)
    return _by_code(server, code, lower, type(error).__name__)


def _by_code(server: Server, code: int | None, lower: str, kind: str) -> Exception:
    if "no space left" in lower or "disk quota" in lower or "disk full" in lower:
        return DiskFull(f"The disk of the Milvus server at {server.url} is full.", "Free some space there.")
    if "memory quota" in lower or "quota exceeded" in lower:
        return StoreUnavailable(f"The Milvus server at {server.url} is over its quota.", _NOTHING_LOST)
    if code == _NO_DATABASE or "database not found" in lower or ("database:" in lower and "not found" in lower):
        return _no_database(server)
    if "not loaded" in lower or "not fully loaded" in lower or code == 101:
        return NotLoaded()
    if "collection not found" in lower or "can't find collection" in lower or code in _NO_COLLECTION:
        return ViewDamaged(f"The collection is not at {server.url} any more.", REBUILD)
    if "invalid collection name" in lower or "collection name" in lower:
        return StoreRefused("Milvus does not take this as the name of a collection.", NAMES)
    if "rate limit" in lower or code in _RATE or code in _UNREADY:
        return StoreUnavailable(f"The Milvus server at {server.url} is not ready ({code}).", _NOTHING_LOST)
    return ViewError(
        f"The Milvus server at {server.url} refused a request ({code or kind}).",
        "This is a fault in Whimbrel; please report it.",
    )


_CHECK = "Check the host and the port (19530 by default)."


def unanswered(server: Server, reach: Reach) -> WhimbrelError:
    """Why no connection comes about, by looking who is there."""
    try:
        with socket.create_connection((server.host, server.port), reach.connect_timeout_s):
            pass
    except OSError:
        return StoreUnavailable(
            f"Nobody answers at {server.url}.",
            f"Start the Milvus server, or check the host and the port. {_NOTHING_LOST}",
        )
    tls = _speaks_tls(server, reach)
    if server.secure and tls is None:
        return StoreRefused(f"The server at {server.url} does not speak TLS.", "For one without: `milvus+http://...`.")
    if server.secure and tls is False:
        return StoreRefused(
            f"The certificate of {server.url} is not trusted.",
            "Set GRPC_DEFAULT_SSL_ROOTS_FILE_PATH to the certificate of the authority that signed it.",
        )
    if not server.secure and tls is not None:
        return StoreRefused(f"The server at {server.url} speaks TLS alone.", "For one with TLS: `milvus+https://...`.")
    if not _speaks_http2(server, reach):
        return StoreRefused(f"What answers at {server.url} is not a Milvus server.", _CHECK)
    if not _lets_in(server, reach):
        return _no_token(server)
    return StoreUnavailable(f"The Milvus server at {server.url} is not ready.", _NOTHING_LOST)


def _no_token(server: Server) -> StoreRefused:
    return StoreRefused(
        f"The Milvus server at {server.url} does not accept the token.",
        "Put a key, or `user:password`, before the host in the URI, or set MILVUS_TOKEN.",
    )


def _no_database(server: Server) -> StoreRefused:
    return StoreRefused(
        f"The Milvus server at {server.url} has no database {server.database!r}.",
        "Make it there, or name another: `?database=...` in the URI.",
    )


def _lets_in(server: Server, reach: Reach) -> bool:
    """Whether the token is accepted: pymilvus says of any trouble at the beginning that there is no connection."""
    import grpc
    from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

    place = f"{server.host}:{server.port}"
    said = [("authorization", b64encode(server.token.encode()).decode())] if server.token else []
    secure = server.secure
    with (
        grpc.secure_channel(place, grpc.ssl_channel_credentials()) if secure else grpc.insecure_channel(place) as open_
    ):
        try:
            asked = milvus_pb2.GetVersionRequest()
            milvus_pb2_grpc.MilvusServiceStub(open_).GetVersion(asked, timeout=reach.timeout_s, metadata=said)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _speaks_tls(server: Server, reach: Reach) -> bool | None:
    """None: not at all. Whether its certificate is trusted."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    for context, means in ((ssl.create_default_context(), True), (trusting, False)):
        try:
            with (
                socket.create_connection((server.host, server.port), reach.connect_timeout_s) as plain,
                context.wrap_socket(plain, server_hostname=server.host),
            ):
                return means
        except OSError:
            continue
    return None


def _speaks_http2(server: Server, reach: Reach) -> bool:
    """Whether what listens answers the preface of HTTP/2 by its own, as every gRPC server does."""
    if server.secure:
        return True
    try:
        with socket.create_connection((server.host, server.port), reach.connect_timeout_s) as plain:
            plain.settimeout(reach.connect_timeout_s)
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            answer = plain.recv(9)
    except OSError:
        return False
    return len(answer) >= 4 and answer[3] == 4  # the type of a frame of settings
