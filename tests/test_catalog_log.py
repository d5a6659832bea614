"""The change log: what a view that follows it can rely on."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from support import ToyView, collection, contents, document, opened, write
from whimbrel.catalog import documents, log, rows
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.log import Change, Op
from whimbrel.domain import Position, document_id

WRITERS = 3
TRANSACTIONS = 12


def keep_writing(url: str, place: tuple[int, int], seed: int) -> None:
    """Write, change and remove documents, some of them also another writer's, in transactions of random length."""
    dice = random.Random(seed)
    catalog = Catalog(url)
    for _ in range(TRANSACTIONS):
        with catalog.write() as connection:
            if dice.random() < 0.25:
                public = [bytes.fromhex(document_id(external_id=None, uri=f"memory:{n}")) for n in range(4)]
                columns = t.documents.c
                query = select(columns.id).where(columns.collection_id == place[0], columns.public_id.in_(public))
                # Before the removal takes the collection's lock, as any caller may do.
                keys = list(connection.execute(query).scalars())
                documents.remove_documents(connection, place[0], keys, "gone from its source")
            else:
                names = dice.sample(range(12), dice.randint(1, 4))
                texts = ["\n\n".join(f"p{dice.randrange(9)}" for _ in range(dice.randint(0, 5))) for _ in names]
                made = [document(f"memory:{n}", text) for n, text in zip(names, texts, strict=True)]
                documents.write_documents(connection, *place, made)
            time.sleep(dice.random() * 0.01)  # so that a later transaction would like to commit before this one
    catalog.close()


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_reader_beside_many_writers_misses_no_change(catalog: Catalog, catalog_url: str, kind: str) -> None:
    place = collection(catalog)
    write(catalog, place, *(document(f"memory:{n}", "first") for n in range(12)))
    view = ToyView(place, batch=5)
    late = ToyView(place, batch=7)
    start = threading.Thread if kind == "threads" else multiprocessing.get_context("spawn").Process
    writers = [start(target=keep_writing, args=(catalog_url, place, seed)) for seed in range(WRITERS)]
    for writer in writers:
        writer.start()
    steps = 0
    while any(writer.is_alive() for writer in writers):
        steps += view.step(catalog)
        if steps == 10 and late.position is None:
            late.build(catalog)
        time.sleep(0.001)
    for writer in writers:
        writer.join()
    assert all(getattr(writer, "exitcode", 0) == 0 for writer in writers)
    view.catch_up(catalog)
    late.catch_up(catalog)
    assert view.rows == contents(catalog, place)
    assert late.rows == contents(catalog, place)
    with catalog.read() as connection:
        positions = connection.execute(select(t.changes.c.position).order_by(t.changes.c.position)).scalars().all()
        stamps = connection.execute(select(t.commits.c.stamp)).scalars().all()
    assert list(positions) == list(range(1, len(positions) + 1))
    assert len(set(stamps)) == len(stamps)
    assert view.position is not None
    assert view.position.position == positions[-1]


def test_a_write_that_is_undone_leaves_no_gap(catalog: Catalog) -> None:
    place = collection(catalog)
    head = write(catalog, place, document("memory:1", "one\n\ntwo")).head
    with catalog.write() as connection:
        documents.write_documents(connection, *place, [document("memory:2", "three")])
        connection.rollback()
    assert write(catalog, place, document("memory:3", "four")).head == head + 1


def test_batches_end_where_commits_end(catalog: Catalog) -> None:
    place = collection(catalog)
    for number, length in enumerate((3, 2, 6, 1)):
        write(catalog, place, document(f"memory:{number}", "\n\n".join(f"p{i}" for i in range(length))))
    with catalog.read() as connection:
        ends = []
        after = 0
        while (end := log.commit_end(connection, place[0], after, 5)) is not None:
            after = end[0]
            ends.append(after)
            assert end[1] == log.stamp_at(connection, place[0], after)
        head = log.head(connection, place[0])
    assert ends == [5, 11, 12]  # two commits in one batch; one that is longer than the limit; the rest
    assert head.position == Position(head.epoch, 12, head.stamp)


def test_a_write_without_a_change_moves_nothing(catalog: Catalog) -> None:
    place = collection(catalog)
    first = write(catalog, place, document("memory:1", "one"))
    with catalog.read() as connection:
        before = log.head(connection, place[0])
    again = write(catalog, place, document("memory:1", "one"))
    with catalog.read() as connection:
        assert log.head(connection, place[0]) == before
    assert again.head == first.head


