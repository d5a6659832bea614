"""The files under the paths that a user names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from whimbrel.errors import PathNotFound, UnreadableFile

SKIPPED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", ".bzr", "CVS", "node_modules", "__pycache__", ".venv", "venv", ".tox", ".nox"}
    | {".mypy_cache", ".pytest_cache", ".ruff_cache", ".idea", ".vscode", "$RECYCLE.BIN", "System Volume Information"}
)
"""Never looked into, unless named themselves; nor is a virtual environment, or a home of Whimbrel, under any name."""

_NOT_DOCUMENTS = ("pyvenv.cfg", "owner.lock")


@dataclass(frozen=True, slots=True)
class Found:
    """A file to take in; or what could not be read, with its `error`; or what is no file, with the reason it was
    `skipped`."""

    path: Path
    """Absolute."""
    uri: str
    """`file://` and the resolved path, percent-encoded: the same file has the same uri, however it was named."""
    size: int = 0
    mtime_ns: int = 0
    root: Path | None = None
    """The folder, resolved, that the user named; None for a file that was named itself."""
    error: UnreadableFile | None = None
    skipped: str = ""


def discover(paths: Sequence[Path], *, include_hidden: bool = False) -> Iterator[Found]:
    """Files in a stable order: as the paths are given, and by name within folders.

    Links are followed, also to folders; no file comes twice. A link that leads back to a folder above it, a folder or a
    file that may not be read, and a link that leads nowhere come with an error; sockets, pipes and devices as skipped.
    Raises `PathNotFound`, before anything else, for a path that does not exist.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise PathNotFound(f"There is no {_shown(path)}.", "Check the spelling, and that its disk is mounted.")
    walk = _Walk(include_hidden)
    for path in paths:
        yield from walk.start(path)


class _Walk:
    def __init__(self, include_hidden: bool) -> None:
        self._include_hidden = include_hidden
        self._seen: set[bytes] = set()
        """128-bit digests of the uris that were given out: a million take 80 MB, the uris themselves the double."""

    def start(self, path: Path) -> Iterator[Found]:
        try:
            resolved = path.resolve(strict=True)
            is_folder = stat.S_ISDIR(resolved.stat().st_mode)
        except (OSError, RuntimeError) as error:
            yield _unreadable(Path(os.path.abspath(path)), None, error)  # noqa: PTH100 resolve() fails on it
            return
        if is_folder and self._is_new(resolved.as_uri().rstrip("/") + "/"):
            yield from self._folder(resolved, resolved, ())
        elif not is_folder:
            yield from self._file(resolved, None)

    def _folder(self, folder: Path, root: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
        """`folder` is resolved; `above` are (device, inode) of the folders that led to it."""
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                names = sorted((entry.name for entry in entries), key=os.fsencode)
        except OSError as error:
            yield _unreadable(folder, root, error)
            return
        here = (*above, (status.st_dev, status.st_ino))
        for name in names:
            if self._include_hidden or not name.startswith("."):
                yield from self._entry(folder / name, root, here)

    def _entry(self, path: Path, root: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
        try:
            linked = path.is_symlink()
            resolved = path.resolve(strict=True) if linked else path
            status = resolved.stat()
        except (OSError, RuntimeError) as error:
            yield _unreadable(path, root, error)
            return
        if not stat.S_ISDIR(status.st_mode):
            yield from self._file(resolved, root)
        elif (status.st_dev, status.st_ino) in above:
            loop = UnreadableFile(f"A loop: {_shown(path)} leads back to a folder above it.", "Remove the link.")
            yield Found(path, path.as_uri(), root=root, error=loop)
        elif path.name not in SKIPPED_FOLDERS and not any((resolved / name).exists() for name in _NOT_DOCUMENTS):
            uri = resolved.as_uri() + "/"
            if self._is_new(uri):
                yield from self._folder(resolved, root, above)

    def _file(self, path: Path, root: Path | None) -> Iterator[Found]:
        uri = path.as_uri()
        if not self._is_new(uri):
            return
        try:
            status = path.stat()
        except OSError as error:
            yield _unreadable(path, root, error)
            return
        if not stat.S_ISREG(status.st_mode):
            yield Found(path, uri, root=root, skipped=f"{_kind(status.st_mode)}, not a file")
        elif not os.access(path, os.R_OK):
            denied = UnreadableFile("Permission denied.", "Make the file readable for the user that Whimbrel runs as.")
            yield Found(path, uri, status.st_size, status.st_mtime_ns, root, denied)
        else:
            yield Found(path, uri, status.st_size, status.st_mtime_ns, root)

    def _is_new(self, uri: str) -> bool:
        size = len(self._seen)
        self._seen.add(blake2b(uri.encode(), digest_size=16).digest())
        return len(self._seen) > size


def _unreadable(path: Path, root: Path | None, error: OSError | RuntimeError) -> Found:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    failure = UnreadableFile(f"Cannot be read: {reason}.", "Check its permissions, and where its links lead.")
    return Found(path, path.as_uri(), root=root, error=failure)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")


def _shown(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")
