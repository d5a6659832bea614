"""Which files a path means."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from whimbrel.errors import PathNotFound, UnreadableFile
from whimbrel.ingest.discover import Found, discover


def write(path: Path, content: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def names(found: list[Found], root: Path) -> list[str]:
    return [str(item.path.relative_to(root.resolve())) for item in found]


def test_files_in_a_stable_order_with_what_the_catalog_needs(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.txt", "a/b/c.md", "Z.md"):
        write(tmp_path / name)
    found = list(discover([tmp_path]))
    assert names(found, tmp_path) == ["Z.md", "a/b/c.md", "a/z.txt", "b.md"]
    status = (tmp_path / "Z.md").stat()
    assert found[0] == Found(
        tmp_path.resolve() / "Z.md",
        (tmp_path.resolve() / "Z.md").as_uri(),
        status.st_size,
        status.st_mtime_ns,
        tmp_path.resolve(),
    )
    assert found == list(discover([tmp_path]))


def test_a_file_named_itself_has_no_root_and_may_be_hidden(tmp_path: Path) -> None:
    (found,) = discover([write(tmp_path / ".env")])
    assert found.root is None
    assert found.error is None


def test_relative_paths_give_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a b#c?.md")
    monkeypatch.chdir(tmp_path)
    (found,) = discover([Path("a b#c?.md")])
    assert found.uri == tmp_path.resolve().as_uri() + "/a%20b%23c%3F.md"


def test_hidden_and_generated_folders_are_left_out(tmp_path: Path) -> None:
    for name in (
        ".hidden.md",
        ".git/config",
        "node_modules/x.js",
        "env/pyvenv.cfg",
        "env/x.py",
        "venv/y.py",
        "src/a.py",
    ):
        write(tmp_path / name)
    assert names(list(discover([tmp_path])), tmp_path) == ["src/a.py"]
    hidden = names(list(discover([tmp_path], include_hidden=True)), tmp_path)
    assert hidden == [".hidden.md", "src/a.py"]
    assert names(list(discover([tmp_path / "venv"])), tmp_path) == ["venv/y.py"]


def test_a_missing_path_is_named_before_anything_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a.md")
    walk = discover([tmp_path, tmp_path / "nothing"])
    with pytest.raises(PathNotFound, match="nothing"):
        next(walk)


def test_a_link_to_a_file_gives_the_file_once(tmp_path: Path) -> None:
    target = write(tmp_path / "b.md")
    (tmp_path / "a.md").symlink_to(target)
    (found,) = discover([tmp_path])
    assert found.path == target.resolve()


def test_overlapping_paths_give_each_file_once(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.md")
    assert len(list(discover([tmp_path, tmp_path / "in", tmp_path / "in" / "a.md"]))) == 1


def test_a_loop_of_folders_is_an_error_and_ends(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.md")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    found = {item.path.name: item for item in discover([tmp_path])}
    assert found["a.md"].error is None
    assert isinstance(found["up"].error, UnreadableFile)
    assert "loop" in str(found["up"].error).lower()
    assert isinstance(found["self"].error, UnreadableFile)


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "there" / "a.md")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    (found,) = discover([tmp_path / "here"])
    assert found.path == (tmp_path / "there" / "a.md").resolve()
    assert found.root == (tmp_path / "here").resolve()


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.md").symlink_to(tmp_path / "gone.md")
    (found,) = discover([tmp_path])
    assert isinstance(found.error, UnreadableFile)
    assert found.error.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.md").chmod(0)
    write(tmp_path / "closed" / "b.md").parent.chmod(0)
    write(tmp_path / "c.md")
    try:
        found = list(discover([tmp_path]))
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert [item.error is not None for item in found] == [True, False, True]


def test_pipes_and_sockets_are_skipped_visibly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        found = list(discover([tmp_path]))
    assert [item.skipped for item in found] == ["a pipe, not a file", "a socket, not a file"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.md")
    write(tmp_path / name)
    (found,) = discover([tmp_path])
    assert found.uri.endswith("/caf%E9.md")
    assert found.path.read_text() == "text"
    with pytest.raises(PathNotFound) as caught:
        list(discover([tmp_path / os.fsdecode(b"\xff")]))
    str(caught.value).encode()
