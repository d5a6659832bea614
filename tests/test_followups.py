"""Follow-up questions made to stand alone by rules: what follows up is completed, what stands alone is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.answer.followups import Said, depends, rewrite

CAPITAL = Said("What is the capital of France?", "It is Paris.")
INSTALL = Said("How do I install Whimbrel on Linux?", "Run pip install whimbrel.")
FOUNDER = Said("Who founded Acme?", "Acme was founded by Ann Smith and Joe Doe in 1976.")
TERN = Said("How far does the arctic tern fly?", "The arctic tern flies from pole to pole. [1]")
PLAIN = Said("how do i back up a home", "Run whimbrel backup.")


@pytest.mark.parametrize(
    ("before", "asked", "expected"),
    [
        (CAPITAL, "And Germany?", "What is the capital of Germany?"),
        (CAPITAL, "what about Italy", "What is the capital of Italy?"),
        (CAPITAL, "How many people live there?", "How many people live in France?"),
        (CAPITAL, "How old is it?", "How old is the capital of France?"),
        (CAPITAL, "Why?", "What is the capital of France: Why?"),
        (CAPITAL, "Tell me more.", "What is the capital of France: Tell me more."),
        (INSTALL, "And on Windows?", "How do I install Whimbrel on Windows?"),
        (INSTALL, "with Docker?", "with Docker?"),
        (INSTALL, "and with Docker?", "How do I install Whimbrel on Linux with Docker?"),
        (INSTALL, "Does it need Docker?", "Does Whimbrel need Docker?"),
        (INSTALL, "How do I remove it?", "How do I remove Whimbrel?"),
        (FOUNDER, "When was she born?", "When was Ann Smith born?"),
        (FOUNDER, "Who is her husband?", "Who is Ann Smith's husband?"),
        (FOUNDER, "What is its revenue?", "What is Acme's revenue?"),
        (TERN, "How much does it weigh?", "How much does the arctic tern weigh?"),
        (TERN, "And the kiwi?", "How far does the kiwi fly?"),
        (TERN, "What do its nests look like?", "What do the arctic tern's nests look like?"),
        (TERN, "And in winter?", "How far does the arctic tern fly in winter?"),
        (Said("How far does the tern fly?", "Nobody knows."), "And it?", "How far does the tern fly, it?"),
        (PLAIN, "Is it safe?", "Is it safe (how do i back up a home)?"),
        (PLAIN, "which one is faster?", "which one is faster (how do i back up a home)?"),
        (Said("What was the revenue in 2019?"), "And in 2020?", "What was the revenue in 2020?"),
        (Said("Wer gründete Siemens?"), "Und Bosch?", "Wer gründete Bosch?"),
        (Said("How do I set WHIMBREL_HOME?"), "What does it do?", "What does WHIMBREL_HOME do?"),
    ],
)
def test_a_question_that_follows_up_is_completed(before: Said, asked: str, expected: str) -> None:
    assert rewrite(asked, [Said("What is a view?", "An index."), before]) == expected


def test_what_is_asked_about_is_known_from_turns_before() -> None:
    then = Said("How much does the arctic tern weigh?", "It weighs about 100 grams. [1]")
    assert rewrite("How old does it get?", [TERN, then]) == "How old does the arctic tern get?"
    assert rewrite("And the kiwi?", [TERN, then]) == "How much does the kiwi weigh?"


@pytest.mark.parametrize(
    "asked",
    [
        "What is the largest ocean?",
        "How do I set a password?",
        "what does it mean to be on parole",
        "how long does it take to restore a backup",
        "where do they grow hops in the us",
        "who sings the song it ain't me",
        "how many seasons of the rugrats are there",
        "When does it snow in Denver?",
        "Who wrote Hamlet and when was it first performed?",
        "rotator cuff surgery",
        "",
    ],
)
def test_a_question_that_stands_alone_is_left_alone(asked: str) -> None:
    for before in (CAPITAL, INSTALL, FOUNDER, PLAIN):
        assert rewrite(asked, [before]) == asked
    assert not depends(asked)


def test_without_a_history_nothing_is_changed() -> None:
    assert rewrite("Why?", []) == "Why?"


@pytest.mark.parametrize("name", ["nq_qed_dev", "clapnq_dev", "nfcorpus", "anthropic_docs", "msmarco_dl19_dl20_pool"])
def test_no_real_question_that_stands_alone_is_changed(name: str, data_dir: Path) -> None:
    lines = (data_dir / "ir" / name / "queries.jsonl").read_text().splitlines()
    questions = [json.loads(line)["text"] for line in lines]
    changed = {asked: rewrite(asked, [before]) for asked in questions for before in (CAPITAL, PLAIN)}
    assert {asked: made for asked, made in changed.items() if asked != made} == {}


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_survived_and_a_question_never_vanishes(asked: str, before: str, answer: str) -> None:
    made = rewrite(asked, [Said(before, answer)])
    assert bool(made.strip()) == bool(asked.strip())


def test_a_long_question_takes_no_long_time() -> None:
    for asked in ("it " * 4_000, "who " * 4_000, "and " * 4_000 + "?", "a" * 8_000 + " it", "how much " * 2_000):
        rewrite(asked, [Said("what is the " * 1_000 + "it?", "The Word " * 1_000)])
