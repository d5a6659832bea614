"""Conversations in the catalog: kept, shown, removed, and erased with the documents that they were made from."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import MetaData, select, text

from support import collection, count, document, opened, write
from whimbrel.catalog import collections, conversations, migrate
from whimbrel.catalog import tables as t
from whimbrel.catalog.archive import dump_tables
from whimbrel.catalog.backup import backup, restore
from whimbrel.catalog.collections import find
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import Answer, Citation, document_id
from whimbrel.errors import BadInput, ConversationNotFound, TurnNotFound
from whimbrel.owner.erase import request_purge


def uri(number: int) -> str:
    return f"memory:{number}"


def public_id(number: int) -> str:
    return document_id(external_id=None, uri=uri(number))


def filled(catalog: Catalog, documents: int = 3) -> tuple[int, int]:
    place = collection(catalog)
    write(catalog, place, *(document(uri(number), f"text {number}") for number in range(documents)))
    return place


def answer(text: str, *cited: int) -> Answer:
    citations = [Citation(n + 1, "c" * 32, public_id(n), uri(n), 0, 4, "text", "yes", page=3) for n in cited]
    return Answer(text, citations, "openai:small", ["late"], {"output_tokens": 3}, question=f"{text}, alone?")


def added(catalog: Catalog, conversation: str, text: str, *documents: int) -> str | None:
    with catalog.write() as connection:
        made_from = [public_id(number) for number in documents]
        return conversations.add_turn(
            connection, conversation, f"{text}?", answer(text, *documents), [*made_from, *made_from]
        )


def begun(catalog: Catalog, place: tuple[int, int]) -> str:
    with catalog.write() as connection:
        return conversations.create(connection, place[0])


def answers(catalog: Catalog, conversation: str) -> list[str]:
    with catalog.read() as connection:
        return [turn.answer for turn in conversations.turns(connection, conversation)]


def test_a_turn_is_kept_whole(catalog: Catalog) -> None:
    place = filled(catalog)
    conversation = begun(catalog, place)
    turn_id = added(catalog, conversation, "First", 0, 1)
    added(catalog, conversation, "Second")
    with catalog.read() as connection:
        first, second = conversations.turns(connection, conversation)
        summary = conversations.get(connection, conversation)
        (latest,) = conversations.turns(connection, conversation, last=1)
    assert (first.id, first.asked, first.question, first.answer) == (turn_id, "First?", "First, alone?", "First")
    assert (first.model, first.degraded, first.usage) == ("openai:small", ["late"], {"output_tokens": 3})
    assert first.citations[1] == {
        **{"marker": 2, "chunk_id": "c" * 32, "document_id": public_id(1), "uri": uri(1), "start": 0, "end": 4},
        **{"quote": "text", "supported": "yes", "page": 3},
    }
    assert latest == second
    assert (summary.collection, summary.turns, summary.title, summary.erased) == ("docs", 2, "First?", 0)
    assert summary.updated_at >= summary.created_at


def test_conversations_are_listed_the_last_used_first(catalog: Catalog) -> None:
    place = filled(catalog)
    first, second = begun(catalog, place), begun(catalog, place)
    other = begun(catalog, collection(catalog, "others"))
    added(catalog, first, "Again")
    with catalog.read() as connection:
        everywhere = [one.id for one in conversations.listing(connection)]
        here = [one.id for one in conversations.listing(connection, place[0])]
        paged = [one.id for one in conversations.listing(connection, place[0], limit=1, offset=1)]
    assert (everywhere, here, paged) == ([first, other, second], [first, second], [second])


def test_feedback_says_the_last_word(catalog: Catalog) -> None:
    conversation = begun(catalog, filled(catalog))
    turn = added(catalog, conversation, "First", 0)
    assert turn is not None
    with catalog.write() as connection:
        conversations.rate(connection, turn, 1)
        conversations.rate(connection, turn, -1, "It is wrong.")
    with catalog.read() as connection:
        (found,) = conversations.turns(connection, conversation)
    assert (found.rating, found.comment) == (-1, "It is wrong.")


@pytest.mark.parametrize(("rating", "comment"), [(0, ""), (2, ""), (1, "x" * 10_001), (1, "a\0b")])
def test_feedback_that_is_none_is_refused(catalog: Catalog, rating: int, comment: str) -> None:
    turn = added(catalog, begun(catalog, filled(catalog)), "First")
    assert turn is not None
    with catalog.write() as connection, pytest.raises(BadInput):
        conversations.rate(connection, turn, rating, comment)


def test_what_is_not_there_is_named(catalog: Catalog) -> None:
    conversation = begun(catalog, filled(catalog))
    with catalog.write() as connection:
        conversations.remove(connection, conversation)
        for work in (conversations.get, conversations.remove):
            with pytest.raises(ConversationNotFound):
                work(connection, conversation)
        with pytest.raises(TurnNotFound):
            conversations.rate(connection, "nothing", 1)
    with pytest.raises(ConversationNotFound):
        added(catalog, conversation, "Late")


def test_a_removed_conversation_leaves_no_row(catalog: Catalog) -> None:
    place = filled(catalog)
    kept, removed = begun(catalog, place), begun(catalog, place)
    for conversation in (kept, removed):
        turn = added(catalog, conversation, "First", 0)
        with catalog.write() as connection:
            conversations.rate(connection, str(turn), 1)
    with catalog.write() as connection:
        conversations.remove(connection, removed)
        assert [count(connection, name) for name in ("conversations", "turns", "turn_documents", "feedback")] == [1] * 4
    assert answers(catalog, kept) == ["First"]


def test_a_deleted_collection_takes_its_conversations_along(catalog: Catalog) -> None:
    place = filled(catalog)
    conversation = begun(catalog, place)
    added(catalog, conversation, "First", 0)
    with catalog.write() as connection:
        collections.mark_deleting(connection, find(connection, "docs"))
    with catalog.read() as connection, pytest.raises(ConversationNotFound):
        conversations.get(connection, conversation)
    with catalog.write() as connection:
        while collections.remove_some(connection, place[0]):
            pass
        assert [count(connection, name) for name in ("conversations", "turns", "turn_documents")] == [0] * 3


# --- erasure ---------------------------------------------------------------------------------------------------------


def purge(catalog: Catalog, *numbers: int) -> None:
    with catalog.write() as connection:
        ids = [bytes.fromhex(public_id(number)) for number in numbers]
        rows = connection.execute(t.documents.select().where(t.documents.c.public_id.in_(ids))).all()
        request_purge(connection, find(connection, "docs"), [row.id for row in rows])


def test_a_purge_erases_answers_made_from_the_document_and_what_followed_them(catalog: Catalog) -> None:
    place = filled(catalog)
    conversation, other = begun(catalog, place), begun(catalog, place)
    added(catalog, conversation, "Before", 1)
    turn = added(catalog, conversation, "Of it", 0)
    added(catalog, conversation, "After", 2)
    added(catalog, other, "Elsewhere", 1, 2)
    with catalog.write() as connection:
        conversations.rate(connection, str(turn), 1, "It quotes well.")
    purge(catalog, 0)
    assert answers(catalog, conversation) == ["Before"]
    assert answers(catalog, other) == ["Elsewhere"]
    with catalog.read() as connection:
        assert count(connection, "feedback") == 0
        assert conversations.get(connection, conversation).erased == 2
        assert conversations.get(connection, other).erased == 0
    added(catalog, conversation, "Goes on", 1)
    assert answers(catalog, conversation) == ["Before", "Goes on"]


def test_the_same_document_of_another_collection_is_left_alone(catalog: Catalog) -> None:
    filled(catalog)
    others = collection(catalog, "others")
    write(catalog, others, document(uri(0), "text 0"))
    conversation = begun(catalog, others)
    added(catalog, conversation, "Of the other", 0)
    purge(catalog, 0)
    assert answers(catalog, conversation) == ["Of the other"]


def test_an_answer_that_comes_after_the_purge_is_not_kept(catalog: Catalog) -> None:
    conversation = begun(catalog, filled(catalog))
    purge(catalog, 0)
    assert added(catalog, conversation, "Late", 0, 1) is None
    assert answers(catalog, conversation) == []


def test_answers_beside_purges_leave_nothing_behind(catalog: Catalog) -> None:
    place = filled(catalog, documents=12)
    talks = [begun(catalog, place) for _ in range(3)]
    failures: list[BaseException] = []

    def answering(conversation: str) -> None:
        try:
            for number in range(12):
                added(catalog, conversation, str(number), number, (number + 5) % 12)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=answering, args=(conversation,)) for conversation in talks]
    for thread in threads:
        thread.start()
    for number in range(0, 12, 2):
        purge(catalog, number)
    for thread in threads:
        thread.join()
    assert failures == []
    with catalog.read() as connection:
        left = {row.public_id for row in connection.execute(t.documents.select())}
        assert {row.document for row in connection.execute(t.turn_documents.select())} <= left


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 3), max_size=3)), max_size=12),
    st.sets(st.integers(0, 3)),
)
def test_what_is_left_saw_nothing_of_what_was_purged(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, set[int]]], purged: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("catalog")
    catalog = opened(f"sqlite:///{folder / 'catalog.db'}", folder)
    place = filled(catalog, documents=4)
    talks = [begun(catalog, place) for _ in range(3)]
    for number, (talk, documents) in enumerate(asked):
        added(catalog, talks[talk], str(number), *sorted(documents))
    purge(catalog, *purged)
    for place_, conversation in enumerate(talks):
        turns = [(str(number), documents) for number, (talk, documents) in enumerate(asked) if talk == place_]
        clean = next((i for i, (_, documents) in enumerate(turns) if documents & purged), len(turns))
        assert answers(catalog, conversation) == [text for text, _ in turns[:clean]]
    catalog.close()


# --- other homes -----------------------------------------------------------------------------------------------------


def at_first_revision(url: str, folder: Path) -> Catalog:
    """A catalog as the first version of the schema left it, with documents."""
    newest = opened(f"sqlite:///{folder / 'newest.db'}", folder)
    filled(newest)
    catalog = Catalog(url)
    with newest.read() as written, catalog.write() as connection:
        migrate.upgrade(connection, "0001")
        old = MetaData()
        old.reflect(connection)
        for table in old.sorted_tables:
            now = t.metadata.tables.get(table.name)
            if now is None:
                continue
            since_dropped = {column.name: 1 for column in table.columns if column.name not in now.columns}
            kept = [now.columns[column.name] for column in table.columns if column.name in now.columns]
            rows = [{**since_dropped, **row} for row in written.execute(select(*kept)).mappings()]
            connection.execute(table.delete())  # what the migration put there is among the rows
            if rows:
                connection.execute(table.insert(), rows)
    newest.close()
    return catalog


def test_a_home_of_the_first_schema_is_upgraded_and_a_copy_saved(catalog_url: str, tmp_path: Path) -> None:
    catalog = at_first_revision(catalog_url, tmp_path)
    migrate.ensure_schema(catalog, copies=tmp_path / "copies")
    assert migrate.current_revision(catalog) == migrate.REVISIONS[-1]
    assert len(list((tmp_path / "copies").iterdir())) == 1
    with catalog.write() as connection:
        place = find(connection, "docs").id
        assert count(connection, "documents") == 3
        conversation = conversations.create(connection, place)
    assert added(catalog, conversation, "First", 0) is not None
    catalog.close()


def test_an_archive_of_the_first_schema_is_restored(catalog: Catalog, tmp_path: Path) -> None:
    old = at_first_revision(f"sqlite:///{tmp_path / 'old.db'}", tmp_path)
    with old.read() as connection:
        dump_tables(connection, tmp_path / "old.whimbrel")
    old.close()
    restore(tmp_path / "old.whimbrel", catalog)
    with catalog.write() as connection:
        assert count(connection, "documents") == 3
        conversation = conversations.create(connection, find(connection, "docs").id)
    assert added(catalog, conversation, "First", 0) is not None


def test_a_backup_carries_conversations(catalog: Catalog, tmp_path: Path) -> None:
    source = opened(f"sqlite:///{tmp_path / 'source.db'}", tmp_path)
    conversation = begun(source, filled(source))
    turn = added(source, conversation, "First", 0)
    with source.write() as connection:
        conversations.rate(connection, str(turn), 1, "Good.")
    backup(source, tmp_path / "saved.whimbrel", version="0")
    restore(tmp_path / "saved.whimbrel", catalog)
    with source.read() as one, catalog.read() as other:
        assert conversations.turns(one, conversation) == conversations.turns(other, conversation)
    source.close()
    purge(catalog, 0)
    assert answers(catalog, conversation) == []
    with catalog.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM turns")).scalar() == 0
