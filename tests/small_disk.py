"""A disk that is soon full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BALLAST = "ballast"
"""The file that takes what room there is."""


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own, where one may mount; else the test is skipped."""
    if not mount(place, megabytes):
        pytest.skip("a small disk cannot be mounted here, so a full one was not tried")
    try:
        yield place
    finally:
        unmount(place)


def fill(disk: Path) -> Path:
    """Leave no room on it. Returns the file that takes it all."""
    ballast = disk / BALLAST
    with ballast.open("wb", buffering=0) as file:
        while free := shutil.disk_usage(disk).free:
            with suppress(OSError):  # somebody else took the last of it
                file.write(bytes(free))
    return ballast


def mount(place: Path, megabytes: int) -> bool:
    """Returns whether one may here."""
    place.mkdir()
    program = shutil.which("mount")
    command = [program or "", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    return program is not None and not subprocess.run(command, capture_output=True).returncode


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, capture_output=True)