def test_the_last_change_of_each_chunk_is_read(catalog: Catalog) -> None:
    place = collection(catalog)
    write(catalog, place, document("memory:1", "one\n\ntwo"))
    with catalog.read() as connection:
        upserts, deletes, new = rows.read_log(connection, *place, 0, 2)
    assert (len(upserts), deletes, new) == (2, [], True)

    write(catalog, place, document("memory:1", "one\n\nthree"))
    write(catalog, place, document("memory:1", "one\n\ntwo"))
    with catalog.read() as connection:
        head = log.head(connection, place[0]).head
        upserts, deletes, new = rows.read_log(connection, *place, 0, head)
        found, _, _ = rows.load_chunks(connection, [entry.chunk_id for entry in upserts], None)
        tail = rows.read_log(connection, *place, 2, head)
    assert sorted(found.texts) == ["one", "two"]
    assert len(deletes) == 1  # "three", which a view may never have held
    assert not new
    assert [entry.op for entry in tail[0]] == [Op.ADD]
    assert not tail[2], "a row deleted and added again is not new to a view"


def test_the_log_can_be_cut_below_the_slowest_view(catalog: Catalog) -> None:
    place = collection(catalog)
    heads = [write(catalog, place, document(f"memory:{n}", "one\n\ntwo")).head for n in range(5)]
    with catalog.read() as connection:
        end = log.head(connection, place[0])
        stamps = [log.stamp_at(connection, place[0], head) or "" for head in heads]
    with catalog.write() as connection:
        assert log.cut(connection, place[0], heads[2]) == heads[2]
        assert log.cut(connection, place[0], heads[1]) == 0
        assert log.length(connection, place[0]) == heads[4] - heads[2]

        def why(index: int) -> str:
            return log.distrust(connection, place[0], Position(end.epoch, heads[index], stamps[index]))

        assert "cut" in why(1)
        assert not why(2), "a view that stands at the floor can go on"
        assert not why(4)
        log.cut(connection, place[0], heads[4] + 100)
        assert not why(4), "a view at the head outlives any cut"
        assert log.head(connection, place[0]).head == heads[4]
    write(catalog, place, document("memory:9", "nine"))
    view = ToyView(place)
    view.position = Position(end.epoch, heads[4], stamps[4])
    view.catch_up(catalog)
    assert [text for text, _, _ in view.rows.values()] == ["nine"]


def test_a_view_of_another_log_is_not_trusted(catalog: Catalog) -> None:
    place = collection(catalog)
    other = collection(catalog, "other")
    write(catalog, place, document("memory:1", "one"))
    write(catalog, other, document("memory:1", "one"))
    with catalog.read() as connection:
        held = log.head(connection, place[0]).position
        assert not log.distrust(connection, place[0], held)
        assert not log.distrust(connection, place[0], Position(held.epoch, 0, ""))
        assert "epoch" in log.distrust(connection, other[0], held)
        assert "ahead" in log.distrust(connection, place[0], Position(held.epoch, 2, held.stamp))
        assert "history" in log.distrust(connection, place[0], Position(held.epoch, 1, "0" * 16))
        assert log.distrust(connection, place[0], None)


def test_a_view_from_before_the_catalog_file_was_copied_back_is_not_trusted(tmp_path: Path) -> None:
    file, saved = tmp_path / "catalog.db", tmp_path / "saved.db"
    url = f"sqlite:///{file}"
    catalog = opened(url, tmp_path)
    place = collection(catalog)
    write(catalog, place, document("memory:1", "one"))
    catalog.close()
    shutil.copy(file, saved)

    catalog = opened(url, tmp_path)
    write(catalog, place, document("memory:2", "two"))
    view = ToyView(place)
    view.catch_up(catalog)
    catalog.close()
    shutil.copy(saved, file)

    catalog = opened(url, tmp_path)
    with catalog.read() as connection:
        assert "ahead" in log.distrust(connection, place[0], view.position)
    write(catalog, place, document("memory:3", "three"))  # now the positions are equal, and their histories are not
    with catalog.read() as connection:
        assert log.head(connection, place[0]).head == view.position.position  # type: ignore[union-attr]
        assert "history" in log.distrust(connection, place[0], view.position)
    catalog.close()


def test_many_changes_in_one_commit(catalog: Catalog) -> None:
    place = collection(catalog)
    with catalog.write() as connection:
        head = log.append(connection, place[0], [Change(Op.DELETE, n, place[1], b"\0" * 16) for n in range(20_000)])
    assert head == 20_000
