"""What was erased cannot be read from the database's files any more."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, select, text

from support import collection, contents, document, opened, write
from whimbrel.catalog import documents, jobs, rows, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.erase import scrub
from whimbrel.domain import Space

MARK = "kept-by-nobody"
SECRET_VECTOR = np.full((1, 64), 0.123456789, np.float32)
Place = tuple[int, int]


def found_in_files(catalog: Catalog, data: bytes, server: tuple[str, Path] | None) -> list[str]:
    """The files of the catalog that hold these bytes."""
    if catalog.path is not None:
        files = list(catalog.path.parent.glob(f"{catalog.path.name}*"))
    else:
        assert server is not None
        with catalog.bare() as connection:
            connection.execute(text("CHECKPOINT"))
        files = [path for path in (server[1] / "base").rglob("*") if path.is_file()]
    return [path.name for path in files if data in path.read_bytes()]


@pytest.fixture
def server(catalog: Catalog, request: pytest.FixtureRequest) -> tuple[str, Path] | None:
    return None if catalog.is_sqlite else request.getfixturevalue("postgres_server")


@pytest.fixture
def place(catalog: Catalog) -> Place:
    """A collection of a few hundred documents, written in turns and out of order; some hold the mark."""
    place = collection(catalog)
    dice = random.Random(3)
    with catalog.write() as connection:
        space = vectors.space_id(connection, Space("mini", "1", 64), "onnx:mini")
    for _ in range(8):
        made = []
        for _ in range(30):
            mark = dice.choice([MARK, "kept"])
            paragraphs = [f"{mark} {dice.random()} " + "lorem " * dice.randint(1, 120) for _ in range(4)]
            about = {"about": f"{mark} {dice.random()}"}
            uri = f"memory:{mark}:{dice.randrange(150)}"
            made.append(document(uri, "\n\n".join(paragraphs), about, title=f"{mark} title"))
        write(catalog, place, *made)
        with catalog.write() as connection:
            keys = rows.next_keys(connection, *place, after=0, upto=10**9, limit=10**6)
            missing = vectors.missing(connection, space, keys)
            given = np.random.default_rng(1).standard_normal((len(missing.texts), 64)).astype(np.float32)
            given[[MARK in text for text in missing.texts]] = SECRET_VECTOR
            vectors.put(connection, space, missing.text_ids, given)
    with catalog.write() as connection:
        jobs.enqueue(
            connection,
            "ingest",
            collection_id=place[0],
            collection="docs",
            args={"said": MARK},
            uploads=[({"title": MARK}, f"{MARK} ".encode() * 1_000)],
        )
    with catalog.bare() as connection:
        connection.execute(text("ANALYZE"))  # the planner's statistics hold values too
    return place


def purge(catalog: Catalog, place: Place) -> None:
    with catalog.write() as connection:
        query = select(t.documents.c.id).where(t.documents.c.uri.like(f"%{MARK}%"))
        keys = list(connection.execute(query).scalars())
        documents.remove_documents(connection, place[0], keys, "purged")
        connection.execute(delete(t.documents).where(t.documents.c.id.in_(keys)))
        vectors.sweep(connection)
        for job in jobs.listing(connection):
            jobs.finish(connection, job.id, {})
        jobs.forget(connection, 1e12)


def test_nothing_erased_is_left_in_the_files(catalog: Catalog, place: Place, server: tuple[str, Path] | None) -> None:
    secrets = [MARK.encode(), SECRET_VECTOR.tobytes()]
    assert all(found_in_files(catalog, secret, server) for secret in secrets)
    kept = {name: row for name, row in contents(catalog, place).items() if MARK not in row[0]}
    purge(catalog, place)
    report = scrub(catalog)
    assert report.done
    assert report.held_by == []
    assert [found_in_files(catalog, secret, server) for secret in secrets] == [[], []]
    assert contents(catalog, place) == kept
    write(catalog, place, document("memory:new", "new"))


def test_an_old_reader_holds_a_scrub_back_and_is_named(
    catalog: Catalog, place: Place, server: tuple[str, Path] | None
) -> None:
    with catalog.read() as reader:
        before = len(reader.execute(select(t.chunks.c.id)).all())
        purge(catalog, place)
        held = scrub(catalog, patience_s=0.3)
        assert not held.done
        assert "still" in held.held_by[0]
        assert len(reader.execute(select(t.chunks.c.id)).all()) == before
    assert scrub(catalog).done
    assert found_in_files(catalog, MARK.encode(), server) == []


def test_a_user_without_rights_to_the_statistics_is_told(fresh_postgres: str, tmp_path: Path) -> None:
    admin = Catalog(fresh_postgres)
    with admin.write() as connection:
        connection.execute(text("CREATE ROLE plain LOGIN"))
        connection.execute(text("GRANT CREATE, USAGE ON SCHEMA public TO plain"))
    catalog = opened(admin.url.set(username="plain").render_as_string(hide_password=False), tmp_path)
    report = scrub(catalog)
    catalog.close()
    with admin.write() as connection:
        connection.execute(text("DROP OWNED BY plain"))
        connection.execute(text("DROP ROLE plain"))
    admin.close()
    assert report.done
    assert any("pg_statistic" in note for note in report.notes)
    assert any("CHECKPOINT" in note for note in report.notes)
