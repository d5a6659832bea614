"""The vectors of record: each text is paid for once in a space, and comes back exactly."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, select

from running import until
from support import collection, document, opened, write
from whimbrel.catalog import documents, rows, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import Space

SPACE = Space("mini", "1", 4)
Place = tuple[int, int]


@pytest.fixture
def place(catalog: Catalog) -> Place:
    return collection(catalog)


@pytest.fixture
def space(catalog: Catalog) -> int:
    with catalog.write() as connection:
        return vectors.space_id(connection, SPACE, "onnx:mini")


def keys_of(connection: Connection, place: Place) -> list[int]:
    return rows.next_keys(connection, *place, after=0, upto=10**9, limit=10**6)


def test_a_space_is_known_by_what_makes_its_vectors(catalog: Catalog, space: int) -> None:
    with catalog.write() as connection:
        assert vectors.space_id(connection, SPACE, "other:name") == space
        assert vectors.space_id(connection, Space("mini", "1", 4, numeric="int8-per-channel"), "onnx:mini") != space
        assert vectors.read_space(connection, space) == (SPACE, "onnx:mini")


def test_vectors_come_back_bit_for_bit(catalog: Catalog, place: Place, space: int) -> None:
    write(catalog, place, document("memory:1", "one\n\ntwo\n\nthree\n\none"))
    given = np.array([[1e-45, -0.0, 3.4e38, 1 / 3], [1, 2, 3, 4], [np.pi, 0, 0, -1]], dtype=np.float32)
    with catalog.write() as connection:
        missing = vectors.missing(connection, space, keys_of(connection, place))
        vectors.put(connection, space, missing.text_ids, given)
    by_text = dict(zip(missing.texts, given, strict=True))
    with catalog.read() as connection:
        found, waiting, refused = rows.load_chunks(connection, keys_of(connection, place), space)
        assert vectors.missing(connection, space, keys_of(connection, place)).texts == []
    assert (waiting, refused) == (0, 0)
    assert found.vectors is not None
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == (4, 4)
    for text, vector in zip(found.texts, found.vectors, strict=True):
        assert vector.tobytes() == by_text[text].tobytes()


def test_a_text_is_embedded_once_for_all_documents_and_collections(catalog: Catalog, place: Place, space: int) -> None:
    other = collection(catalog, "other")
    write(catalog, place, document("memory:1", "one\n\ntwo"))
    with catalog.write() as connection:
        missing = vectors.missing(connection, space, keys_of(connection, place))
        vectors.put(connection, space, missing.text_ids, np.ones((2, 4), np.float32))
    write(catalog, other, document("memory:2", "two\n\nthree"))
    with catalog.read() as connection:
        assert vectors.missing(connection, space, keys_of(connection, other)).texts == ["three"]
        assert vectors.missing(connection, space + 1, keys_of(connection, other)).texts == ["two", "three"]


def test_the_first_vector_of_a_text_stays(catalog: Catalog, place: Place, space: int) -> None:
    write(catalog, place, document("memory:1", "one"))
    with catalog.write() as connection:
        ids = vectors.missing(connection, space, keys_of(connection, place)).text_ids
        vectors.put(connection, space, ids, np.ones((1, 4), np.float32))
        vectors.put(connection, space, ids, np.zeros((1, 4), np.float32), {ids[0]: "refused now"})
        found, _, refused = rows.load_chunks(connection, keys_of(connection, place), space)
    assert refused == 0
    assert np.array_equal(found.vectors, np.ones((1, 4)))  # type: ignore[arg-type]


def test_a_refused_text_has_a_reason_and_blocks_nothing(catalog: Catalog, place: Place, space: int) -> None:
    write(catalog, place, document("memory:1", "one\n\nbad\n\nthree"))
    with catalog.write() as connection:
        missing = vectors.missing(connection, space, keys_of(connection, place))
        ids = dict(zip(missing.texts, missing.text_ids, strict=True))
        vectors.put(connection, space, [ids["one"]], np.ones((1, 4), np.float32), {ids["bad"]: "too long"})
        found, waiting, refused = rows.load_chunks(connection, keys_of(connection, place), space)
        assert (found.texts, waiting, refused) == (["one"], 1, 1)
        assert vectors.refusals(connection, space, *place) == 1
        assert vectors.missing(connection, space, keys_of(connection, place)).texts == ["three"]
        assert connection.execute(select(t.vectors.c.reason).where(t.vectors.c.data.is_(None))).scalars().all() == [
            "too long"
        ]


def test_a_sweep_takes_what_no_chunk_has(catalog: Catalog, place: Place, space: int) -> None:
    write(catalog, place, document("memory:1", "one\n\nshared"), document("memory:2", "shared\n\ntwo"))
    with catalog.write() as connection:
        missing = vectors.missing(connection, space, keys_of(connection, place))
        vectors.put(connection, space, missing.text_ids, np.ones((3, 4), np.float32))
        first = connection.execute(select(t.documents.c.id).where(t.documents.c.uri == "memory:1")).scalar_one()
        documents.remove_documents(connection, place[0], [first], "purged")
        assert vectors.sweep(connection) == 1
        assert vectors.sweep(connection) == 0
    with catalog.read() as connection:
        found, waiting, _ = rows.load_chunks(connection, keys_of(connection, place), space)
        assert sorted(found.texts) == ["shared", "two"]
        assert waiting == 0
        assert len(connection.execute(select(t.vectors.c.id)).all()) == 2


def test_a_text_that_was_swept_while_it_was_embedded_gets_no_vector(catalog: Catalog, place: Place, space: int) -> None:
    write(catalog, place, document("memory:1", "one"))
    with catalog.write() as connection:
        ids = vectors.missing(connection, space, keys_of(connection, place)).text_ids
        key = connection.execute(select(t.documents.c.id)).scalar_one()
        documents.remove_documents(connection, place[0], [key], "purged")
        vectors.sweep(connection)
    with catalog.write() as connection:
        vectors.put(connection, space, ids, np.ones((1, 4), np.float32))
        assert connection.execute(select(t.vectors.c.id)).all() == []


def test_many_vectors_at_once(catalog: Catalog, place: Place, space: int) -> None:
    write(catalog, place, document("memory:1", "\n\n".join(f"p{n}" for n in range(6_000))))
    with catalog.write() as connection:
        missing = vectors.missing(connection, space, keys_of(connection, place))
        given = np.random.default_rng(0).standard_normal((6_000, 4)).astype(np.float32)
        vectors.put(connection, space, missing.text_ids, given)
        found, waiting, refused = rows.load_chunks(connection, keys_of(connection, place), space)
    assert (len(found), waiting, refused) == (6_000, 0, 0)
    row = missing.texts.index("p4321")
    assert np.array_equal(found.vectors[found.texts.index("p4321")], given[row])  # type: ignore[index]


def test_two_that_store_the_same_vectors_at_once_take_turns(fresh_postgres: str, tmp_path: Path) -> None:
    """In different order, and neither has seen what the other stores: on SQLite writers are alone anyway."""
    catalog, other = opened(fresh_postgres, tmp_path / "copies"), Catalog(fresh_postgres)
    place = collection(catalog)
    write(catalog, place, document("memory:1", "one\n\ntwo\n\nthree\n\nfour\n\nfive"))
    with catalog.write() as connection:
        space = vectors.space_id(connection, SPACE, "onnx:mini")
        missing = vectors.missing(connection, space, keys_of(connection, place))
    one, two, three, four, five = missing.text_ids
    failed: list[BaseException] = []

    def second() -> None:
        try:
            with other.write() as connection:
                refused = {two: "too long", five: "too long"}
                vectors.put(connection, space, [four, three, one], np.full((3, 4), 2, np.float32), refused)
        except BaseException as error:
            failed.append(error)

    beside = threading.Thread(target=second)
    with catalog.write() as connection:
        vectors.put(connection, space, [one, two, three], np.ones((3, 4), np.float32))
        beside.start()
        until(lambda: failed or waiting(catalog), "the second waits for the first")
    beside.join()
    assert failed == []
    with catalog.read() as connection:
        found = connection.execute(select(t.vectors.c.text_id, t.vectors.c.data, t.vectors.c.reason)).all()
        assert vectors.missing(connection, space, keys_of(connection, place)).texts == []
    first, later = (np.full(4, number, "<f4").tobytes() for number in (1, 2))
    of_the_first = [(text_id, first, "") for text_id in (one, two, three)]
    assert sorted(found) == sorted([*of_the_first, (four, later, ""), (five, None, "too long")])
    catalog.close()
    other.close()


def waiting(catalog: Catalog) -> bool:
    """Whether somebody waits for what another transaction has locked."""
    asked = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with catalog.read() as connection:
        return connection.exec_driver_sql(asked).first() is not None


def test_a_sweep_beside_writers_takes_no_text_that_a_chunk_gets(catalog: Catalog, catalog_url: str) -> None:
    places = [collection(catalog, f"c{n}") for n in range(2)]
    failed: list[BaseException] = []

    def work(place: Place) -> None:
        own = Catalog(catalog_url)
        try:
            for round_ in range(15):  # each round leaves the texts of the one before without a chunk, or takes them up
                write(own, place, document("memory:1", "\n\n".join(f"text {(round_ + n) % 4}" for n in range(3))))
        except BaseException as error:
            failed.append(error)
        own.close()

    writers = [threading.Thread(target=work, args=(place,)) for place in places]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        with catalog.write() as connection:
            vectors.sweep(connection)
    assert failed == []
    with catalog.read() as connection:
        lost = select(t.chunks.c.id).where(~t.chunks.c.text_id.in_(select(t.texts.c.id)))
        assert connection.execute(lost).all() == []
        assert len(connection.execute(select(t.texts.c.hash)).all()) <= 4
