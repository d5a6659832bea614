"""Bad input, each with a named error, an HTTP status and a hint; and nothing is lost."""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from running import DEADLINE_S, Toy, chunks, files, found, head, paragraphs, until, uris, verified
from small_disk import remount, small_disk
from test_extract import docx, pdf
from whimbrel import errors
from whimbrel.app import Whimbrel
from whimbrel.catalog import tables as t
from whimbrel.domain import ViewKind
from whimbrel.errors import (
    AlreadyOwned,
    BadInput,
    Conflict,
    DiskFull,
    HomeError,
    JobNotFound,
    PathNotFound,
    TooLarge,
    UnreadableFile,
    ViewError,
    ViewNotFound,
    WhimbrelError,
)
from whimbrel.models.embedders import resolve
from whimbrel.owner import lock

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whimbrel]:
    with Whimbrel(
        home=tmp_path_factory.mktemp("home"), **{"ingest.max_file_bytes": 2_000_000, "ingest.workers": 2}
    ) as whimbrel:
        yield whimbrel


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name).removeprefix("test_")[:40]


def asked_for(error: WhimbrelError, status: int) -> None:
    """An error that a person can act on."""
    assert (error.status, bool(error.hint), bool(error.message)) == (status, True, True), error.as_dict()


# --- files -----------------------------------------------------------------------------------------------------------


