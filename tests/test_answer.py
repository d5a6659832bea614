"""Answers in the documents' own sentences, and the check of citations."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import example, given
from hypothesis import strategies as st

from whimbrel.answer import Support, answer_extractively
from whimbrel.answer.citations import Passage, judged, measure
from whimbrel.answer.extractive import NOTHING
from whimbrel.answer.relevance import MOST_EMBEDDED
from whimbrel.answer.sentences import LONGEST, plain, sentences
from whimbrel.answer.vectors import Embed, Vectors
from whimbrel.domain import Answer, EmbedKind, Hit
from whimbrel.errors import ModelError
from whimbrel.ingest.blocks import Kind
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.resolve import resolve_embedder

DOCS = Path(__file__).parent.parent / "docs"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder() -> AsyncIterator[Embedder]:
    made = resolve_embedder("minilm")
    yield made
    await made.close()


@pytest.fixture
def embed(embedder: Embedder) -> Embed:
    return lambda texts: embedder.embed(texts, EmbedKind.DOCUMENT)


def hit(text: str, *, rank: int = 1, start: int = 0, document: str = "doc", title: str = "", score: float = 0.5) -> Hit:
    chunk = f"{document}-{start}"
    return Hit(
        rank, score, chunk, document, f"file:///{document}", title, text, start, start + len(text), {}, page=rank
    )


def quoted(answer: Answer) -> list[str]:
    return [citation.quote for citation in answer.citations]


# --- sentences -------------------------------------------------------------------------------------------------------


def found(text: str) -> list[str]:
    return [text[s.start : s.end] for s in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid 3.50, e.g. for No. 5. He left.", ["Dr. Smith paid 3.50, e.g. for No. 5.", "He left."]),
        ("J. R. R. Tolkien wrote. The U.S. It ends.", ["J. R. R. Tolkien wrote.", "The U.S.", "It ends."]),
        ('"Why?" he asked. Yahoo! is old... or not.', ['"Why?" he asked.', "Yahoo! is old... or not."]),
        ("A frame (a relic)\nof wood. Next.[2] Last", ["A frame (a relic)\nof wood.", "Next.[2]", "Last"]),
        ("東京です。人口は？「多い。」", ["東京です。", "人口は？", "「多い。」"]),
        ("# Heading\n\n- [ ] one\n1. two. Three\n", ["one", "two.", "Three"]),
        ("> Quoted.\n> More.\n>\n> - item\n", ["Quoted.", "More.", "item"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n", ["a | b", "1 | 2"]),
        ("---\ntitle: x\n---\n\nText.\n\n---\n\n![](a.png)\n", ["Text."]),
        ("", []),
    ],
)
def test_sentences_are_what_a_reader_would_say(text: str, expected: list[str]) -> None:
    assert found(text) == expected


def test_code_is_no_sentence_but_is_there_to_follow_one() -> None:
    kinds = [s.kind for s in sentences("Run:\n\n```sh\nserve. Now.\n```\n")]
    assert kinds == [Kind.TEXT, Kind.CODE]


def test_a_sentence_to_read_has_no_markup_and_no_number_that_would_cite() -> None:
    assert plain("**Bold** and *it*, see [the docs](http://x.y/a_(b)) `a_b_c`\n  wrapped [3]\\[4\\].") == (
        "Bold and it, see the docs `a_b_c` wrapped."
    )
    assert plain("The states:\n\n- one\n- two\n") == "The states: one; two"


MARKDOWN = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.sampled_from(
            [
                "# ",
                "\n",
                "\n\n",
                "- ",
                "1. ",
                "> ",
                "```\n",
                "| ",
                "|---|\n",
                ". ",
                "? ",
                "。",
                "e.g. ",
                "It ",
                "**",
                "`",
                "[1]",
                "---\n",
            ]
        ),
        st.text("ab ", min_size=LONGEST, max_size=LONGEST + 50),
    ),
    max_size=40,
).map("".join)


@given(MARKDOWN)
def test_sentences_of_any_text_are_in_it_apart_and_not_empty(text: str) -> None:
    last = 0
    for sentence in sentences(text):
        assert last <= sentence.start < sentence.end <= len(text)
        last = sentence.end
        quote = text[sentence.start : sentence.end]
        assert any(char.isalnum() for char in quote)
        if sentence.kind is not Kind.CODE:
            assert quote == quote.strip()
            assert len(quote) <= LONGEST
        plain(quote)


# --- the check -------------------------------------------------------------------------------------------------------


def supported(sentence: str, quote: str) -> Support:
    """By words, numbers, names and negation alone."""
    return judged(measure(plain(sentence), Passage.of(quote), None)).supported


QUOTE = "The owner renews its lease every 5 seconds. A view that lags cannot bring back what is gone."


@pytest.mark.parametrize(
    ("sentence", "support"),
    [
        ("The owner renews its lease every five seconds.", "yes"),
        ("The owner renews its lease every six seconds.", "no"),
        ("The owner renews its lease every 5 seconds.", "yes"),
        ("The owner renewed the lease each 5 seconds", "yes"),
        ("The owner renews its lease every 15 seconds.", "no"),
        ("The owner does not renew its lease every 5 seconds.", "no"),
        ("A lagging view cannot bring back what is gone.", "yes"),
        ("A lagging view can bring back what is gone.", "no"),
        ("The owner renews its lease and embeds all documents.", "partly"),
        ("Chroma stores vectors in SQLite.", "no"),
    ],
)
def test_a_claim_is_supported_by_words_numbers_and_negation(sentence: str, support: str) -> None:
    assert supported(sentence, QUOTE) == support


def test_numbers_agree_however_they_are_written() -> None:
    assert supported("It has 1024 rows in 3 tables.", "It has 1,024 rows in three tables.") == "yes"


@given(MARKDOWN)
@example("|# 0")
def test_every_sentence_supports_itself(text: str) -> None:
    for sentence in sentences(text)[:5]:
        quote = text[sentence.start : sentence.end]
        if plain(quote) and sentences(quote):  # a cell of a table may be a heading where it stands alone
            assert supported(plain(quote), quote) == "yes"


# --- answers ---------------------------------------------------------------------------------------------------------


def paragraphs(path: Path) -> list[tuple[int, str]]:
    """Chunks as a chunker would make them: whole paragraphs, up to 900 characters."""
    text = path.read_text(encoding="utf-8")
    return [(m.start(), m.group()) for m in re.finditer(r"(?:[^\n]+\n){1,14}\n?", text)]


async def searched(question: str, embedder: Embedder) -> list[Hit]:
    """The eight nearest chunks of the project's own documentation."""
    chunks = [(path, start, text) for path in sorted(DOCS.glob("*.md")) for start, text in paragraphs(path)]
    if not hasattr(searched, "vectors"):
        searched.vectors = await embedder.embed([text for *_, text in chunks], EmbedKind.QUERY)  # type: ignore[attr-defined]
    scores = searched.vectors @ (await embedder.embed([question], EmbedKind.QUERY))[0]  # type: ignore[attr-defined]
    best = np.argsort(-scores)[:8]
    return [
        hit(text, rank=rank, start=start, document=path.name, title=path.stem, score=max(float(scores[i]), 0.0))
        for rank, i in enumerate(best, 1)
        for path, start, text in [chunks[i]]
    ]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("What is a view?", "A view is one index that follows one collection."),
        ("What happens when a database is down?", "lag"),
        ("How do I remove a document's bytes for good?", "purge"),
        ("What states can a job have?", "`queued`"),
        ("Is a generating model needed?", "No generating model is needed"),
    ],
)
async def test_a_question_about_the_documentation_is_answered_from_it(
    question: str, says: str, embedder: Embedder, embed: Embed
) -> None:
    answer = await answer_extractively(question, await searched(question, embedder), embed)
    assert says in answer.answer
    assert answer.model == "extractive"
    assert [citation.marker for citation in answer.citations] == list(range(1, len(answer.citations) + 1))
    assert re.findall(r"\[(\d+)\]", answer.answer) == [str(citation.marker) for citation in answer.citations]
    for citation in answer.citations:
        text = (DOCS / citation.document_id).read_text(encoding="utf-8")
        assert text[citation.start : citation.end] == citation.quote
        assert citation.supported == "yes"
    assert 0 < answer.usage["sentences_embedded"] <= MOST_EMBEDDED


