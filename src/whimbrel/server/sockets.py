"""The sockets that `serve` listens on: TCP, and a Unix socket in the home for the programs of the home's user."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from whimbrel.errors import ConfigError, HomeError, PortInUse
from whimbrel.home import Home

_HOSTS = "Use 127.0.0.1, or another address of this machine."


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening TCP sockets for every address of `host`, all on one port; 0 takes a free one.

    Raises `PortInUse`, and `ConfigError` for a host that is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"The host {host!r} is not known.", _HOSTS) from error
    made: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            if made:
                port = made[0].getsockname()[1]
            one = _bound(family, kind, protocol, (address[0], port, *address[2:]), alone=not made)
            if one is not None:
                made.append(one)
    except BaseException:
        for one in made:
            one.close()
        raise
    return made


def _bound(family: int, kind: int, protocol: int, address: tuple[object, ...], *, alone: bool) -> socket.socket | None:
    """None for a second address that this machine has no support for (IPv6 is often switched off)."""
    try:
        one = socket.socket(family, kind, protocol)
    except OSError:
        if alone:
            raise
        return None
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(2048)
        one.setblocking(False)
    except OSError as error:
        one.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"Port {address[1]} of {address[0]} is in use by another program.",
                "Stop that program (another `whimbrel serve`?), or choose another: `--port 8001`; 0 takes a free one.",
            ) from error
        if error.errno == errno.EACCES:
            raise PortInUse(
                f"This user may not listen on port {address[1]}.", "Choose one from 1024 up: `--port 8000`."
            ) from error
        if not alone and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise ConfigError(f"Cannot listen on {address[0]}: {error.strerror}.", _HOSTS) from error
    return one


class HomeSocket:
    """The home's Unix socket. One process at a time listens on it: it holds a lock, which the kernel frees when it
    dies; what it left behind is then removed by the next."""

    def __init__(self, home: Home) -> None:
        self._path = home.socket
        self._lock_path = home.path / "serve.lock"
        self._lock: TextIO | None = None

    @property
    def path(self) -> Path:
        return self._path

    @property
    def held(self) -> bool:
        return self._lock is not None

    def listen(self) -> socket.socket | None:
        """A listening socket that only this user can open; None while another process has it. Raises `HomeError`."""
        try:
            lock = self._lock_path.open("a")
        except OSError as error:
            raise self._error(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove()
            made.bind(str(self._path))
            # Nobody can connect before `listen`, so it is never open to others.
            self._path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            made.listen(256)
            made.setblocking(False)
        except OSError as error:
            made.close()
            lock.close()
            raise self._error(error) from error
        self._lock = lock
        return made

    def release(self) -> None:
        """Remove the socket's file, if it is ours."""
        if self._lock is not None:
            with suppress(OSError):  # the home may have been removed under us
                self._remove()
            self._lock.close()
            self._lock = None

    def _remove(self) -> None:
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EEXIST, "there is a file of that name that is no socket")
        self._path.unlink()

    def _error(self, error: OSError) -> HomeError:
        return HomeError(
            f"The socket {self._path} cannot be made: {error.strerror}.",
            "Give this user write permission on the home, or set WHIMBREL_HOME to another folder.",
        )