def bomb(member: str) -> bytes:
    """A gigabyte of zeros in a megabyte, made without holding it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
        for _ in range(1 << 6):
            file.write(bytes(1 << 24))
    return packed.getvalue()


JUNK = random.Random(7).randbytes(5_000)
BAD_FILES: dict[str, tuple[bytes, str, int]] = {
    "corrupt.pdf": (pdf("a text")[:200], "CorruptFile", 422),
    "corrupt.docx": (docx("a text")[:-400], "CorruptFile", 422),
    "no-zip.docx": (b"PK\x03\x04" + JUNK, "CorruptFile", 422),
    "encrypted.pdf": (pdf("secret words", encrypted=True), "EncryptedFile", 422),
    "empty.md": (b"", "EmptyFile", 422),
    "blank.txt": (b" \n\t\r\n" * 100, "EmptyFile", 422),
    "bomb.zip": (b"", "FileTooLarge", 413),
    "bomb.docx": (b"", "FileTooLarge", 413),
    "junk.bin": (JUNK, "UnsupportedFormat", 422),
    "junk.md": (JUNK, "CorruptFile", 422),
    "junk": (JUNK, "UnsupportedFormat", 422),
    "too-large.txt": (b"large " * 400_000, "FileTooLarge", 413),
}


def test_one_bad_file_is_reported_and_the_others_go_on(home: Whimbrel, name: str, tmp_path: Path) -> None:
    for bad, (data, _, _) in BAD_FILES.items():
        (tmp_path / bad).write_bytes(data)
    (tmp_path / "bomb.zip").write_bytes(bomb("a.txt"))
    (tmp_path / "bomb.docx").write_bytes(bomb("word/document.xml"))
    files(tmp_path, 3)
    report = home.ingest([tmp_path], name)
    assert (report["added"], report["failed"], report["documents"]) == (3, len(BAD_FILES), 3 + len(BAD_FILES))
    said = {failure["uri"].rsplit("/", 1)[1]: failure for failure in report["failures"]}
    for bad, (_, error, status) in BAD_FILES.items():
        assert said[bad]["error"] == error, said[bad]
        assert getattr(errors, error).status == status
        assert said[bad]["reason"]
        assert said[bad]["hint"], said[bad]
    rows = {document["uri"].rsplit("/", 1)[1]: document for document in home.documents(name, state="failed")}
    assert rows.keys() == BAD_FILES.keys()
    assert all(rows[bad]["reason"].startswith(f"{error}: ") for bad, (_, error, _) in BAD_FILES.items())
    assert len(home.search("birds", name).hits) == 3
    verified(home, name)


def test_what_can_be_mended_is_taken_and_says_so(home: Whimbrel, name: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.pdf").write_text("A plain text about wigeons under a wrong name.")
    (tmp_path / "wrong.txt").write_bytes(docx("A Word file about teals under a wrong name."))
    (tmp_path / "invalid.txt").write_bytes("Größe und Höhe of the smew. ".encode() * 20 + b"\xff\xfe\x80 broken \xc3(")
    report = home.ingest([tmp_path], name)
    assert (report["added"], report["failed"]) == (3, 0)
    assert "wrong.pdf" in home.search("wigeons", name, mode="lexical").hits[0].uri
    assert "wrong.txt" in home.search("teals", name, mode="lexical").hits[0].uri
    broken = home.document(str(tmp_path / "invalid.txt"), name)
    assert "\ufffd" in broken["text"]
    assert "Größe und Höhe of the smew." in broken["text"]
    reasons = {one["uri"].rsplit("/", 1)[1]: one["reason"] for one in home.documents(name)}
    assert all(reasons.values()), reasons


def test_folders_that_loop_or_hold_what_is_no_file(home: Whimbrel, name: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    files(docs / "deep" / "er", 2)
    (docs / "deep" / "er" / "up").symlink_to(docs)
    (docs / "self").symlink_to(docs / "self")
    (docs / "nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(docs / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(docs / "s"))
        report = home.ingest([docs], name)
    assert (report["added"], report["failed"], report["skipped"]) == (2, 3, 2)
    assert {failure["error"] for failure in report["failures"]} == {"UnreadableFile"}
    assert all(failure["hint"] for failure in report["failures"])
    assert home.ingest([docs], name)["unchanged"] == 2
    alone = home.ingest([docs / "self"], name)
    assert (alone["failed"], alone["failures"][0]["error"]) == (1, "UnreadableFile")
    assert (UnreadableFile.status, len(uris(home, name, "indexed"))) == (422, 2)


def test_a_folder_that_may_not_be_read_removes_nothing(home: Whimbrel, name: str, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything: a folder is made unreadable in the test below instead")
    files(tmp_path / "open", 1)
    files(tmp_path / "closed", 3)
    home.ingest([tmp_path], name)
    (tmp_path / "closed").chmod(0)
    try:
        report = home.ingest([tmp_path], name)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert (report["removed"], report["failed"]) == (0, 1)
    assert len(uris(home, name, "indexed")) == 4


def test_a_folder_that_cannot_be_listed_removes_nothing(
    home: Whimbrel, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer, closed = tmp_path / "outer", tmp_path / "outer" / "closed"
    [other] = files(outer, 1)
    files(closed, 3)
    home.ingest([outer], name)
    listed = os.scandir

    def refused(path: str | Path) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    other.unlink()
    for folders in ([outer], [closed, outer], [outer, closed]):
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refused)
            report = home.ingest(folders, name)
        assert (report["removed"], report["failed"]) == (0, 1)
        assert "Permission denied" in report["failures"][0]["reason"]
        assert any("nothing was removed" in warning for warning in report["warnings"])
        assert len(uris(home, name, "indexed")) == 4
    assert home.ingest([outer], name)["removed"] == 2, "the file, and the folder's own failure"
    assert len(uris(home, name)) == 3


def test_a_file_over_the_limit_is_refused_before_any_of_it_is_written(
    home: Whimbrel, name: str, tmp_path: Path
) -> None:
    large = tmp_path / "large.txt"
    large.write_text("word " * 500_000)
    report = home.ingest([large], name)
    assert (report["failed"], report["failures"][0]["error"]) == (1, "FileTooLarge")
    assert "2,000,000" in report["failures"][0]["reason"]
    assert "Nothing" in report["failures"][0]["reason"]
    assert (head(home, name), home.documents(name)[0]["text_length"]) == (0, 0)
    with pytest.raises(TooLarge, match="Nothing was written") as raised:
        home.add([{"id": "a", "text": "small"}, {"id": "b", "text": "word " * 500_000}], name)
    asked_for(raised.value, 413)
    assert head(home, name) == 0


def test_wrong_requests(home: Whimbrel, name: str, tmp_path: Path) -> None:
    with pytest.raises(PathNotFound) as missing:
        home.ingest([tmp_path / "none", tmp_path], name)
    asked_for(missing.value, 404)
    with pytest.raises(PathNotFound):
        home.ingest([os.fsdecode(b"/no/such/\xff")], name)
    for metadata in ({"x": float("nan")}, {"x": {1, 2}}, {"_uri": "mine"}, {"x": b"bytes"}, {"x": 2**70}, {1: "x"}):
        with pytest.raises(BadInput) as bad:
            home.ingest([tmp_path], name, metadata=metadata)  # type: ignore[arg-type]
        asked_for(bad.value, 422)
    for wrong in ("", " ", "a b", "../up", "a/b", "-x", "x" * 64, "né", "a\0b"):
        with pytest.raises(BadInput) as bad:
            home.create_collection(wrong)
        asked_for(bad.value, 422)
        with pytest.raises(BadInput):
            home.ingest([tmp_path], wrong)
    with pytest.raises(JobNotFound) as job:
        home.job("none")
    asked_for(job.value, 404)
    with pytest.raises(ViewNotFound) as view:
        home.start_view_job("verify_view", 10**9)
    asked_for(view.value, 404)
    assert name not in {collection.name for collection in home.collections()}, "a refused ingest makes no collection"


# --- large texts -----------------------------------------------------------------------------------------------------


def large_text(path: Path, megabytes: int) -> int:
    """Lines that each say where they begin, so that any span of the text can be checked. Returns its length."""
    at = 0
    with path.open("w") as file:
        while at < megabytes << 20:
            lines = []
            for _ in range(2_000):
                line = f"Line at {at:012d} of the long log tells what was seen there.\n" + ("\n" if at % 7 == 0 else "")
                lines.append(line)
                at += len(line)
            file.write("".join(lines))
    return at


def check_large(home: Whimbrel, path: Path, length: int) -> None:
    document = home.documents()[0]
    assert document["text_length"] == length
    spans = sorted((start, end) for _, start, end in chunks(home, "default").values())
    assert (spans[0][0], spans[-1][1]) == (0, length - 1)
    assert all(later[0] <= earlier[1] + 2 for earlier, later in pairwise(spans)), "no gap"
    with path.open() as file:
        whole = file.read()
    for start in (0, length // 2, length - 5_000):
        line = whole[whole.index("Line at ", start) :].split("\n", 1)[0]
        number = line.split()[2]
        [hit] = home.search(f"Line {number}", mode="lexical", top_k=1).hits
        assert number in hit.text
        assert hit.text == whole[hit.start : hit.end]


def test_a_large_text_is_taken_in_segments(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    length = large_text(path, 4)
    toy.out = "not asked here"
    with Whimbrel(home=tmp_path / "home", embedder="toy") as whimbrel:
        report = whimbrel.ingest([path], wait="lexical")
        assert (report["added"], report["failed"]) == (1, 0)
        check_large(whimbrel, path, length)
        with whimbrel.catalog.read() as connection:
            sizes = [len(row.text) for row in connection.execute(t.segments.select())]
        assert max(sizes) == 32_768


LARGE = """
import resource, sys
from whimbrel.app import Whimbrel
with Whimbrel(home=sys.argv[1]) as whimbrel:
    whimbrel.ingest([sys.argv[2]], wait="lexical")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.soak
