"""Words as the lexicon sees them: stemmed, in one language."""

from __future__ import annotations

from collections import Counter
from functools import cache, lru_cache

from whimbrel.lexicon.analysis import Analysis, query_text


def terms(text: str, language: str = "en") -> Counter[str]:
    """Content terms, as the lexicon stems them, and how often each occurs; stop words if there is nothing else."""
    return _analysis(language).query_terms(text)


def in_order(text: str, language: str = "en") -> list[str]:
    """All terms with their repeats, stop words too, in the order of `text`."""
    return _analysis(language).analyser.analyze(query_text(text))


@lru_cache(maxsize=20_000)
def stem(word: str, language: str = "en") -> str:
    """One word's term; empty where it has none."""
    return next(iter(_analysis(language).analyser.analyze(word)), "")


def listed(words: str) -> frozenset[str]:
    """Words written with spaces between them."""
    return frozenset(words.split())


@cache
def _analysis(language: str) -> Analysis:
    return Analysis(language)
