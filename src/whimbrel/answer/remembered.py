"""Whole answers, given again while nothing that they were made from has changed.

An answer is found by all that made it: the question, what was asked for with it, the model, the prompt, the settings,
and the state of the collection, which no two states share: its epoch, the end of its log, its live views and their
positions. So a collection that has changed by one word answers anew. Only whole answers are kept: none of which a part
was out, none of a conversation that had something before it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache as once
from typing import Any

from sqlalchemy import Connection

from whimbrel import __version__
from whimbrel.answer.prompt import answer_prompt, judge_prompt
from whimbrel.catalog import collections
from whimbrel.catalog.cache import Cache, Kind, key_of
from whimbrel.catalog.collections import Collection
from whimbrel.config import Settings
from whimbrel.domain import Answer, CheckedSentence, Citation, Evidence, Hit, Passages
from whimbrel.search.engine import SearchRequest

_LASTING = ("`answer.passage_tokens`", "`answer.max_tokens`", "answer: the question seems to be in ")
"""In what `degraded` says of the question and the settings: the next answer would say it too."""


@dataclass(frozen=True, slots=True)
class Remembered:
    passages: Passages
    answer: Answer


class Answers:
    """Thread-safe."""

    def __init__(self, cache: Cache, settings: Settings) -> None:
        self._cache = cache
        chosen = {name: getattr(settings, name).model_dump() for name in ("answer", "search", "rerank")}
        self._made_by = json.dumps([__version__, settings.reranker, chosen], sort_keys=True, default=str)

    @property
    def on(self) -> bool:
        return self._cache.keeps(Kind.ANSWERS)

    def key(self, request: SearchRequest, state: str, model: str, language: str) -> bytes:
        """`state`: of the collection, by `state_of`."""
        asked = asdict(request) | {"min_position": 0, "mode": request.mode.value}
        said = json.dumps(asked, sort_keys=True, default=repr)
        return key_of(said, state, model, language, prompt_version(), self._made_by)

    async def find(self, key: bytes) -> Remembered | None:
        found = (await self._cache.find(Kind.ANSWERS, [key])).get(key)
        return _read(found) if found is not None else None

    def may_keep(self, answer: Answer) -> bool:
        """Whether nothing was out: the next answer could be better otherwise."""
        return all(any(part in said for part in _LASTING) for said in answer.degraded)

    def keep(self, collection: Collection, state: str, key: bytes, passages: Passages, answer: Answer) -> None:
        """Those of earlier states go, as nobody finds them any more."""
        self._cache.keep_of(collection.id, state, Kind.ANSWERS, key, _written(passages, answer))


def state_of(connection: Connection, collection: Collection) -> str:
    """What a collection's searches read, in one text that no other state has. `collection`: read by `connection`."""
    views = [
        [row.id, row.view.epoch, row.view.position, row.view.state.value] if row is not None else None
        for row in collections.live_views(connection, collection)
    ]
    return json.dumps([collection.id, collection.epoch, collection.head, collection.language, views])


@once
def prompt_version() -> str:
    """Changes with what a model is told."""
    hit = Hit(1, 0.5, "c", "d", "u", "t", "x", 0, 1, {}, 1)
    prompts = [answer_prompt("q", [hit], (), max_tokens=1), judge_prompt("s", "p")]
    return key_of(*(part for prompt in prompts for part in (prompt.instructions, prompt.input))).hex()


def _written(passages: Passages, answer: Answer) -> bytes:
    said = {"passages": asdict(passages), "answer": asdict(answer)}
    return zlib.compress(json.dumps(said, default=str).encode(), 1)


def _read(data: bytes) -> Remembered | None:
    """None for what another version has written."""
    try:
        said = json.loads(zlib.decompress(data))
        hits = [Hit(**hit) for hit in said["passages"].pop("hits")]
        return Remembered(Passages(hits, **said["passages"]), _answer(said["answer"]))
    except (zlib.error, ValueError, KeyError, TypeError):
        return None


def _answer(said: Mapping[str, Any]) -> Answer:
    citations = [Citation(**one) for one in said["citations"]]
    sentences = [
        CheckedSentence(**{**one, "evidence": [Evidence(**each) for each in one["evidence"]]})
        for one in said["sentences"]
    ]
    return Answer(**{**said, "citations": citations, "sentences": sentences, "usage": {"cached": True}})
