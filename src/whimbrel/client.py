"""Asking a running `serve` of this home over its Unix socket: quicker than opening everything here.

`http.client` and not httpx, whose import alone takes 0.4 s, ten times as long as a search.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
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
        status, raw = answered
        try:
            found = json.loads(raw)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise WhimbrelError(f"The running serve answered {status} without JSON.", "Look at its log.")
        if status >= 400:
            raise _error(found)
        return found

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes] | None:
        connection = _Connection(self._path, self._timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as error:
            raise Busy(
                f"The running serve has not answered in {self._timeout_s:.0f} s.",
                "Try again, or look at its log; `whimbrel doctor` examines the home.",
            ) from error
        except PermissionError as error:
            raise HomeError(
                f"The socket {self._path} belongs to another user.",
                "Use the user that runs serve, or set WHIMBREL_HOME.",
            ) from error
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


def _error(body: Mapping[str, Any]) -> WhimbrelError:
    """The error that the server's answer names; of a name not known here, the base class."""
    message, hint = str(body.get("message", "")), str(body.get("hint", ""))
    kind = getattr(whimbrel.errors, str(body.get("error")), None)
    if isinstance(kind, type) and issubclass(kind, WhimbrelError):
        return kind(message, hint)
    return WhimbrelError(message, hint)
