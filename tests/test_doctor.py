"""`whimbrel doctor` finds what is wrong with a home, says so, and mends what is safe to mend."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from whimbrel import Whimbrel
from whimbrel.catalog import collections, leases
from whimbrel.config import Settings, load_settings
from whimbrel.doctor import Finding, Level, diagnose, is_healthy
from whimbrel.home import Home, host_name

TEXTS = {f"note-{n}.md": f"# Note {n}\n\nNote {n} is about the number {n * 7919}.\n" for n in range(6)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with six documents, at rest."""
    folder = tmp_path_factory.mktemp("made")
    notes = folder / "notes"
    notes.mkdir()
    for name, text in TEXTS.items():
        (notes / name).write_text(text)
    with Whimbrel(settings=settings(folder / "home")) as whimbrel:
        whimbrel.ingest([notes])
    return folder / "home"


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Home:
    """A copy of it, to be damaged."""
    shutil.copytree(made, tmp_path / "home")
    (tmp_path / "home").chmod(0o700)
    return Home(tmp_path / "home")


def settings(path: Path, **more: str) -> Settings:
    return load_settings(home=path, env={"WHIMBREL_INGEST_WORKERS": "1", **more})


def examined(home: Home, *, fix: bool = False, **more: str) -> list[Finding]:
    return diagnose(settings(home.path, **more), fix=fix)


def only(found: list[Finding], check: str) -> Finding:
    """The one finding of a check; nothing else is a problem."""
    chosen = [finding for finding in found if finding.check == check]
    assert len(chosen) == 1, found
    return chosen[0]


def mended(home: Home, check: str) -> None:
    """With `fix` the finding is mended, and after that there is nothing to say."""
    assert only(examined(home, fix=True), check).mended
    assert examined(home) == []


def sql(home: Home, *statements: str) -> None:
    """Change the catalog behind Whimbrel's back."""
    with closing(sqlite3.connect(home.catalog)) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount, statement


# --- nothing wrong ---------------------------------------------------------------------------------------------------


def test_a_sound_home_has_nothing_to_say_and_is_not_touched(home: Home) -> None:
    def state() -> dict[str, str]:
        files = (path for path in home.path.rglob("*") if path.is_file() and not path.name.startswith("catalog.db-"))
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    assert examined(home) == []
    assert state() == before


def test_beside_a_running_owner_it_only_notes_who_that_is(home: Home) -> None:
    with Whimbrel(settings=settings(home.path)) as whimbrel:
        assert whimbrel.own()
        found = examined(home)
    assert [(finding.check, finding.level) for finding in found] == [("held", Level.NOTE)]
    assert str(os.getpid()) in found[0].what
    assert is_healthy(found)


# --- the home --------------------------------------------------------------------------------------------------------


def test_a_missing_home_is_not_made(tmp_path: Path) -> None:
    found = examined(Home(tmp_path / "nowhere"))
    assert only(found, "there").level is Level.PROBLEM
    assert not is_healthy(found)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    assert "no folder" in only(examined(Home(tmp_path / "home")), "there").what


def test_a_home_that_cannot_be_written_to(home: Home) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    home.path.chmod(0o500)
    found = [finding for finding in examined(home) if finding.check == "writable"]
    home.path.chmod(0o700)
    assert [finding.level for finding in found] == [Level.PROBLEM]


def test_a_home_that_others_may_read(home: Home) -> None:
    home.path.chmod(0o755)
    assert "chmod 700" in only(examined(home), "private").fix


def test_a_socket_that_nobody_listens_on_is_removed(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(home.socket))
    found = only(examined(home), "stale_socket")
    assert (found.level, found.mendable) == (Level.WARNING, True)
    mended(home, "stale_socket")
    assert not home.socket.exists()


def test_a_socket_that_is_listened_on_is_left_alone(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home.socket))
        listening.listen()
        assert examined(home, fix=True) == []
        assert home.socket.exists()


def test_half_written_files_are_removed_once_they_are_old(home: Home) -> None:
    home.copies.mkdir()
    old, young = home.copies / "before-0002.part", home.path / ".saved.whimbrel.17.part"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 10_000, time.time() - 10_000))
    mended(home, "leftovers")
    assert not old.exists()
    assert young.exists()


def test_copies_from_before_upgrades_are_counted_and_kept(home: Home) -> None:
    home.copies.mkdir()
    (home.copies / "before-0002-20260101-000000.db").write_bytes(b"x" * 2_000)
    found = only(examined(home, fix=True), "copies")
    assert (found.level, "2.0 kB" in found.what) == (Level.NOTE, True)
    assert len(list(home.copies.iterdir())) == 1


