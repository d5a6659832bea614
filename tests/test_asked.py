"""What a question asks for, found however a text writes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.answer.asked import Asked


@pytest.mark.parametrize(
    ("question", "terms"),
    [
        ("What's the owner?", {"owner"}),
        ("How do I delete a document?", {"delet", "document"}),
        ("What is it?", {"it"}),
        ("?", set()),
    ],
)
def test_the_words_of_asking_are_not_asked_for(question: str, terms: set[str]) -> None:
    assert Asked.of(question, "en").terms == terms


@pytest.mark.parametrize(
    ("question", "language", "terms"),
    [
        ("Wann wurde das Haus gebaut?", "de", {"haus", "gebaut"}),
        ("Combien coûte l'entrée ?", "fr", {"cout", "entre"}),
        ("¿Cuándo abre el museo?", "es", {"abre", "muse"}),
        ("Wanneer is het museum open?", "nl", {"museum", "oop"}),
    ],
)
def test_nor_are_those_of_other_languages(question: str, language: str, terms: set[str]) -> None:
    assert Asked.of(question, language).terms == terms


@pytest.mark.parametrize(
    ("question", "language", "text", "found"),
    [
        ("How do I back up a home?", "en", "whimbrel backup writes the home", {"back", "up", "home"}),
        ("How do I restore a backup?", "en", "Back up first, then restore.", {"restor", "backup"}),
        ("How do I restore a backup?", "en", "Go back. Up there it is restored.", {"restor"}),
        ("Is it open-source?", "en", "It is opensource.", {"open", "sourc"}),
        ("Wie lange dauert die Führung?", "de", "Führungen dauern eine Stunde.", {"dauert", "fuhrung"}),
        ("Wo ist das Rathaus?", "de", "Der Rat der Stadt tagt im Haus.", set()),
    ],
)
def test_a_word_is_found_in_another_form(question: str, language: str, text: str, found: set[str]) -> None:
    assert Asked.of(question, language).within(text) == found


@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(["en", "de", "ja", "xx"]))
def test_what_is_found_was_asked_for(question: str, text: str, language: str) -> None:
    asked = Asked.of(question, language)
    assert asked.within(text) <= asked.terms


WORDS = st.lists(
    st.sampled_from(["owner", "backup", "chunk", "whimbrel", "museum", "size", "Postgres", "port"]), min_size=1
)


@given(WORDS, WORDS, st.sampled_from(["en", "de"]))
def test_a_text_that_says_the_question_has_all_of_it(asked: list[str], others: list[str], language: str) -> None:
    question = Asked.of(" ".join(asked), language)
    assert question.within(" ".join([*others, *asked, *others])) == question.terms
