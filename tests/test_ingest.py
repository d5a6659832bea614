"""Taking documents in, again and again: what changed is what is done."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import DEADLINE_S, chunks, count, files, found, head, logged, paragraphs, reads, until, uris, verified
from whimbrel.app import Whimbrel
from whimbrel.catalog import tables as t
from whimbrel.domain import JobState, document_id
from whimbrel.errors import BadInput, CollectionNotFound, Conflict, DocumentNotFound, PathNotFound, SuspiciousChange
from whimbrel.ingest.workers import ExtractionPool, Processed, Request

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path_factory.mktemp("home"), **{"ingest.workers": 2}) as whimbrel:
        yield whimbrel


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A collection that no other test uses."""
    return str(request.node.name).removeprefix("test_")[:40]


def test_an_unchanged_file_is_not_read_again(
    home: Whimbrel, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, 12)
    first = home.ingest([tmp_path], name)
    assert (first["added"], first["chunks_added"], first["failed"]) == (12, 12, 0)
    before = head(home, name), chunks(home, name), count(home, t.vectors)
    with reads(monkeypatch) as read:
        again = home.ingest([tmp_path], name)
    assert read == []
    assert (again["added"], again["changed"], again["unchanged"], again["documents"]) == (0, 0, 12, 12)
    assert again["position"] == first["position"]
    assert (head(home, name), chunks(home, name), count(home, t.vectors)) == before