@pytest.mark.parametrize(
    "question", ["What is the capital of France?", "who won the world cup in 1998", "How do I bake sourdough bread?"]
)
async def test_what_the_collection_does_not_hold_is_not_answered(
    question: str, embedder: Embedder, embed: Embed
) -> None:
    answer = await answer_extractively(question, await searched(question, embedder), embed, degraded=["rerank: out"])
    assert answer.answer == NOTHING
    assert not answer.citations
    assert list(answer.degraded) == ["rerank: out"]


async def test_no_hits_is_an_honest_answer_too(embed: Embed) -> None:
    answer = await answer_extractively("What is a view?", [], embed)
    assert (answer.answer, list(answer.citations)) == (NOTHING, [])


async def test_a_pronoun_brings_the_sentence_it_points_at(embed: Embed) -> None:
    text = "Rain fell all day. The curlew nests on moors. It lays four eggs in spring. Ships sailed by.\n"
    answer = await answer_extractively("How many eggs does it lay in spring?", [hit(text, start=100)], embed)
    assert quoted(answer)[0] == "The curlew nests on moors. It lays four eggs in spring."
    assert answer.citations[0].start == 100 + text.index("The curlew")
    assert answer.citations[0].page == 1


async def test_a_lead_in_brings_its_list_or_its_code(embed: Embed) -> None:
    text = "To start the server on your machine, run:\n\n```sh\nwhimbrel serve\n```\n\nOther things follow.\n"
    answer = await answer_extractively("How do I start the server on my machine?", [hit(text)], embed)
    assert answer.answer.startswith("To start the server on your machine, run:\n```sh\nwhimbrel serve\n```\n[1]")


