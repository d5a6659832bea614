"""The schema: made once, upgraded with a copy saved first, refused when newer."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, Table, select, text

from catalog_schema import through_migrations
from support import collection, contents, document, write
from whimbrel.catalog import migrate
from whimbrel.catalog import tables as t
from whimbrel.catalog.archive import verify_archive
from whimbrel.catalog.backup import backup, restore
from whimbrel.catalog.engine import Catalog
from whimbrel.errors import BackupError, HomeError, NewerHome, WhimbrelError

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{before}"


def upgrade():
    op.add_column("documents", sa.Column("note", sa.Text(), nullable=False, server_default="none"))
    {then}
"""
REVISIONS = (*migrate.REVISIONS, "next")


@pytest.fixture(autouse=True)
def migrations() -> Iterator[None]:
    """Every schema is made by them, that of the fixture `catalog` too."""
    with through_migrations():
        yield


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """The program's own revisions, and one more."""
    return next_version(tmp_path, "pass")


def next_version(tmp_path: Path, then: str) -> Path:
    folder = tmp_path / "versions"
    shutil.copytree(Path(migrate.__file__).parent / "migrations" / "versions", folder)
    (folder / "next.py").write_text(NEXT.format(before=migrate.REVISIONS[-1], then=then))
    return folder


def everything(catalog: Catalog) -> dict[str, list[Any]]:
    """Every row of every table."""
    found = MetaData()
    with catalog.read() as connection:
        found.reflect(connection)
        return {
            name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for name, table in found.tables.items()
        }


def test_the_migrations_make_the_schema_of_the_program(catalog: Catalog) -> None:
    with catalog.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, t.metadata) == []
    assert migrate.current_revision(catalog) == migrate.REVISIONS[-1]


def test_every_revision_is_known(catalog: Catalog) -> None:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(migrate.alembic_config())
    assert [script.revision for script in scripts.walk_revisions()] == list(reversed(migrate.REVISIONS))


def test_every_table_with_integer_keys_has_a_counter(catalog: Catalog) -> None:
    keyed = {name for name, table in t.metadata.tables.items() if "id" in table.c and str(table.c.id.type) != "TEXT"}
    with catalog.read() as connection:
        assert set(connection.execute(select(t.counters.c.name)).scalars()) == keyed


def test_opening_again_changes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    before = everything(catalog)
    migrate.ensure_schema(catalog, copies=tmp_path / "copies")
    assert everything(catalog) == before
    assert not (tmp_path / "copies").exists()


