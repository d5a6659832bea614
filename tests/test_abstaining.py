"""Knowing when not to answer."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from whimbrel import Whimbrel
from whimbrel.answer import answer_extractively, answerable
from whimbrel.answer.extractive import NOTHING
from whimbrel.answer.vectors import Embed, Vectors
from whimbrel.domain import EmbedKind, Hit
from whimbrel.errors import ModelError
from whimbrel.models.embedders.resolve import resolve_embedder

BIRDS = "The curlew nests on moors. The whimbrel flies 6,000 km without landing.[3] It weighs about 400 g."
SOUP = "Add the salt and stir the soup until it boils."


def hit(text: str, number: int, title: str = "") -> Hit:
    name = f"document-{number}"
    return Hit(number, 0.5, f"chunk-{number}", name, f"file:///{number}", title, text, 0, len(text), {})


HITS = [hit(BIRDS, 1, "Birds"), hit(SOUP, 2, "Soup")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embed() -> AsyncIterator[Embed]:
    embedder = resolve_embedder("minilm")
    yield lambda texts: embedder.embed(texts, EmbedKind.DOCUMENT)
    await embedder.close()


async def test_what_the_hits_say_is_answered(embed: Embed) -> None:
    found = await answerable("How far does the whimbrel fly without landing?", HITS, embed)
    assert found.answers
    assert found.score > 0.7


@pytest.mark.parametrize("question", ["Who wrote Hamlet?", "What is the capital of France?", "فرنسا؟", "?"])
async def test_what_they_do_not_say_is_not(question: str, embed: Embed) -> None:
    found = await answerable(question, HITS, embed)
    assert not found.answers
    assert found.score < 0.3


async def test_the_threshold_is_the_callers(embed: Embed) -> None:
    assert (await answerable("Who wrote Hamlet?", HITS, embed, threshold=0)).answers
    assert not (await answerable("How far does the whimbrel fly without landing?", HITS, embed, threshold=1)).answers


@pytest.mark.parametrize("hits", [[], [hit("---", 1)]])
async def test_where_there_is_nothing_to_say_nothing_is_said(hits: list[Hit], embed: Embed) -> None:
    assert not (await answerable("How far does it fly?", hits, embed, threshold=0)).answers


async def test_a_model_that_is_out_turns_nothing_away() -> None:
    async def out(texts: Sequence[str]) -> Vectors:
        raise ModelError("breaker open until 12:03:10")

    found = await answerable("Who wrote Hamlet?", HITS, out)
    assert found.answers
    assert "breaker open until 12:03:10" in found.degraded[0]


async def test_another_embedders_cosines_are_read_on_their_own_scale(embed: Embed) -> None:
    """As with models to which nothing is unrelated: a cosine of 0.7 is their least."""

    async def narrow(texts: Sequence[str]) -> Vectors:
        vectors = np.asarray(await embed(texts))
        wide = np.hstack([vectors, np.full((len(vectors), 1), 1.5, np.float32)])
        return wide / np.linalg.norm(wide, axis=1, keepdims=True)

    for question in ("How far does the whimbrel fly without landing?", "Who wrote Hamlet?"):
        one, other = await answerable(question, HITS, embed), await answerable(question, HITS, narrow)
        assert other.score == pytest.approx(one.score, abs=0.01)


MUSEUM = [
    hit("Das Museum ist dienstags bis sonntags von 10 bis 17 Uhr geöffnet.", 1, "Heimatmuseum"),
    hit(
        "Das Haus wurde 1782 als Wohnhaus eines Tuchhändlers gebaut. Seit 1931 gehört es der Stadt.", 2, "Heimatmuseum"
    ),
    hit("Der Eintritt kostet 6 Euro, ermäßigt 4 Euro. Kinder zahlen nichts.", 3, "Heimatmuseum"),
]


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("Wann ist das Museum geöffnet?", True),
        ("Wann wurde das Haus gebaut?", True),
        ("Was kostet der Eintritt?", True),
        ("Wer ist der Bürgermeister?", False),
        ("Wann wurde Goethe geboren?", False),
        ("Gibt es eine Garderobe?", False),
    ],
)
async def test_words_of_asking_are_not_missed_in_german(question: str, answers: bool, embed: Embed) -> None:
    assert (await answerable(question, MUSEUM, embed, language="de")).answers is answers


async def test_two_words_for_one_are_found(embed: Embed) -> None:
    backup = [hit("To make a backup of a home, run `whimbrel backup FILE`.", 1, "Commands")]
    assert (await answerable("How do I back up a home?", backup, embed)).answers
    assert not (await answerable("How do I buy a house?", backup, embed)).answers


async def test_an_extractive_answer_is_checked_sentence_by_sentence(embed: Embed) -> None:
    answer = await answer_extractively("How far does the whimbrel fly, and what does it weigh?", HITS, embed)
    assert not answer.abstained
    assert re.findall(r"\[(\d+)\]", answer.answer) == [str(citation.marker) for citation in answer.citations]
    assert answer.sentences
    for sentence in answer.sentences:
        assert sentence.supported == "yes"
        assert answer.answer[sentence.start : sentence.end] in BIRDS.replace("[3]", "")
        assert [evidence.marker for evidence in sentence.evidence] == list(sentence.markers)


async def test_brackets_of_a_document_are_not_taken_for_citations(embed: Embed) -> None:
    text = "The whimbrel flies far [3, 4] over the sea【5】 without landing [^6] in one go [7-9]."
    answer = await answer_extractively(
        "How far does the whimbrel fly over the sea without landing?", [hit(text, 1)], embed
    )
    assert re.findall(r"[\[【][^\]】]*[\]】]", answer.answer) == ["[1]"]
    assert answer.citations[0].quote == text
    assert answer.citations[0].supported == "yes"


async def test_an_abstaining_answer_says_so(embed: Embed) -> None:
    answer = await answer_extractively("Who wrote Hamlet?", HITS, embed)
    assert (answer.answer, answer.abstained) == (NOTHING, True)
    assert not answer.citations
    assert not answer.sentences


def test_the_setting_reaches_the_answer(tmp_path: Path) -> None:
    (tmp_path / "birds.md").write_text(BIRDS, encoding="utf-8")
    for threshold, abstained in ((0.0, False), (0.5, True)):
        with Whimbrel(tmp_path / "home", **{"answer.abstain": threshold}) as whimbrel:
            whimbrel.ingest([tmp_path / "birds.md"])
            answer = whimbrel.ask("Who wrote Hamlet?")
            assert answer.abstained is abstained
            assert bool(answer.citations) is not abstained


async def test_questions_without_an_answer_are_told_from_those_with_one(data_dir: Path, embed: Embed) -> None:
    """Of clapnq_dev: beside the passage on the subject that people looked at, and three others."""
    folder = data_dir / "ir" / "clapnq_dev"

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    texts = {row["_id"]: row for row in rows("corpus.jsonl")}
    right = dict(line.split("\t")[:2] for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:])
    beside = [key for key in texts if key not in set(right.values())]
    answered = [(row["text"], right[row["_id"]]) for row in rows("queries.jsonl") if row["_id"] in right]
    unanswered = [row["text"] for row in rows("queries.jsonl") if row["_id"] not in right]

    async def share(questions: Sequence[tuple[str, str]]) -> float:
        given = 0
        for question, key in questions:
            keys = [key, "p1", "p2", "p3"]
            hits = [hit(texts[k]["text"], n, texts[k]["title"]) for n, k in enumerate(dict.fromkeys(keys), 1)]
            given += (await answerable(question, hits, embed)).answers
        return given / len(questions)

    assert await share(answered[:40]) >= 0.75
    assert await share(list(zip(unanswered, beside, strict=True))[:40]) <= 0.5