async def test_a_question_among_the_documents_brings_its_answer(embed: Embed) -> None:
    text = "Can I get a refund? Write to the desk within 30 days.\n"
    answer = await answer_extractively("Can I get a refund?", [hit(text)], embed)
    assert answer.answer == "Can I get a refund? Write to the desk within 30 days. [1]"


async def test_the_same_sentence_is_said_once(embed: Embed) -> None:
    text = "The bird flies thousands of kilometres without landing."
    hits = [
        hit(text, document="a", title="Birds"),
        hit(text, document="b", title="Far and wide", rank=2),
        hit(text[4:], document="a", start=4, rank=3),
    ]
    answer = await answer_extractively("How far does the bird fly without landing?", hits, embed)
    assert quoted(answer) == [text]


async def test_sentences_of_one_document_stay_together_in_its_order(embed: Embed) -> None:
    first = "Backups of the home are made with the backup command."
    second = "Backups of the home are restored with the restore command."
    between = "Backups of a home need disk space and time."
    hits = [hit(second, document="a", start=500), hit(between, document="b", rank=2), hit(first, document="a", rank=3)]
    answer = await answer_extractively("How are backups of the home restored?", hits, embed)
    a = [citation.start for citation in answer.citations if citation.document_id == "a"]
    assert a == sorted(a)
    assert answer.citations[0].document_id == "a"
    documents = [citation.document_id for citation in answer.citations]
    assert documents == sorted(documents)


async def test_without_the_model_words_decide_and_the_answer_says_so() -> None:
    async def out(texts: Sequence[str]) -> Vectors:
        raise ModelError("breaker open until 12:03:10")

    text = "The curlew nests on moors. The whimbrel crosses the ocean without landing."
    answer = await answer_extractively("Which bird crosses the ocean without landing?", [hit(text)], out)
    assert "The whimbrel crosses the ocean without landing." in quoted(answer)
    assert any("breaker open until 12:03:10" in part for part in answer.degraded)
    assert answer.usage["sentences_embedded"] == 0


async def test_a_sentence_that_the_model_refuses_does_not_lose_the_others(embed: Embed) -> None:
    refused = "鳥" * 500 + "。"
    text = f"The whimbrel crosses the ocean without landing.\n\n{refused}\n"
    answer = await answer_extractively("Which bird crosses the ocean without landing?", [hit(text)], embed)
    assert quoted(answer) == ["The whimbrel crosses the ocean without landing."]
    assert not answer.degraded


@given(st.lists(st.tuples(MARKDOWN, st.integers(0, 10**6)), max_size=4), st.integers(1, 4))
async def test_any_document_is_quoted_exactly(parts: list[tuple[str, int]], most: int) -> None:
    async def alike(texts: Sequence[str]) -> Vectors:
        vectors = np.random.default_rng(len(texts)).normal(size=(len(texts), 8)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    hits = [hit(text, start=start, document=str(i), rank=i + 1) for i, (text, start) in enumerate(parts)]
    answer = await answer_extractively("a b", hits, alike, max_sentences=most, abstain=0)
    assert len(answer.citations) <= most
    for citation in answer.citations:
        of = hits[int(citation.document_id)]
        assert of.start <= citation.start < citation.end <= of.end
        assert citation.quote == of.text[citation.start - of.start : citation.end - of.start]


async def test_questions_that_people_asked_are_answered_and_strange_ones_refused(
    data_dir: Path, embedder: Embedder, embed: Embed
) -> None:
    def read(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (data_dir / "ir" / name).read_text(encoding="utf-8").splitlines()[:40]]

    passages = [
        hit(row["text"], document=row["_id"], title=row["title"], rank=i + 1)
        for i, row in enumerate(read("nq_qed_dev/corpus.jsonl"))
    ]
    answered = silent = refused = 0
    for i, row in enumerate(read("nq_qed_dev/queries.jsonl")):
        others = [passages[(i + shift) % 40] for shift in range(1, 8)]
        answer = await answer_extractively(row["text"], [passages[i], *others], embed)
        answered += passages[i].document_id in {citation.document_id for citation in answer.citations}
        silent += answer.abstained
        refused += (await answer_extractively(row["text"], others, embed)).abstained
    assert silent <= 8
    assert answered >= 0.95 * (40 - silent)
    assert refused >= 36
