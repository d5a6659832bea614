"""Asking: the question of a conversation to its answer, in events or at once. The part of `Whimbrel` that answers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from whimbrel.answer.answerer import Means, Question, answering, outage
from whimbrel.answer.conversation import RECALLED, StandAlone, recent, stand_alone
from whimbrel.catalog import collections, conversations
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.conversations import Turn
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.domain import Answer, AnswerEvent, EmbedKind
from whimbrel.errors import BadQuery, Conflict, ConversationNotFound, MissingExtra, ModelUnusable
from whimbrel.lexicon.language import language_of
from whimbrel.models.generators.base import Generator
from whimbrel.models.generators.providers import Timeouts
from whimbrel.models.generators.resolve import chosen, resolve_generator
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a question is asked."""

    collection: Collection
    conversation_id: str | None
    """`NEW` until its first answer is stored; None outside of a conversation."""
    history: Sequence[Turn]
    language: str
    """What the collection's words are analysed as."""


class Asking:
    """Thread-safe. Its generators' connections belong to the event loop that they were opened on."""

    def __init__(self, catalog: Catalog, engine: SearchEngine, settings: Settings) -> None:
        self._catalog = catalog
        self._engine = engine
        self._settings = settings
        self._generators: dict[str, Generator | None] = {}
        self._lock = threading.Lock()

    def generator(self, model: str | None = None) -> Generator | None:
        """What writes answers: `model`, else the configured one, else that whose key is set; None: quotes only.

        Nothing is connected to. Raises `ConfigError` for a provider that there is not.
        """
        spec = model if model is not None else chosen(self._settings.model, os.environ)
        with self._lock:
            if spec not in self._generators:
                limits = self._settings.models
                timeouts = Timeouts(limits.connect_timeout_s, limits.first_token_timeout_s, limits.token_timeout_s)
                self._generators[spec] = resolve_generator(spec, timeouts)
            return self._generators[spec]

    async def events(self, asked: Asked) -> AsyncGenerator[AnswerEvent]:
        """`Passages`, any number of `TextDelta`s, then the checked `Answer`, stored if in a conversation."""
        generator = self.generator(asked.model)
        if generator is not None and asked.model is not None:
            await generator.prepare()  # a model that was named and cannot be asked is an error, needed or not
        place = await asyncio.to_thread(self._place, asked)
        history = recent(place.history, self._settings.answer.history_tokens)
        alone = await self._alone(asked, history, generator)
        request = replace(asked.request, collection=place.collection.name, query=alone.question)
        found = await self._engine.search(request)
        question = _question(alone, history)
        documents = [hit.document_id for hit in found.hits]
        async with aclosing(answering(question, found, self._means(asked, place, generator))) as events:
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

    async def close(self) -> None:
        """Close the connections that were opened on the running event loop."""
        for generator in self._generators.values():
            if generator is not None:
                await generator.close()

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

    # --- the conversation --------------------------------------------------------------------------------------------

    def _place(self, asked: Asked) -> _Place:
        if asked.conversation_id is not None and "\0" in asked.request.query:
            raise BadQuery("The question holds a NUL, which cannot be stored.", "Leave it out.")
        with self._catalog.read() as connection:
            if asked.conversation_id in (None, NEW):
                collection = collections.find(connection, asked.request.collection)
                return _Place(collection, asked.conversation_id, (), _language(connection, collection))
            conversation = conversations.get(connection, asked.conversation_id)
            if asked.request.collection not in (conversation.collection, "default"):
                raise Conflict(
                    f"The conversation {conversation.id} is about {conversation.collection!r}, not about "
                    f"{asked.request.collection!r}.",
                    "Leave the collection out, or begin another conversation.",
                )
            history = conversations.turns(connection, conversation.id, last=RECALLED)
            collection = collections.find(connection, conversation.collection)
            return _Place(collection, conversation.id, history, _language(connection, collection))

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
        degraded=[outage(alone.error)] if alone.error is not None else [],
        usage={name: count for name, count in counted.items() if count},
        generator_is_out=alone.error is not None,
    )


def _language(connection: Connection, collection: Collection) -> str:
    _, lexicon = collections.live_views(connection, collection)
    return language_of(lexicon.view.uri if lexicon is not None else "", collection.language)