@pytest.mark.timeout(1_200)
def test_a_text_of_100_mb_is_taken_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    length = large_text(path, 100)
    command = [sys.executable, "-c", LARGE, str(tmp_path / "home"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_000, check=True)
    assert int(done.stdout) < 1.5e9
    with Whimbrel(home=tmp_path / "home") as whimbrel:
        check_large(whimbrel, path, length)


# --- the machine -----------------------------------------------------------------------------------------------------


def test_a_full_disk_under_the_catalog(toy: Toy, tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    files(few, 5)
    many.mkdir()
    for number in range(25):
        (many / f"{number}.txt").write_text(paragraphs(*(f"{number}x{part}" for part in range(150))))
    with small_disk(tmp_path / "disk", 4) as disk:
        settings = {"catalog": f"sqlite:///{disk}/catalog.db", "embedder": "toy"}
        with Whimbrel(home=tmp_path / "home", **settings) as whimbrel:
            whimbrel.ingest([few])
            with pytest.raises(DiskFull) as raised:
                whimbrel.ingest([many])
            asked_for(raised.value, 507)
            assert "safe" in raised.value.message
            assert set(uris(whimbrel, "default")) >= {path.as_uri() for path in few.iterdir()}
            assert whimbrel.search("notes on birds", mode="lexical").hits

            remount(disk, "size=200m")
            report = whimbrel.ingest([many, few])
            assert (report["failed"], report["removed"], report["documents"]) == (0, 0, 30)
            assert len(uris(whimbrel, "default", "indexed")) == 30
            verified(whimbrel, "default")


def test_a_full_disk_under_the_views(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whimbrel.service.jobs.STALLED_S", 2.0)
    few, many = tmp_path / "few", tmp_path / "many"
    files(few, 5)
    many.mkdir()
    for number in range(25):
        (many / f"{number}.txt").write_text(paragraphs(*(f"{number}x{part}" for part in range(150))))
    with small_disk(tmp_path / "disk", 3) as disk:
        settings = {"catalog": f"sqlite:///{tmp_path}/catalog.db", "embedder": "toy"}
        with Whimbrel(home=disk / "home", **settings) as whimbrel:
            whimbrel.ingest([few])
            with pytest.raises(ViewError) as raised:
                whimbrel.ingest([many])
            asked_for(raised.value, 503)
            assert "pace" in raised.value.message, "no space is left: it says so"
            assert len(uris(whimbrel, "default")) == 30, "the catalog has everything"
            found_now = whimbrel.search("notes on birds")
            assert found_now.hits
            assert found_now.degraded, "and a search says what it lacks"

            remount(disk, "size=400m")
            until(
                lambda: all(row.view.position == head(whimbrel, "default") for row in live(whimbrel)),
                "the views to catch up by themselves",
            )
            assert len(uris(whimbrel, "default", "indexed")) == 30
            verified(whimbrel, "default")
            assert whimbrel.search("notes on birds").degraded == []


def live(whimbrel: Whimbrel) -> list[object]:
    collection = found(whimbrel, "default")
    rows = whimbrel.views("default")
    return [row for row in rows if row.id in (collection.store_view_id, collection.lexicon_view_id)] or [rows[0]]


def test_a_home_that_is_read_only(tmp_path: Path) -> None:
    files(tmp_path / "docs", 2)
    with small_disk(tmp_path / "disk", 50) as disk:
        with Whimbrel(home=disk / "home") as whimbrel:
            whimbrel.ingest([tmp_path / "docs"])
        remount(disk, "ro")
        with pytest.raises(HomeError) as new:
            Whimbrel(home=disk / "other")
        asked_for(new.value, 503)
        with pytest.raises(HomeError) as raised, Whimbrel(home=disk / "home") as whimbrel:
            whimbrel.ingest([tmp_path / "docs"])
        asked_for(raised.value, 503)
        remount(disk, "rw")
        with Whimbrel(home=disk / "home") as whimbrel:
            assert whimbrel.ingest([tmp_path / "docs"])["unchanged"] == 2


def test_a_home_that_is_no_folder_or_no_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HomeError) as raised:
        Whimbrel(home=tmp_path / "file")
    asked_for(raised.value, 503)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "catalog.db").write_bytes(b"This is no database, but it lies where one should. " * 1_000)
    with pytest.raises(HomeError) as damaged:
        Whimbrel(home=tmp_path / "home")
    asked_for(damaged.value, 503)


# --- owners ----------------------------------------------------------------------------------------------------------

OWNER = """
import sys, time
from whimbrel.app import Whimbrel
with Whimbrel(home=sys.argv[1]) as whimbrel:
    print(whimbrel.own(), flush=True)
    time.sleep(120)
"""


@pytest.mark.slow
def test_a_second_owner_is_refused_and_a_killed_one_is_followed(tmp_path: Path) -> None:
    files(tmp_path / "docs", 3)
    first = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "home")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "True\n"
        with Whimbrel(home=tmp_path / "home") as whimbrel:
            assert not whimbrel.own()
            with pytest.raises(AlreadyOwned, match=str(first.pid)) as raised:
                lock.acquire(whimbrel.home, whimbrel.catalog, lease_s=15)
            asked_for(raised.value, 409)
            assert whimbrel.ingest([tmp_path / "docs"])["added"] == 3, "the first one does it"
            assert not whimbrel.own()
            first.send_signal(signal.SIGKILL)
            first.wait(30)
            files(tmp_path / "docs", 5)
            assert whimbrel.ingest([tmp_path / "docs"])["added"] == 2, "and this process when that one is dead"
            assert whimbrel.own()
            verified(whimbrel, "default")
    finally:
        first.kill()
        first.communicate(timeout=30)


