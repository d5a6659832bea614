"""Asking: the question of a conversation to its answer, in events or at once. The part of `Whimbrel` that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from whimbrel.answer.answerer import Means, Question, answering, outage
from whimbrel.answer.conversation import RECALLED, StandAlone, recent, stand_alone
from whimbrel.answer.remembered import Answers, Remembered, state_of
from whimbrel.catalog import collections, conversations
from whimbrel.catalog.cache import Cache
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.conversations import Turn
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.domain import Answer, AnswerEvent, EmbedKind, Passages
from whimbrel.errors import BadQuery, Conflict, ConversationNotFound, MissingExtra, ModelUnusable
from whimbrel.lexicon.language import language_of
from whimbrel.models.generators.base import Generator
from whimbrel.search.engine import SearchEngine, SearchRequest

NEW = "new"
"""Instead of a conversation's id: begin one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it was asked."""

    request: SearchRequest
    """What to search for; its query is the question as the user wrote it."""
    model: str | None = None
    """A generator to use instead of the configured one, as `provider:model`, or `extractive`."""
    conversation_id: str | None = None
    fresh: bool = False
    """Answer anew, whatever was answered before."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a question is asked."""

    collection: Collection
    conversation_id: str | None
    """`NEW` until its first answer is stored; None outside of a conversation."""
    history: Sequence[Turn]
    language: str
    """What the collection's words are analysed as."""
    state: str
    """Of the collection; see `whimbrel.answer.remembered`."""


