"""Conversations: questions and answers that follow each other, kept to be shown and followed up on, and feedback.

What a document says lives on in the answers that were made from it: `erase` follows a purged document here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Select, delete, func, select, update

from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import batched
from whimbrel.catalog.engine import AnyRow, now
from whimbrel.domain import Answer
from whimbrel.errors import BadInput, ConversationNotFound, TurnNotFound

LONGEST_COMMENT = 10_000
"""Characters."""


@dataclass(frozen=True, slots=True)
class Turn:
    id: str
    asked: str
    """What the user wrote."""
    question: str
    """What was searched for: the same, made to stand alone."""
    answer: str
    citations: Sequence[Mapping[str, Any]]
    """As `whimbrel.domain.Citation` names its fields."""
    model: str
    abstained: bool
    degraded: Sequence[str]
    usage: Mapping[str, Any]
    created_at: float
    rating: int | None = None
    """1 or -1; None where nobody said."""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    collection: str
    turns: int
    title: str
    """Its first question."""
    erased: int
    """Turns that were removed because a document that they were made from was purged."""
    created_at: float
    updated_at: float


def create(connection: Connection, collection_id: int) -> str:
    """A new conversation; its id."""
    made = secrets.token_hex(16)
    at = now()
    row = {"id": made, "collection_id": collection_id, "erased": 0, "created_at": at, "updated_at": at}
    connection.execute(t.conversations.insert(), row)
    return made


def get(connection: Connection, conversation_id: str) -> Conversation:
    """Raises `ConversationNotFound`."""
    row = connection.execute(_summaries().where(t.conversations.c.id == conversation_id)).first()
    if row is None:
        raise ConversationNotFound(
            f"There is no conversation {conversation_id[:64]!r}.",
            "Begin one: `whimbrel ask -C new`; or list those there.",
        )
    return _summary(row)


def listing(
    connection: Connection, collection_id: int | None = None, limit: int = 100, offset: int = 0
) -> list[Conversation]:
    """The last used first."""
    query = _summaries().order_by(t.conversations.c.updated_at.desc(), t.conversations.c.id)
    if collection_id is not None:
        query = query.where(t.conversations.c.collection_id == collection_id)
    return [_summary(row) for row in connection.execute(query.limit(limit).offset(offset))]


def turns(connection: Connection, conversation_id: str, last: int | None = None) -> list[Turn]:
    """The turns of a conversation, or the `last` few of them, oldest first."""
    query = (
        select(t.turns, t.feedback.c.rating, t.feedback.c.comment)
        .join(t.feedback, t.feedback.c.turn_id == t.turns.c.id, isouter=True)
        .where(t.turns.c.conversation_id == conversation_id)
        .order_by(t.turns.c.ordinal.desc())
        .limit(last)
    )
    return [_turn(row) for row in reversed(connection.execute(query).all())]


def add_turn(
    connection: Connection, conversation_id: str, asked: str, answer: Answer, documents: Iterable[str]
) -> str | None:
    """Store an answer that was made from `documents` (public ids); the turn's id.

    None, and nothing is stored, where one of them has been purged since it was read. Raises `ConversationNotFound`.
    """
    conversation = t.conversations.c.id == conversation_id
    public_ids = [bytes.fromhex(public_id) for public_id in dict.fromkeys(documents)]
    collection_id = connection.execute(select(t.conversations.c.collection_id).where(conversation)).scalar()
    if collection_id is None:
        raise ConversationNotFound(
            f"The conversation {conversation_id[:64]!r} was deleted while it was answered.", "Begin a new one."
        )
    if not _all_there(connection, collection_id, public_ids):
        return None
    # After the documents, in the order in which a purge locks; two answers to one conversation queue on this row.
    connection.execute(update(t.conversations).where(conversation).values(updated_at=now()))
    last = select(func.coalesce(func.max(t.turns.c.ordinal), 0)).where(t.turns.c.conversation_id == conversation_id)
    turn = secrets.token_hex(16)
    row = {
        "id": turn,
        "conversation_id": conversation_id,
        "ordinal": connection.execute(last).scalar_one() + 1,
        "asked": asked,
        "question": answer.question or asked,
        "answer": answer.answer,
        "citations": [asdict(citation) for citation in answer.citations],
        "model": answer.model,
        "abstained": answer.abstained,
        "degraded": list(answer.degraded),
        "usage": dict(answer.usage),
        "created_at": now(),
    }
    connection.execute(t.turns.insert(), row)
    if public_ids:
        made_from = [{"turn_id": turn, "document": public_id} for public_id in public_ids]
        connection.execute(t.turn_documents.insert(), made_from)
    return turn


def _all_there(connection: Connection, collection_id: int, public_ids: Sequence[bytes]) -> bool:
    """Whether no document was purged; a purge that runs beside this waits, or is waited for."""
    query = select(t.documents.c.id).where(
        t.documents.c.collection_id == collection_id, t.documents.c.public_id.in_(public_ids)
    )
    return len(connection.execute(query.with_for_update(read=True)).all()) == len(public_ids)


def rate(connection: Connection, turn_id: str, rating: int, comment: str = "") -> None:
    """What a user thinks of an answer; instead of what was said before. Raises `TurnNotFound`, `BadInput`."""
    if rating not in (1, -1):
        raise BadInput(f"A rating is 1 (good) or -1 (bad), not {rating}.", "Send one of them.")
    if len(comment) > LONGEST_COMMENT or "\0" in comment:
        raise BadInput(f"A comment has at most {LONGEST_COMMENT:,} characters, and no NUL.", "Shorten it.")
    if connection.execute(select(t.turns.c.id).where(t.turns.c.id == turn_id)).first() is None:
        raise TurnNotFound(
            f"There is no stored answer {turn_id[:64]!r}.", "Only answers within a conversation are stored."
        )
    connection.execute(delete(t.feedback).where(t.feedback.c.turn_id == turn_id))
    row = {"turn_id": turn_id, "rating": rating, "comment": comment, "created_at": now()}
    connection.execute(t.feedback.insert(), row)


# --- removing --------------------------------------------------------------------------------------------------------


def remove(connection: Connection, conversation_id: str) -> None:
    """A conversation with its turns and feedback. Raises `ConversationNotFound`."""
    get(connection, conversation_id)
    _remove_turns(connection, select(t.turns.c.id).where(t.turns.c.conversation_id == conversation_id))
    connection.execute(delete(t.conversations).where(t.conversations.c.id == conversation_id))


def remove_of(connection: Connection, collection_id: int) -> None:
    """All conversations of a collection."""
    of = select(t.conversations.c.id).where(t.conversations.c.collection_id == collection_id)
    _remove_turns(connection, select(t.turns.c.id).where(t.turns.c.conversation_id.in_(of)))
    connection.execute(delete(t.conversations).where(t.conversations.c.collection_id == collection_id))


def erase(connection: Connection, collection_id: int, documents: Sequence[bytes]) -> int:
    """Remove each turn that was made from one of the documents, and all that follow it in its conversation.

    Those that follow had its answer before them: what they say, and how their questions were made to stand alone, may
    come from it. Returns how many were removed.
    """
    removed = 0
    for batch in batched(documents, 500):
        query = (
            select(t.turns.c.conversation_id, func.min(t.turns.c.ordinal))
            .join(t.turn_documents, t.turn_documents.c.turn_id == t.turns.c.id)
            .join(t.conversations, t.conversations.c.id == t.turns.c.conversation_id)
            .where(t.conversations.c.collection_id == collection_id, t.turn_documents.c.document.in_(batch))
            .group_by(t.turns.c.conversation_id)
        )
        for conversation_id, first in connection.execute(query).all():
            columns = t.turns.c
            affected = select(columns.id).where(columns.conversation_id == conversation_id, columns.ordinal >= first)
            count = _remove_turns(connection, affected)
            connection.execute(
                update(t.conversations)
                .where(t.conversations.c.id == conversation_id)
                .values(erased=t.conversations.c.erased + count)
            )
            removed += count
    return removed


def _remove_turns(connection: Connection, chosen: Select[tuple[str]]) -> int:
    ids = list(connection.execute(chosen).scalars())
    for batch in batched(ids, 500):
        connection.execute(delete(t.feedback).where(t.feedback.c.turn_id.in_(batch)))
        connection.execute(delete(t.turn_documents).where(t.turn_documents.c.turn_id.in_(batch)))
        connection.execute(delete(t.turns).where(t.turns.c.id.in_(batch)))
    return len(ids)


# --- rows ------------------------------------------------------------------------------------------------------------


def _summaries() -> Select[Any]:
    """Of collections that are not being deleted."""
    first = (
        select(t.turns.c.asked)
        .where(t.turns.c.conversation_id == t.conversations.c.id)
        .order_by(t.turns.c.ordinal)
        .limit(1)
        .scalar_subquery()
    )
    count = (
        select(func.count()).where(t.turns.c.conversation_id == t.conversations.c.id).select_from(t.turns)
    ).scalar_subquery()
    return (
        select(t.conversations, t.collections.c.name, first.label("title"), count.label("turns"))
        .join(t.collections, t.collections.c.id == t.conversations.c.collection_id)
        .where(t.collections.c.deleting.is_(False))
    )


def _summary(row: AnyRow) -> Conversation:
    return Conversation(row.id, row.name, row.turns, row.title or "", row.erased, row.created_at, row.updated_at)


def _turn(row: AnyRow) -> Turn:
    return Turn(
        id=row.id,
        asked=row.asked,
        question=row.question,
        answer=row.answer,
        citations=row.citations,
        model=row.model,
        abstained=row.abstained,
        degraded=row.degraded,
        usage=row.usage,
        created_at=row.created_at,
        rating=row.rating,
        comment=row.comment or "",
    )


def recent_questions(connection: Connection, collection_id: int, limit: int) -> list[str]:
    """What was searched for lately in stored conversations, the last first; each once."""
    query = (
        select(t.turns.c.question)
        .join(t.conversations, t.conversations.c.id == t.turns.c.conversation_id)
        .where(t.conversations.c.collection_id == collection_id)
        .order_by(t.turns.c.created_at.desc())
        .limit(4 * limit)
    )
    return list(dict.fromkeys(connection.execute(query).scalars()))[:limit]
