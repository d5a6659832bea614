"""A collection exported as Parquet files that other programs read, and imported, row for row, on either catalog."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from commands import Shell
from running import DEADLINE_S, Toy
from small_disk import small_disk
from support import count, document, opened, write
from whimbrel.app import Whimbrel
from whimbrel.catalog import collections, importing, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import record_failure, remove_documents
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.exported import MANIFEST
from whimbrel.catalog.exported_folder import ExportFolder
from whimbrel.catalog.exporting import export
from whimbrel.catalog.importing import Into
from whimbrel.domain import ChunkSpan, JobState, Space, ViewKind
from whimbrel.errors import (
    BackupError,
    BadInput,
    CollectionNotFound,
    Conflict,
    DiskFull,
    HomeError,
    PathNotFound,
    WhimbrelError,
)
from whimbrel.models.embedders import resolve
from whimbrel.testing.strategies import metadatas

pytestmark = pytest.mark.timeout(180)

_NUMBERS = itertools.count()
COARSE, FINE = "tokens=186,overlap=18", "tokens=48,overlap=6"
SPACES = [Space("mini", "1", 4), Space("large", "2", 6)]


def halves(text: str) -> list[ChunkSpan]:
    """Another way to cut."""
    middle = len(text) // 2
    return [ChunkSpan(0, middle, 1, context="first", page=1), ChunkSpan(middle, len(text), 2)] if middle else []


def fill(catalog: Catalog) -> int:
    """A collection with all that an export may meet: two chunkings and spaces, refused texts, repeated ones, a document
    longer than a segment, one without text, one that failed, one that is gone. Returns its key."""
    with catalog.write() as connection:
        made = collections.create(connection, "docs", "de")
        coarse, fine = (collections.chunking_id(connection, spec) for spec in (COARSE, FINE))
        keys = [vectors.space_id(connection, space, f"onnx:{space.model}") for space in SPACES]
        for space, chunking in zip(keys, (coarse, fine), strict=True):
            view = collections.add_view(
                connection, made, ViewKind.STORE, uri="file:x", space_id=space, chunking_id=chunking
            )
            if chunking == coarse:
                collections.switch(connection, made.id, view)
    body = "one\n\ntwo 日本語 🐦\n\none\n\n" + "é" * 10
    texts = {
        "memory:a": (body, {"year": 2020, "tags": ["a", "b"], "deep": {"x": [1.5, None]}, "mixed": 1}),
        "memory:b": ("x" * 40_000 + "\n\n" + "y" * 40_000, {"year": 2021, "Year": 1, "ok": True, "mixed": "s"}),
        "memory:gone": ("secret of the deleted\n\none", {"year": 1}),
        "memory:empty": ("", {"größe": 1.5}),
        **{f"memory:{n}": (f"note {n}\n\none", {"year": n, "ratio": n / 7}) for n in range(700)},
    }
    documents = [
        replace(document(uri, said, about, title=f"Title of {uri}"), also={fine: halves(said)}, pages=[(0, 1), (5, 2)])
        for uri, (said, about) in texts.items()
    ]
    documents.append(replace(document("memory:id", "by id", external_id="ünique"), also={fine: halves("by id")}))
    write(catalog, (made.id, coarse), *documents)
    failed = document("memory:failed", "", spans=[])
    with catalog.write() as connection:
        record_failure(connection, made.id, failed, "It is encrypted.")
        (gone,) = connection.execute(select(t.documents.c.id).where(t.documents.c.uri == "memory:gone")).scalars()
        remove_documents(connection, made.id, [gone], "deleted")
        embed(catalog, connection, made.id, keys, (coarse, fine))
    return made.id


def embed(catalog: Catalog, connection: Any, collection: int, spaces: list[int], chunkings: tuple[int, int]) -> None:
    """The first chunking in both spaces, the second in the second; every seventh text is refused by the second."""
    for number, (space, about) in enumerate(zip(spaces, SPACES, strict=True)):
        for chunking in chunkings if number else chunkings[:1]:
            columns = t.chunks.c
            mine = (columns.collection_id == collection) & (columns.chunking_id == chunking)
            texts = sorted(set(connection.execute(select(columns.text_id).where(mine)).scalars()))
            kept = [key for key in texts if not number or key % 7]
            made = np.random.default_rng(number).standard_normal((len(kept), about.dimensions)).astype(np.float32)
            vectors.put(connection, space, kept, made, {key: "too long" for key in texts if key not in kept})


def load(catalog: Catalog, folder: Path, name: str) -> int:
    """As the job of an import does it."""
    found = ExportFolder(folder)
    found.check()
    with catalog.write() as connection:
        made = collections.create(connection, name, found.manifest.collection.language)
        chunkings = {spec: collections.chunking_id(connection, spec) for spec in found.manifest.chunkings}
        spaces = {one.key: vectors.space_id(connection, one.space, one.embedder) for one in found.manifest.spaces}
        searched = found.manifest.collection.searched
        if searched.chunking:
            kind, space = (ViewKind.STORE, spaces[searched.space]) if searched.space else (ViewKind.LEXICON, None)
            chunking = chunkings[searched.chunking]
            collections.add_view(connection, made, kind, uri="file:x", space_id=space, chunking_id=chunking)
    into = Into(made.id, chunkings, spaces)
    for batch in found.batches():
        with catalog.write() as connection:
            importing.write(connection, into, batch)
    return made.id


def rows(catalog: Catalog, collection: int) -> dict[str, list[Any]]:
    """Everything that is exported of a collection, without the catalog's own keys."""
    d, c, v = t.documents.c, t.chunks.c, t.vectors.c
    left_out = ("id", "collection_id", "position", "created_at", "updated_at")
    about = [column for column in d if column.name not in left_out]
    chunk = [c[name] for name in ("public_id", "ordinal", "start", "end", "tokens", "context", "page")]
    with catalog.read() as connection:
        documents = select(*about).where(d.collection_id == collection, d.state != "gone").order_by(d.public_id)
        segments = (
            select(d.public_id, t.segments.c.ordinal, t.segments.c.text)
            .join_from(t.documents, t.segments, t.segments.c.document_id == d.id)
            .where(d.collection_id == collection)
        )
        of = select(d.public_id.label("document"), t.chunkings.c.spec, *chunk)
        joined = t.chunks.join(t.documents, d.id == c.document_id).join(t.chunkings, t.chunkings.c.id == c.chunking_id)
        embedded = joined.join(t.vectors, v.text_id == c.text_id).join(t.spaces, t.spaces.c.id == v.space_id)
        mine = c.collection_id == collection
        found = {
            "documents": documents,
            "segments": segments.order_by(d.public_id, t.segments.c.ordinal),
            "chunks": of.select_from(joined).where(mine).order_by(t.chunkings.c.spec, c.public_id),
            "vectors": select(c.public_id, t.chunkings.c.spec, t.spaces.c.key, v.data, v.reason)
            .select_from(embedded)
            .where(mine)
            .order_by(t.spaces.c.key, t.chunkings.c.spec, c.public_id),
        }
        return {name: [tuple(row) for row in connection.execute(query)] for name, query in found.items()}


