"""One question asked in several ways: by a model or by rules; merged; one that fails does not fail the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import served
from whimbrel import Whimbrel
from whimbrel.domain import EmbedKind, Mode
from whimbrel.errors import BadFilter, BadQuery, ModelDown, ViewError
from whimbrel.models.embedders.base import Embedder
from whimbrel.search.engine import SearchEngine
from whimbrel.search.fusion import Candidate, merge
from whimbrel.search.variants import rules

pytestmark = pytest.mark.timeout(120)

QUESTION = "How do I make a copy of it, and where does the old one go?"
NOTES = [
    "A backup is an archive; `whimbrel backup FILE` writes it.",
    "The previous archive is moved to the folder of retired copies.",
    "The curlew probes the mud of estuaries.",
    "Restore takes an archive and an empty home.",
    "The gannet dives into the sea.",
]
WRITTEN = "1. backup archive\n- retired copies folder\n\nHow do I make a copy of it, and where does the old one go?\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path / "home", model="extractive") as whimbrel:
        whimbrel.add([{"id": f"n{number}", "text": text} for number, text in enumerate(NOTES)])
        yield whimbrel


def test_rules_give_keywords_a_heading_the_parts_and_the_names() -> None:
    found = rules("How do I back up the catalog to S3, and what does `max_body_bytes` limit?", 8, "en")
    assert found[0] == "back up catalog S3 max_body_bytes limit"
    assert found[1].startswith("back up the catalog to S3")
    assert "How do I back up the catalog to S3" in found
    assert found[-1] == "S3 max_body_bytes"
    assert rules("Wie lange dauert die Reise?", 2, "de")[0] == "lange dauert Reise"
    assert rules("curlew", 5, "en") == []


@given(st.text(max_size=200), st.integers(1, 7), st.sampled_from(["en", "de", "ru+en", "ja"]))
def test_rules_take_any_question(question: str, count: int, language: str) -> None:
    found = rules(question, count, language)
    assert len(found) <= count
    assert len({one.casefold() for one in found}) == len(found)
    assert all(one.strip() for one in found)


def test_of_several_rankings_each_chunk_has_its_best_score() -> None:
    first, second = [Candidate("a", 0.9), Candidate("b", 0.2)], [Candidate("b", 0.9), Candidate("c", 0.5)]
    assert merge([first, second]) == [Candidate("a", 0.9), Candidate("b", 0.9), Candidate("c", 0.5)]
    assert merge([]) == []


def test_a_models_queries_find_what_the_questions_words_do_not(
    tmp_path: Path, home: Whimbrel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served("openai", WRITTEN) as model:
        for name, value in model.environment.items():
            monkeypatch.setenv(name, value)
        home.close()
        with Whimbrel(home=tmp_path / "home", model=model.spec) as whimbrel:
            one = whimbrel.search(QUESTION, mode=Mode.LEXICAL)
            several = whimbrel.search(QUESTION, mode=Mode.LEXICAL, queries=3)
            alone = whimbrel.search("backup archive", mode=Mode.LEXICAL)
    assert len(model.asked) == 1
    assert "<question>" in model.asked[0][1]
    assert several.degraded == []
    assert "variants" in several.timings_ms
    assert "text:n0" not in {hit.uri for hit in one.hits}
    scores = {hit.uri: hit.score for hit in several.hits}
    assert scores["text:n0"] == next(hit.score for hit in alone.hits if hit.uri == "text:n0")
    assert "text:n1" in scores
    assert all(scores[hit.uri] >= hit.score for hit in one.hits)


@pytest.mark.parametrize("behaviour", ["overloaded", "malformed", "empty", "cut"])
def test_a_model_that_is_out_leaves_it_to_the_rules(
    tmp_path: Path, home: Whimbrel, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    by_rules = home.search(QUESTION, queries=3)
    home.close()
    assert by_rules.degraded == []
    with served("openai", WRITTEN) as model:
        for name, value in model.environment.items():
            monkeypatch.setenv(name, value)
        model.behaviour = behaviour
        with Whimbrel(home=tmp_path / "home", model=model.spec) as whimbrel:
            found = whimbrel.search(QUESTION, queries=3)
    assert [hit.uri for hit in found.hits] == [hit.uri for hit in by_rules.hits]
    assert len(found.degraded) == 1
    assert found.degraded[0].startswith("variants: ")


def test_a_slow_model_has_the_time_of_a_search(tmp_path: Path, home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    home.close()
    with served("openai", WRITTEN) as model:
        for name, value in model.environment.items():
            monkeypatch.setenv(name, value)
        model.behaviour = "slow"
        with Whimbrel(home=tmp_path / "home", model=model.spec, **{"search.timeout_s": 2.0}) as whimbrel:
            found = whimbrel.search(QUESTION, queries=2)
    assert found.hits
    assert "had not answered after 2 s" in found.degraded[0]


class Failing(Embedder):
    """The home's own, which fails for queries that hold a word."""

    def __init__(self, inner: Embedder, word: str) -> None:
        self._inner, self._word = inner, word

    space = property(lambda self: self._inner.space)  # type: ignore[assignment]
    tokenizer = property(lambda self: self._inner.tokenizer)  # type: ignore[assignment]

    def count_tokens(self, text: str) -> int:
        return self._inner.count_tokens(text)

    async def embed(self, texts, kind: EmbedKind):  # type: ignore[no-untyped-def]
        if any(self._word in text for text in texts):
            raise ModelDown("It is out.")
        return await self._inner.embed(texts, kind)


def failing(home: Whimbrel, word: str) -> SearchEngine:
    engine = home.engine
    engine._embedder_for = lambda space: Failing(home.embedder_for(space), word)
    engine._embedders.clear()
    return engine


def test_one_query_that_fails_does_not_fail_the_others(home: Whimbrel) -> None:
    every = home.search("Where is the backup archive?", mode=Mode.DENSE, queries=3)
    assert len(every.hits) == len(NOTES)
    failing(home, "Where")  # the question itself and one other
    found = home.search("Where is the backup archive?", mode=Mode.DENSE, queries=3)
    assert found.hits
    assert any("It is out" in said for said in found.degraded)
    failing(home, "archive")  # all of them
    with pytest.raises((ModelDown, ViewError)):
        home.search("Where is the backup archive?", mode=Mode.DENSE, queries=3)


def test_a_wrong_request_is_refused_whatever_the_others_say(home: Whimbrel) -> None:
    with pytest.raises(BadFilter):
        home.search(QUESTION, queries=3, filter={"a": {"$near": 1}})
    for count in (0, 9):
        with pytest.raises(BadQuery, match="queries"):
            home.search(QUESTION, queries=count)


def test_the_setting_holds_where_a_request_does_not_say(tmp_path: Path, home: Whimbrel) -> None:
    assert "variants" not in home.search(QUESTION).timings_ms
    home.close()
    with Whimbrel(home=tmp_path / "home", model="extractive", **{"search.queries": 3}) as whimbrel:
        assert "variants" in whimbrel.search(QUESTION).timings_ms
        assert "variants" not in whimbrel.search(QUESTION, queries=1).timings_ms
        assert whimbrel.ask(QUESTION, queries=2).degraded == []
