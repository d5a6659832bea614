"""Writing documents: whatever was there before, the catalog then holds exactly what was written."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from support import ToyView, collection, contents, document, paragraphs, write
from whimbrel.catalog import collections, documents, log, rows, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import DocumentWrite, read_text, record_failure, remove_documents, view_metadata
from whimbrel.catalog.engine import AnyRow, Catalog
from whimbrel.catalog.log import Op
from whimbrel.catalog.rows import Entry, hydrate, load_chunks, read_log
from whimbrel.catalog.tables import SEGMENT_CHARS
from whimbrel.domain import ChunkSpan, DocumentState, chunk_id
from whimbrel.filters.facts import facts

Place = tuple[int, int]
LONG = "aé漢\U0001f426\n"  # one, two, three and four bytes in UTF-8; the bird is two units in UTF-16


@pytest.fixture
def place(catalog: Catalog) -> Place:
    return collection(catalog)


def stored(catalog: Catalog, place: Place, made: DocumentWrite) -> AnyRow:
    columns = t.documents.c
    with catalog.read() as connection:
        query = select(t.documents).where(
            columns.collection_id == place[0], columns.public_id == bytes.fromhex(made.public_id)
        )
        return connection.execute(query).one()


def chunks_of(catalog: Catalog, place: Place, made: DocumentWrite) -> dict[str, AnyRow]:
    key = stored(catalog, place, made).id
    with catalog.read() as connection:
        query = select(t.chunks).where(t.chunks.c.document_id == key).order_by(t.chunks.c.ordinal)
        return {row.public_id.hex(): row for row in connection.execute(query)}


def logged(catalog: Catalog, place: Place, after: int) -> list[Entry]:
    """The upserts of the log after a position."""
    with catalog.read() as connection:
        return read_log(connection, *place, after, log.head(connection, place[0]).head)[0]


def expected(*made: DocumentWrite) -> dict[str, tuple[str, str, Mapping[str, Any]]]:
    """What a view must hold of these documents, from their definition alone."""
    found: dict[str, tuple[str, str, Mapping[str, Any]]] = {}
    for each in made:
        seen: Counter[str] = Counter()
        for span in each.spans:
            text = each.text[span.start : span.end]
            name = chunk_id(each.public_id, text, seen[text])
            seen[text] += 1
            metadata = view_metadata(each.public_id, each.uri, each.title, each.metadata)
            found[name] = (text, each.title, metadata)
    return found


def test_a_new_document(catalog: Catalog, place: Place) -> None:
    made = document("memory:1", "one\n\ntwo", {"year": 2020, "tags": ["a", None], "deep": {"x": 1.5}}, title="First")
    counts = write(catalog, place, made)
    assert (counts.added, counts.chunks_added, counts.head) == (1, 2, 2)
    row = stored(catalog, place, made)
    assert (row.state, row.title, row.text_length, row.position) == ("extracted", "First", 8, 2)
    assert row.metadata == made.metadata
    assert row.facts == facts(view_metadata(made.public_id, made.uri, made.title, made.metadata))
    assert contents(catalog, place) == expected(made)


def test_only_the_chunks_that_differ_are_replaced(catalog: Catalog, place: Place) -> None:
    before = document("memory:1", "one\n\ntwo\n\nthree")
    write(catalog, place, before)
    old = chunks_of(catalog, place, before)
    after = document("memory:1", "zero\n\none\n\nthree!\n\ntwo")
    counts = write(catalog, place, after)
    assert (counts.changed, counts.chunks_added, counts.chunks_kept, counts.chunks_removed) == (1, 2, 2, 1)
    new = chunks_of(catalog, place, after)
    kept = set(old) & set(new)
    assert all(new[name].id == old[name].id for name in kept)
    assert [after.text[row.start : row.end] for row in new.values()] == ["zero", "one", "three!", "two"]
    assert {entry.public_id.hex() for entry in logged(catalog, place, 3)} == set(new) - kept
    assert contents(catalog, place) == expected(after)


def test_repeated_paragraphs_are_told_apart(catalog: Catalog, place: Place) -> None:
    thrice = document("memory:1", "same\n\nsame\n\nother\n\nsame")
    write(catalog, place, thrice)
    assert len(contents(catalog, place)) == 4
    once = document("memory:1", "other\n\nsame")
    counts = write(catalog, place, once)
    assert (counts.chunks_kept, counts.chunks_removed, counts.chunks_added) == (2, 2, 0)
    assert contents(catalog, place) == expected(once)
    twin = document("memory:2", "same")
    write(catalog, place, twin)
    assert contents(catalog, place) == expected(once, twin), "the same paragraph of another document is another chunk"


@pytest.mark.parametrize("change", [{"metadata": {"year": 2021}}, {"title": "New"}])
def test_a_change_of_what_views_show_is_logged_and_embeds_nothing(
    catalog: Catalog, place: Place, change: dict[str, Any]
) -> None:
    made = document("memory:1", "one\n\ntwo", {"year": 2020})
    write(catalog, place, made)
    before = chunks_of(catalog, place, made)
    head = write(catalog, place, replace(made, **change)).head
    after = chunks_of(catalog, place, made)
    assert head == 4
    assert {(entry.op, entry.chunk_id) for entry in logged(catalog, place, 2)} == {
        (Op.UPDATE, row.id) for row in before.values()
    }
    assert [row.text_id for row in after.values()] == [row.text_id for row in before.values()]
    assert contents(catalog, place) == expected(replace(made, **change))


def test_a_change_of_context_is_embedded_again(catalog: Catalog, place: Place) -> None:
    made = document("memory:1", "one\n\ntwo")
    write(catalog, place, made)
    first, second = made.spans
    write(catalog, place, replace(made, spans=[first, replace(second, context="Chapter 2")]))
    with catalog.read() as connection:
        space = 1
        keys = [entry.chunk_id for entry in logged(catalog, place, 2)]
        assert len(keys) == 1
        assert vectors.missing(connection, space, keys).texts == ["Chapter 2\ntwo"]


def test_the_same_text_costs_one_embedding(catalog: Catalog, place: Place) -> None:
    write(catalog, place, *(document(f"memory:{n}", "one\n\ntwo\n\none") for n in range(5)))
    with catalog.read() as connection:
        keys = list(connection.execute(select(t.chunks.c.id)).scalars())
        assert sorted(vectors.missing(connection, 1, keys).texts) == ["one", "two"]


def test_long_texts_in_segments(catalog: Catalog, place: Place) -> None:
    text = LONG * (3 * SEGMENT_CHARS // len(LONG) + 7)
    edges = [SEGMENT_CHARS, 2 * SEGMENT_CHARS]
    cuts = sorted({0, 100, *(edge + near for edge in edges for near in (-3, -1, 0, 1, 3)), len(text)})
    spans = [ChunkSpan(a, b, 1) for a, b in itertools.pairwise(cuts)]
    spans += [
        ChunkSpan(5, 2 * SEGMENT_CHARS + 5, 1),
        ChunkSpan(0, len(text), 1),
        ChunkSpan(len(text) - 1, len(text), 1),
    ]
    made = document("memory:long", text, spans=spans)
    write(catalog, place, made)
    assert contents(catalog, place) == expected(made)
    key = stored(catalog, place, made).id
    with catalog.read() as connection:
        assert connection.execute(select(t.segments.c.ordinal)).scalars().all() == [0, 1, 2, 3]
        assert read_text(connection, key) == text
        for start, end in ((0, 0), (0, 1), *itertools.combinations(cuts, 2), (7, len(text) + 9), (len(text), None)):
            assert read_text(connection, key, start, end) == text[start:end], (start, end)
        found = hydrate(connection, *place, list(expected(made)))
    assert {name: hit.text for name, hit in found.items()} == {n: row[0] for n, row in expected(made).items()}
    assert all(hit.text == text[hit.start : hit.end] for hit in found.values())


def test_a_text_can_shrink_to_nothing_and_grow_again(catalog: Catalog, place: Place) -> None:
    for text in ("one\n\ntwo", "", "three"):
        made = document("memory:1", text)
        write(catalog, place, made)
        assert contents(catalog, place) == expected(made)
        assert len(chunks_of(catalog, place, made)) == len(made.spans)


def test_removed_documents_leave_a_row_and_no_text(catalog: Catalog, place: Place) -> None:
    first, second = document("memory:1", "one\n\ntwo"), document("memory:2", "three")
    write(catalog, place, first, second)
    names = list(expected(first))
    view = ToyView(place)
    view.catch_up(catalog)
    key = stored(catalog, place, first).id
    with catalog.write() as connection:
        counts = remove_documents(connection, place[0], [key], "its file is gone")
    assert (counts.removed, counts.chunks_removed) == (1, 2)
    row = stored(catalog, place, first)
    assert (row.state, row.reason, row.text_length) == ("gone", "its file is gone", 0)
    assert not chunks_of(catalog, place, first)
    with catalog.read() as connection:
        assert read_text(connection, key) == ""
        assert hydrate(connection, *place, names) == {}, "a lagging view cannot serve what is gone"
        assert documents.count_documents(connection, place[0]) == {"gone": 1, "extracted": 1}
    view.catch_up(catalog)
    assert view.rows == contents(catalog, place) == expected(second)

    write(catalog, place, first)  # and it may come back
    assert stored(catalog, place, first).id == key
    assert stored(catalog, place, first).state == "extracted"
    view.catch_up(catalog)
    assert view.rows == contents(catalog, place) == expected(first, second)


def test_a_failure_keeps_the_text_read_before(catalog: Catalog, place: Place) -> None:
    made = document("memory:1", "one")
    write(catalog, place, made)
    with catalog.write() as connection:
        counts = record_failure(connection, place[0], replace(made, content_hash="new"), "it is encrypted")
        record_failure(connection, place[0], document("memory:2", "never read"), "it is empty")
    assert (counts.failed, counts.head) == (1, 1)
    row = stored(catalog, place, made)
    assert row.state == DocumentState.FAILED
    assert row.reason.startswith("it is encrypted")
    assert "stays searchable" in row.reason
    assert contents(catalog, place) == expected(made)
    other = stored(catalog, place, document("memory:2", ""))
    assert (other.state, other.reason, other.text_length) == ("failed", "it is empty", 0)
    write(catalog, place, made)
    assert (stored(catalog, place, made).state, stored(catalog, place, made).reason) == ("extracted", "")


def test_hits_are_read_by_collection_and_chunking(catalog: Catalog, place: Place) -> None:
    made = document("memory:1", "one\n\ntwo", {"year": 2020}, title="First", spans=[ChunkSpan(0, 3, 1, page=7)])
    write(catalog, place, made)
    other = collection(catalog, "other")
    (name,) = expected(made)
    with catalog.read() as connection:
        (hit,) = hydrate(connection, *place, [name, "0" * 32]).values()
        assert hydrate(connection, *other, [name]) == {}
        assert hydrate(connection, place[0], place[1] + 1, [name]) == {}
        assert hydrate(connection, *place, []) == {}
    assert (hit.chunk_id, hit.document_id, hit.uri, hit.title) == (name, made.public_id, "memory:1", "First")
    assert (hit.text, hit.start, hit.end, hit.page, hit.metadata) == ("one", 0, 3, 7, {"year": 2020})


def test_vectors_travel_with_their_chunks(catalog: Catalog, place: Place) -> None:
    write(catalog, place, document("memory:1", "one\n\ntwo\n\nthree"))
    with catalog.read() as connection:
        keys = rows.next_keys(connection, *place, after=0, upto=100, limit=100)
        found, waiting, refused = load_chunks(connection, keys, 1)
    assert (len(found), waiting, refused) == (0, 3, 0)


def test_the_last_of_two_writes_of_one_document_counts(catalog: Catalog, place: Place) -> None:
    first, last = document("memory:1", "one"), document("memory:1", "two")
    assert write(catalog, place, first, last).added == 1
    assert contents(catalog, place) == expected(last)


def test_collections_do_not_touch(catalog: Catalog, place: Place) -> None:
    other = collection(catalog, "other")
    made = document("memory:1", "one")
    write(catalog, place, made)
    write(catalog, other, replace(made, text="two"))
    with catalog.write() as connection:
        for _ in iter(lambda: collections.remove_some(connection, place[0], 1), 0):
            pass
    assert contents(catalog, other) == expected(replace(made, text="two"))


# --- the law: any sequence of writes, removals and failures ----------------------------------------------------------

texts = st.lists(st.sampled_from(["a", "b", "b b", "漢字 \U0001f426", "é" * 40]), max_size=5).map("\n\n".join)
metadatas = st.dictionaries(
    st.sampled_from(["k", "n.m", "ключ"]),
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(-1e15, 1e15)
    | st.text("a'\"\\é", max_size=3),
    max_size=2,
)
written = st.builds(
    document, st.sampled_from(["memory:1", "memory:2", "memory:3"]), texts, metadatas, title=st.sampled_from(["", "T"])
)
steps = st.lists(
    st.tuples(st.just("write"), st.lists(written, min_size=1, max_size=3))
    | st.tuples(st.sampled_from(["remove", "fail"]), written)
    | st.tuples(st.just("apply"), st.none())
    | st.tuples(st.just("cut"), st.none()),
    max_size=12,
)
numbers = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_catalog_and_a_view_hold_what_a_model_holds(catalog: Catalog, taken: list[tuple[str, Any]]) -> None:
    place = collection(catalog, f"c{next(numbers)}")
    model: dict[str, DocumentWrite] = {}
    view = ToyView(place, batch=3)
    for action, value in taken:
        if action == "apply":
            view.step(catalog)
            continue
        with catalog.write() as connection:
            match action:
                case "write":
                    documents.write_documents(connection, *place, value)
                    model.update({each.public_id: each for each in value})
                case "remove":
                    _remove(connection, place, value)
                    model.pop(value.public_id, None)
                case "fail":
                    record_failure(connection, place[0], value, "a reason")
                case "cut" if view.position is not None:
                    log.cut(connection, place[0], view.position.position)
    assert contents(catalog, place) == expected(*model.values())
    view.catch_up(catalog)
    assert view.rows == expected(*model.values())
    with catalog.read() as connection:
        for each in model.values():
            key = connection.execute(_key(place, each)).scalar_one()
            assert read_text(connection, key) == each.text
        assert rows.count_chunks(connection, *place) == sum(len(each.spans) for each in model.values())


def _key(place: Place, made: DocumentWrite) -> Any:
    columns = t.documents.c
    return select(columns.id).where(
        columns.collection_id == place[0], columns.public_id == bytes.fromhex(made.public_id)
    )


def _remove(connection: Connection, place: Place, made: DocumentWrite) -> None:
    keys = list(connection.execute(_key(place, made)).scalars())
    if keys:
        remove_documents(connection, place[0], keys, "removed")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_spans_of_any_text_are_read_exactly(catalog: Catalog, data: st.DataObject) -> None:
    place = collection(catalog, f"s{next(numbers)}")
    text = (data.draw(st.text("aé漢\U0001f426", min_size=1, max_size=9)) * SEGMENT_CHARS)[: SEGMENT_CHARS * 2 + 99]
    near = st.integers(0, 3).flatmap(lambda n: st.integers(n * SEGMENT_CHARS - 20, n * SEGMENT_CHARS + 20))
    offset = near.map(lambda n: min(max(n, 0), len(text)))
    pairs = data.draw(st.lists(st.tuples(offset, offset), max_size=6))
    spans = [ChunkSpan(min(pair), max(pair), 1) for pair in pairs if pair[0] != pair[1]]
    made = document("memory:long", text, spans=spans)
    write(catalog, place, made)
    assert contents(catalog, place) == expected(made)
    shorter = replace(made, text=text[: SEGMENT_CHARS // 2], spans=paragraphs(text[:3]))
    write(catalog, place, shorter)
    assert contents(catalog, place) == expected(shorter)
