"""An answer as a model wrote it, and what comes of its citations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.answer import check_answer
from whimbrel.answer.checking import Checked
from whimbrel.answer.vectors import Embed, Vectors
from whimbrel.domain import EmbedKind, Hit
from whimbrel.errors import ModelError
from whimbrel.models.embedders.resolve import resolve_embedder

CURLEW = "Rain fell all day. The curlew nests on moors. It lays four eggs in spring, as shown in [3]. Ships sailed by."
WHIMBREL = "The whimbrel flies 6,000 km without landing. It weighs about 400 g. It breeds in the far north."
RECIPE = "Add the salt and stir the soup until it boils."


def hit(text: str, number: int, *, start: int = 100, title: str = "Birds") -> Hit:
    chunk, document = f"chunk-{number}", f"document-{number}"
    return Hit(
        number, 0.5, chunk, document, f"file:///{number}", title, text, start, start + len(text), {}, page=number
    )


PASSAGES = [hit(CURLEW, 1), hit(WHIMBREL, 2, start=0), hit(RECIPE, 3, title="Soup")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embed() -> AsyncIterator[Embed]:
    embedder = resolve_embedder("minilm")
    yield lambda texts: embedder.embed(texts, EmbedKind.DOCUMENT)
    await embedder.close()


async def checked(text: str, embed: Embed | None = None, language: str = "en") -> Checked:
    found = await check_answer(text, PASSAGES, embed=embed, language=language)
    holds(found)
    return found


def holds(found: Checked, passages: Sequence[Hit] = PASSAGES) -> None:
    """What is so of every checked answer."""
    cited = {citation.marker: citation for citation in found.citations}
    for citation in found.citations:
        of = passages[citation.marker - 1]
        assert citation.chunk_id == of.chunk_id
        assert citation.quote == of.text[citation.start - of.start : citation.end - of.start]
        assert of.start <= citation.start <= citation.end <= of.end
    last = 0
    for sentence in found.sentences:
        assert last <= sentence.start < sentence.end <= len(found.text)
        last = sentence.end
        assert [evidence.marker for evidence in sentence.evidence] == list(sentence.markers)
        assert set(sentence.markers) <= set(cited)
        for evidence in sentence.evidence:
            of = passages[evidence.marker - 1]
            assert of.start <= evidence.start <= evidence.end <= of.end
            assert 0 <= evidence.score <= 1
            assert bool(evidence.reason) == (evidence.supported != "yes")
        if not sentence.markers:
            assert sentence.supported == "no"


async def test_a_citation_spans_the_sentences_that_support(embed: Embed) -> None:
    found = await checked("The curlew lays four eggs [1]. The whimbrel flies 6,000 km without landing [2].", embed)
    assert [(citation.quote, citation.supported, citation.page) for citation in found.citations] == [
        ("The curlew nests on moors. It lays four eggs in spring, as shown in [3].", "yes", 1),
        ("The whimbrel flies 6,000 km without landing.", "yes", 2),
    ]
    assert [found.text[s.start : s.end] for s in found.sentences] == [
        "The curlew lays four eggs [1].",
        "The whimbrel flies 6,000 km without landing [2].",
    ]
    assert [sentence.supported for sentence in found.sentences] == ["yes", "yes"]


async def test_a_marker_that_resolves_to_nothing_is_gone_and_counted() -> None:
    found = await checked("The curlew nests on moors [1][99]. It is grey [0].")
    assert found.text == "The curlew nests on moors [1]. It is grey."
    assert found.removed == 2
    assert [sentence.markers for sentence in found.sentences] == [[1], []]


async def test_markers_keep_their_numbers() -> None:
    found = await checked("The whimbrel breeds in the far north [2]. The curlew nests on moors [1].")
    assert [citation.marker for citation in found.citations] == [2, 1]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ("The whimbrel flies 7,000 km without landing [2].", "7,000"),
        ("The whimbrel flies 6,000 miles without landing [2].", "another unit"),
        ("The whimbrel flies 6,000 km with landing [2].", "negated"),
        ("The whimbrel does not breed in the far north [2].", "negated"),
        ("The whimbrel breeds in the far south [2].", "south"),
        ("The curlew lays five eggs in spring [1].", "five"),
    ],
)
@pytest.mark.parametrize("with_vectors", [True, False])
async def test_a_changed_number_or_negation_is_found(claim: str, reason: str, with_vectors: bool, embed: Embed) -> None:
    found = await checked(claim, embed if with_vectors else None)
    assert found.citations[0].supported == "no"
    assert reason in found.sentences[0].evidence[0].reason


async def test_another_passage_does_not_support(embed: Embed) -> None:
    found = await checked("The whimbrel flies 6,000 km without landing [1]. The curlew nests on moors [3].", embed)
    assert [citation.supported for citation in found.citations] == ["no", "no"]


async def test_other_words_for_the_same_are_supported(embed: Embed) -> None:
    found = await checked("Whimbrels fly for 6,000 km and do not land on the way [2].", embed)
    assert found.sentences[0].supported != "no"


async def test_half_of_a_sentence_is_partly() -> None:
    found = await checked("The curlew nests on moors and hunts wild elephants [1].")
    assert found.sentences[0].supported == "partly"


async def test_two_passages_support_a_sentence_together(embed: Embed) -> None:
    found = await checked("Curlews nest on moors and whimbrels weigh about 400 g [1, 2].", embed)
    assert found.text.endswith("[1][2].")
    assert found.sentences[0].supported == "yes"
    assert {citation.supported for citation in found.citations} == {"partly"}


async def test_markers_bear_on_what_they_follow_or_begin() -> None:
    found = await checked(
        "It weighs about 400 g. [2] The curlew nests on moors. [1]\n\n[3] Stir the soup until it boils.\n\n"
        "- [1] The curlew nests on moors.\n- The whimbrel breeds in the far north [2]\n"
    )
    assert [list(sentence.markers) for sentence in found.sentences] == [[2], [1], [3], [1], [2]]
    assert {sentence.supported for sentence in found.sentences} == {"yes"}


async def test_tables_code_and_headings() -> None:
    found = await checked(
        "# Birds [1]\n\n| bird | weight |\n|---|---|\n| whimbrel | about 400 g [2] |\n\n```py\nx = rows[1]\n```\n[3]\n"
    )
    assert "rows[1]" in found.text
    row = next(s for s in found.sentences if "whimbrel" in found.text[s.start : s.end])
    assert (list(row.markers), row.supported) == ([2], "yes")
    code = next(s for s in found.sentences if "rows" in found.text[s.start : s.end])
    assert (list(code.markers), code.supported) == ([3], "no")
    assert {citation.marker for citation in found.citations} == {1, 2, 3}


@pytest.mark.parametrize("text", ["", "[1]", "# Only a title [2]", "[1][2][3]", "Nothing is cited here."])
async def test_odd_answers(text: str) -> None:
    found = await checked(text)
    assert {citation.supported for citation in found.citations} <= {"no"}


async def test_another_language() -> None:
    german = [hit("Der Regenpfeifer brütet im Norden. Er wiegt 400 g und fliegt nicht weit.", 1, title="Vögel")]
    for text, supported in (
        ("Der Regenpfeifer brütet im Norden [1].", "yes"),
        ("Er wiegt 500 g [1].", "no"),
        ("Er wiegt 400 g und fliegt weit [1].", "no"),
    ):
        found = await check_answer(text, german, embed=None, language="de")
        assert [sentence.supported for sentence in found.sentences] == [supported]
    japanese = [hit("東京は日本の首都です。人口は約1400万人です。", 1, title="東京")]
    found = await check_answer("東京は日本の首都です[1]。人口は1500万人です[1]。", japanese, embed=None, language="ja")
    assert [sentence.supported for sentence in found.sentences] == ["yes", "no"]


async def test_an_embedder_that_is_out_leaves_the_words_and_says_so() -> None:
    async def out(texts: Sequence[str]) -> Vectors:
        raise ModelError("breaker open until 12:03:10")

    found = await check_answer("The curlew nests on moors [1].", PASSAGES, embed=out, degraded=["rerank: out"])
    assert found.citations[0].supported == "yes"
    assert found.degraded[0] == "rerank: out"
    assert "breaker open until 12:03:10" in found.degraded[1]


async def test_a_judge_is_heard_but_not_about_numbers(embed: Embed) -> None:
    async def judge(sentence: str, passage: str) -> str:
        assert passage in (CURLEW, WHIMBREL)
        return "No" if "moors" in sentence else "yes"

    text = "The curlew nests on moors [1]. The whimbrel weighs about 900 g [2]. Curlews like cake [1]."
    found = await check_answer(text, PASSAGES, embed=embed, judge=judge)
    holds(found)
    assert [sentence.supported for sentence in found.sentences] == ["no", "partly", "yes"]
    assert [citation.supported for citation in found.citations] == ["partly", "partly"]


async def test_a_judge_that_is_out_is_done_without() -> None:
    async def judge(sentence: str, passage: str) -> str:
        raise ModelError("the model answered 503")

    found = await check_answer("The curlew nests on moors [1].", PASSAGES, embed=None, judge=judge)
    assert found.citations[0].supported == "yes"
    assert "503" in found.degraded[0]


async def test_a_judge_that_babbles_is_not_heard() -> None:
    async def judge(sentence: str, passage: str) -> str:
        return "Well, it depends"

    found = await check_answer("The curlew nests on moors [1].", PASSAGES, embed=None, judge=judge)
    assert found.citations[0].supported == "yes"


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            [
                "The curlew nests on moors",
                "It weighs 400 g",
                ". ",
                "\n",
                "\n\n",
                "- ",
                "# ",
                "```\n",
                "| a |\n",
                "[1]",
                "[2, 3]",
                "[9]",
                "【1】",
                "`",
                "> ",
                "[1-3]",
                "\n[2] ",
            ],
        ),
    ),
    max_size=20,
).map("".join)


@given(TEXTS)
async def test_any_answer_comes_out_whole(text: str) -> None:
    found = await check_answer(text, PASSAGES, embed=None)
    holds(found)


@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
async def test_any_passage_can_be_cited(parts: list[str], text: str) -> None:
    passages = [hit(part, number, start=7) for number, part in enumerate(parts, 1)]

    async def alike(texts: Sequence[str]) -> Vectors:
        vectors = np.random.default_rng(len(texts)).normal(size=(len(texts), 8)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    found = await check_answer(text, passages, embed=alike)
    holds(found, passages)


async def test_what_people_wrote_is_told_from_the_same_beside_another_passage(data_dir: Path, embed: Embed) -> None:
    folder = data_dir / "ir" / "clapnq_dev"
    texts = {
        row["_id"]: row for row in map(json.loads, (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines())
    }
    right = dict(line.split("\t")[:2] for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:])
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    true, swapped = [], []
    for row in [row for row in rows if row["_id"] in right][:40]:
        claim = row["metadata"]["answers"][0].split("\r")[0].split("\n")[0].strip()
        for key, into in ((right[row["_id"]], true), (rows[0]["_id"], swapped)):
            found = texts[key] if key in texts else texts["p300"]
            verdict = await check_answer(f"{claim} [1]", [hit(found["text"], 1, title=found["title"])], embed=embed)
            into += [sentence.supported for sentence in verdict.sentences if sentence.markers]
    assert true.count("yes") >= 0.9 * len(true)
    assert swapped.count("yes") <= 0.05 * len(swapped)