def tables(folder: Path) -> dict[str, pa.Table]:
    return {path.name: pq.read_table(path) for path in sorted(folder.glob("*.parquet"))}


@pytest.fixture
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of `fill`, which a test may damage."""
    base = tmp_path_factory.getbasetemp() / "an-export"
    if not base.exists():
        made = opened(f"sqlite:///{base}.db", base.with_suffix(".copies"))
        fill(made)
        export(made, "docs", base, version="1")
        made.close()
    mine = tmp_path_factory.mktemp("mine") / "export"
    shutil.copytree(base, mine)
    return mine


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Catalog]:
    made = opened(f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "copies")
    yield made
    made.close()


# --- there and back --------------------------------------------------------------------------------------------------


def test_a_collection_comes_back_row_for_row(catalog: Catalog, sqlite: Catalog, tmp_path: Path) -> None:
    """From SQLite and from Postgres, to SQLite and to the same catalog under another name."""
    first = fill(catalog)
    before = rows(catalog, first)
    report = export(catalog, "docs", tmp_path / "out", version="1")
    assert (report.documents, report.chunks) == (705, len([row for row in before["chunks"] if row[1] == COARSE]))
    for place, name in ((sqlite, "docs"), (catalog, "again")):
        after = rows(place, load(place, tmp_path / "out", name))
        for kind in before:
            assert after[kind] == before[kind], kind
        with place.read() as connection:
            made = collections.find(connection, name)
            assert (made.head, made.language) == (len(before["chunks"]), "de")
    export(sqlite, "docs", tmp_path / "back", version="1")
    mine, theirs = tables(tmp_path / "out"), tables(tmp_path / "back")
    assert mine.keys() - theirs.keys() == {"chunks-2.parquet", "vectors-3.parquet"}, (
        "no view follows that chunking here"
    )
    for name in theirs.keys() - {"documents.parquet", "refused.parquet"}:
        assert theirs[name].equals(mine[name]), name
    plain = [name for name in mine["documents.parquet"].column_names if name != "metadata"]
    assert theirs["documents.parquet"].select(plain).equals(mine["documents.parquet"].select(plain))


def test_an_export_says_what_is_in_it(exported: Path) -> None:
    said = json.loads((exported / MANIFEST).read_text())
    assert said["collection"]["searched"] == {"chunking": COARSE, "space": SPACES[0].key}
    assert [(one["name"], one["chunking"], one["space"]) for one in said["files"]] == [
        ("documents.parquet", "", ""),
        ("chunks.parquet", COARSE, ""),
        ("chunks-2.parquet", FINE, ""),
        ("vectors.parquet", COARSE, SPACES[0].key),
        ("vectors-2.parquet", COARSE, SPACES[1].key),
        ("vectors-3.parquet", FINE, SPACES[1].key),
        ("refused.parquet", "", ""),
    ]
    for one in said["files"]:
        content = (exported / one["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (one["bytes"], one["sha256"])
        assert pq.read_metadata(exported / one["name"]).num_rows == one["rows"]
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        [MANIFEST, *(one["name"] for one in said["files"])]
    )


def test_pandas_reads_an_export_plainly(exported: Path) -> None:
    import pandas

    documents = pandas.read_parquet(exported / "documents.parquet")
    chunks = pandas.read_parquet(exported / "chunks.parquet")
    found = pandas.read_parquet(exported / "vectors.parquet")
    assert {"meta_year", "meta_tags", "meta_ratio", "meta_ok"} <= set(documents.columns)
    assert not {"meta_mixed", "meta_deep", "meta_größe"} & set(documents.columns), "of several types, or oddly named"
    assert len({name.lower() for name in documents.columns}) == len(documents.columns)
    first = documents.set_index("uri").loc["memory:a"]
    assert (first["meta_year"], list(first["meta_tags"])) == (2020, ["a", "b"])
    assert json.loads(first["metadata"])["deep"] == {"x": [1.5, None]}
    assert str(documents["created_at"].dtype) == "datetime64[us, UTC]"
    joined = chunks.merge(documents, left_on="document_id", right_on="id", suffixes=("", "_of")).merge(found, on="id")
    assert len(joined) == len(chunks) == len(found)
    assert all(row.text_of[row.start : row.end] == row.text for row in joined.itertuples())
    assert np.stack(joined["vector"]).dtype == np.float32
    assert np.stack(joined["vector"]).shape == (len(chunks), 4)
    assert "memory:gone" not in set(documents["uri"])
    assert not any("secret" in path.read_bytes().decode("latin-1") for path in exported.iterdir())
    assert not chunks["text"].str.contains("secret").any()


_DUCKDB = """
import duckdb, json, os, sys
os.chdir(sys.argv[1])
with duckdb.connect() as database:
    print(json.dumps([database.sql(query).fetchall() for query in sys.argv[2:]]))