# --- the catalog -----------------------------------------------------------------------------------------------------


def test_a_home_without_its_catalog(home: Home) -> None:
    home.catalog.unlink()
    assert only(examined(home), "usable").level is Level.PROBLEM
    assert not home.catalog.exists()


def test_a_catalog_of_a_newer_version(home: Home) -> None:
    sql(home, "UPDATE alembic_version SET version_num = '9999'")
    assert "newer" in only(examined(home), "usable").what


def test_a_catalog_that_is_no_database(home: Home) -> None:
    home.catalog.write_bytes(b"not a database at all" * 1_000)
    found = examined(home)
    assert not is_healthy(found)
    assert any("damaged" in finding.what for finding in found)


def test_a_catalog_with_a_broken_page(home: Home) -> None:
    page = 16_384
    with home.catalog.open("r+b") as file:
        for number in range(4, home.catalog.stat().st_size // page, 3):
            file.seek(number * page)
            file.write(os.urandom(page))
    found = examined(home)
    assert not is_healthy(found)
    assert any("damaged" in finding.what for finding in found)


BROKEN: list[tuple[str, str]] = [
    ("whole", "DELETE FROM documents WHERE id = (SELECT min(id) FROM documents)"),
    ("segments", "DELETE FROM segments WHERE id = (SELECT min(id) FROM segments)"),
    ("vector_sizes", "UPDATE vectors SET data = x'00' WHERE id = (SELECT min(id) FROM vectors)"),
]


@pytest.mark.parametrize(("check", "statement"), BROKEN, ids=[check for check, _ in BROKEN])
def test_what_only_another_program_can_have_done_to_the_record(home: Home, check: str, statement: str) -> None:
    sql(home, statement)
    found = [finding for finding in examined(home) if finding.check == check]
    assert found
    assert all(finding.level is Level.PROBLEM and not finding.mendable for finding in found)


def test_the_lease_of_a_dead_owner_is_only_noted(home: Home) -> None:
    with Whimbrel(settings=settings(home.path)) as whimbrel, whimbrel.catalog.write() as connection:
        info = {"host": host_name(), "home": str(home.path), "pid": 2**22 - 1}
        leases.take(connection, "owner", f"{host_name()}:4194303", 3_600, info, force=True)
    found = only(examined(home), "owner")
    assert found.level is Level.NOTE
    assert "died" in found.what


def test_an_owner_that_does_not_renew_its_lease(home: Home) -> None:
    with Whimbrel(settings=settings(home.path)) as whimbrel:
        assert whimbrel.own()
        assert whimbrel.owner is not None
        with whimbrel.catalog.write() as connection:
            leases.renew(connection, "owner", whimbrel.owner.fence, -60)
        found = only(examined(home), "owner")
        assert found.level is Level.PROBLEM
        assert "renewed" in found.what


def test_failed_documents_are_counted_by_reason_and_failed_jobs_named(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnot really")
    (tmp_path / "hollow.md").write_text(" \n")
    (tmp_path / "gone.md").write_text("About to vanish.\n")
    with Whimbrel(settings=settings(home.path)) as whimbrel:
        whimbrel.ingest([tmp_path / name for name in ("empty.md", "broken.pdf", "hollow.md")])
        job = whimbrel.start_view_job("verify_view", whimbrel.views()[0].id)
        whimbrel.finish(job)
    sql(home, f"UPDATE jobs SET state = 'failed', error = 'Broken.', hint = 'Again.' WHERE id = '{job.id}'")
    found = examined(home)
    assert is_healthy(found)
    counted = {finding.what for finding in found if finding.check == "failed_documents"}
    assert any(said.startswith("2 documents of 'default'") and "EmptyFile" in said for said in counted), counted
    assert len(counted) == 2
    assert only(found, "failed_jobs").fix == "Again."


def test_work_that_waits_for_an_owner_is_noted(home: Home, tmp_path: Path) -> None:
    (tmp_path / "more.md").write_text("More.\n")
    with Whimbrel(settings=settings(home.path)) as whimbrel:
        whimbrel.start_ingest([tmp_path / "more.md"])
    found = only(examined(home), "standing_jobs")
    assert (found.level, "owner" in found.fix) == (Level.NOTE, True)


def test_a_deletion_that_was_lost_is_begun_again(home: Home) -> None:
    with Whimbrel(settings=settings(home.path)) as whimbrel, whimbrel.catalog.write() as connection:
        collections.create(connection, "unwanted")
        collections.mark_deleting(connection, collections.find(connection, "unwanted"))
    assert "'unwanted'" in only(examined(home), "deletions").what
    mended(home, "deletions")


def test_a_configuration_that_differs_is_noted_and_the_catalog_wins(home: Home) -> None:
    found = only(examined(home, WHIMBREL_STORE="lancedb:elsewhere"), "differences")
    assert (found.level, "elsewhere" in found.what) == (Level.NOTE, True)


# --- views -----------------------------------------------------------------------------------------------------------


def _remove_lexicon(home: Home) -> None:
    shutil.rmtree(next(home.lexicons.iterdir()))


def _remove_store(home: Home) -> None:
    shutil.rmtree(next(home.views.glob("*.lance")))


def _flip_lexicon(home: Home) -> None:
    file = max(next(home.lexicons.iterdir()).glob("*.store"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)


def _truncate_store(home: Home) -> None:
    for file in next(home.views.glob("*.lance")).rglob("*.lance"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:100])


def _another_epoch(home: Home) -> None:
    sql(home, "UPDATE collections SET epoch = 'feedfeedfeedfeed'")


def _another_history(home: Home) -> None:
    sql(home, "UPDATE commits SET stamp = 'feedfeedfeedfeed'", "UPDATE collections SET stamp = 'feedfeedfeedfeed'")


def _behind_the_view(home: Home) -> None:
    """As if an older catalog file had been copied back."""
    sql(home, "DELETE FROM commits", "UPDATE collections SET head = 3", "UPDATE views SET position = 3")


DAMAGED: list[tuple[Callable[[Home], None], int, str]] = [
    (_remove_lexicon, 1, "missing"),
    (_remove_store, 1, "missing"),
    (_flip_lexicon, 1, "changed"),
    (_truncate_store, 1, ""),
    (_another_epoch, 2, "another epoch"),
    (_another_history, 2, "another history"),
    (_behind_the_view, 2, "ahead"),
]


@pytest.mark.parametrize(("damage", "views", "said"), DAMAGED, ids=[one[0].__name__.strip("_") for one in DAMAGED])
def test_a_damaged_view_is_found(home: Home, damage: Callable[[Home], None], views: int, said: str) -> None:
    damage(home)
    found = [finding for finding in examined(home) if finding.check == "sound"]
    assert len(found) == views
    for finding in found:
        assert (finding.level, finding.mendable) == (Level.PROBLEM, True)
        assert said in finding.what


def test_damaged_views_are_built_anew(home: Home) -> None:
    _flip_lexicon(home)
    _remove_store(home)
    found = examined(home, fix=True)
    assert [finding.mended for finding in found if finding.check == "sound"] == [True, True]
    assert is_healthy(found)
    with Whimbrel(settings=settings(home.path)) as whimbrel:
        assert len(whimbrel.search("the number 7919").hits) == len(TEXTS)
        for row in whimbrel.views():
            if row.view.state == "live":
                report = whimbrel.finish(whimbrel.start_view_job("verify_view", row.id))
                assert (report["equal"], report["rows"]) == (True, len(TEXTS))


def test_a_view_that_lags_without_an_owner_is_brought_up_to_date(home: Home, tmp_path: Path) -> None:
    with Whimbrel(settings=settings(home.path)) as whimbrel:
        document = whimbrel.documents()[0]["document_id"]
        whimbrel.delete([document])
    lagging = [finding for finding in examined(home) if finding.check == "following"]
    assert [finding.level for finding in lagging] == [Level.WARNING] * 2
    assert all("nobody owns" in finding.what for finding in lagging)
    assert [finding.mended for finding in examined(home, fix=True)] == [True, True]
    assert examined(home) == []


def test_data_that_no_view_names_is_removed_if_it_is_ours(home: Home) -> None:
    ours = [home.lexicons / "c7-v9-abcdef", home.views / "c7-v8-012345.lance"]
    others = [home.lexicons / "my-notes", home.views / "mine.lance"]
    for folder in (*ours, *others):
        folder.mkdir()
    found = [finding for finding in examined(home) if finding.check == "orphans"]
    assert sorted(finding.what.split()[0] for finding in found) == sorted(map(str, ours))
    assert all(finding.mended for finding in examined(home, fix=True))
    assert not any(folder.exists() for folder in ours)
    assert all(folder.exists() for folder in others)


def test_views_beside_an_empty_catalog_are_not_called_orphans_to_remove(home: Home) -> None:
    """The catalog may be the wrong one."""
    home.catalog.unlink()
    with Whimbrel(settings=settings(home.path)):
        pass
    found = [finding for finding in examined(home, fix=True) if finding.check == "orphans"]
    assert len(found) == 2
    assert not any(finding.mendable for finding in found)
    assert len(list(home.lexicons.iterdir())) == 1
