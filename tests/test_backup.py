"""Backup and restore: the whole record, of one moment; damaged archives refused; all of a restore or nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text

from support import ToyView, collection, contents, document, opened, write
from whimbrel.catalog import archive, collections, jobs, leases, log, rows, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.archive import verify_archive
from whimbrel.catalog.backup import LEFT_OUT, backup, restore
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import JobState, Space, ViewKind
from whimbrel.errors import BackupError, Conflict, DiskFull, PathNotFound

Place = tuple[int, int]
Edit = Callable[[dict[str, bytes]], object]


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """An empty catalog to restore into."""
    url = f"sqlite:///{tmp_path / 'target.db'}"
    if request.param == "postgres":
        url = str(request.getfixturevalue("second_postgres"))
    made = opened(url, tmp_path / "copies")
    yield made
    made.close()


both = pytest.mark.parametrize("target", ["sqlite", "postgres"], indirect=True)
to_sqlite = pytest.mark.parametrize("target", ["sqlite"], indirect=True)


@pytest.fixture
def place(catalog: Catalog) -> Place:
    """A collection with something in every table."""
    place = collection(catalog)
    write(
        catalog,
        place,
        document(
            "memory:1", "one\n\ntwo\n\none", {"year": 2020, "deep": {"x": [1.5, None, "é"]}}, title="A \U0001f426"
        ),
        document("memory:2", "x" * 70_000, external_id="id-2"),
    )
    write(catalog, place, document("memory:1", "one\n\nthree", {"year": 2021}))
    with catalog.write() as connection:
        space = vectors.space_id(connection, Space("mini", "1", 4), "onnx:mini")
        keys = rows.next_keys(connection, *place, after=0, upto=10**9, limit=10**6)
        ids = vectors.missing(connection, space, keys).text_ids
        given = np.random.default_rng(1).standard_normal((len(ids) - 1, 4)).astype(np.float32)
        vectors.put(connection, space, ids[1:], given, {ids[0]: "too long"})
        found = collections.find(connection, "docs")
        for kind, space_id in ((ViewKind.STORE, space), (ViewKind.LEXICON, None)):
            view = collections.add_view(
                connection, found, kind=kind, uri="file:x", space_id=space_id, chunking_id=place[1]
            )
            collections.switch(connection, place[0], view)
        for work in ("ingest", "purge"):
            jobs.enqueue(
                connection,
                work,
                collection_id=place[0],
                collection="docs",
                args={"n": [1, {"a": None}]},
                idempotency_key=f"key-{work}",
                uploads=[({"uri": "api:1"}, bytes(range(256)) * 50)],
            )
        claimed, _ = jobs.claim(connection, ["purge"], "here") or pytest.fail("nothing to claim")
        jobs.progress(connection, claimed.id, cursor={"at": 5}, done=5)
        leases.take(connection, "owner", "me", 3600, {"pid": 1})
    return place


def record(catalog: Catalog) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that belongs to the record, but for what a restore is to change."""
    changed = {"collections": {"epoch", "stamp", "floor", "store_view_id", "lexicon_view_id"}, "jobs": {"state"}}
    found = {}
    with catalog.read() as connection:
        for table in t.metadata.sorted_tables:
            if table.name in LEFT_OUT | {"home"}:
                continue
            kept = [column for column in table.columns if column.name not in changed.get(table.name, ())]
            query = select(*kept).order_by(*table.primary_key.columns)
            found[table.name] = [tuple(row) for row in connection.execute(query)]
    return found


def is_untouched(catalog: Catalog) -> bool:
    return all(not found for name, found in record(catalog).items() if name != "counters")