def test_a_touched_file_is_read_once_and_logs_nothing(
    home: Whimbrel, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = files(tmp_path, 3)
    home.ingest([tmp_path], name)
    before = head(home, name), chunks(home, name)
    os.utime(made[1], ns=(1, 10**18))
    with reads(monkeypatch) as read:
        touched = home.ingest([tmp_path], name)
        again = home.ingest([tmp_path], name)
    assert read == [made[1].name]
    assert touched["unchanged"] == again["unchanged"] == 3
    assert (head(home, name), chunks(home, name)) == before


def test_a_changed_file_replaces_exactly_its_own_chunks(home: Whimbrel, name: str, tmp_path: Path) -> None:
    file, other = tmp_path / "a.txt", tmp_path / "b.txt"
    file.write_text(paragraphs(name, "two", "three", "four"))
    other.write_text(paragraphs(f"other{name}"))
    home.ingest([tmp_path], name)
    document = document_id(external_id=None, uri=file.as_uri())
    was, at, had = chunks(home, name, document), head(home, name), count(home, t.vectors)
    untouched = home.document(str(other), name)
    assert len(was) == 4

    file.write_text(paragraphs(name, "new", "three", "four"))
    report = home.ingest([tmp_path], name)
    now = chunks(home, name, document)
    assert (report["changed"], report["unchanged"]) == (1, 1)
    assert (report["chunks_added"], report["chunks_kept"], report["chunks_removed"]) == (1, 3, 1)
    kept = was.keys() & now.keys()
    assert [was[chunk][0] for chunk in kept] == [now[chunk][0] for chunk in kept], "kept chunks keep their rows"
    assert len(kept) == 3
    assert head(home, name) == at + 2, "one addition and one deletion are logged"
    assert count(home, t.vectors) == had + 1, "one text is embedded"
    assert home.document(str(other), name) == untouched
    text = home.document(str(file), name)["text"]
    assert text == file.read_text()
    assert [text[start:end] for _, start, end in now.values()] == text.strip().split("\n\n")
    verified(home, name)


def test_text_that_moves_within_its_file_keeps_its_chunks(home: Whimbrel, name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(paragraphs(name, "x", "y"))
    home.ingest([file], name)
    was, at = chunks(home, name), head(home, name)
    file.write_text(paragraphs("y", "x", name))
    report = home.ingest([file], name)
    assert (report["chunks_added"], report["chunks_removed"], head(home, name)) == (0, 0, at)
    now = chunks(home, name)
    assert now.keys() == was.keys()
    [hit] = home.search(f"bird{name}", name, mode="lexical", top_k=1).hits
    assert file.read_text()[hit.start : hit.end] == hit.text == paragraphs(name).strip()


def test_repeated_paragraphs_are_as_many_chunks(home: Whimbrel, name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(paragraphs(name, name, name))
    home.ingest([file], name)
    assert len(chunks(home, name)) == 3
    file.write_text(paragraphs(name, name))
    assert home.ingest([file], name)["chunks_removed"] == 1
    assert len(chunks(home, name)) == 2
    verified(home, name)


def test_removed_files_go(home: Whimbrel, name: str, tmp_path: Path) -> None:
    made = files(tmp_path, 4)
    home.ingest([tmp_path], name)
    made[2].unlink()
    report = home.ingest([tmp_path], name)
    assert (report["removed"], report["unchanged"], report["chunks_removed"]) == (1, 3, 1)
    assert made[2].as_uri() not in uris(home, name)
    assert all(hit.uri != made[2].as_uri() for hit in home.search("birds", name, top_k=20).hits)
    [gone] = home.documents(name, state="gone")
    assert (gone["uri"], gone["reason"], gone["chunks"]) == (made[2].as_uri(), "no longer in its source", 0)
    verified(home, name)

    made[2].write_text("# It is back\n")
    report = home.ingest([tmp_path], name)
    assert (report["added"], report["changed"]) == (1, 0)
    assert home.documents(name, state="gone") == []


def test_a_renamed_file_is_another_document_that_costs_no_embedding(home: Whimbrel, name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(paragraphs(name))
    home.ingest([tmp_path], name)
    had = count(home, t.vectors)
    file.rename(tmp_path / "b.txt")
    report = home.ingest([tmp_path], name)
    assert (report["added"], report["removed"]) == (1, 1)
    assert uris(home, name) == [(tmp_path / "b.txt").as_uri()]
    assert count(home, t.vectors) == had
    verified(home, name)


def test_a_folder_that_is_suddenly_empty_removes_nothing(home: Whimbrel, name: str, tmp_path: Path) -> None:
    made = files(tmp_path, 12)
    home.ingest([tmp_path], name)
    for file in made:
        file.unlink()
    (tmp_path / "new.md").write_text("# New\n\nThis one is new, and is taken in all the same.\n")
    with pytest.raises(SuspiciousChange, match="12 of the 13 documents") as raised:
        home.ingest([tmp_path], name)
    assert (raised.value.status, "--allow-gone" in raised.value.hint) == (409, True)
    assert len(uris(home, name)) == 13
    assert home.ingest([tmp_path], name, allow_gone=True)["removed"] == 12
    assert uris(home, name) == [(tmp_path / "new.md").as_uri()]


def test_one_suspicious_folder_keeps_what_has_gone_from_all(home: Whimbrel, name: str, tmp_path: Path) -> None:
    few, many = files(tmp_path / "few", 3), files(tmp_path / "many", 11)
    folders = [tmp_path / "few", tmp_path / "many"]
    home.ingest(folders, name)
    for file in [few[0], *many]:
        file.unlink()
    with pytest.raises(SuspiciousChange, match="Nothing was removed"):
        home.ingest(folders, name)
    assert len(uris(home, name)) == 14
    verified(home, name)


def test_overlapping_folders_in_any_order_lose_nothing(home: Whimbrel, name: str, tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    files(outer, 2)
    made = files(inner, 3)
    for folders in ([inner, outer], [outer, inner], [inner], [outer], [inner]):
        report = home.ingest(folders, name)
        assert report["removed"] == 0
        assert len(uris(home, name)) == (3 if folders == [inner] and report["added"] else 5)
    made[0].unlink()
    assert home.ingest([inner], name)["removed"] == 1, "though it was taken in with the outer folder too"
    made[1].unlink()
    assert home.ingest([outer], name)["removed"] == 1, "though it was taken in with the inner folder last"
    assert len(uris(home, name)) == 3


def test_what_a_walk_passes_by_stays_if_it_was_named_itself(home: Whimbrel, name: str, tmp_path: Path) -> None:
    files(tmp_path, 1)
    [hidden] = files(tmp_path / ".notes", 1)
    [module] = files(tmp_path / "node_modules", 1)
    home.ingest([hidden], name)
    home.ingest([module.parent], name)
    report = home.ingest([tmp_path], name)
    assert (report["removed"], len(uris(home, name))) == (0, 3)
    hidden.unlink()
    module.unlink()
    assert home.ingest([tmp_path], name)["removed"] == 2, "what is no more goes, however it came in"


def test_a_file_then_its_folder_is_one_document(
    home: Whimbrel, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = files(tmp_path, 2)
    home.ingest([made[0]], name)
    with reads(monkeypatch) as read:
        report = home.ingest([tmp_path], name)
    assert read == [made[1].name]
    assert (report["added"], report["unchanged"], len(uris(home, name))) == (1, 1, 2)
    made[0].unlink()
    assert home.ingest([tmp_path], name)["removed"] == 1


def test_one_file_in_two_collections(home: Whimbrel, name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(paragraphs(name))
    home.ingest([file], name)
    had = count(home, t.vectors)
    home.ingest([file], f"{name}-2")
    assert count(home, t.vectors) == had, "the same text is embedded once"
    home.delete([str(file)], name)
    assert home.search(f"bird{name}", f"{name}-2").hits
    assert not home.search(f"bird{name}", name).hits
    verified(home, f"{name}-2")


NAMES = [
    "with spaces.md",
    "Ünïcode-目录-🐦.md",
    "new\nline.md",
    'quote"and\\back%slash#?.md',
    os.fsdecode(b"not-utf8-\xff\xfe.md"),
]


def test_names_of_any_kind(home: Whimbrel, name: str, tmp_path: Path) -> None:
    for number, file_name in enumerate(NAMES):
        folder = tmp_path / file_name.removesuffix(".md")
        folder.mkdir()
        (folder / file_name).write_text(f"The file number {number} tells of nuthatches{number}.\n")
    report = home.ingest([tmp_path], name)
    assert (report["added"], report["failed"], report["failures"]) == (len(NAMES), 0, [])
    for number, file_name in enumerate(NAMES):
        path = tmp_path / file_name.removesuffix(".md") / file_name
        [hit] = home.search(f"nuthatches{number}", name, mode="lexical").hits
        assert hit.uri == path.as_uri()
        assert home.document(str(path), name)["document_id"] == hit.document_id
        alone = home.ingest([path.parent], f"{name}-alone")
        assert (alone["added"], alone["failed"]) == (1, 0), "also as the folder that is named"
        path.unlink()
        assert home.ingest([path.parent], f"{name}-alone")["removed"] == 1
    assert home.ingest([tmp_path], name)["removed"] == len(NAMES)


def test_links(home: Whimbrel, name: str, tmp_path: Path) -> None:
    target, docs = tmp_path / "elsewhere", tmp_path / "docs"
    linked = files(target, 2)
    files(docs, 1)
    (docs / "link").symlink_to(target)
    (docs / "again.md").symlink_to(linked[0])
    (docs / "up").symlink_to(docs)
    report = home.ingest([docs], name)
    assert (report["added"], report["failed"]) == (3, 1), "each file once, and the loop is named"
    assert "A loop" in report["failures"][0]["reason"]

    target.rename(tmp_path / "unmounted")
    report = home.ingest([docs], name)
    assert report["removed"] == 0, "what lay behind a link that leads nowhere now may come back"
    assert len([uri for uri in uris(home, name, "indexed") if "elsewhere" in uri]) == 2
    (tmp_path / "unmounted").rename(target)
    (docs / "link").unlink()
    assert home.ingest([docs], name)["removed"] >= 1, "what no link leads to any more goes"
    assert [uri for uri in uris(home, name, "indexed") if "elsewhere" in uri] == [linked[0].as_uri()]


# --- metadata and ids ------------------------------------------------------------------------------------------------


def test_new_metadata_reaches_views_and_filters_and_embeds_nothing(
    home: Whimbrel, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, 3)
    first = {"year": 2019, "tags": ["old"], "price": 0.1}
    home.ingest([tmp_path], name, metadata=first)
    had, at = count(home, t.vectors), head(home, name)
    with reads(monkeypatch) as read:
        report = home.ingest([tmp_path], name, metadata={"year": 2024, "tags": ["new", "big"], "price": 0.3})
    assert read == []
    assert (report["changed"], report["unchanged"], count(home, t.vectors)) == (3, 0, had)
    assert head(home, name) == at + 3
    for where in ({"year": {"$gt": 2020}}, {"tags": "new"}, {"price": {"$lte": 0.3}}):
        for mode in ("dense", "lexical", "hybrid"):
            hits = home.search("notes on birds", name, mode=mode, filter=where).hits
            assert len(hits) == 3, (where, mode)
            assert hits[0].metadata["year"] == 2024
    assert home.search("notes on birds", name, filter={"year": 2019}).hits == []
    verified(home, name)
    again = home.ingest([tmp_path], name)
    assert (again["unchanged"], home.documents(name)[0]["metadata"]["year"]) == (3, 2024), "None leaves what there is"


def test_an_external_id_stays_through_moves_and_changes(home: Whimbrel, name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(paragraphs(name))
    home.ingest([file], name, id="note-1")
    [made] = home.documents(name)
    assert (made["external_id"], made["document_id"]) == ("note-1", document_id(external_id="note-1", uri=""))
    had = count(home, t.vectors)
    moved = file.rename(tmp_path / "b.txt")  # keeps its size and time
    report = home.ingest([moved], name, id="note-1")
    [now] = home.documents(name)
    assert (report["changed"], now["uri"], now["document_id"]) == (1, moved.as_uri(), made["document_id"])
    assert count(home, t.vectors) == had
    assert home.search(f"bird{name}", name).hits[0].uri == moved.as_uri()
    verified(home, name)
    assert home.document("note-1", name)["uri"] == home.document(str(moved), name)["uri"]
    with pytest.raises(BadInput):
        home.ingest([tmp_path], name, id="folder")


def test_an_idempotency_key_makes_one_job(home: Whimbrel, name: str, tmp_path: Path) -> None:
    files(tmp_path, 1)
    first = home.start_ingest([tmp_path], name, idempotency_key="k")
    assert home.start_ingest([tmp_path], name, idempotency_key="k").id == first.id
    with pytest.raises(Conflict):
        home.start_ingest([tmp_path], name, idempotency_key="k", metadata={"a": 1})
    home.finish(first, wait="all", timeout_s=DEADLINE_S)
    assert home.start_ingest([tmp_path], name, idempotency_key="k").id == first.id

    texts = [{"id": "1", "text": "one text"}]
    added = home.start_add(texts, name, idempotency_key="t")
    assert home.start_add(texts, name, idempotency_key="t").id == added.id
    for other in ([{"id": "1", "text": "two text"}], [{"id": "1", "text": "one text", "title": "x"}], [*texts, *texts]):
        with pytest.raises(Conflict):
            home.start_add(other, name, idempotency_key="t")
    home.finish(added, timeout_s=DEADLINE_S)
    assert home.start_add(texts, f"{name}-2", idempotency_key="t").id != added.id, "keys are of a collection"


def test_texts_are_added_changed_and_relabelled(home: Whimbrel, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        {"id": f"n{number}", "text": f"A note on herons{number}.", "title": f"Note {number}"} for number in range(4)
    ]
    report = home.add(texts, name)
    assert (report["added"], report["documents"]) == (4, 4)
    had, at = count(home, t.vectors), head(home, name)
    assert home.add(texts, name)["unchanged"] == 4
    assert head(home, name) == at
    assert home.add([{"id": "n1", "text": texts[1]["text"]}], name)["unchanged"] == 1
    assert home.document("n1", name)["title"] == "Note 1"

    retitled = home.add([{"id": "n1", "text": texts[1]["text"], "title": "Better"}], name)
    assert (retitled["changed"], home.document("n1", name)["title"]) == (1, "Better")
    assert home.search("herons1", name, filter={"_title": "Better"}).hits
    labelled = home.add([{"id": "n2", "text": texts[2]["text"], "metadata": {"by": "Ann"}}], name)
    assert labelled["changed"] == 1
    assert [hit.metadata for hit in home.search("herons2", name, filter={"by": "Ann"}).hits] == [{"by": "Ann"}]
    assert count(home, t.vectors) == had, "a title or a label embeds nothing"

    changed = home.add([{"id": "n3", "text": "A note on egrets."}], name)
    assert (changed["changed"], changed["chunks_added"], changed["chunks_removed"]) == (1, 1, 1)
    assert count(home, t.vectors) == had + 1
    assert home.document("n3", name)["text"] == "A note on egrets."
    assert count(home, t.uploads) == 0, "contents go with their job"
    verified(home, name)


def test_add_by_uri_and_its_refusals(home: Whimbrel, name: str) -> None:
    home.add([{"uri": "https://example.org/a", "text": "By its URI alone."}], name)
    assert home.document("https://example.org/a", name)["external_id"] is None
    for wrong in (
        {"text": "no identity"},
        {"id": "x", "text": "  "},
        {"id": "x", "text": 5},
        {"id": 7, "text": "x"},
        {"id": "x", "text": "x", "colour": "red"},
        {"id": "x", "text": "x", "metadata": {"_uri": "mine"}},
        {"id": "x", "text": "x", "metadata": ["no", "object"]},
        "a text alone",
    ):
        with pytest.raises(BadInput) as raised:
            home.add([{"id": "good", "text": "good"}, wrong], name)  # type: ignore[list-item]
        assert (raised.value.status, bool(raised.value.hint), "1" in raised.value.message) == (422, True, True)
    assert len(home.documents(name)) == 1, "nothing of a refused request is taken in"


# --- deleting --------------------------------------------------------------------------------------------------------


def test_a_deleted_document_is_gone_until_it_comes_again(home: Whimbrel, name: str, tmp_path: Path) -> None:
    made = files(tmp_path, 2)
    home.ingest([tmp_path], name)
    had = count(home, t.vectors)
    result = home.delete([str(made[0]), made[0].as_uri()], name)
    assert (result["removed"], result["chunks_removed"]) == (1, 1)
    assert [hit.uri for hit in home.search("birds", name).hits] == [made[1].as_uri()]
    [gone] = home.documents(name, state="gone")
    assert (gone["reason"], home.document(str(made[0]), name)["text"]) == ("deleted", "")
    with pytest.raises(DocumentNotFound):
        home.delete(["nothing"], name)
    with pytest.raises(DocumentNotFound):
        home.document("x" * 5_000 + "\0\ud800", name)
    assert home.ingest([tmp_path], name)["added"] == 1
    assert count(home, t.vectors) == had
    assert len(home.search("birds", name).hits) == 2
    verified(home, name)
    made[0].unlink()
    assert home.delete([str(made[0])], name)["removed"] == 1, "also by the path of a file that is no more"


def test_a_path_means_every_document_that_comes_from_it(home: Whimbrel, name: str, tmp_path: Path) -> None:
    made = files(tmp_path, 2)
    home.ingest([made[0]], name, id="given")
    home.ingest([tmp_path], name)
    assert len(home.documents(name)) == 3
    assert home.document(str(made[0]), name)["external_id"] is None
    assert home.delete(["given"], name)["removed"] == 1, "an id means one"
    home.ingest([made[0]], name, id="given")
    assert home.delete([str(made[0]), "given"], name)["removed"] == 2
    assert [hit.uri for hit in home.search("birds", name).hits] == [made[1].as_uri()]


def test_states_and_reasons(home: Whimbrel, name: str, tmp_path: Path) -> None:
    files(tmp_path, 2)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< garbage")
    (tmp_path / "empty.md").write_text("")
    report = home.ingest([tmp_path], name)
    assert (report["documents"], report["added"], report["failed"]) == (4, 2, 2)
    failed = {document["uri"].rsplit("/", 1)[1]: document for document in home.documents(name, state="failed")}
    assert failed["empty.md"]["reason"].startswith("EmptyFile: ")
    assert failed["broken.pdf"]["reason"].startswith("CorruptFile: ")
    assert len(home.documents(name, state="indexed")) == 2
    assert home.documents(name, state="extracted") == []
    [state] = [one for one in home.status()["collections"] if one["name"] == name]
    assert state["documents"] == {"queued": 0, "fetched": 0, "extracted": 0, "indexed": 2, "failed": 2, "gone": 0}
    assert {found["uri"].rsplit("/", 1)[1] for found in report["failures"]} == {"broken.pdf", "empty.md"}
    assert all(found["hint"] is not None and found["error"] for found in report["failures"])
    (tmp_path / "empty.md").write_text("# Not empty any more\n")
    (tmp_path / "broken.pdf").unlink()
    report = home.ingest([tmp_path], name)
    assert (report["failed"], report["removed"], len(uris(home, name, "indexed"))) == (0, 1, 3)


def test_a_file_that_breaks_keeps_its_text_until_it_is_mended(home: Whimbrel, name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text(f"The lapwings of {name}.\n")
    home.ingest([tmp_path], name)
    at = head(home, name)
    file.write_bytes(b"")
    assert home.ingest([tmp_path], name)["failed"] == 1
    [state] = home.documents(name)
    assert (state["state"], "stays searchable" in state["reason"]) == ("failed", True)
    assert home.search("lapwings", name).hits
    file.write_text(f"The lapwings of {name}.\n")
    assert home.ingest([tmp_path], name)["failed"] == 0
    assert (home.documents(name)[0]["state"], home.documents(name)[0]["reason"]) == ("indexed", "")
    assert head(home, name) == at


# --- collections -----------------------------------------------------------------------------------------------------


def test_collections_are_made_renamed_and_deleted(home: Whimbrel, name: str, tmp_path: Path) -> None:
    files(tmp_path, 3, "kites")
    with pytest.raises(CollectionNotFound):
        home.search("x", name)
    home.create_collection(name)
    with pytest.raises(Conflict):
        home.create_collection(name)
    home.ingest([tmp_path], name)
    home.rename_collection(name, f"{name}-new")
    with pytest.raises(CollectionNotFound):
        home.documents(name)
    assert home.search("kites", f"{name}-new").hits
    assert home.ingest([tmp_path], f"{name}-new")["unchanged"] == 3

    was = found(home, f"{name}-new")
    folders = [path for view in home.views(f"{name}-new") for path in home.home.path.rglob(f"{view.view.name}*")]
    assert len(folders) == 2
    job = home.delete_collection(f"{name}-new")
    with pytest.raises(CollectionNotFound):
        home.search("kites", f"{name}-new")
    home.create_collection(f"{name}-new")  # the name is free at once
    home.finish(job, timeout_s=DEADLINE_S)
    assert not any(path.exists() for path in folders)
    with home.catalog.read() as connection:
        for table in (t.documents, t.chunks, t.changes, t.commits, t.views):
            assert not connection.execute(table.select().where(table.c.collection_id == was.id)).first(), table.name
    assert home.documents(f"{name}-new") == []


def test_another_chunk_size_in_the_settings_leaves_the_collections_own(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    files(docs, 1)
    (docs / "long.txt").write_text(paragraphs(1, 2, 3, 4))
    with Whimbrel(home=tmp_path / "home") as whimbrel:
        whimbrel.ingest([docs])
        was = chunks(whimbrel, "default")
    with Whimbrel(home=tmp_path / "home", chunking={"tokens": 64, "overlap": 0}) as whimbrel:
        assert whimbrel.ingest([docs])["unchanged"] == 2
        os.utime(docs / "long.txt", ns=(1, 1))
        (docs / "new.txt").write_text(paragraphs(5, 6))
        assert whimbrel.ingest([docs])["chunks_added"] == 2
        assert was.items() <= chunks(whimbrel, "default").items()
        [state] = whimbrel.status()["collections"]
        assert any("chunking" in said and "tokens=64" in said for said in state["differs"])
        verified(whimbrel, "default")
        whimbrel.ingest([docs], "other")
        assert len(chunks(whimbrel, "other")) > len(chunks(whimbrel, "default")), "a new collection takes the settings"


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_cancelled_ingest_keeps_what_it_did_and_goes_on_when_asked_again(
    home: Whimbrel, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, 400)
    slowly(monkeypatch)
    home.own()
    job = home.start_ingest([tmp_path], name)
    until(lambda: home.job(job.id).progress.get("added"), "a first batch")
    home.cancel(job.id)
    with pytest.raises(Conflict, match="cancelled"):
        home.finish(job, timeout_s=DEADLINE_S)
    done = count_documents(home, name)
    assert 0 < done < 400
    monkeypatch.undo()
    report = home.ingest([tmp_path], name, wait="lexical")
    assert (report["added"], report["unchanged"]) == (400 - done, done)
    assert logged(home, name) == len(chunks(home, name)) == 400


def count_documents(home: Whimbrel, name: str) -> int:
    return len(home.documents(name, limit=10_000))


def slowly(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Reading a file takes a while."""
    process = ExtractionPool.process

    async def slow(self: ExtractionPool, request: Request) -> Processed:
        await asyncio.sleep(0.1)
        return await process(self, request)

    (monkeypatch or pytest.MonkeyPatch()).setattr(ExtractionPool, "process", slow)


OWNER = """
import sys
sys.path.insert(0, sys.argv[5])
from whimbrel.app import Whimbrel
if sys.argv[4] == "slowly":
    from test_ingest import slowly
    slowly()
with Whimbrel(home=sys.argv[1]) as whimbrel:
    print(whimbrel.ingest([sys.argv[2]], wait=sys.argv[3])["added"], flush=True)
"""


def spawn(home: Path, docs: Path, pace: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OWNER, str(home), str(docs), "all", pace, str(Path(__file__).parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_take_in_one_folder_at_once(tmp_path: Path) -> None:
    files(tmp_path / "docs", 40)
    both = [spawn(tmp_path / "home", tmp_path / "docs") for _ in range(2)]
    said = [process.communicate(timeout=90) for process in both]
    assert sorted(int(out) for out, _ in said) == [0, 40], said
    with Whimbrel(home=tmp_path / "home") as whimbrel:
        assert logged(whimbrel, "default") == len(chunks(whimbrel, "default")) == 40
        verified_by = [whimbrel.ingest([tmp_path / "docs"])["unchanged"]]
        assert verified_by == [40]
        verified(whimbrel, "default")


@pytest.mark.slow
def test_an_ingest_goes_on_after_its_owner_was_killed(tmp_path: Path) -> None:
    files(tmp_path / "docs", 300)
    with Whimbrel(home=tmp_path / "home") as whimbrel:
        whimbrel.create_collection("default")
        killed = spawn(tmp_path / "home", tmp_path / "docs", "slowly")
        until(lambda: killed.poll() is not None or count_documents(whimbrel, "default"), "a first batch")
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=30)
        done = count_documents(whimbrel, "default")
        assert 0 < done < 300
        [job] = whimbrel.jobs(active=True)
        assert job.state is JobState.RUNNING, "nobody has noticed yet"
        result = whimbrel.finish(job, wait="lexical", timeout_s=DEADLINE_S)
        assert (result["added"], result["unchanged"]) == (300 - done, done)
        assert logged(whimbrel, "default") == len(chunks(whimbrel, "default")) == 300, "nothing twice"


def test_ingests_and_searches_from_many_threads(home: Whimbrel, name: str, tmp_path: Path) -> None:
    folders = [tmp_path / f"d{number}" for number in range(3)]
    for folder in folders:
        files(folder, 5, folder.name)
    failures: list[BaseException] = []

    def work(folder: Path) -> None:
        try:
            position = home.ingest([folder], name)["position"]
            assert len(home.search(f"notes on {folder.name}", name, min_position=position).hits) >= 5
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert failures == []
    assert len(uris(home, name)) == 15
    verified(home, name)


def test_a_folder_that_goes_before_its_job_runs(home: Whimbrel, name: str, tmp_path: Path) -> None:
    with pytest.raises(PathNotFound):
        home.ingest([tmp_path / "nowhere"], name)
    with pytest.raises(BadInput):
        home.ingest([], name)
    with pytest.raises(PathNotFound):
        home.ingest(["~nobody-of-this-name/x"], name)


def test_a_preview_says_what_the_ingest_then_does(home: Whimbrel, name: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    made = files(inner, 6)
    files(tmp_path, 2, "ducks")
    counts = ("added", "changed", "unchanged", "removed", "failed", "skipped", "documents")

    def both(*paths: Path) -> list[int]:
        before = head(home, name) if name in {one.name for one in home.collections()} else 0
        said = home.preview(paths, name).as_dict()
        assert before == (head(home, name) if before else 0)
        done = home.ingest(paths, name)
        assert [said[key] for key in counts] == [done[key] for key in counts]
        return [done[key] for key in counts]

    assert both(inner, tmp_path) == [8, 0, 0, 0, 0, 0, 8]
    made[0].unlink()
    made[1].write_text("# Changed\n")
    os.utime(made[2], ns=(7, 7))
    (inner / "nowhere").symlink_to(tmp_path / "none")
    os.mkfifo(inner / "pipe")
    assert both(tmp_path, inner) == [0, 1, 6, 1, 1, 1, 8]
    assert both(inner) == [0, 0, 5, 0, 1, 1, 6]


def test_the_same_on_postgres(fresh_postgres: str, tmp_path: Path) -> None:
    checks = (
        test_removed_files_go,
        test_overlapping_folders_in_any_order_lose_nothing,
        test_what_a_walk_passes_by_stays_if_it_was_named_itself,
        test_names_of_any_kind,
        test_links,
        test_states_and_reasons,
        test_an_idempotency_key_makes_one_job,
    )
    with Whimbrel(home=tmp_path / "home", catalog=fresh_postgres) as home:
        for number, check in enumerate(checks):
            folder = tmp_path / f"docs{number}"
            folder.mkdir()
            check(home, f"c{number}", folder)
