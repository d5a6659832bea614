"""A collection that is cut in two ways at once: each as if there were no other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select, update

from support import ToyView, collection, contents, document, opened, write
from whimbrel.catalog import chunkings, collections, documents, listing, log, recuts, rows, sources, spans, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.backup import backup, restore
from whimbrel.catalog.documents import DocumentWrite, NotCut
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.longer import longer_than
from whimbrel.catalog.tables import SEGMENT_CHARS
from whimbrel.domain import ChunkSpan, Space, ViewKind, ViewState
from whimbrel.errors import Conflict
from whimbrel.owner.erase import request_purge

OTHER = "test:words"
Place = tuple[int, int]
Row = tuple[str, str, Any]


def words(text: str) -> list[ChunkSpan]:
    """One span for each word, with a context of its own."""
    return [ChunkSpan(m.start(), m.end(), 1, f"word {n}") for n, m in enumerate(re.finditer(r"\S+", text))]


def view_of(catalog: Catalog, place: Place, kind: ViewKind = ViewKind.STORE) -> int:
    with catalog.write() as connection:
        found = collections.by_id(connection, place[0])
        assert found is not None
        made = collections.add_view(connection, found, kind, uri="x:", space_id=None, chunking_id=place[1])
        return made.id


def live(catalog: Catalog, place: Place) -> int:
    key = view_of(catalog, place)
    switch(catalog, place, key)
    return key


def switch(catalog: Catalog, place: Place, key: int) -> None:
    with catalog.write() as connection:
        before = collections.switch(connection, place[0], collections.view(connection, key))
        if before is not None:
            collections.set_view(connection, before, state=ViewState.STANDBY)


def set_state(catalog: Catalog, key: int, state: ViewState) -> None:
    with catalog.write() as connection:
        collections.set_view(connection, key, state=state)


def other_of(catalog: Catalog, place: Place) -> Place:
    with catalog.write() as connection:
        return place[0], collections.chunking_id(connection, OTHER)


def twice(made: DocumentWrite, other: int) -> DocumentWrite:
    return replace(made, also={other: words(made.text)})


def recut_some(catalog: Catalog, place: Place, after: int, limit: int = 2, between: Any = None) -> int | None:
    """A step of the pass, `between` its reading and its writing; None where it has reached the end."""
    with catalog.read() as connection:
        last = max(connection.execute(select(t.documents.c.id)).scalars(), default=0)
        found = recuts.uncut(connection, *place, after=after, upto=last, limit=limit, max_chars=100_000)
    if between is not None:
        between()
    with catalog.write() as connection:
        recuts.write_cuts(connection, *place, [(one, words(one.text)) for one in found.documents])
    return None if found.reached >= last else found.reached


def recut_all(catalog: Catalog, place: Place) -> None:
    after: int | None = 0
    while after is not None:
        after = recut_some(catalog, place, after)


def chunkings_of(catalog: Catalog, place: Place) -> list[int]:
    with catalog.read() as connection:
        return collections.collection_chunkings(connection, place[0])


def kept(catalog: Catalog, place: Place) -> dict[str, tuple[Any, ...]]:
    """The chunks of a chunking, with all that is kept of them but their keys."""
    chunks = t.chunks.c
    query = (
        select(chunks, t.documents.c.uri, t.texts.c.hash)
        .join(t.documents)
        .join(t.texts, t.texts.c.id == chunks.text_id)
    )
    with catalog.read() as connection:
        found = connection.execute(query.where(chunks.collection_id == place[0], chunks.chunking_id == place[1])).all()
        texts = spans.read_spans(connection, found)
    return {
        row.public_id.hex(): (
            row.uri,
            row.ordinal,
            row.start,
            row.end,
            row.tokens,
            row.context,
            row.page,
            row.hash,
            text,
        )
        for row, text in zip(found, texts, strict=True)
    }


# --- which there are -------------------------------------------------------------------------------------------------


def test_the_live_chunking_comes_first(catalog: Catalog) -> None:
    place = collection(catalog)
    assert chunkings_of(catalog, place) == []
    other = other_of(catalog, place)
    old = live(catalog, place)
    new = view_of(catalog, other)
    assert chunkings_of(catalog, place) == [place[1], other[1]]
    switch(catalog, place, new)
    assert chunkings_of(catalog, place) == [other[1], place[1]]
    set_state(catalog, old, ViewState.RETIRED)
    assert chunkings_of(catalog, place) == [other[1]]
    set_state(catalog, new, ViewState.FROZEN)
    assert chunkings_of(catalog, place) == [other[1]], "what is searched counts, though it is not fed"


def test_without_views_the_chunks_say_it(catalog: Catalog) -> None:
    place = collection(catalog)
    write(catalog, place, document("memory:1", "one\n\ntwo"))
    assert chunkings_of(catalog, place) == [place[1]]


def test_what_was_cut_before_a_view_was_added_is_refused_and_nothing_is_written(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    made = document("memory:1", "one two\n\nthree")
    other = other_of(catalog, place)
    view_of(catalog, other)
    with pytest.raises(NotCut) as raised:
        write(catalog, place, made)
    assert raised.value.chunkings == [other[1]]
    assert contents(catalog, place) == {}
    counts = write(catalog, place, twice(made, other[1]))
    assert (counts.added, counts.chunks_added) == (1, 2), "counted in the live chunking"
    assert [row[0] for row in contents(catalog, other).values()] == ["one", "two", "three"]


def test_chunks_of_a_chunking_that_no_view_has_are_not_written(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    other = other_of(catalog, place)
    write(catalog, place, twice(document("memory:1", "one two"), other[1]))
    assert contents(catalog, other) == {}


def test_a_rewritten_document_leaves_no_chunk_without_its_text(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    other = other_of(catalog, place)
    key = view_of(catalog, other)
    write(catalog, place, twice(document("memory:1", "one two"), other[1]))
    set_state(catalog, key, ViewState.RETIRED)
    write(catalog, place, document("memory:1", "three"))
    assert contents(catalog, other) == {}, "they would begin in a segment that is gone"


# --- what reads them -------------------------------------------------------------------------------------------------


def test_listings_and_counts_are_those_of_the_live_chunking(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    other = other_of(catalog, place)
    new = view_of(catalog, other)
    write(catalog, place, twice(document("memory:1", "one two\n\nthree"), other[1]))

    def shown() -> tuple[int, int]:
        with catalog.read() as connection:
            found = collections.find(connection, "docs")
            [listed] = listing.documents(connection, found, None, 10, 0)
            one = listing.document(connection, found, listing.resolve(connection, found, "memory:1"))
            return listed["chunks"], one["chunks"]

    assert shown() == (2, 2)
    switch(catalog, place, new)
    assert shown() == (3, 3)
    with catalog.write() as connection:
        found = collections.find(connection, "docs")
        counts = documents.remove_documents(
            connection, found.id, listing.resolve_all(connection, found, ["memory:1"]), "x"
        )
    assert counts.chunks_removed == 3
    assert contents(catalog, place) == contents(catalog, other) == {}


def test_a_refused_text_counts_in_its_own_chunking(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    other = other_of(catalog, place)
    view_of(catalog, other)
    write(catalog, place, twice(document("memory:1", "one two\n\nthree"), other[1]))
    with catalog.write() as connection:
        space = vectors.space_id(connection, Space("m", "1", 2), "toy:m")
        last = rows.max_chunk_key(connection, *other)
        keys = rows.next_keys(connection, *other, after=0, upto=last, limit=9)
        missing = vectors.missing(connection, space, keys)
        empty = np.empty((0, 2), np.float32)
        vectors.put(connection, space, [], empty, dict.fromkeys(missing.text_ids, "too long"))
    with catalog.read() as connection:
        assert vectors.refusals(connection, space, *other) == 3
        assert vectors.refusals(connection, space, *place) == 0


@pytest.mark.parametrize("at_most", [10_000, 7])
def test_what_is_longer_for_another_model(catalog: Catalog, at_most: int) -> None:
    place = collection(catalog)
    texts = ["\n\n".join(["short one"] * 9 + ["word " * (9 + n)]) for n in range(5)]
    write(catalog, place, *(document(f"memory:{n}", text) for n, text in enumerate(texts)))
    with catalog.read() as connection:
        found = longer_than(connection, *place, lambda text: len(text.split()), 10, at_most=at_most)
    assert found.chunks == 50
    if at_most > 50:
        assert (found.looked_at, found.longer, found.expected, found.documents, found.longest) == (50, 3, 3, 3, 13)
        assert sorted(found.examples) == [("memory:2", 1), ("memory:3", 1), ("memory:4", 1)]
    else:
        assert found.looked_at == 7
        assert found.expected == round(found.longer * 50 / 7)


# --- cutting what is there -------------------------------------------------------------------------------------------


def test_a_recut_makes_what_a_fresh_collection_has(catalog: Catalog) -> None:
    place, other = collection(catalog), collection(catalog, "fresh")
    live(catalog, place)
    long = "A line of some words.\n\n" * 4_000
    assert len(long) > 2 * SEGMENT_CHARS
    made = [document("memory:1", long), document("memory:2", "one two\n\none two", title="T"), document("memory:3", "")]
    write(catalog, place, *made)
    before = kept(catalog, place)
    there = other_of(catalog, place)
    view_of(catalog, there)
    recut_all(catalog, there)
    recut_all(catalog, there)
    write(catalog, (other[0], there[1]), *(replace(one, spans=words(one.text)) for one in made))
    assert kept(catalog, there) == kept(catalog, (other[0], there[1]))
    assert kept(catalog, place) == before


def test_a_recut_is_bounded_and_goes_on_where_it_was(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    write(catalog, place, *(document(f"memory:{n}", "word " * 100) for n in range(5)))
    there = other_of(catalog, place)
    view_of(catalog, there)
    seen: list[list[str]] = []
    after = 0
    while True:
        with catalog.read() as connection:
            found = recuts.uncut(connection, *there, after=after, upto=10**9, limit=100, max_chars=1_100)
        if not found.documents:
            break
        seen.append([one.uri for one in found.documents])
        after = found.reached
    assert [len(some) for some in seen] == [2, 2, 1]
    assert sorted(itertools.chain(*seen)) == [f"memory:{n}" for n in range(5)]
    with catalog.read() as connection:
        alone = recuts.uncut(connection, *there, after=0, upto=10**9, limit=100, max_chars=10)
    assert [one.uri for one in alone.documents] == ["memory:0"], "one that is longer goes alone"


def test_what_was_written_while_it_was_cut_stays_as_written(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    write(catalog, place, *(document(f"memory:{n}", f"old {n}") for n in range(4)))
    there = other_of(catalog, place)
    view_of(catalog, there)

    def meanwhile() -> None:
        write(catalog, place, twice(document("memory:0", "new text"), there[1]))
        with catalog.write() as connection:
            found = collections.find(connection, "docs")
            documents.remove_documents(connection, found.id, listing.resolve_all(connection, found, ["memory:1"]), "x")
            request_purge(connection, found, listing.resolve_all(connection, found, ["memory:2"]))

    recut_some(catalog, there, 0, limit=100, between=meanwhile)
    assert sorted(row[0] for row in contents(catalog, there).values()) == ["3", "new", "old", "text"]


def test_a_text_that_became_blank_while_it_was_cut_has_no_chunks(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    write(catalog, place, document("memory:1", "one two"))
    there = other_of(catalog, place)
    view_of(catalog, there)
    blank = document("memory:1", "\n \n", spans=[])
    recut_some(catalog, there, 0, between=lambda: write(catalog, place, twice(blank, there[1])))
    assert contents(catalog, there) == {}


def test_two_passes_at_once_cut_each_document_once(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    write(catalog, place, document("memory:1", "one two"))
    there = other_of(catalog, place)
    view_of(catalog, there)
    recut_some(catalog, there, 0, between=lambda: recut_some(catalog, there, 0))
    assert sorted(row[0] for row in contents(catalog, there).values()) == ["one", "two"]


def test_cutting_for_a_view_that_is_gone_is_refused(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    write(catalog, place, document("memory:1", "one"))
    there = other_of(catalog, place)
    key = view_of(catalog, there)
    with pytest.raises(Conflict, match="its move was ended"):
        recut_some(catalog, there, 0, between=lambda: set_state(catalog, key, ViewState.RETIRED))
    assert contents(catalog, there) == {}


def test_a_title_that_was_not_kept_is_told_from_the_files_name(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    named = {"file:///a/my%20notes.md": "my notes", "upload:report.pdf": "report", "file:///a/b.md": "A title"}
    write(catalog, place, *(document(uri, "text", title=title) for uri, title in named.items()))
    with catalog.write() as connection:
        connection.execute(update(t.documents).values(cut_title=None))
    there = other_of(catalog, place)
    view_of(catalog, there)
    with catalog.read() as connection:
        found = recuts.uncut(connection, *there, after=0, upto=99, limit=9, max_chars=99)
    assert [one.cut_title for one in found.documents] == ["", "", "A title"]


# --- leaving one behind ----------------------------------------------------------------------------------------------


def forget(catalog: Catalog, place: Place, limit: int = 1) -> None:
    while True:
        with catalog.write() as connection:
            if not chunkings.forget_chunking(connection, *place, limit):
                return


def test_what_no_view_follows_is_forgotten_with_its_log(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    other = other_of(catalog, place)
    key = view_of(catalog, other)
    view = ToyView(place)
    write(catalog, place, *(twice(document(f"memory:{n}", "one two\n\nthree"), other[1]) for n in range(3)))
    before = kept(catalog, place)
    with catalog.write() as connection, pytest.raises(Conflict, match="Nothing was removed"):
        chunkings.forget_chunking(connection, *other)
    set_state(catalog, key, ViewState.RETIRED)
    with catalog.write() as connection:
        assert chunkings.left_behind(connection, place[0]) == [other[1]]
        assert chunkings.forget_chunking(connection, *other, limit=1) == 3, "a whole document"
    forget(catalog, other)
    assert kept(catalog, other) == {}
    assert kept(catalog, place) == before
    with catalog.read() as connection:
        assert set(connection.execute(select(t.changes.c.chunking_id)).scalars()) == {place[1]}
    view.catch_up(catalog)
    assert view.rows == contents(catalog, place)


def test_a_backup_holds_the_live_chunking_alone(catalog: Catalog, tmp_path: Path) -> None:
    place = collection(catalog)
    live(catalog, place)
    other = other_of(catalog, place)
    new = view_of(catalog, other)
    write(catalog, place, twice(document("memory:1", "one two\n\nthree"), other[1]))
    for number, (searched, key) in enumerate([(place, None), (other, new)]):
        if key is not None:
            switch(catalog, place, key)
        path = tmp_path / f"{number}.whimbrel"
        report = backup(catalog, path, version="1")
        restored = opened(f"sqlite:///{tmp_path / f'{number}.db'}", tmp_path / "copies")
        restore(path, restored)
        assert chunkings_of(restored, place) == [searched[1]]
        assert kept(restored, searched) == kept(catalog, searched)
        assert report.rows["chunks"] == len(kept(catalog, searched))
        restored.close()


def test_a_catalog_that_lost_its_views_keeps_the_chunking_that_is_whole(catalog: Catalog) -> None:
    place = collection(catalog)
    old = live(catalog, place)
    write(catalog, place, document("memory:1", "one two\n\nthree"), document("memory:2", "four five"))
    other = other_of(catalog, place)
    new = view_of(catalog, other)
    recut_some(catalog, other, 0, limit=1)
    before = kept(catalog, place)
    with catalog.write() as connection:
        for key in (old, new):
            collections.forget_view(connection, key)
        connection.execute(update(t.collections).values(store_view_id=None))
        chunkings.keep_one(connection)
    assert (kept(catalog, place), kept(catalog, other)) == (before, {})


# --- all of it, in any order -----------------------------------------------------------------------------------------

texts = st.lists(st.sampled_from(["one", "two three", "four\n\nfive", "", "one\n\none"]), max_size=4).map("\n\n".join)
uris = st.sampled_from(["memory:1", "memory:2", "memory:3", "memory:4"])
steps = st.lists(
    st.tuples(st.just("write"), st.lists(st.tuples(uris, texts), min_size=1, max_size=3))
    | st.tuples(st.sampled_from(["remove", "purge"]), uris)
    | st.tuples(st.just("relabel"), st.tuples(uris, st.integers(0, 2)))
    | st.tuples(st.just("begin"), st.none())
    | st.tuples(st.just("recut"), st.none() | st.tuples(uris, texts))
    | st.tuples(st.just("switch"), st.none())
    | st.tuples(st.just("end"), st.none())
    | st.tuples(st.just("forget"), st.none())
    | st.tuples(st.just("apply"), st.none()),
    max_size=16,
)
numbers = itertools.count()


class Collection:
    """A collection under test, and what it should hold."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.name = f"c{next(numbers)}"
        self.first = collection(catalog, self.name)
        self.second = other_of(catalog, self.first)
        self.model: dict[str, DocumentWrite] = {}
        self.keys = {self.first: live(catalog, self.first)}
        self.views = {self.first: ToyView(self.first, batch=3)}
        self.after: dict[Place, int | None] = {self.first: None}
        """Where the cutting for each view is; None when it is done."""

    def spans(self, place: Place, text: str) -> Sequence[ChunkSpan]:
        return words(text) if place == self.second else document("memory:", text).spans

    def write(self, texts: Sequence[tuple[str, str]]) -> None:
        made = {}
        for uri, text in texts:
            labelled = self.model[uri].metadata if uri in self.model else {}
            also = {place[1]: self.spans(place, text) for place in (self.first, self.second)}
            made[uri] = replace(document(uri, text, labelled), also=also)
        write(self.catalog, self.first, *made.values())
        self.model.update(made)

    def on(self, uri: str, action: str, value: Any = None) -> None:
        if uri not in self.model:
            return
        with self.catalog.write() as connection:
            found = collections.find(connection, self.name)
            [key] = listing.resolve_all(connection, found, [uri])
            if action == "remove":
                documents.remove_documents(connection, found.id, [key], "removed")
            elif action == "purge":
                request_purge(connection, found, [key])
            else:
                public_id = self.model[uri].public_id
                sources.relabel(connection, found.id, [(key, public_id, {"year": value})])
        if action == "relabel":
            self.model[uri] = replace(self.model[uri], metadata={"year": value})
        else:
            del self.model[uri]

    def begin(self) -> None:
        """Another view, in the chunking that there is none of."""
        for place in (self.first, self.second):
            if place not in self.keys:
                self.keys[place] = view_of(self.catalog, place)
                self.views[place] = ToyView(place, batch=3)
                self.views[place].build(self.catalog)
                self.after[place] = 0
                return

    def recut(self, meanwhile: tuple[str, str] | None) -> None:
        for place, after in self.after.items():
            if after is None:
                continue
            with self.catalog.read() as connection:
                found = recuts.uncut(connection, *place, after=after, upto=10**9, limit=2, max_chars=10**6)
            if meanwhile is not None:
                self.write([meanwhile])
            with self.catalog.write() as connection:
                made = [(one, self.spans(place, one.text)) for one in found.documents]
                recuts.write_cuts(connection, *place, made)
            self.after[place] = None if found.reached == 10**9 else found.reached

    def live(self) -> Place:
        chunking = chunkings_of(self.catalog, self.first)[0]
        return self.first if chunking == self.first[1] else self.second

    def switch(self) -> None:
        for place, key in self.keys.items():
            if self.after[place] is None and place != self.live():
                switch(self.catalog, place, key)
                return

    def end(self) -> None:
        """Abort the move, or finalise it."""
        searched = self.live()
        for place in [place for place in self.keys if place != searched]:
            set_state(self.catalog, self.keys.pop(place), ViewState.RETIRED)
            del self.views[place], self.after[place]

    def forget(self) -> None:
        with self.catalog.write() as connection:
            for place in (self.first, self.second):
                if place not in self.keys:
                    chunkings.forget_chunking(connection, *place, 1)

    def finish(self) -> None:
        while any(after is not None for after in self.after.values()):
            self.recut(None)

    def fresh(self, place: Place) -> Place:
        """Another collection, which has never had any other chunking."""
        made = collection(self.catalog, f"{self.name}-{place[1]}")[0], place[1]
        write(self.catalog, made, *(replace(one, spans=self.spans(place, one.text)) for one in self.model.values()))
        return made


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_each_chunking_is_as_if_there_were_no_other(catalog: Catalog, taken: list[tuple[str, Any]]) -> None:
    there = Collection(catalog)
    for action, value in taken:
        match action:
            case "write" | "recut":
                getattr(there, action)(value)
            case "remove" | "purge":
                there.on(value, action)
            case "relabel":
                there.on(value[0], action, value[1])
            case "apply":
                for view in there.views.values():
                    view.step(catalog)
            case _:
                getattr(there, action)()
    there.finish()
    for place, view in there.views.items():
        fresh = there.fresh(place)
        assert kept(catalog, place) == kept(catalog, fresh)
        view.catch_up(catalog)
        assert view.rows == contents(catalog, fresh)
    with catalog.read() as connection:
        assert rows_without_text(connection) == 0


def rows_without_text(connection: Connection) -> int:
    query = select(t.chunks.c.id).where(t.chunks.c.segment_id.not_in(select(t.segments.c.id)))
    return len(connection.execute(query).all())


def test_the_log_is_followed_by_both(catalog: Catalog) -> None:
    place = collection(catalog)
    live(catalog, place)
    other = other_of(catalog, place)
    view_of(catalog, other)
    made = twice(document("memory:1", "one two\n\nthree"), other[1])
    head = write(catalog, place, made).head
    assert head == 5
    with catalog.write() as connection:
        public = made.public_id
        [key] = connection.execute(select(t.documents.c.id)).scalars()
        assert sources.relabel(connection, place[0], [(key, public, {"a": 1})]) == 10, "every chunk of both"
    with catalog.read() as connection:
        assert len(log_of(connection, place)) == 2
        assert len(log_of(connection, other)) == 3


def log_of(connection: Connection, place: Place) -> list[rows.Entry]:
    return rows.read_log(connection, *place, 0, log.head(connection, place[0]).head)[0]