@both
def test_the_whole_record_comes_back(catalog: Catalog, place: Place, target: Catalog, tmp_path: Path) -> None:
    saved = record(catalog)
    said: list[tuple[str, int, int]] = []
    made = backup(catalog, tmp_path / "a.whimbrel", version="1.2.3", progress=lambda *step: said.append(step))
    assert made.bytes == (tmp_path / "a.whimbrel").stat().st_size
    assert made.rows == {**{name: len(found) for name, found in saved.items()}, "home": 1}
    assert said[-1][1] == said[-1][2] == sum(made.rows.values())

    report = restore(tmp_path / "a.whimbrel", target)
    assert (report.collections, report.whimbrel, report.requeued) == (["docs"], "1.2.3", 1)
    assert record(target) == saved
    assert contents(target, place) == contents(catalog, place)
    with target.read() as connection:
        states = dict(connection.execute(select(t.jobs.c.kind, t.jobs.c.state)).all())
        assert states == {"ingest": JobState.QUEUED, "purge": JobState.QUEUED}
        assert leases.read(connection, "owner") is None
    again = backup(target, tmp_path / "b.whimbrel", version="1.2.3")
    assert again.rows["vectors"] == made.rows["vectors"]


@both
def test_restored_collections_begin_a_new_epoch(
    catalog: Catalog, place: Place, target: Catalog, tmp_path: Path
) -> None:
    view = ToyView(place)
    view.catch_up(catalog)
    backup(catalog, tmp_path / "a.whimbrel", version="0")
    restore(tmp_path / "a.whimbrel", target)
    with catalog.read() as connection:
        before = log.head(connection, place[0])
    with target.read() as connection:
        after = log.head(connection, place[0])
        assert after.head == after.floor == before.head
        assert after.epoch != before.epoch
        assert after.stamp == log.stamp_at(connection, place[0], after.head)
        assert log.length(connection, place[0]) == 0
        assert len(connection.execute(select(t.commits.c.position)).all()) == 1
        assert "epoch" in log.distrust(connection, place[0], view.position)
        assert not log.distrust(connection, place[0], after.position)
        assert collections.views(connection) == []
        assert collections.live_views(connection, collections.find(connection, "docs")) == (None, None)
    fresh = ToyView(place)
    fresh.build(target)
    head = write(target, place, document("memory:3", "new")).head
    assert head == before.head + 1, "positions go on"
    fresh.catch_up(target)
    assert fresh.rows == contents(target, place)


@to_sqlite
def test_the_home_keeps_its_own_id(catalog: Catalog, place: Place, target: Catalog, tmp_path: Path) -> None:
    with target.read() as connection:
        own = connection.execute(select(t.home.c.value)).scalar_one()
    with catalog.read() as connection:
        other = connection.execute(select(t.home.c.value)).scalar_one()
    backup(catalog, tmp_path / "a.whimbrel", version="0")
    restore(tmp_path / "a.whimbrel", target)
    with target.read() as connection:
        home = dict(connection.execute(select(t.home.c.key, t.home.c.value)).all())
    assert home.pop("restored_at")
    assert home == {"id": own, "restored_from": other}


@to_sqlite
def test_a_backup_while_writers_write_is_one_moment(catalog: Catalog, target: Catalog, tmp_path: Path) -> None:
    """Each writing transaction gives every document the same text: a mixture would show."""
    place = collection(catalog)
    stop = threading.Event()

    def keep_writing() -> None:
        for round_ in range(10_000):
            write(catalog, place, *(document(f"memory:{n}", f"round {round_}\n\nsame {round_}") for n in range(20)))
            if stop.is_set():
                break

    write(catalog, place, *(document(f"memory:{n}", "round x") for n in range(20)))
    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for number in range(4):
            time.sleep(0.05)
            backup(catalog, tmp_path / f"{number}.whimbrel", version="0")
    finally:
        stop.set()
        writer.join()
    restore(tmp_path / "3.whimbrel", target)
    found = contents(target, place)
    assert len({text.split()[1] for text, _, _ in found.values()}) == 1
    assert len(found) == 40
    with target.read() as connection:
        assert log.head(connection, place[0]).head < write(catalog, place, document("memory:new", "new")).head


@to_sqlite
def test_long_tables_are_written_in_parts(
    catalog: Catalog, target: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "PART_BYTES", 20_000)
    monkeypatch.setattr(archive, "GROUP_BYTES", 5_000)
    place = collection(catalog)
    dice = random.Random(0)
    for number in range(3):
        texts = ["\n\n".join(dice.randbytes(40).hex() for _ in range(30)) for _ in range(50)]
        write(catalog, place, *(document(f"memory:{number}-{n}", text) for n, text in enumerate(texts)))
    backup(catalog, tmp_path / "a.whimbrel", version="0")
    manifest = verify_archive(tmp_path / "a.whimbrel")
    assert len(manifest.tables["segments"].parts) > 1
    restore(tmp_path / "a.whimbrel", target)
    assert record(target) == record(catalog)


