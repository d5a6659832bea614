"""One owner per home: a lock on a file, and a lease with a fencing token in the catalog.

The file lock tells the processes of one machine apart and is freed by the kernel when its holder dies. The lease tells
machines apart that share a Postgres catalog; its token fences off an owner that was paused while another took over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass
from typing import TextIO

from whimbrel.catalog import leases
from whimbrel.catalog.engine import Catalog
from whimbrel.errors import AlreadyOwned, HomeError
from whimbrel.home import Home, host_name

LEASE = "owner"


@dataclass(slots=True)
class Ownership:
    """What makes this process the owner. Give it back with `release`."""

    catalog: Catalog
    token: int
    lease_s: float
    _file: TextIO

    def renew(self) -> bool:
        """False when another process has become the owner; this one must stop."""
        with self.catalog.write() as connection:
            return leases.renew(connection, LEASE, self.token, self.lease_s)

    def release(self) -> None:
        try:
            with self.catalog.write() as connection:
                leases.release(connection, LEASE, self.token)
        finally:
            self._file.close()


def acquire(home: Home, catalog: Catalog, *, lease_s: float) -> Ownership:
    """Become the owner. Raises `AlreadyOwned`, naming the process that is."""
    file = _lock_file(home)
    info = {"pid": os.getpid(), "host": host_name(), "home": str(home.path)}
    try:
        with catalog.write() as connection:
            # On SQLite the file lock is proof that the last holder is dead; on Postgres he may be on another machine,
            # or have been on this one and home.
            held = leases.read(connection, LEASE)
            ours = held is not None and held.info.get("home") == info["home"] and held.info.get("host") == info["host"]
            force = catalog.is_sqlite or ours
            token = leases.take(connection, LEASE, f"{info['host']}:{info['pid']}", lease_s, info, force=force)
        if token is None:
            assert held is not None
            raise AlreadyOwned(
                f"The home is owned by {held.holder} (its lease is renewed every few seconds).",
                "Let it do the work (`whimbrel ingest` and `serve` beside an owner do), or stop it and wait "
                f"{lease_s:.0f} s.",
            )
    except BaseException:
        file.close()
        raise
    file.seek(0)
    file.truncate()
    file.write(json.dumps(info))
    file.flush()
    return Ownership(catalog, token, lease_s, file)


def holder(home: Home) -> dict[str, object] | None:
    """Who holds the home's file lock on this machine; None if nobody does."""
    try:
        with home.lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_holder(file)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise HomeError(
            f"The home {home.path} cannot be written to by this user.",
            "Use the user that runs the owner, or set WHIMBREL_HOME.",
        ) from error
    return None


def lease_of(home: Home, catalog: Catalog) -> leases.Lease | None:
    """The lease of the owner that is alive, whoever that is; None if there is none.

    On SQLite the file lock tells: a killed owner's lease has still some seconds to run, and a living one's may have run
    out while the catalog was written anew.
    """
    with catalog.read() as connection:
        lease = leases.read(connection, LEASE)
    if lease is None or not (holder(home) is not None if catalog.is_sqlite else lease.alive):
        return None
    return lease


def _lock_file(home: Home) -> TextIO:
    try:
        file = home.lock.open("a+")
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror)
        raise HomeError(
            f"The home {home.path} cannot be locked: {reason}. Nothing was changed.",
            "Give this user write permission there, or set WHIMBREL_HOME to another folder.",
        ) from error
    for attempt in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if attempt < 4:
                time.sleep(0.03)  # `holder` of another process may be looking just now
    who = _read_holder(file)
    file.close()
    raise AlreadyOwned(
        f"The home {home.path} is owned by process {who.get('pid', '?')}.",
        "Let it do the work (`whimbrel ingest` and `serve` beside an owner do), or stop it first.",
    )


def _read_holder(file: TextIO) -> dict[str, object]:
    file.seek(0)
    try:
        found = json.loads(file.read() or "{}")
    except ValueError:  # being written just now
        found = {}
    return found if isinstance(found, dict) else {}
