"""How well chunks hold what answers a question: ours, and those of the usual recursive splitter at the same size.

By the gold spans of Chroma's chunking evaluation (Smith and Troynikov, "Evaluating Chunking Strategies for Retrieval",
2024), with its definitions: the five best chunks of all corpora are read for each question; recall is the share of the
gold characters that are in them, precision the share of their characters that is gold (what two of them repeat counts
twice), IoU the gold found over all that was read and all that was missed. Precision-omega is the precision of all
chunks that hold gold: what a retriever without fault would get. Means over the questions.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.figures import Figure, note
from bench.homes import tokenizer
from whimbrel.domain import EmbedKind, embedded_text
from whimbrel.ingest.chunk import Chunking, chunk
from whimbrel.ingest.tokens import load_token_spans
from whimbrel.models.embedders.minilm import MiniLM

READ = 5
SPECIAL = 2

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    corpus: str
    start: int
    end: int
    text: str
    """What the embedder reads."""


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    corpus: str
    gold: Sequence[Range]


Splitter = Callable[[str, str], list[Piece]]
"""`(name, text) -> pieces` of one corpus."""


def run(folder: Path, *, quick: bool) -> list[Figure]:
    data = os.environ.get("WHIMBREL_TEST_DATA", "")
    source = Path(data) / "ir" / "chunking_evaluation"
    if not data or not source.is_dir():
        note("chunking: WHIMBREL_TEST_DATA is not set, or has no ir/chunking_evaluation: skipped")
        return []
    corpora = {one["_id"]: one["text"] for one in _lines(source / "corpus.jsonl")}
    questions = _questions(source)
    figures = []
    default = Chunking()
    for chunking in [default] if quick else [default, Chunking(200, 20), Chunking(default.tokens, 0), Chunking(100, 0)]:
        ours = scores(corpora, questions, structured(chunking))
        theirs = scores(corpora, questions, recursive(chunking.tokens - SPECIAL, chunking.overlap))
        is_default = chunking == default
        for name in ("recall", "precision", "iou", "precision_omega"):
            target = ">= 1" if is_default and name != "precision_omega" else ""
            title = f"chunking {chunking.spec}: {name}"
            figures.append(Figure(title, ours[name], "", theirs[name], target).show())
        note(f"{chunking.spec}: {ours['pieces']:.0f} chunks of {ours['characters']:.0f} characters on average, ")
        note(f"recursive: {theirs['pieces']:.0f} of {theirs['characters']:.0f}")
    return figures


# --- two splitters ---------------------------------------------------------------------------------------------------


def structured(chunking: Chunking) -> Splitter:
    spans = load_token_spans(tokenizer())

    def split(name: str, text: str) -> list[Piece]:
        return [
            Piece(name, one.start, one.end, embedded_text(one.context, text[one.start : one.end]))
            for one in chunk(text, chunking, spans)
        ]

    return split


def recursive(tokens: int, overlap: int) -> Splitter:
    """LangChain's, with its default separators, counting with the embedder's tokenizer."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    spans = load_token_spans(tokenizer())
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=tokens, chunk_overlap=overlap, length_function=lambda text: len(spans(text)[0])
    )

    def split(name: str, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        place = 0
        for content in splitter.split_text(text):  # its own `add_start_index` loses what overlaps, counted in tokens
            place = text.index(content, place)
            pieces.append(Piece(name, place, place + len(content), content))
            place += 1
        return pieces

    return split


# --- scores ----------------------------------------------------------------------------------------------------------


def scores(corpora: dict[str, str], questions: Sequence[Question], split: Splitter) -> dict[str, float]:
    pieces = [piece for name, text in corpora.items() for piece in split(name, text)]
    embedder = MiniLM()
    vectors = asyncio.run(_embedded(embedder, [piece.text for piece in pieces], EmbedKind.DOCUMENT))
    asked = asyncio.run(_embedded(embedder, [one.text for one in questions], EmbedKind.QUERY))
    best = np.argsort(-(asked @ vectors.T), axis=1, kind="stable")[:, :READ]
    found = [_score(one, [pieces[n] for n in row]) for one, row in zip(questions, best.tolist(), strict=True)]
    omega = [_omega(one, pieces) for one in questions]
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    sizes = [piece.end - piece.start for piece in pieces]
    return {
        **means,
        "precision_omega": float(np.mean(omega)),
        "pieces": len(pieces),
        "characters": float(np.mean(sizes)),
    }


def _score(question: Question, read: Sequence[Piece]) -> dict[str, float]:
    hits = _hits(question, read)
    gold = _length(question.gold)
    chars = sum(piece.end - piece.start for piece in read)
    found = _length(hits)
    return {"recall": found / gold, "precision": found / chars, "iou": found / (chars + gold - found)}


def _omega(question: Question, pieces: Sequence[Piece]) -> float:
    holding = [piece for piece in pieces if _hits(question, [piece])]
    hits = _hits(question, holding)
    missed = _length(question.gold) - _length(hits)
    read = _length(_union([(piece.start, piece.end) for piece in holding]))
    return _length(hits) / (read + missed) if hits else 0.0


def _hits(question: Question, pieces: Sequence[Piece]) -> list[Range]:
    """The parts of the question's gold that are in the pieces."""
    return _union(
        [
            (max(piece.start, start), min(piece.end, end))
            for piece in pieces
            if piece.corpus == question.corpus
            for start, end in question.gold
            if max(piece.start, start) < min(piece.end, end)
        ]
    )


def _union(ranges: Sequence[Range]) -> list[Range]:
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _length(ranges: Sequence[Range]) -> int:
    return sum(end - start for start, end in ranges)


async def _embedded(embedder: MiniLM, texts: Sequence[str], kind: EmbedKind) -> np.ndarray:
    return np.concatenate([await embedder.embed(texts[at : at + 64], kind) for at in range(0, len(texts), 64)])


# --- data ------------------------------------------------------------------------------------------------------------


def _questions(source: Path) -> list[Question]:
    spans: dict[str, list[tuple[str, int, int]]] = {}
    for line in (source / "spans.tsv").read_text().splitlines()[1:]:
        query, corpus, start, end = line.split("\t")
        spans.setdefault(query, []).append((corpus, int(start), int(end)))
    return [
        Question(one["text"], spans[one["_id"]][0][0], [(start, end) for _, start, end in spans[one["_id"]]])
        for one in _lines(source / "queries.jsonl")
        if one["_id"] in spans
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