def test_an_existing_file_is_not_overwritten_unless_asked(catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "a.whimbrel"
    file.write_bytes(b"precious")
    with pytest.raises(Conflict):
        backup(catalog, file, version="0")
    assert file.read_bytes() == b"precious"
    backup(catalog, file, version="0", overwrite=True)
    assert verify_archive(file)
    assert [path.name for path in tmp_path.iterdir() if "whimbrel" in path.name] == [file.name]


def test_a_damaged_catalog_is_not_saved_as_if_it_were_whole(tmp_path: Path) -> None:
    catalog = opened(f"sqlite:///{tmp_path / 'catalog.db'}", tmp_path / "copies")
    place = collection(catalog)
    for number in range(40):
        write(catalog, place, document(f"memory:{number}", "words " * 2_000))
    with catalog.bare() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    catalog.close()
    path = tmp_path / "catalog.db"
    content = bytearray(path.read_bytes())
    for page in range(16_384, len(content), 16_384):  # the head of every page but the first
        content[page : page + 16] = b"\xff" * 16
    path.write_bytes(content)
    catalog = Catalog(f"sqlite:///{path}")
    with pytest.raises(BackupError, match=r"damaged.*Nothing was saved"):
        backup(catalog, tmp_path / "a.whimbrel", version="1")
    assert not (tmp_path / "a.whimbrel").exists()
    catalog.close()


def test_a_folder_that_is_missing_is_named(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="nowhere"):
        backup(catalog, tmp_path / "nowhere" / "a.whimbrel", version="0")
    with pytest.raises(PathNotFound):
        verify_archive(tmp_path / "nowhere")
    with pytest.raises(BackupError):
        verify_archive(tmp_path)


def test_a_full_disk_is_named_and_leaves_nothing(catalog: Catalog, place: Place, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        write(catalog, place, document("memory:big", os.urandom(500_000).hex()))
        with pytest.raises(DiskFull):
            backup(catalog, small / "a.whimbrel", version="0")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


# --- what is not as it was written -----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    source = opened(f"sqlite:///{tmp_path / 'source.db'}", tmp_path / "copies")
    place = collection(source)
    write(source, place, *(document(f"memory:{n}", f"one {n}\n\ntwo {n}") for n in range(50)))
    file = tmp_path / "saved.whimbrel"
    backup(source, file, version="0")
    source.close()
    return file


def rewritten(saved: Path, edit: Edit, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with its members edited by somebody who can write a ZIP file."""
    with zipfile.ZipFile(saved) as source:
        members = {name: source.read(name) for name in source.namelist()}
    edit(members)
    made = saved.with_name("edited.whimbrel")
    with zipfile.ZipFile(made, "w", compression) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return made


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        change(manifest)
        members["manifest.json"] = json.dumps(manifest).encode()

    return edit


PART = "tables/chunks-00001.parquet"
EDITS: dict[str, tuple[Edit, str]] = {
    "a part is missing": (lambda m: m.pop(PART), f"{PART} is missing"),
    "a part is another": (lambda m: m.update({PART: m["tables/texts-00001.parquet"]}), "checksum"),
    "a part is altered": (lambda m: m.update({PART: m[PART][:100] + b"other" + m[PART][105:]}), "checksum"),
    "no manifest": (lambda m: m.pop("manifest.json"), "manifest.json is missing"),
    "no JSON": (lambda m: m.update({"manifest.json": b"{"}), "manifest.json"),
    "other JSON": (lambda m: m.update({"manifest.json": b"[1]"}), "manifest.json"),
    "a newer format": (edit_manifest(lambda m: m.update(format=2)), "newer version"),
    "a newer schema": (edit_manifest(lambda m: m.update(schema="9999")), "newer version"),
    "a table is missing": (edit_manifest(lambda m: m["tables"].pop("texts")), "texts is missing"),
    "an unknown table": (
        edit_manifest(lambda m: m["tables"].update(x=m["tables"]["home"])),
        "x is missing, or is none",
    ),
    "other rows": (edit_manifest(lambda m: m["tables"]["texts"].update(rows=7)), "do not add up"),
    "another column": (edit_manifest(lambda m: m["tables"]["texts"]["columns"].update(x="text")), "does not hold"),
    "an unknown kind": (edit_manifest(lambda m: m["tables"]["texts"]["columns"].update(id="pickle")), "manifest.json"),
}


@to_sqlite
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_archive_is_refused(target: Catalog, saved: Path, edit: str) -> None:
    change, said = EDITS[edit]
    with pytest.raises(BackupError, match=said):
        restore(rewritten(saved, change), target)
    assert is_untouched(target)


def test_members_that_the_manifest_does_not_name_are_ignored(saved: Path, tmp_path: Path) -> None:
    assert verify_archive(rewritten(saved, lambda m: m.update({"../../escaped": b"x", "/etc/x": b"x"})))
    assert not (tmp_path.parent / "escaped").exists()


def test_compressed_members_are_refused_unread(saved: Path) -> None:
    with pytest.raises(BackupError, match="compressed"):
        verify_archive(rewritten(saved, lambda m: None, zipfile.ZIP_DEFLATED))


@to_sqlite
def test_a_truncated_archive_is_refused(target: Catalog, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    cut = tmp_path / "cut.whimbrel"
    for size in [0, 1, 100, len(data) // 3, len(data) // 2, len(data) - 1000, len(data) - 1]:
        cut.write_bytes(data[:size])
        with pytest.raises(BackupError):
            restore(cut, target)
    assert is_untouched(target)


@to_sqlite
def test_a_flipped_bit_is_noticed_wherever_it_matters(target: Catalog, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    manifest = verify_archive(saved)
    flipped = tmp_path / "flipped.whimbrel"
    dice = random.Random(5)
    refused = 0
    for _ in range(150):
        place = dice.randrange(len(data))
        flipped.write_bytes(data[:place] + bytes([data[place] ^ (1 << dice.randrange(8))]) + data[place + 1 :])
        try:
            assert verify_archive(flipped) == manifest  # a bit of a time stamp, say
        except BackupError:
            refused += 1
    assert refused > 100
    assert is_untouched(target)


@both
def test_only_an_empty_home_is_restored_into(target: Catalog, saved: Path) -> None:
    with target.write() as connection:
        job, _ = jobs.enqueue(connection, "ingest", collection_id=None, collection="docs", args={})
    with pytest.raises(Conflict, match="jobs"):
        restore(saved, target)
    with target.write() as connection:
        jobs.cancel(connection, job.id)
        token = leases.take(connection, "owner", "me", 3600, {})
    restore(saved, target)
    with target.read() as connection:
        held = leases.read(connection, "owner")
        assert held is not None
        assert held.token == token, "fencing tokens never go back"
    before = record(target)
    with pytest.raises(Conflict, match="docs"):
        restore(saved, target)
    assert record(target) == before


@both
def test_keys_given_out_before_are_not_given_out_again(target: Catalog, saved: Path) -> None:
    with target.write() as connection:
        for _ in range(3):
            key = collections.create(connection, "passing").id
            collections.remove_some(connection, key)
    restore(saved, target)
    with target.write() as connection:
        assert collections.create(connection, "next").id == 4


KILLED = """
import os, sys
from pathlib import Path
from whimbrel.catalog import backup
from whimbrel.catalog.engine import Catalog

left = int(sys.argv[3])

def progress(table, done, total):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)

backup.restore(Path(sys.argv[1]), Catalog(sys.argv[2]), progress=progress)
"""


@both
def test_a_killed_restore_leaves_nothing(target: Catalog, saved: Path, tmp_path: Path) -> None:
    url = target.url.render_as_string(hide_password=False)
    target.close()
    for steps in (14, 20, 10**9):
        ended = subprocess.run([sys.executable, "-c", KILLED, saved, url, str(steps)], check=False).returncode
        again = Catalog(url)
        if steps < 10**9:
            assert ended == -9
            assert is_untouched(again)
        else:
            assert ended == 0
            assert len(contents(again, (1, 1))) == 100
        again.close()