def test_what_cannot_be_done_to_a_live_view_or_an_ended_job(home: Whimbrel, name: str) -> None:
    report = home.add([{"id": "1", "text": "A text."}], name)
    with pytest.raises(Conflict) as ended:
        home.cancel(report["job_id"])
    asked_for(ended.value, 409)
    for row in home.views(name):
        with pytest.raises(Conflict, match="Nothing was dropped") as live_view:
            home.start_view_job("drop_view", row.id)
        asked_for(live_view.value, 409)
        assert row.view.kind in ViewKind
    home.finish(home.start_view_job("verify_view", home.views(name)[0].id), timeout_s=DEADLINE_S)


def test_a_zip_of_documents_with_a_bad_one(home: Whimbrel, name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("good.md", "# Good\n\nOn the ruff and the reeve.\n")
        archive.writestr("bad.pdf", b"%PDF-1.5 broken")
    report = home.ingest([tmp_path], name)
    assert (report["added"], report["failed"]) == (1, 0)
    assert home.search("reeve", name, mode="lexical").hits
    assert "bad.pdf" in home.documents(name)[0]["reason"]


def test_a_text_that_speaks_of_pdf_is_a_text(home: Whimbrel, name: str, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("# Formats\n\nA file of that kind begins with %PDF-1.7 and tells of godwits.\n")
    assert home.ingest([tmp_path], name)["failed"] == 0
    assert home.search("godwits", name, mode="lexical").hits


def test_a_home_among_the_documents_is_passed_by(tmp_path: Path) -> None:
    files(tmp_path, 2)
    with Whimbrel(home=tmp_path / "index") as whimbrel:
        for expected in ((2, 0, 0), (0, 2, 0)):
            report = whimbrel.ingest([tmp_path])
            assert (report["added"], report["unchanged"], report["failed"]) == expected