"""


def test_duckdb_reads_an_export_plainly(exported: Path) -> None:
    """In a process of its own: at the end of one that runs tests, it writes what it has not let go."""
    whole = (
        "SELECT count(*) FROM 'chunks.parquet' c JOIN 'documents.parquet' d ON d.id = c.document_id"
        ' WHERE substring(d.text, c.start + 1, c."end" - c.start) = c.text'
    )
    embedded = "SELECT count(*) FROM 'vectors.parquet' SEMI JOIN 'chunks.parquet' USING (id)"
    first = (
        "SELECT d.uri, d.meta_year, d.meta_tags, json_extract_string(d.metadata, '$.year'), c.text,"
        " typeof(d.created_at), typeof(v.vector), v.id, v.vector FROM 'documents.parquet' d"
        " JOIN 'chunks.parquet' c ON c.document_id = d.id JOIN 'vectors.parquet' v ON v.id = c.id"
        " WHERE d.uri = 'memory:a' ORDER BY c.ordinal LIMIT 1"
    )
    command = [sys.executable, "-c", _DUCKDB, str(exported), whole, embedded, first]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S)
    pairs, joined, ((*said, id_, vector),) = json.loads(ran.stdout)
    assert pairs == [[pq.read_metadata(exported / "chunks.parquet").num_rows]]
    assert said == ["memory:a", 2020, ["a", "b"], "2020", "one", "TIMESTAMP WITH TIME ZONE", "FLOAT[]"]
    vectors = pq.read_table(exported / "vectors.parquet")
    assert joined == [[vectors.num_rows]]
    assert vector == vectors["vector"][vectors["id"].to_pylist().index(id_)].as_py()


def test_an_empty_collection_and_one_without_vectors_come_back(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.write() as connection:
        collections.create(connection, "empty")
        plain = collections.create(connection, "plain")
        chunking = collections.chunking_id(connection, COARSE)
    write(catalog, (plain.id, chunking), document("memory:1", "one\n\ntwo"))
    for name in ("empty", "plain"):
        report = export(catalog, name, tmp_path / name, version="1")
        assert report.vectors == 0
        made = load(catalog, tmp_path / name, f"{name}-again")
        with catalog.read() as connection:
            was = collections.find(connection, name).id
        assert rows(catalog, made) == rows(catalog, was)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    base = tmp_path_factory.mktemp("shared")
    made = opened(f"sqlite:///{base / 'catalog.db'}", base / "copies")
    yield made
    made.close()


@settings(max_examples=40, deadline=None)
@given(abouts=st.lists(metadatas, max_size=6))
def test_any_metadata_comes_back(
    shared: Catalog, tmp_path_factory: pytest.TempPathFactory, abouts: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("metadata") / "out"
    name = f"n{next(_NUMBERS)}"
    with shared.write() as connection:
        place = collections.create(connection, name).id, collections.chunking_id(connection, COARSE)
    write(shared, place, *(document(f"memory:{n}", f"text {n} {one}", one) for n, one in enumerate(abouts)))
    export(shared, name, folder, version="1")
    assert rows(shared, load(shared, folder, f"{name}-again")) == rows(shared, place[0])


def test_an_export_is_of_one_position_while_others_write(catalog: Catalog, tmp_path: Path) -> None:
    key = fill(catalog)
    with catalog.read() as connection:
        head, chunking = collections.find(connection, "docs").head, collections.chunking_id
    with catalog.write() as connection:
        coarse, fine = chunking(connection, COARSE), chunking(connection, FINE)
    before, wrote = rows(catalog, key), []

    def meddle(what: str, done: int, total: int) -> None:
        if not wrote:
            wrote.append(done)
            late = [replace(document(f"late:{n}", "late\n\none"), also={fine: []}) for n in range(50)]
            changed = replace(document("memory:3", "changed"), also={fine: []})
            thread = threading.Thread(target=write, args=(catalog, (key, coarse), changed, *late))
            thread.start()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    report = export(catalog, "docs", tmp_path / "out", version="1", progress=meddle)
    assert wrote
    assert report.position == head
    assert rows(catalog, load(catalog, tmp_path / "out", "as-it-was")) == before


# --- what stands in the way of an export -----------------------------------------------------------------------------


def test_nothing_is_overwritten(sqlite: Catalog, tmp_path: Path) -> None:
    fill(sqlite)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    for target in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
        with pytest.raises(Conflict, match="already"):
            export(sqlite, "docs", target, version="1")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    export(sqlite, "docs", tmp_path / "empty", version="1")
    with pytest.raises(CollectionNotFound):
        export(sqlite, "nowhere", tmp_path / "x", version="1")
    assert not (tmp_path / "x").exists()
    foreign = tmp_path / ".y.part"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("precious")
    with pytest.raises(Conflict, match="already"):
        export(sqlite, "docs", tmp_path / "y", version="1")
    assert (foreign / "mine.txt").read_text() == "precious"


_KILLED = """
import os, sys
from pathlib import Path
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.exporting import export
def die(what, done, total):
    if done > total / 2:
        os._exit(9)
