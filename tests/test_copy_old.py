"""Sources that are only read: LlamaIndex's JSON store, and folders of Chroma before 0.4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copying import Copies, files, vectors
from whimbrel.errors import BadInput, NotFound, StoreUnsupported, ViewDamaged
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign import json_members
from whimbrel.stores.foreign.base import Chosen, Source
from whimbrel.stores.foreign.json_members import members, read_value
from whimbrel.stores.foreign.resolve import open_database, parse
from whimbrel.stores.metrics import Metric


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path)


def node(row: int, document: str = "doc", **more: Any) -> dict[str, Any]:
    related = {"1": {"node_id": document, "node_type": "4", "metadata": {}, "class_name": "RelatedNodeInfo"}}
    said = {
        "id_": f"node {row}",
        "embedding": None,
        "metadata": {"page": row, "file": "é.pdf"},
        "class_name": "TextNode",
    }
    return {"__data__": {**said, "relationships": related, "text": f"text {row} 日本", **more}, "__type__": "1"}


def fill_llamaindex(folder: Path, rows: int = 5, namespace: str = "default", **nodes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"node {row}" for row in range(rows)]
    store = {
        "embedding_dict": dict(zip(ids, vectors(rows).astype(float).tolist(), strict=True)),
        "text_id_to_ref_doc_id": dict.fromkeys(ids, "doc"),
        "metadata_dict": {id_: {"page": row, "_node_type": "TextNode"} for row, id_ in enumerate(ids)},
    }
    (folder / f"{namespace}__vector_store.json").write_text(json.dumps(store))
    data = {**{id_: node(row) for row, id_ in enumerate(ids)}, **nodes}
    (folder / "docstore.json").write_text(json.dumps({"docstore/metadata": {"doc": {}}, "docstore/data": data}))
    (folder / "index_store.json").write_text("{}")
    return folder


def source_of(uri: str, base: Path) -> Source:
    address = parse(uri)
    return open_database(address, base=base, scratch=base, reach=Reach()).source(address.collection, Chosen())


# --- LlamaIndex ------------------------------------------------------------------------------------------------------


async def test_a_llamaindex_store_is_read_with_texts_documents_and_metadata(copies: Copies, tmp_path: Path) -> None:
    folder = fill_llamaindex(tmp_path / "storage")
    before = files(folder)
    table, rows = await copies.read(f"llamaindex:{folder}/default")
    assert (table.dimensions, table.metric, table.notes) == (8, Metric.COSINE, [])
    assert rows.ids == [f"node {row}" for row in range(5)]
    assert rows.texts[3] == "text 3 日本"
    assert np.array_equal(rows.vectors, vectors(5))
    first = dict(rows.metadata[0])
    content = json.loads(first.pop("_node_content"))
    assert first == {
        "page": 0, "file": "é.pdf", "_node_type": "TextNode", "document_id": "doc", "doc_id": "doc", "ref_doc_id": "doc"
    }  # fmt: skip
    assert (content["text"], content["relationships"]["1"]["node_id"]) == ("", "doc")
    report = await copies.one(f"llamaindex:{folder}/default", f"lancedb:{tmp_path}/l/notes")
    assert report.holds
    assert files(folder) == before


async def test_every_namespace_with_vectors_is_a_collection(copies: Copies, tmp_path: Path) -> None:
    folder = fill_llamaindex(tmp_path / "storage")
    (folder / "image__vector_store.json").write_text('{"embedding_dict": {}, "metadata_dict": {}}')
    old = {"embedding_dict": {"node 1": [1.0, 2.0]}, "text_id_to_ref_doc_id": {"node 1": "old"}}
    (folder / "vector_store.json").write_text(json.dumps(old))
    reports = await copies.run(f"llamaindex:{folder}/*", f"parquet:{tmp_path}/out/*")
    assert [(report.rows, report.dimensions, report.holds) for report in reports] == [(5, 8, True), (1, 2, True)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["default", "vector_store"]
    table, rows = await copies.read(f"llamaindex:{folder}/vector_store")
    assert (rows.texts, rows.metadata[0]["ref_doc_id"]) == (["text 1 日本"], "old")
    assert table.notes == ["4 nodes of docstore.json have no vector here and are left out"]


async def test_nodes_of_other_years(copies: Copies, tmp_path: Path) -> None:
    """Older ones have `extra_info` and the id of their document alone; newer ones a `text_resource`."""
    nodes = {
        "node 0": {
            "__type__": "1",
            "__data__": {"text": "old", "doc_id": "node 0", "extra_info": {"a": 1}, "relationships": {"1": "d0"}},
        },
        "node 1": node(1, text_resource={"text": "new", "mimetype": None}),
        "node 2": {"__type__": "1", "__data__": json.dumps({"text": "as text", "metadata": {"b": 2}})},
    }
    del nodes["node 1"]["__data__"]["text"]
    folder = fill_llamaindex(tmp_path / "storage", 3, **nodes)
    store = json.loads((folder / "default__vector_store.json").read_text())
    (folder / "default__vector_store.json").write_text(json.dumps({"embedding_dict": store["embedding_dict"]}))
    _, rows = await copies.read(f"llamaindex:{folder}/default")
    assert rows.texts == ["old", "new", "as text"]
    assert [one.get("ref_doc_id") for one in rows.metadata] == ["d0", "doc", None]
    assert (rows.metadata[0]["a"], rows.metadata[2]["b"]) == (1, 2)
    assert json.loads(rows.metadata[1]["_node_content"])["text_resource"] == {"text": "", "mimetype": None}


async def test_vectors_without_a_node_have_what_the_store_says(copies: Copies, tmp_path: Path) -> None:
    folder = fill_llamaindex(tmp_path / "storage", 3)
    (folder / "docstore.json").unlink()
    store = json.loads((folder / "default__vector_store.json").read_text())
    store["metadata_dict"]["node 1"] = {"_node_content": json.dumps({"text": "within", "metadata": {"c": 3}})}
    (folder / "default__vector_store.json").write_text(json.dumps(store))
    table, rows = await copies.read(f"llamaindex:{folder}/default")
    assert rows.texts == [None, "within", None]
    assert rows.metadata[0] == {"page": 0, "_node_type": "TextNode"}
    assert rows.metadata[1]["c"] == 3
    assert table.notes == ["3 vectors have no node in docstore.json: these rows have no text"]


async def test_llamaindex_vectors_that_are_none_are_rejected_with_the_reason(copies: Copies, tmp_path: Path) -> None:
    folder = fill_llamaindex(tmp_path / "storage", 6)
    store = json.loads((folder / "default__vector_store.json").read_text())
    store["embedding_dict"] |= {"node 1": [1.0], "node 2": None, "node 3": ["x"] * 8, "node 4": [True] * 8}
    (folder / "default__vector_store.json").write_text(json.dumps(store))
    report = await copies.one(f"llamaindex:{folder}/default", f"parquet:{tmp_path}/out/notes")
    assert (report.rows, report.written, report.rejected) == (6, 2, 4)
    rejects = (Path(report.state) / "rejects.jsonl").read_text()
    for why in ("its vector has 1 dimensions", "it has no vector", "its vector is no list of numbers"):
        assert why in rejects


@pytest.mark.parametrize(
    "content",
    ['{"embedding_dict": {"a": [1.0, 2', '{"embedding_dict": {"a" [1]}}', "[]", "", "{nonsense}", "{,}",
     '{"embedding_dict": {"a": ' + "[" * 100_000],
)  # fmt: skip
async def test_a_llamaindex_file_that_is_damaged_is_said_so(content: str, copies: Copies, tmp_path: Path) -> None:
    folder = fill_llamaindex(tmp_path / "storage")
    (folder / "default__vector_store.json").write_text(content)
    with pytest.raises(ViewDamaged, match=r"default__vector_store\.json"):
        await copies.read(f"llamaindex:{folder}/default")


async def test_what_is_no_llamaindex_folder_is_said_so(copies: Copies, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folder"):
        await copies.run(f"llamaindex:{tmp_path}/nowhere/*", f"parquet:{tmp_path}/out/*")
    with pytest.raises(NotFound) as caught:
        await copies.one(f"llamaindex:{fill_llamaindex(tmp_path / 's')}/other", f"parquet:{tmp_path}/out/x")
    assert "default" in caught.value.hint


async def test_a_llamaindex_store_that_is_written_anew_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    folder = fill_llamaindex(tmp_path / "storage")
    source = source_of(f"llamaindex:{folder}/default", tmp_path)
    before = (await source.describe()).version
    fill_llamaindex(folder, 9)
    assert await source.version() != before
    assert sum([len(some) async for some in source.ids()]) == 9  # it looks anew
    await source.close()


async def test_read_only_sources_are_no_targets(copies: Copies, tmp_path: Path) -> None:
    origin = f"llamaindex:{fill_llamaindex(tmp_path / 'storage')}/default"
    for target in (f"llamaindex:{tmp_path}/other/x", f"chroma:{fill_chroma_old(tmp_path / 'old')}/x"):
        with pytest.raises(StoreUnsupported, match="only read"):
            await copies.one(origin, target)
    assert not (tmp_path / "other").exists()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), st.dictionaries(st.text(), values, max_size=4) | values, max_size=4), st.booleans())
def test_members_of_json_are_what_json_says_and_lie_where_they_are_told(
    tmp_path_factory: pytest.TempPathFactory, given: dict[str, Any], ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "members.json"
    path.write_text(json.dumps(given, ensure_ascii=ascii_only), encoding="utf-8", errors="replace")
    wanted = json.loads(path.read_text("utf-8"))
    before = json_members._PIECE
    for piece in (1, 7, before):
        json_members._PIECE = piece
        try:
            found = list(members(path))
        finally:
            json_members._PIECE = before
        inside = [
            (section, name, value) for section, inner in wanted.items() if isinstance(inner, dict)
            for name, value in inner.items()
        ]  # fmt: skip
        assert [(one.section, one.name, one.value) for one in found] == inside
        with path.open("rb") as file:
            assert [read_value(file, one.span) for one in found] == [one.value for one in found]


# --- Chroma 0.3 ------------------------------------------------------------------------------------------------------


def fill_chroma_old(folder: Path, rows: int = 5, metadata: Any = None, **columns: Any) -> Path:
    """Two collections, their rows mixed."""
    folder.mkdir(parents=True, exist_ok=True)
    about = json.dumps(metadata)
    pq.write_table(
        pa.table({"uuid": ["c1", "c2"], "name": ["notes", "other"], "metadata": [about, "null"]}),
        folder / "chroma-collections.parquet",
    )
    table = {
        "collection_uuid": ["c1", "c2"] * rows,
        "uuid": [f"u{row}" for row in range(2 * rows)],
        "embedding": pa.array(vectors(2 * rows).astype(float).tolist(), pa.list_(pa.float64())),
        "document": [f"text {row}" for row in range(2 * rows)],
        "id": [f"id {row}" for row in range(2 * rows)],
        "metadata": [json.dumps({"n": row, "deep": {"a": [row]}}) if row else None for row in range(2 * rows)],
    }
    pq.write_table(pa.table({**table, **columns}), folder / "chroma-embeddings.parquet", row_group_size=3)
    return folder


async def test_a_chroma_folder_of_before_0_4_is_read(copies: Copies, tmp_path: Path) -> None:
    folder = fill_chroma_old(tmp_path / "old", metadata={"hnsw:space": "cosine", "made by": "hand"})
    before = files(folder)
    table, rows = await copies.read(f"chroma:{folder}/notes")
    assert (table.metric, table.about["made by"], table.dimensions) == (Metric.COSINE, "hand", 8)
    assert rows.ids == ["id 0", "id 2", "id 4", "id 6", "id 8"]
    assert rows.texts[1] == "text 2"
    assert rows.metadata[:2] == [{}, {"n": 2, "deep": {"a": [2]}}]
    assert np.array_equal(rows.vectors, vectors(10)[::2])
    assert (await copies.read(f"chroma:{folder}/other"))[0].metric is Metric.L2
    reports = await copies.run(f"chroma:{folder}/*", f"lancedb:{tmp_path}/l/*")
    assert [(report.rows, report.holds) for report in reports] == [(5, True), (5, True)]
    assert files(folder) == before


async def test_ids_that_come_twice_have_chromas_own_instead(copies: Copies, tmp_path: Path) -> None:
    folder = fill_chroma_old(tmp_path / "old", id=["same"] * 8 + [None] * 2)
    with pytest.raises(BadInput, match="twice"):
        await copies.one(f"chroma:{folder}/notes", f"parquet:{tmp_path}/out/notes")
    assert (await copies.read(f"chroma:{folder}/notes", id="uuid"))[1].ids == ["u0", "u2", "u4", "u6", "u8"]


async def test_a_damaged_chroma_folder_of_before_0_4_is_said_so(copies: Copies, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no collection 'third'") as absent:
        await copies.read(f"chroma:{fill_chroma_old(tmp_path / 'a')}/third")
    assert "'notes'" in absent.value.hint
    with pytest.raises(BadInput, match="metric"):
        await copies.read(f"chroma:{fill_chroma_old(tmp_path / 'b', metadata={'hnsw:space': 'odd'})}/notes")
    with pytest.raises(ViewDamaged, match="no JSON"):
        await copies.read(f"chroma:{_broken(tmp_path / 'c')}/notes")
    folder = fill_chroma_old(tmp_path / "d")
    (folder / "chroma-collections.parquet").unlink()
    with pytest.raises(ViewDamaged) as caught:
        await copies.read(f"chroma:{folder}/notes")
    assert "parquet:" in caught.value.hint


def _broken(folder: Path) -> Path:
    fill_chroma_old(folder)
    pq.write_table(
        pa.table({"uuid": ["c1"], "name": ["notes"], "metadata": ["{not json"]}), folder / "chroma-collections.parquet"
    )
    return folder


async def test_files_of_a_chroma_folder_of_before_0_4_are_not_copied_cold(copies: Copies, tmp_path: Path) -> None:
    from whimbrel.move.copy import copy_cold

    folder = fill_chroma_old(tmp_path / "old")
    with pytest.raises(StoreUnsupported) as caught:
        await copy_cold(
            parse(f"chroma:{folder}/*"), parse(f"chroma:{tmp_path}/new/*"), base=tmp_path, on_step=lambda *_: None
        )
    assert "without --cold" in caught.value.hint


# --- what other programs wrote ---------------------------------------------------------------------------------------


async def test_folders_of_other_programs_are_copied_whole(copies: Copies, data_dir: Path, tmp_path: Path) -> None:
    places = {
        f"chroma:{data_dir}/vector_fixtures/chroma_0.3_chatdata": (13, 384, Metric.L2),
        f"llamaindex:{data_dir}/vector_fixtures/llamaindex_circleci": (22, 1536, Metric.COSINE),
    }
    for number, (uri, told) in enumerate(places.items()):
        before = files(Path(uri.partition(":")[2]))
        (report,) = await copies.run(f"{uri}/*", f"lancedb:{tmp_path}/l{number}/*")
        assert report.holds
        assert (report.rows, report.dimensions, report.metric) == told
        assert files(Path(uri.partition(":")[2])) == before, "the source was touched"
        (copied,) = (tmp_path / f"l{number}").glob("*.lance")
        _, rows = await copies.read(f"lancedb:{tmp_path}/l{number}/{copied.stem}")
        assert all(rows.texts)