class Asking:
    """Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        engine: SearchEngine,
        settings: Settings,
        cache: Cache,
        generator: Callable[[str | None], Generator | None],
    ) -> None:
        """`generator`: what writes answers, by its `provider:model`, or as configured; None for quotes only. Raises
        `ConfigError`."""
        self._catalog = catalog
        self._engine = engine
        self._settings = settings
        self._answers = Answers(cache, settings)
        self._generator = generator

    async def events(self, asked: Asked) -> AsyncGenerator[AnswerEvent]:
        """`Passages`, any number of `TextDelta`s, then the checked `Answer`, stored if in a conversation."""
        generator = self._generator(asked.model)
        if generator is not None and asked.model is not None:
            await generator.prepare()  # a model that was named and cannot be asked is an error, needed or not
        place = await asyncio.to_thread(self._place, asked)
        history = recent(place.history, self._settings.answer.history_tokens)
        alone = await self._alone(asked, history, generator)
        request = replace(asked.request, collection=place.collection.name, query=alone.question)
        key = self._key(request, place, generator) if not history and alone.error is None else None
        known = await self._answers.find(key) if key is not None and not asked.fresh else None
        events: AsyncGenerator[AnswerEvent]
        if known is not None:
            documents = [hit.document_id for hit in known.passages.hits]
            events = _again(known)
        else:
            found = await self._engine.search(request)
            documents = [hit.document_id for hit in found.hits]
            made = answering(_question(alone, history), found, self._means(asked, place, generator))
            events = made if key is None else self._keeping(place, key, made)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Answer) and place.conversation_id is not None:
                    event = await asyncio.to_thread(self._store, place, asked, event, documents)
                yield event

    async def answer(self, asked: Asked) -> Answer:
        async with aclosing(self.events(asked)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise AssertionError("an answer is the last of its events")

    async def _alone(self, asked: Asked, history: Sequence[Turn], generator: Generator | None) -> StandAlone:
        query, most = asked.request.query, self._settings.search.max_query_chars
        if not query.strip() or len(query) > most:  # the search refuses it: no model need read it before
            return StandAlone(query)
        alone = await stand_alone(query, history, generator)
        if asked.model is not None and isinstance(alone.error, ModelUnusable | MissingExtra):
            raise alone.error
        return alone if len(alone.question) <= most else replace(alone, question=query)

    def _means(self, asked: Asked, place: _Place, generator: Generator | None) -> Means:
        async def embed(texts: Sequence[str]) -> Any:
            return await self._engine.embed_texts(place.collection.name, texts, EmbedKind.DOCUMENT)

        async def embed_query(texts: Sequence[str]) -> Any:
            return await self._engine.embed_texts(place.collection.name, texts, EmbedKind.QUERY)

        settings = self._settings.answer
        return Means(
            embed=embed,
            embed_query=embed_query,
            language=place.language,
            generator=generator,
            insists=asked.model is not None,
            abstain=settings.abstain,
            passage_tokens=settings.passage_tokens,
            max_tokens=settings.max_tokens,
            judge=settings.judge,
        )

    # --- answers that were given before ------------------------------------------------------------------------------

    def _key(self, request: SearchRequest, place: _Place, generator: Generator | None) -> bytes | None:
        if not self._answers.on:
            return None
        model = generator.name if generator is not None else "extractive"
        return self._answers.key(request, place.state, model, place.language)

    async def _keeping(
        self, place: _Place, key: bytes, made: AsyncGenerator[AnswerEvent]
    ) -> AsyncGenerator[AnswerEvent]:
        """As `made`; an answer of which nothing was out is kept, if the collection stood still meanwhile."""
        passages: Passages | None = None
        async with aclosing(made):
            async for event in made:
                if isinstance(event, Passages):
                    passages = event
                elif isinstance(event, Answer) and passages is not None and self._answers.may_keep(event):
                    await asyncio.to_thread(self._keep, place, key, passages, event)
                yield event

    def _keep(self, place: _Place, key: bytes, passages: Passages, answer: Answer) -> None:
        with self._catalog.read() as connection:
            collection = collections.by_id(connection, place.collection.id)
            if collection is None or state_of(connection, collection) != place.state:
                return
        self._answers.keep(place.collection, place.state, key, passages, answer)

    # --- the conversation --------------------------------------------------------------------------------------------

    def _place(self, asked: Asked) -> _Place:
        if asked.conversation_id is not None and "\0" in asked.request.query:
            raise BadQuery("The question holds a NUL, which cannot be stored.", "Leave it out.")
        with self._catalog.read() as connection:
            if asked.conversation_id in (None, NEW):
                collection = collections.find(connection, asked.request.collection)
                return _place(connection, collection, asked.conversation_id, ())
            conversation = conversations.get(connection, asked.conversation_id)
            if asked.request.collection not in (conversation.collection, "default"):
                raise Conflict(
                    f"The conversation {conversation.id} is about {conversation.collection!r}, not about "
                    f"{asked.request.collection!r}.",
                    "Leave the collection out, or begin another conversation.",
                )
            history = conversations.turns(connection, conversation.id, last=RECALLED)
            collection = collections.find(connection, conversation.collection)
            return _place(connection, collection, conversation.id, history)

    def _store(self, place: _Place, asked: Asked, answer: Answer, documents: Sequence[str]) -> Answer:
        """The answer with its turn. One whose conversation or whose document went meanwhile is not stored."""
        with self._catalog.write() as connection:
            new = place.conversation_id in (None, NEW)
            key = conversations.create(connection, place.collection.id) if new else str(place.conversation_id)
            try:
                turn = conversations.add_turn(connection, key, asked.request.query, answer, documents)
                complaint = "" if turn is not None else "a document that the answer was made from has been purged"
            except ConversationNotFound as error:
                turn, complaint = None, error.message
        degraded = [f"conversation: the answer was not stored: {complaint}"] if complaint else []
        return replace(answer, conversation_id=key, turn_id=turn, degraded=[*answer.degraded, *degraded])


def _question(alone: StandAlone, history: Sequence[Turn]) -> Question:
    counted = {"input_tokens": alone.input_tokens, "output_tokens": alone.output_tokens}
    return Question(
        alone.question,
        history,
        degraded=[outage(alone.error)] if alone.error is not None else alone.degraded,
        usage={name: count for name, count in counted.items() if count},
        generator_is_out=alone.error is not None,
    )


async def _again(known: Remembered) -> AsyncGenerator[AnswerEvent]:
    yield known.passages
    yield known.answer


def _place(
    connection: Connection, collection: Collection, conversation_id: str | None, history: Sequence[Turn]
) -> _Place:
    language, state = _language(connection, collection), state_of(connection, collection)
    return _Place(collection, conversation_id, history, language, state)


def _language(connection: Connection, collection: Collection) -> str:
    _, lexicon = collections.live_views(connection, collection)
    return language_of(lexicon.view.uri if lexicon is not None else "", collection.language)