export(Catalog(sys.argv[1]), "docs", Path(sys.argv[2]), version="1", progress=die)
"""


def test_a_killed_export_leaves_nothing_that_looks_whole(sqlite: Catalog, tmp_path: Path) -> None:
    fill(sqlite)
    command = [sys.executable, "-c", _KILLED, str(sqlite.url), str(tmp_path / "out")]
    assert subprocess.run(command, check=False, timeout=DEADLINE_S).returncode == 9
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.part").is_dir()
    assert not (tmp_path / ".out.part" / MANIFEST).exists()
    export(sqlite, "docs", tmp_path / "out", version="1")  # it takes away what was left
    assert not (tmp_path / ".out.part").exists()
    ExportFolder(tmp_path / "out").check()


def test_two_exports_to_one_folder_do_not_mix(sqlite: Catalog, tmp_path: Path) -> None:
    fill(sqlite)
    part = tmp_path / ".out.part"
    part.mkdir()
    with (part / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="under way"):
            export(sqlite, "docs", tmp_path / "out", version="1")
    export(sqlite, "docs", tmp_path / "out", version="1")


def test_a_full_disk_is_said_and_leaves_nothing(sqlite: Catalog, tmp_path: Path) -> None:
    key = fill(sqlite)
    with sqlite.read() as connection:
        (chunking,) = connection.execute(select(t.chunkings.c.id).where(t.chunkings.c.spec == COARSE)).scalars()
        (fine,) = connection.execute(select(t.chunkings.c.id).where(t.chunkings.c.spec == FINE)).scalars()
    noise = np.random.default_rng(1)
    big = [replace(document(f"big:{n}", noise.bytes(300_000).hex()), also={fine: []}) for n in range(8)]
    write(sqlite, (key, chunking), *big)
    with small_disk(tmp_path / "disk", 2) as disk:
        with pytest.raises(DiskFull, match="only read"):
            export(sqlite, "docs", disk / "out", version="1")
        assert list(disk.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(sqlite: Catalog, tmp_path: Path) -> None:
    fill(sqlite)
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError):
        export(sqlite, "docs", tmp_path / "file" / "out", version="1")


# --- what is not imported --------------------------------------------------------------------------------------------


def said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def say(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest))


def rewritten(folder: Path, name: str, table: pa.Table, **options: Any) -> None:
    """A file that holds something else, with a manifest that fits it: checksums do not help against that."""
    pq.write_table(table, folder / name, **{"use_dictionary": False, **options})
    content = (folder / name).read_bytes()
    manifest = said(folder)
    for one in manifest["files"]:
        if one["name"] == name:
            one |= {"rows": table.num_rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    say(folder, manifest)


def changed(name: str, column: str, row: int, value: Any) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        table = pq.read_table(folder / name)
        at = table.schema.get_field_index(column)
        values = table[column].to_pylist()
        values[row] = value
        rewritten(
            folder, name, table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
        )

    return work


def manifest(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        found = said(folder)
        edit(found)
        say(folder, found)

    return work


def file(edit: Callable[[Path], object], name: str = "chunks.parquet") -> Callable[[Path], None]:
    return lambda folder: edit(folder / name) and None


def table(edit: Callable[[pa.Table], pa.Table], name: str = "chunks.parquet", **options: Any) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder, name, edit(pq.read_table(folder / name)), **options)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def linked(path: Path) -> None:
    shutil.move(path, path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def swapped(found: pa.Table) -> pa.Table:
    return pa.concat_tables([found.slice(5), found.slice(0, 5)])


def doubled(found: pa.Table) -> pa.Table:
    return pa.concat_tables([found, found.slice(found.num_rows - 1)])


def alike(found: pa.Table) -> pa.Table:
    ids = found["id"].to_pylist()
    return found.set_column(0, found.schema.field("id"), pa.array([ids[1], *ids[1:]]))


def renamed(folder: Path, this: str, that: str) -> None:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace(this, that))


def wider(found: pa.Table) -> pa.Table:
    values = pa.array(np.zeros(5 * found.num_rows, np.float32))
    return pa.table({"id": found["id"], "vector": pa.FixedSizeListArray.from_arrays(values, 5)})


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no JSON": (file(lambda path: path.write_text("{"), MANIFEST), "not that of an export"),
    "a list": (file(lambda path: path.write_text("[]"), MANIFEST), "not that of an export"),
    "a deep manifest": (file(lambda path: path.write_text("[" * 100_000), MANIFEST), "not that of an export"),
    "a huge manifest": (file(lambda path: path.write_text(" " * (5 << 20)), MANIFEST), "unreasonably large"),
    "newer": (manifest(lambda one: one.update(format=2, whimbrel="9.9")), "newer version of Whimbrel \\(9.9"),
    "an unknown key": (manifest(lambda one: one.update(extra=1)), "extra"),
    "a path": (manifest(lambda one: one["files"][1].update(name="../chunks.parquet")), "is called"),
    "an absolute path": (manifest(lambda one: one["files"][0].update(name="/etc/passwd")), "is called"),
    "a file twice": (manifest(lambda one: one["files"].append(one["files"][0])), "twice"),
    "no documents": (manifest(lambda one: one["files"].pop(0)), "no documents"),
    "no chunks": (manifest(lambda one: one["files"].pop(2)), "one file of chunks"),
    "wrong rows": (manifest(lambda one: one["files"][1].update(rows=3)), "manifest.json says 3"),
    "negative rows": (manifest(lambda one: one["files"][1].update(rows=-1)), "files.1.rows"),
    "an unknown space": (manifest(lambda one: one["files"][3].update(space="x")), "space that there is not"),
    "another space": (manifest(lambda one: one["spaces"][0]["definition"].update(dimensions=5)), "another one"),
    "a space of no type": (manifest(lambda one: one["spaces"][0]["definition"].update(dimensions="4")), "described"),
    "no language": (manifest(lambda one: one["collection"].update(language="klingon")), "klingon"),
    "no chunking": (lambda folder: renamed(folder, COARSE, "tokens=x"), "tokens"),
    "a missing file": (file(Path.unlink), "chunks.parquet is missing"),
    "a flipped bit": (file(flipped), "wrong checksum"),
    "a truncated file": (file(lambda path: path.write_bytes(path.read_bytes()[:-100])), "wrong checksum"),
    "a link": (file(linked), "missing"),
    "no Parquet": (lambda folder: rewritten_bytes(folder, "chunks.parquet", b"x" * 500), "cannot be read"),
    "other columns": (table(lambda found: found.rename_columns(["key", *found.column_names[1:]])), "other columns"),
    "a column less": (table(lambda found: found.drop_columns("page")), "other columns"),
    "other dimensions": (table(wider, "vectors.parquet"), "other columns"),
    "a foreign column": (
        table(lambda found: found.append_column("x", found["id"]), "documents.parquet"), "other columns"
    ),
    "a bomb": (table(lambda found: found, use_dictionary=True), "unreasonable size"),
    "a large group": (
        table(lambda found: found.set_column(8, found.schema.field("text"), pa.array(["z" * 100_000] * len(found)))),
        "unreasonable size",
    ),
    "chunks in another order": (table(swapped), "order"),
    "a chunk twice": (table(doubled), "out of order"),
    "documents twice": (table(doubled, "documents.parquet"), "twice"),
    "vectors of no chunk": (table(doubled, "vectors.parquet"), "order"),
    "vectors in another order": (table(swapped, "vectors.parquet"), "order"),
    "a span outside": (changed("chunks.parquet", "end", 0, 10**6), "no part of its document"),
    "a negative span": (changed("chunks.parquet", "start", 0, -1), "no part of its document"),
    "another text": (changed("chunks.parquet", "text", 0, "something else"), "no part of its document"),
    "an ordinal": (changed("chunks.parquet", "ordinal", 0, 7), "out of order"),
    "an id twice": (table(alike), "twice|order"),
    "an odd id": (changed("documents.parquet", "id", 704, "../../x"), "an id or a state|order"),
    "an odd state": (changed("documents.parquet", "state", 704, "gone"), "an id or a state"),
    "no metadata": (changed("documents.parquet", "metadata", 3, "[1]"), "metadata or pages"),
    "half a character": (changed("documents.parquet", "metadata", 3, '{"a": "\\ud800"}'), "metadata or pages"),
    "NaN": (changed("documents.parquet", "metadata", 3, '{"a": NaN}'), "no JSON"),
    "a NUL": (changed("documents.parquet", "title", 3, "a\0b"), "NUL"),
    "odd pages": (changed("documents.parquet", "pages", 3, '[["a", 1]]'), "metadata or pages"),
}  # fmt: skip


def rewritten_bytes(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    found = said(folder)
    for one in found["files"]:
        if one["name"] == name:
            one |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    say(folder, found)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path_factory.mktemp("home"), embedder="toy") as whimbrel:
        yield whimbrel


@pytest.mark.parametrize("name", BAD)
def test_what_is_damaged_or_lies_is_refused_before_the_first_row(name: str, exported: Path, home: Whimbrel) -> None:
    damage, match = BAD[name]
    damage(exported)
    with pytest.raises(BackupError, match=match) as caught:
        home.start_import(exported)
    assert "Nothing was written" in caught.value.message
    with home.catalog.read() as connection:
        assert all(
            not count(connection, table) for table in ("collections", "documents", "jobs", "spaces", "chunkings")
        )


def test_what_is_no_folder_is_refused(home: Whimbrel, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(PathNotFound):
        home.start_import(tmp_path / "nowhere")
    (exported / MANIFEST).rename(tmp_path / MANIFEST)
    with pytest.raises(BadInput, match="is no export: it has no manifest"):
        home.start_import(exported)
    (tmp_path / MANIFEST).rename(exported / MANIFEST)
    with pytest.raises(WhimbrelError, match="name"):
        home.start_import(exported, "a name that is none")


def test_a_wrong_folder_and_a_damaged_export_end_with_their_own_status(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (exported / "chunks.parquet").unlink()
    nowhere, none, damaged = Shell(tmp_path / "home").several(
        ["import", str(tmp_path / "nowhere"), "--json"],
        ["import", str(tmp_path / "notes"), "--json"],
        ["import", str(exported), "--json"],
    )
    assert (nowhere.status, nowhere.json["error"]) == (2, "PathNotFound")
    assert (none.status, none.json["error"]) == (2, "BadInput")
    assert (damaged.status, damaged.json["error"]) == (1, "BackupError")


# --- a whole home ----------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    return made


@pytest.fixture
def first(tmp_path: Path, toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with notes."""
    made = tmp_path_factory.getbasetemp() / "home-with-notes"
    if not made.exists():
        with Whimbrel(home=made, embedder="toy") as whimbrel:
            whimbrel.add(
                [{"id": f"n{n}", "text": f"Note {n} on birds, of {7 * n}.", "metadata": {"n": n}} for n in range(1_200)]
            )
    return made


