"""Checks of the home's folder: is it there, can it be written to, is there space, who holds it, what lies about."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from whimbrel.doctor.findings import Finding, Level, size
from whimbrel.home import Home
from whimbrel.owner.lock import holder

LITTLE_BYTES = 200_000_000
LEFTOVER_S = 3_600.0
"""A half-written file that is younger may be in the making."""
SOCKET_TIMEOUT_S = 2.0


def there(home: Home) -> Iterator[Finding]:
    """Without a home there is nothing else to examine."""
    path = home.path
    if path.is_dir():
        return
    if path.exists():
        said, fix = f"{path} is no folder, so it cannot be a home.", "Set WHIMBREL_HOME to a folder."
    else:
        said, fix = f"There is no home at {path}.", "`whimbrel ingest PATH` makes one; or correct WHIMBREL_HOME."
    yield Finding("there", Level.PROBLEM, said, "Nothing was ever kept there, or its disk is not mounted.", fix)


def writable(home: Home) -> Iterator[Finding]:
    flags = os.statvfs(home.path).f_flag
    if flags & os.ST_RDONLY:
        why, fix = "Its file system is mounted read-only.", "Mount it for writing: views and jobs cannot go on."
    elif not os.access(home.path, os.R_OK | os.W_OK | os.X_OK):
        owner = home.path.stat().st_uid
        why, fix = f"It belongs to user {owner}; this is user {os.getuid()}.", "Use that user, or change the owner."
    else:
        return
    yield Finding("writable", Level.PROBLEM, f"The home {home.path} cannot be written to.", why, fix)


def private(home: Home) -> Iterator[Finding]:
    mode = stat.S_IMODE(home.path.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "private",
            Level.WARNING,
            f"Other users of this machine may look into {home.path} (mode {mode:03o}).",
            "It holds the text of all documents.",
            f"chmod 700 {home.path}",
        )


def space(home: Home) -> Iterator[Finding]:
    free = shutil.disk_usage(home.path).free
    catalog = home.catalog.stat().st_size if home.catalog.exists() else 0
    if free < LITTLE_BYTES:
        yield Finding(
            "space",
            Level.PROBLEM,
            f"The disk of {home.path} is nearly full: {size(free)} are free.",
            "A write that does not fit is refused, and compaction needs room beside what it compacts.",
            "Free some space.",
        )
    elif free < 2 * catalog:
        yield Finding(
            "space",
            Level.WARNING,
            f"{size(free)} are free, and the catalog has {size(catalog)}.",
            "An erasure writes the catalog anew, an upgrade saves a copy: each needs the catalog's size.",
            "Make room before either.",
        )


def held(home: Home) -> Iterator[Finding]:
    who = holder(home)
    if who is not None:
        yield Finding("held", Level.NOTE, f"Process {who.get('pid', '?')} owns the home.", "It changes the views.")


def stale_socket(home: Home) -> Iterator[Finding]:
    path = home.socket
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        said = f"{path} is no socket, so `serve` cannot listen there."
        yield Finding("stale_socket", Level.PROBLEM, said, fix="Move it away.")
        return
    answer = _connect(path)
    if answer is ConnectionRefusedError:
        yield Finding(
            "stale_socket",
            Level.WARNING,
            f"Nobody listens on {path}.",
            "A `serve` was killed. Commands notice it and work by themselves; the next `serve` replaces it.",
            "Remove it.",
            mend=lambda: path.unlink(missing_ok=True),
        )
    elif answer is TimeoutError:
        said = f"The `serve` behind {path} does not take connections."
        yield Finding("stale_socket", Level.PROBLEM, said, "It hangs, or is stopped.", "Look at its log; restart it.")


def _connect(path: Path) -> type[OSError] | None:
    """Why nobody takes a connection; None if somebody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(SOCKET_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return ConnectionRefusedError
        except TimeoutError:
            return TimeoutError
    return None


def leftovers(home: Home) -> Iterator[Finding]:
    """What a killed process has left half-written: nothing reads it."""
    candidates = [*home.path.glob(".*.part"), *home.copies.glob("*.part"), *home.copies.glob(".*.part")]
    old = [path for path in candidates if path.is_file() and time.time() - path.stat().st_mtime > LEFTOVER_S]
    for path in old:
        yield Finding(
            "leftovers",
            Level.WARNING,
            f"{path} was never finished ({size(path.stat().st_size)}).",
            "The process that wrote it was killed. Nothing reads it.",
            "Remove it.",
            mend=_removing(path),
        )


def _removing(path: Path) -> Callable[[], None]:
    return lambda: path.unlink(missing_ok=True)


def copies(home: Home) -> Iterator[Finding]:
    found = [path for path in home.copies.glob("before-*") if path.is_file() and path.suffix != ".part"]
    if found:
        total = sum(path.stat().st_size for path in found)
        yield Finding(
            "copies",
            Level.NOTE,
            f"{len(found)} copies of the catalog, from before upgrades, take {size(total)} in {home.copies}.",
            "They are the way back to an older version, and hold the text of what was erased since.",
            "Delete those that are not needed any more.",
        )


CHECKS: tuple[Callable[[Home], Iterator[Finding]], ...] = (
    writable,
    private,
    space,
    held,
    stale_socket,
    leftovers,
    copies,
)
