"""Knowing when not to answer: right abstentions against false refusals, through the product as it comes.

In clapnq_dev half of the questions have no answer in the corpus. In the other collections a question is asked twice:
as it is, and with the documents that answer taken from its hits. Last come short questions to our own documentation.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.beir import Collection, ingest, read
from bench.docs_questions import ANSWERED, UNANSWERED
from bench.figures import Figure, clock, note
from whimbrel import Whimbrel
from whimbrel.answer.abstaining import ABSTAIN, answerable
from whimbrel.domain import EmbedKind, Hit

DOCS = Path(__file__).parent.parent / "docs"
PASSAGES = 8
NAMES = ("clapnq_dev", "nq_qed_dev", "anthropic_docs")
SHARES = (0.02, 0.05, 0.10, 0.15, 0.20, 0.30)
"""Of false refusals; the curve's points."""


def run(folder: Path, *, quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    for name in NAMES[:1] if quick else NAMES:
        collection = read(name)
        if collection is None:
            note(f"{name}: WHIMBREL_TEST_DATA has no such collection; left out")
            continue
        place = folder / f"abstention-{name}"
        shutil.rmtree(place, ignore_errors=True)
        with Whimbrel(place / "home") as whimbrel:
            names = ingest(collection, place / "sources", whimbrel)
            with clock() as seconds:
                right, wrong = asyncio.run(_scores(whimbrel, collection, names, 100 if quick else 500))
            each = 1000 * seconds() / (len(right) + len(wrong))
            note(f"{name}: {len(right)} answerable, {len(wrong)} not; {each:.0f} ms each, with the search")
        shutil.rmtree(place)
        figures += _figures(name, right, wrong)
    return [*figures, *_own_docs(folder / "abstention-docs")]


def _own_docs(place: Path) -> list[Figure]:
    shutil.rmtree(place, ignore_errors=True)
    with Whimbrel(place) as whimbrel:
        whimbrel.ingest([DOCS])
        right, wrong = asyncio.run(_asked(whimbrel, ANSWERED)), asyncio.run(_asked(whimbrel, UNANSWERED))
    shutil.rmtree(place)
    return _figures("our documentation", right, wrong)


async def _asked(whimbrel: Whimbrel, questions: Sequence[str]) -> list[float]:
    found = [(question, await whimbrel.asearch(question, top_k=PASSAGES)) for question in questions]
    return [await _score(whimbrel, question, result.hits) for question, result in found]


async def _scores(
    whimbrel: Whimbrel, collection: Collection, names: dict[str, str], most: int
) -> tuple[list[float], list[float]]:
    """Scores of questions with, and without, an answer among the hits."""
    right, wrong = [], []
    for key, question in _some(collection, most):
        answering = collection.right.get(key, set())
        found = (await whimbrel.asearch(question, top_k=5 * PASSAGES)).hits
        score = await _score(whimbrel, question, found[:PASSAGES])
        (right if answering else wrong).append(score)
        if answering and collection.name != "clapnq_dev":
            others = [hit for hit in found if names[hit.uri.rpartition("/")[2]] not in answering]
            wrong.append(await _score(whimbrel, question, others[:PASSAGES]))
    return right, wrong


def _some(collection: Collection, most: int) -> list[tuple[str, str]]:
    questions = sorted(collection.questions.items(), key=lambda item: item[0] in collection.right)
    return questions[:most] + questions[-most:] if len(questions) > 2 * most else questions


async def _score(whimbrel: Whimbrel, question: str, hits: Sequence[Hit]) -> float:
    async def embed(texts: Sequence[str]) -> np.ndarray:
        return await whimbrel.engine.embed_texts("default", texts, EmbedKind.DOCUMENT)

    async def embed_query(texts: Sequence[str]) -> np.ndarray:
        return await whimbrel.engine.embed_texts("default", texts, EmbedKind.QUERY)

    return (await answerable(question, hits, embed, embed_query)).score


def _figures(name: str, right: Sequence[float], wrong: Sequence[float]) -> list[Figure]:
    yes, no = np.array(right), np.array(wrong)
    for share in SHARES:
        at = float(np.quantile(yes, share))
        note(f"{name}: {share:.0%} false refusals, {float((no < at).mean()):.1%} right abstentions, at {at:.2f}")
    note(f"{name}: area under the curve {float((yes[:, None] > no[None]).mean()):.3f}")
    targets = (">= 0.6", "<= 0.15") if name == "clapnq_dev" else ("", "")
    return [
        Figure(f"right abstentions, {name}", float((no < ABSTAIN).mean()), "", target=targets[0]).show(),
        Figure(f"false refusals, {name}", float((yes < ABSTAIN).mean()), "", target=targets[1]).show(),
    ]