@pytest.fixture
def notes(first: Path, tmp_path: Path) -> Path:
    """An export of them."""
    with Whimbrel(home=first, embedder="toy") as whimbrel:
        whimbrel.export("default", tmp_path / "notes")
    return tmp_path / "notes"


def hits(whimbrel: Whimbrel, collection: str, mode: str) -> list[str]:
    found = whimbrel.search("Note 77 on birds, of 539.", collection, mode=mode)
    assert not found.degraded
    return [hit.chunk_id for hit in found.hits]


def test_an_imported_collection_is_searched_and_nothing_is_embedded(
    first: Path, notes: Path, toy: Toy, tmp_path: Path
) -> None:
    given = len(toy.given)
    with (
        Whimbrel(home=first, embedder="toy") as origin,
        Whimbrel(home=tmp_path / "second", embedder="toy") as whimbrel,
    ):
        result = whimbrel.import_(notes, "birds")
        assert (result["documents"], result["chunks"], result["vectors"]) == (1_200, 1_200, 1_200)
        for mode in ("dense", "lexical", "hybrid"):
            assert hits(whimbrel, "birds", mode) == hits(origin, "default", mode)
        assert whimbrel.search("birds", "birds", filter={"n": 5}).hits[0].metadata == {"n": 5}
        with pytest.raises(Conflict, match="already"):
            whimbrel.import_(notes, "birds")
        whimbrel.add([{"id": "n3", "text": "Note 3 was changed to whales."}], "birds")  # it goes on as any other
        assert whimbrel.search("whales", "birds", mode="lexical").hits[0].text.endswith("whales.")
        whimbrel.export("birds", tmp_path / "again")
    assert len(toy.given) == given + 1


