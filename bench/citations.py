"""The check of citations: true ones against the same with a near neighbour of their passage, and changed sentences.

The claims are sentences that people wrote (clapnq_dev, anthropic_docs), questions with their answers (nq_qed_dev), and
sentences as they stand in a document (chunking_evaluation). The neighbour is the nearest other passage by embedding, of
the same document where there is one.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.beir import Collection, read
from bench.changed import negations_changed, numbers_changed
from bench.figures import Figure, clock, median, note
from whimbrel.answer.checking import check_answer
from whimbrel.answer.citations import Passage, measure
from whimbrel.answer.sentences import plain, sentences
from whimbrel.answer.vectors import Embed
from whimbrel.domain import EmbedKind, Hit
from whimbrel.models.embedders.resolve import resolve_embedder

NAMES = ("clapnq_dev", "nq_qed_dev", "anthropic_docs", "chunking_evaluation")
FITTED_ON = ("clapnq_dev", "nq_qed_dev")
PIECE = 900
"""Characters that a long document is cut into."""


@dataclass(frozen=True, slots=True)
class Pair:
    claim: str
    true: Sequence[Hit]
    swapped: Sequence[Hit]


def run(folder: Path, *, quick: bool) -> list[Figure]:
    return asyncio.run(_run(most=100 if quick else 400))


async def _run(most: int) -> list[Figure]:
    embedder = resolve_embedder("minilm")

    async def embed(texts: Sequence[str]) -> np.ndarray:
        return await embedder.embed(texts, EmbedKind.QUERY)

    figures: list[Figure] = []
    kept: list[Pair] = []
    for name in NAMES:
        collection = read(name)
        if collection is None:
            note(f"{name}: WHIMBREL_TEST_DATA has no such collection; left out")
            continue
        pairs = await _pairs(collection, most, embed)
        figures += await _swapped(name, pairs, embed)
        kept += pairs if name in ("clapnq_dev", "anthropic_docs") else []
    if kept:
        reworded = [pair for pair in kept if _pairs_kept(pair) < 0.5]
        figures += await _swapped("reworded: under half of their word pairs are in the passage", reworded, embed)
        figures += await _changed(kept, embed)
        figures.append(await _speed(kept, embed))
    await embedder.close()
    return figures


# --- claims ----------------------------------------------------------------------------------------------------------


async def _pairs(collection: Collection, most: int, embed: Embed) -> list[Pair]:
    passages = _pieces(collection) if collection.name == "chunking_evaluation" else _whole(collection)
    ids = list(passages)
    vectors = await embed([f"{hit.title}\n{hit.text}"[:1200] for hit in passages.values()])
    pairs = []
    for claim, right in list(_claims(collection, passages))[: most if collection.name != "clapnq_dev" else None]:
        others = [_neighbour(key, ids, vectors, passages, right) for key in right]
        pairs.append(Pair(claim, [passages[key] for key in right], others))
    return pairs


def _neighbour(key: str, ids: list[str], vectors: np.ndarray, passages: dict[str, Hit], right: Sequence[str]) -> Hit:
    near = [ids[i] for i in np.argsort(-(vectors @ vectors[ids.index(key)]))]
    other = [i for i in near if i not in right and passages[i].text != passages[key].text]
    same = [i for i in other if passages[i].document_id == passages[key].document_id]
    return passages[(same or other)[0]]


def _claims(collection: Collection, passages: dict[str, Hit]) -> Iterator[tuple[str, list[str]]]:
    if collection.name == "chunking_evaluation":
        yield from _sentences_of(passages)
        return
    for key, question in collection.questions.items():
        right, answers = sorted(collection.right.get(key, ())), collection.answers[key]
        if not right or not answers:
            continue
        if collection.name == "nq_qed_dev":
            yield f"{question} {answers[0]}", right
        else:
            text = answers[0].replace("\r", " ")
            said = (plain(text[s.start : s.end]) for s in sentences(text))
            yield from ((claim, right) for claim in said if len(claim.split()) >= 4)


def _sentences_of(passages: dict[str, Hit]) -> Iterator[tuple[str, list[str]]]:
    rng = random.Random(5)
    for key in rng.sample(sorted(passages), len(passages)):
        said = [claim for claim in Passage.of_hit(passages[key]).said if 8 <= len(claim.split()) <= 60]
        if said:
            yield rng.choice(said), [key]


def _whole(collection: Collection) -> dict[str, Hit]:
    return {key: _hit(key, key, title, text, 0) for key, (title, text) in collection.documents.items()}


def _pieces(collection: Collection) -> dict[str, Hit]:
    found = {}
    for key, (title, text) in collection.documents.items():
        for start in range(0, min(len(text), 200 * PIECE), PIECE):
            piece = text[start : start + PIECE]
            found[f"{key}:{start}"] = _hit(f"{key}:{start}", key, title, piece, start)
    return found


def _hit(key: str, document: str, title: str, text: str, start: int) -> Hit:
    return Hit(1, 0.5, key, document, document, title, text, start, start + len(text), {})


def _pairs_kept(pair: Pair) -> float:
    return max(measure(pair.claim, Passage.of_hit(hit), None).pairs for hit in pair.true)


# --- figures ---------------------------------------------------------------------------------------------------------


async def _verdict(claim: str, hits: Sequence[Hit], embed: Embed | None) -> str:
    markers = "".join(f"[{number}]" for number in range(1, len(hits) + 1))
    checked = await check_answer(f"{claim.rstrip()} {markers}", hits, embed=embed)
    verdicts = [sentence.supported for sentence in checked.sentences if sentence.markers]
    return verdicts[-1] if verdicts else "no"


async def _swapped(name: str, pairs: Sequence[Pair], embed: Embed) -> list[Figure]:
    figures = []
    for how, given in (("", embed), (", by words alone", None)):
        true = Counter([await _verdict(pair.claim, pair.true, given) for pair in pairs])
        swapped = Counter([await _verdict(pair.claim, pair.swapped, given) for pair in pairs])
        some, wrongly = true["yes"] + true["partly"], swapped["yes"] + swapped["partly"]
        fitted = "fitted on" if name in FITTED_ON else "not fitted on"
        note(
            f"{name}{how} ({len(pairs)} claims, {fitted}): true {dict(true)}, swapped {dict(swapped)}; "
            f"partly counted: precision {some / (some + wrongly):.3f}, recall {some / len(pairs):.3f}"
        )
        precision = true["yes"] / max(true["yes"] + swapped["yes"], 1)
        target = "" if given is None else ">= 0.85"
        figures.append(Figure(f"precision of supported{how}, {name}", precision, "", target=target).show())
        figures.append(Figure(f"recall of supported{how}, {name}", true["yes"] / len(pairs), "", target=target).show())
    return figures


async def _changed(pairs: Sequence[Pair], embed: Embed) -> list[Figure]:
    rng = random.Random(7)
    verdicts: dict[str, Counter[str]] = {}
    alarms = 0
    supported = [pair for pair in pairs if await _verdict(pair.claim, pair.true, embed) == "yes"]
    for pair in pairs:
        alarms += any(measure(pair.claim, Passage.of_hit(hit), None).faults for hit in pair.true[:1])
    for pair in supported:
        for kind, claim in [*numbers_changed(pair.claim, rng), *negations_changed(pair.claim)]:
            verdicts.setdefault(kind, Counter())[await _verdict(claim, pair.true, embed)] += 1
    for kind, found in verdicts.items():
        note(f"changed, {kind}: {dict(found)}")
    note(f"unchanged: {len(supported)} of {len(pairs)} are supported; {alarms} have a fault found in them")
    figures = []
    for what, kinds in (
        ("number", ("digit", "spelled number")),
        ("negation", ("not put in", "not taken out", "opposite")),
    ):
        found = sum((verdicts.get(kind, Counter()) for kind in kinds), Counter())
        caught = 1 - found["yes"] / max(found.total(), 1)
        figures.append(Figure(f"changed {what} caught, of {found.total()}", caught, "", target=">= 0.9").show())
    return [*figures, Figure("fault found in unchanged sentences", alarms / len(pairs), "").show()]


async def _speed(pairs: Sequence[Pair], embed: Embed) -> Figure:
    """Of six sentences, each citing one or two of eight passages."""
    taken = []
    for at in range(0, 160, 8):
        chosen = pairs[at : at + 8]
        hits = [pair.true[0] for pair in chosen]
        text = " ".join(f"{pair.claim} [{i}][{i + 2}]" for i, pair in enumerate(chosen[:6], 1))
        with clock() as seconds:
            await check_answer(text, hits, embed=embed)
        taken.append(1000 * seconds())
    return Figure("check of 6 sentences over 8 passages, median of 20", median(taken), "ms", target="<= 150").show()
