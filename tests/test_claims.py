"""What a claim is held against: numbers, names and negations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.answer.names import missing_names, names, renumbered_names
from whimbrel.answer.numbers import missing_numbers, quantities
from whimbrel.answer.polarity import polarity


def lacking(claim: str, source: str, language: str = "en") -> bool:
    found = missing_numbers(claim, [source], [source], language=language)
    return bool(found.faults or found.doubts)


@pytest.mark.parametrize(
    ("claim", "source"),
    [
        ("1,024 rows", "1024 rows"),
        ("five days", "5 days"),
        ("twenty-five of 206", "25 of two hundred and six"),
        ("1.5 million people", "1,500,000 people"),
        ("three million dollars", "$3,000,000"),
        ("5 %", "5 percent"),
        ("in May 2011", "2011-05-05"),
        ("from 1934 to 1942", "1934-42"),
        ("World War 2", "World War II"),
        ("the 3rd of June", "the third of June"),
        ("about 12 million", "11,983,000"),
        ("5.0 metres", "5 meters"),
        ("one of them", "some of them"),
        ("by BGE-M3", "by a model"),
        ("1) stop 2) go", "stop and go"),
    ],
)
def test_the_same_number_otherwise_written(claim: str, source: str) -> None:
    assert not lacking(claim, source)


@pytest.mark.parametrize(
    ("claim", "source"),
    [
        ("six days", "5 days"),
        ("1,025 rows", "1024 rows"),
        ("1.5 billion people", "1,500,000 people"),
        ("5 minutes", "5 seconds"),
        ("5 percent", "5 dollars"),
        ("in 1991", "in 1990"),
        ("about 13 million", "11,983,000"),
        ("the 4th of June", "the third of June"),
        ("World War II", "World War I"),
    ],
)
def test_another_number(claim: str, source: str) -> None:
    assert lacking(claim, source)


def test_decimal_commas_are_read_by_language() -> None:
    assert not lacking("3,5 km", "3.5 km", "de")
    assert not lacking("1.024 Zeilen", "1024 Zeilen", "de")


def test_a_number_of_another_sentence_does_not_do() -> None:
    part, rest = "The owner renews its lease every 5 seconds.", "A lock is broken after 15 minutes."
    assert missing_numbers("The owner renews its lease every 15 seconds.", [part], [part, rest]).faults
    assert not missing_numbers("A lock is broken after 15 minutes.", [part], [part, rest]).faults


def test_a_count_that_the_source_lists_is_a_doubt() -> None:
    found = missing_numbers(
        "There are three states: on, off and idle.", ["States: on, off, idle."], ["States: on, off."]
    )
    assert (found.faults, len(found.doubts)) == ((), 1) or (list(found.faults), len(found.doubts)) == ([], 1)


@given(st.text(max_size=200))
def test_numbers_of_any_text_are_their_own(text: str) -> None:
    quantities(text)
    assert not missing_numbers(text, [text], [text]).faults


@pytest.mark.parametrize(
    ("claim", "source"),
    [
        ("It does not embed the text.", "It embeds the text."),
        ("It embeds the text.", "It does not embed the text."),
        ("It never embeds the text.", "It embeds the text always."),
        ("The bird flies with landing.", "The bird flies without landing."),
        ("The rate increases with age.", "The rate decreases with age."),
        ("It happened before the war.", "It happened after the war."),
        ("It is impossible to restore it.", "It is possible to restore it."),
        ("Nobody saw the bird.", "Many saw the bird."),
    ],
)
def test_the_opposite_is_a_fault(claim: str, source: str) -> None:
    assert polarity(claim, source, source).fault


@pytest.mark.parametrize(
    ("claim", "source"),
    [
        ("It doesn't embed the text.", "The text is not embedded."),
        ("Not only birds fly.", "Birds fly."),
        ("It opens in May.", "It does not open until May."),
        ("It is not without merit.", "It has merit."),
        ("No. 5 is a perfume.", "The perfume is number 5."),
        ("No, it embeds the text.", "It embeds the text."),
        ("It grows before and after the war.", "It grows after the war and before it."),
    ],
)
def test_what_says_the_same_is_none(claim: str, source: str) -> None:
    assert not polarity(claim, source, source).fault


@pytest.mark.parametrize(
    ("claim", "source", "language"),
    [
        ("Der Dienst startet nicht.", "Der Dienst startet.", "de"),
        ("Le service ne démarre pas.", "Le service démarre.", "fr"),
        ("El servicio nunca arranca.", "El servicio arranca.", "es"),
    ],
)
def test_other_languages_negate_too(claim: str, source: str, language: str) -> None:
    assert polarity(claim, source, source, language=language).fault


def test_a_negation_that_the_source_knows_nothing_of_is_a_doubt() -> None:
    said = "You can sum up papers without reading them."
    found = polarity(said, "It sums up papers.", "It sums up papers.")
    assert (found.fault, bool(found.doubt)) == ("", True)


@given(st.text(max_size=200), st.sampled_from(["en", "de", "fr", "es", "ja"]))
def test_nothing_contradicts_itself(text: str, language: str) -> None:
    assert polarity(text, text, text, language=language) == ("", "")


def test_names_are_capitalised_inside_a_sentence_or_identifiers() -> None:
    assert names("The Nobel Prize went to BGE-M3. Then Barry met foo_bar and WHO.") == [
        "Nobel",
        "Prize",
        "BGE-M3",
        "Barry",
        "foo_bar",
        "WHO",
    ]
    assert names("Der Dienst schreibt in die Datenbank.", language="de") == []


def test_a_name_is_found_in_another_form_or_as_initials() -> None:
    source = "The World Health Organization of Italy praised the nobel prize."
    assert missing_names("The Nobel Prize of the WHO is Italian, said Barry.", source) == ["Barry"]


def test_a_name_with_other_digits_is_another() -> None:
    assert renumbered_names(["GPT-5", "Barry"], "It was made by GPT-4.") == ["GPT-5"]
