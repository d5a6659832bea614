"""What databases in folders that one process may open share: who has one open, and the words for what goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from whimbrel.errors import DiskFull, HomeError, StoreUnavailable
from whimbrel.stores.folders import Kind, OpenFolder, user_of

has_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="who has a file open is seen in /proc alone")
KIND = Kind("Toy folder", "Toy", "toy")


@dataclass
class Box(OpenFolder):
    events: list[str] = field(default_factory=list)
    fails: bool = False

    @classmethod
    def _opened(cls, path: Path) -> Self:
        if not path.is_dir():
            raise StoreUnavailable("It is not there.")
        return cls(path, events=["opened"])

    def _close(self) -> None:
        self.events.append("closed")


@dataclass
class Other(Box):
    pass


def test_stores_of_one_folder_share_it_and_the_last_closes_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    one, other = Box.take(tmp_path), Box.take(tmp_path / "link" / ".." / tmp_path.name)
    assert one is other
    one.release()
    assert one.events == ["opened"]
    assert list(Box.open_now()) == [one]
    other.release()
    assert one.events == ["opened", "closed"]
    assert not Box.open_now()
    again = Box.take(tmp_path)
    assert again is not one
    again.release()


def test_each_database_has_its_own(tmp_path: Path) -> None:
    box, other = Box.take(tmp_path), Other.take(tmp_path)
    assert type(other) is Other
    assert box is not other
    box.release()
    other.release()


def test_what_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        Box.take(tmp_path / "later")
    assert not Box.open_now()
    (tmp_path / "later").mkdir()
    Box.take(tmp_path / "later").release()


def test_many_threads_open_it_once(tmp_path: Path) -> None:
    taken: list[Box] = []
    threads = [threading.Thread(target=lambda: taken.append(Box.take(tmp_path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in taken}) == 1
    for one in taken:
        one.release()
    assert taken[0].events == ["opened", "closed"]


@has_proc
def test_who_has_a_file_open_is_named_another_process_before_this_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "LOCK"
    path.touch()
    assert user_of(path) == ""
    with path.open():
        assert user_of(path) == user_of(tmp_path / "a") == str(os.getpid())
        code = f"f = open({str(path)!r}); print(1, flush=True); input()"
        held = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert held.stdout is not None
        held.stdout.readline()
        assert user_of(path) == user_of(tmp_path / "a") == str(held.pid)
        held.communicate(b"\n", timeout=30)
        assert user_of(path) == str(os.getpid())
    assert user_of(tmp_path / "a") == ""
    assert user_of(tmp_path / "nothing") == ""


def test_the_words_for_what_goes_wrong(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert isinstance(KIND.failed(tmp_path, OSError(number, "full")), DiskFull)
    denied = KIND.failed(tmp_path, PermissionError(errno.EACCES, "Permission denied"))
    assert isinstance(denied, HomeError)
    assert "Permission denied" in denied.message
    assert "is open in process 7, and" in KIND.held(tmp_path, "7", "Stop it.").message
    assert "is open in another process, and" in KIND.held(tmp_path, "", "Stop it.").message
    assert "pip install 'whimbrel[toy]'" in KIND.missing().hint