def test_the_model_of_the_export_stays_and_not_the_configured_one(
    first: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Toy(model="other", dimensions=48)
    monkeypatch.setitem(resolve._PROVIDERS, "other", lambda _model, _threads: other)
    with (
        Whimbrel(home=first, embedder="toy") as origin,
        Whimbrel(home=tmp_path / "second", embedder="other") as whimbrel,
    ):
        whimbrel.import_(notes)
        assert hits(whimbrel, "default", "dense") == hits(origin, "default", "dense")
    assert not other.given


_DIES = """
import os, sys
from whimbrel.app import Whimbrel
from whimbrel.catalog import importing
from whimbrel.models.embedders import resolve
from running import Toy
resolve._PROVIDERS["toy"] = lambda _model, _threads: Toy()
write, done = importing.write, []
def dies(connection, into, batch):
    done.append(batch)
    if sys.argv[3] == "before" and len(done) == 2:
        os._exit(9)
    head = write(connection, into, batch)
    if sys.argv[3] == "within" and len(done) == 2:
        os._exit(9)
    return head
importing.write = dies
with Whimbrel(home=sys.argv[1], embedder="toy") as whimbrel:
    whimbrel.import_(sys.argv[2], wait="job")
"""


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_killed_import_goes_on_without_duplicates(when: str, notes: Path, toy: Toy, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DIES, str(tmp_path / "second"), str(notes), when]
    variables = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{Path(__file__).parent}"}
    assert subprocess.run(command, env=variables, check=False, timeout=DEADLINE_S).returncode == 9
    given = len(toy.given)
    with Whimbrel(home=tmp_path / "second", embedder="toy") as whimbrel:
        with whimbrel.catalog.read() as connection:
            assert count(connection, "documents") == 500
        result = whimbrel.import_(notes)  # the same command goes on with the same job
        assert (result["documents"], result["vectors"]) == (1_200, 1_200)
        assert len(whimbrel.jobs()) == 1
        whimbrel.export("default", tmp_path / "again")
    mine, theirs = tables(notes), tables(tmp_path / "again")
    assert all(theirs[name].equals(mine[name]) for name in mine)
    assert len(toy.given) == given


def test_an_import_that_was_cancelled_goes_on_where_it_stopped(
    notes: Path, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, done = importing.write, []
    with Whimbrel(home=tmp_path / "second", embedder="toy") as whimbrel:
        job = whimbrel.start_import(notes)

        def cancels(connection: Any, into: Into, batch: Any) -> int:
            done.append(len(batch.documents))
            if len(done) == 1:
                connection.execute(t.jobs.update().where(t.jobs.c.id == job.id).values(cancel_requested=True))
            return write(connection, into, batch)

        monkeypatch.setattr(importing, "write", cancels)
        with pytest.raises(Conflict, match="cancelled"):
            whimbrel.finish(job)
        result = whimbrel.import_(notes)
        assert result["documents"] == 1_200
        assert sum(done) == 1_200
        assert [one.state for one in whimbrel.jobs()] == [JobState.DONE, JobState.CANCELLED]


def test_a_folder_that_changes_under_an_import_is_noticed(notes: Path, toy: Toy, tmp_path: Path) -> None:
    with Whimbrel(home=tmp_path / "second", embedder="toy") as whimbrel:
        job = whimbrel.start_import(notes)
        flipped(notes / "chunks.parquet")
        with pytest.raises(BackupError, match="checksum"):
            whimbrel.finish(job)
        flipped(notes / "chunks.parquet")
        assert whimbrel.import_(notes)["documents"] == 1_200


def test_a_home_on_postgres_exports_and_imports(
    first: Path, notes: Path, toy: Toy, tmp_path: Path, fresh_postgres: str
) -> None:
    given = len(toy.given)
    with (
        Whimbrel(home=first, embedder="toy") as origin,
        Whimbrel(home=tmp_path / "second", embedder="toy", catalog=fresh_postgres) as whimbrel,
    ):
        assert whimbrel.import_(notes, "birds")["vectors"] == 1_200
        for mode in ("dense", "lexical"):
            assert hits(whimbrel, "birds", mode) == hits(origin, "default", mode)
        whimbrel.export("birds", tmp_path / "again")
    mine, theirs = tables(notes), tables(tmp_path / "again")
    assert all(theirs[name].equals(mine[name]) for name in ("chunks.parquet", "vectors.parquet"))
    assert len(toy.given) == given


def test_what_a_move_has_made_comes_along(toy: Toy, tmp_path: Path) -> None:
    """Both chunkings, with their vectors: a move to the second embeds nothing in the other home."""
    with Whimbrel(home=tmp_path / "first", embedder="toy") as whimbrel:
        whimbrel.add([{"id": f"n{n}", "text": long_text(n)} for n in range(20)])
        _, job = whimbrel.start_move("default", chunking=FINE)
        whimbrel.finish(job, timeout_s=DEADLINE_S)
        whimbrel.export("default", tmp_path / "out")
    made = tables(tmp_path / "out")
    assert made["chunks-2.parquet"].num_rows > made["chunks.parquet"].num_rows == made["vectors.parquet"].num_rows
    given = len(toy.given)
    with Whimbrel(home=tmp_path / "second", embedder="toy") as whimbrel:
        assert whimbrel.import_(tmp_path / "out")["chunks"] == sum(
            made[name].num_rows for name in made if "chunks" in name
        )
        _, job = whimbrel.start_move("default", chunking=FINE)
        whimbrel.finish(job, timeout_s=DEADLINE_S)
        assert whimbrel.move("default").state == "ready"
        whimbrel.export("default", tmp_path / "again")
    again = tables(tmp_path / "again")
    assert all(again[name].equals(made[name]) for name in made.keys() - {"documents.parquet"})
    assert len(toy.given) == given


def long_text(number: int) -> str:
    return "\n\n".join(
        f"Part {part} of {number}: " + "the birds fly over the water and come back. " * 8 for part in range(9)
    )
