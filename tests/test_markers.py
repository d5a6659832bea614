"""The `[n]` of an answer, in the forms that models write."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.answer.markers import marked, shielded, written


def rewritten(text: str, passages: int = 3) -> str:
    return written(marked(text, passages)).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sky is blue [1].", "The sky is blue [1]."),
        ("The sky is blue[1]. Grass is green. [2]", "The sky is blue [1]. Grass is green. [2]"),
        ("Both [1, 2]; all [1-3], [1–3]; two [1 and 3].", "Both [1][2]; all [1][2][3], [1][2][3]; two [1][3]."),
        ("Twice [1] [1][2].", "Twice [1][2]."),
        ("So [^1] and [[2]] and 【3†source】 and ［２］.", "So [1] and [2] and [3] and [2]."),
        ("So [Source 1, Source 2] and [passage 3].", "So [1][2] and [3]."),
        ("A link [1](https://example.org/a) too.", "A link [1] too."),
        ("It is blue.¹ ² It is word³ here.", "It is blue. [1][2] It is word [3] here."),
        ("[1] comes first.\n\n- [2] in a list\n", "[1] comes first.\n\n- [2] in a list"),
        ("Run:\n\n```sh\nserve\n```\n[1]", "Run:\n\n```sh\nserve\n```\n[1]"),
        ("Run:\n\n```sh\nserve\n```[2]", "Run:\n\n```sh\nserve\n```\n[2]"),
        ("東京です[1]。人口は多い【2】。", "東京です [1]。人口は多い [2]。"),
    ],
)
def test_every_form_becomes_one(text: str, expected: str) -> None:
    found = marked(text, 3)
    assert written(found).text == expected
    assert found.removed == 0


@pytest.mark.parametrize(
    ("text", "expected", "removed"),
    [
        ("The sky is blue [99].", "The sky is blue.", 1),
        ("The sky [0] is blue.", "The sky is blue.", 1),
        ("[4] The sky is blue [1][7].", "The sky is blue [1].", 2),
        ("All of them [2-5].", "All of them [2][3].", 2),
        ("Nothing【9】 is left [12, 13].", "Nothing is left.", 3),
    ],
)
def test_what_resolves_to_nothing_is_removed_and_counted(text: str, expected: str, removed: int) -> None:
    found = marked(text, 3)
    assert (written(found).text, found.removed) == (expected, removed)


@pytest.mark.parametrize(
    "text",
    [
        "In `rows[1]` and ``a[2]``.",
        "```py\nx = rows[1]\n```",
        "```py\nx = rows[1]",
        "Read rows[0].id and a[1] and some_list[2].",
        "As shown [2019] and [1024].",
        "Values in [0, 1], digits [0-9].",
        "An area of 5 m² and 10² cells, 30 feet².",
        "See [the docs](https://example.org/1) and [x].",
        "The numeral⁹ is no passage.",
    ],
)
def test_what_is_no_marker_stays(text: str) -> None:
    found = marked(text, 3)
    assert (written(found).text, list(found.markers), found.removed) == (text, [], 0)


def test_a_passages_own_footnotes_are_set_apart() -> None:
    assert shielded("It flies far.[3] See [1, 2] and `a[1]`, 【4】.") == "It flies far.(3) See (1, 2) and `a[1]`, (4)."


PIECES = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            ["[1]", "[2, 3]", "[99]", "【1】", "¹", "`", "```\n", "\n", " ", ". ", "[", "]", "[1-9]", "[^2]", "a"]
        ),
    ),
    max_size=25,
).map("".join)


@given(PIECES, st.integers(0, 4))
def test_what_is_written_reads_the_same_again(text: str, passages: int) -> None:
    found = marked(text, passages)
    assert all(1 <= marker.number <= passages for marker in found.markers)
    assert [marker.at for marker in found.markers] == sorted(marker.at for marker in found.markers)
    assert all(0 <= marker.at <= len(found.text) for marker in found.markers)
    made = written(found)
    rest = made.text
    for at, length in made.shifts:
        assert re.fullmatch(r"\s?(?:\[\d\])+ ?", rest[at : at + length])
        rest = rest[:at] + rest[at + length :]
    assert rest == found.text


@given(PIECES)
def test_shielded_text_has_no_marker_in_brackets(text: str) -> None:
    assert marked(shielded(text), 0).removed == 0
