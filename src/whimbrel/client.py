"""Asking a running `serve` of this home over its Unix socket: quicker than opening everything here.

`http.client` and not httpx, whose import alone takes 0.4 s, ten times as long as a search.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import whimbrel.errors
from whimbrel.errors import Busy, HomeError, WhimbrelError

TIMEOUT_S = 120.0


class ServeClient:
    """One home's `serve`, if there is one."""

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """`path`: the home's socket."""
        self._path = path
        self._timeout_s = timeout_s

    def alive(self) -> bool:
        """Whether somebody answers on the socket."""
        return self._send("GET", "/health", None) is not None

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer as JSON; None when nobody serves this home, or stopped doing so meanwhile.

        Raises the error that the server answers with; `Busy` when it does not answer in time.
        """
        answered = self._send("POST", path, json.dumps(body).encode())
        if answered is None:
            return None
        return _json(*answered)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]] | None:
        """Server-sent events, as (name, data), while they come; None when nobody serves this home.

        Raises as `post`, also in the middle: for an event `error`, and where the server ends before the answer.
        """
        connection = _Connection(self._path, self._timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}).encode(), headers)
            response = connection.getresponse()
        except TimeoutError as error:
            connection.close()
            raise self._silent() from error
        except PermissionError as error:
            connection.close()
            raise self._of_another() from error
        except (OSError, http.client.HTTPException):
            connection.close()
            return None
        return self._events(connection, response)

    def _events(
        self, connection: _Connection, response: http.client.HTTPResponse
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                yield "answer", _json(response.status, response.read())
                return
            for name, data in events(response):
                if name == "error":
                    raise _error(data)
                yield name, data
                if name == "answer":
                    return
            raise WhimbrelError("The running serve ended in the middle of its answer.", "Ask again; look at its log.")
        except TimeoutError as error:
            raise self._silent() from error
        except (OSError, http.client.HTTPException) as error:
            raise WhimbrelError("The running serve went away in the middle of its answer.", "Ask again.") from error
        finally:
            connection.close()

    def _silent(self) -> Busy:
        return Busy(
            f"The running serve has not answered in {self._timeout_s:.0f} s.",
            "Try again, or look at its log; `whimbrel doctor` examines the home.",
        )

    def _of_another(self) -> HomeError:
        return HomeError(
            f"The socket {self._path} belongs to another user.",
            "Use the user that runs serve, or set WHIMBREL_HOME.",
        )

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes] | None:
        connection = _Connection(self._path, self._timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as error:
            raise self._silent() from error
        except PermissionError as error:
            raise self._of_another() from error
        except (OSError, http.client.HTTPException):  # nobody is there, or the server ended while it was asked
            return None
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def events(lines: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events of JSON objects, as (name, data); comments and other fields are passed over."""
    name, data = "message", ""
    for raw in lines:
        field, _, value = raw.decode("utf-8", "replace").rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif not field and not value:
            if data:
                yield name, _json(200, data.encode())
            name, data = "message", ""


def _json(status: int, raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise WhimbrelError(f"The running serve answered {status} without JSON.", "Look at its log.")
    if status >= 400:
        raise _error(found)
    return found


def _error(body: Mapping[str, Any]) -> WhimbrelError:
    """The error that the server's answer names; of a name not known here, the base class."""
    message, hint = str(body.get("message") or body.get("detail") or ""), str(body.get("hint", ""))
    kind = getattr(whimbrel.errors, str(body.get("error")), None)
    if isinstance(kind, type) and issubclass(kind, WhimbrelError):
        return kind(message, hint)
    return WhimbrelError(message, hint)
