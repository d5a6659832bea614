"""What tantivy's errors mean here. It raises `ValueError` for everything and says what happened in the text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whimbrel.errors import AlreadyOwned, DiskFull, HomeError, StoreUnavailable, ViewDamaged, WhimbrelError

_DISK_FULL = ("os error 28", "os error 122", "StorageFull", "QuotaExceeded")
_READ_ONLY = ("os error 30", "os error 13", "PermissionDenied", "ReadOnlyFilesystem", "ermission denied", "ead-only")
_EXHAUSTED = ("os error 24", "os error 23", "os error 12", "Too many open files")
_WORKER_DIED = "index writer was killed"
"""A thread that writes failed, and its error is lost: how much space is left tells."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of tantivy and of the file system into Whimbrel's."""
    try:
        yield
    except WhimbrelError:
        raise
    except (ValueError, OSError) as error:
        raise _meaning(path, error) from error
    except BaseException as error:
        # A panic in Rust derives from BaseException; its class cannot be imported.
        if type(error).__name__ == "PanicException":
            raise _meaning(path, error) from error
        raise


def _nearly_full(path: Path) -> bool:
    """Whether less is free than a writer may have had in memory."""
    try:
        return shutil.disk_usage(path).free < 64 * 1024 * 1024
    except FileNotFoundError:
        return False


def _meaning(path: Path, error: BaseException) -> WhimbrelError:
    said = f"os error {error.errno}: {error}" if isinstance(error, OSError) else str(error)
    if "LockBusy" in said:
        return AlreadyOwned(
            f"Another process is writing to the lexicon in {path}.",
            "Nothing was written. Only the home's owner writes to its views; stop the other process.",
        )
    if any(sign in said for sign in _DISK_FULL) or (_WORKER_DIED in said and _nearly_full(path)):
        return DiskFull(
            f"No space is left for the lexicon in {path}.", "What was committed before is safe. Free some space."
        )
    if any(sign in said for sign in _READ_ONLY):
        return HomeError(
            f"The lexicon in {path} may not be written to.",
            "Check the folder's permissions. Even reading takes a lock, which is a file in it.",
        )
    if any(sign in said for sign in _EXHAUSTED):
        return StoreUnavailable(
            f"The machine lets the lexicon in {path} open no more files, or has no memory left.",
            "Raise the limit (`ulimit -n`), or try again later.",
        )
    if _WORKER_DIED in said:
        return StoreUnavailable(
            f"Writing to the lexicon in {path} failed.", "What was committed before is safe. Check the disk."
        )
    return ViewDamaged(
        f"The lexicon in {path} cannot be read: {said[:200]}", "Nothing is lost: rebuild the view from the catalog."
    )