def test_a_newer_home_is_refused_and_left_alone(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = everything(catalog)
    with pytest.raises(NewerHome, match="9999"):
        migrate.ensure_schema(catalog, copies=tmp_path / "copies")
    assert everything(catalog) == before
    assert not (tmp_path / "copies").exists()


def test_tables_of_another_program_are_refused(catalog_url: str, tmp_path: Path) -> None:
    catalog = Catalog(catalog_url)
    with catalog.write() as connection:
        for name in ("collections", "changes"):
            connection.execute(text(f"CREATE TABLE {name} (id INTEGER)"))
    with pytest.raises(HomeError, match="not made by this program"):
        migrate.ensure_schema(catalog, copies=tmp_path / "copies")
    catalog.close()


def test_an_upgrade_saves_a_copy_first(catalog: Catalog, tmp_path: Path, versions: Path) -> None:
    place = collection(catalog)
    write(catalog, place, document("memory:1", "one\n\ntwo", {"year": 2020}))
    before, chunks = everything(catalog), contents(catalog, place)
    migrate.ensure_schema(catalog, copies=tmp_path / "copies", revisions=REVISIONS, versions=versions)
    assert migrate.current_revision(catalog) == "next"
    assert contents(catalog, place) == chunks
    with catalog.read() as connection:
        assert connection.execute(text("SELECT note FROM documents")).scalars().all() == ["none"]

    (copy,) = (tmp_path / "copies").iterdir()
    if catalog.is_sqlite:
        saved = Catalog(f"sqlite:///{copy}")
        assert everything(saved) == before
        saved.close()
        return
    manifest = verify_archive(copy)
    assert manifest.schema == migrate.REVISIONS[-1]
    assert {name: entry.rows for name, entry in manifest.tables.items()} == {n: len(r) for n, r in before.items()}
    restored = Catalog(f"sqlite:///{tmp_path / 'restored.db'}")
    migrate.ensure_schema(restored, copies=tmp_path / "copies")
    restore(copy, restored)
    assert contents(restored, place) == chunks
    restored.close()


def test_documents_of_an_older_version_are_not_read_again(catalog_url: str, tmp_path: Path) -> None:
    catalog = Catalog(catalog_url)
    with catalog.write() as connection:
        migrate.upgrade(connection, "0003")
        connection.execute(
            text("INSERT INTO collections VALUES (1, 'docs', 'en', 'e', 0, 's', 0, NULL, NULL, false, 0)")
        )
        old = Table("documents", MetaData(), autoload_with=connection)
        for key, recipe in ((1, "3;tokens=186,overlap=18;all-MiniLM-L6-v2"), (2, "3")):
            row = {column.name: None if column.nullable else 0 for column in old.columns}
            texts = dict.fromkeys(("uri", "root", "media_type", "content_hash", "state", "reason"), "x")
            json = {"metadata": {}, "facts": {}, "pages": []}
            known = {"id": key, "collection_id": 1, "public_id": bytes([key] * 16), "title": "T", "recipe": recipe}
            connection.execute(old.insert(), {**row, **texts, **json, **known})
    migrate.ensure_schema(catalog, copies=tmp_path / "copies")
    with catalog.read() as connection:
        found = connection.execute(select(t.documents.c.recipe, t.documents.c.cut_title, t.documents.c.title)).all()
    assert [tuple(row) for row in found] == [("3", None, "T")] * 2
    catalog.close()


def test_an_upgrade_that_fails_changes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    collection(catalog)
    before = everything(catalog)
    broken = next_version(tmp_path, 'op.execute("SELECT nothing FROM nowhere")')
    with pytest.raises(WhimbrelError):
        migrate.ensure_schema(catalog, copies=tmp_path / "copies", revisions=REVISIONS, versions=broken)
    assert everything(catalog) == before
    assert len(list((tmp_path / "copies").iterdir())) == 1


def test_a_backup_of_an_older_schema_is_upgraded_on_its_way_in(
    catalog: Catalog, tmp_path: Path, versions: Path
) -> None:
    source = Catalog(f"sqlite:///{tmp_path / 'source.db'}")
    migrate.ensure_schema(source, copies=tmp_path / "copies")
    place = collection(source)
    write(source, place, document("memory:1", "one\n\ntwo", {"year": 2020}))
    backup(source, tmp_path / "old.whimbrel", version="0")
    chunks = contents(source, place)

    migrate.ensure_schema(catalog, copies=tmp_path / "copies", revisions=REVISIONS, versions=versions)
    restore(tmp_path / "old.whimbrel", catalog, revisions=REVISIONS, versions=versions)
    assert contents(catalog, place) == chunks
    with catalog.read() as connection:
        assert connection.execute(text("SELECT note FROM documents")).scalars().all() == ["none"]

    backup(catalog, tmp_path / "new.whimbrel", version="99")
    with pytest.raises(BackupError, match="newer version"):
        restore(tmp_path / "new.whimbrel", source)
    source.close()


def first_start(url: str, copies: str) -> None:
    catalog = Catalog(url)
    migrate.ensure_schema(catalog, copies=Path(copies))
    with catalog.write() as connection:
        assert connection.execute(select(t.home.c.value)).scalars().all()
    catalog.close()


def test_four_processes_may_start_first(catalog_url: str, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    starting = [spawn.Process(target=first_start, args=(catalog_url, str(tmp_path / "copies"))) for _ in range(4)]
    for process in starting:
        process.start()
    for process in starting:
        process.join()
    assert [process.exitcode for process in starting] == [0, 0, 0, 0]
    catalog = Catalog(catalog_url)
    assert [key for key, _ in everything(catalog)["home"]] == ["id"]
    assert not (tmp_path / "copies").exists()
    catalog.close()
