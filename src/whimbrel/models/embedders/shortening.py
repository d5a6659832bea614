"""Texts that other programs had embedded, cut to what a model reads: so most programs have theirs cut in silence."""

from __future__ import annotations

from whimbrel.models.embedders.base import Embedder


def reads_whole(embedder: Embedder, text: str) -> bool:
    return embedder.count_tokens(text) <= embedder.space.max_tokens


def shortened(embedder: Embedder, text: str) -> str:
    """As much of a text, from its beginning, as the model reads."""
    while not reads_whole(embedder, text):
        share = embedder.space.max_tokens / embedder.count_tokens(text)
        text = text[: max(1, int(len(text) * min(share, 0.95)))]
    return text
