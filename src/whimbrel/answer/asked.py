"""What a question asks for: the terms that an answer would have, however it writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from whimbrel.answer.words import stem, terms

LEAST_PARTED = 6
"""Letters of a word that a text may write as two."""

_ASKING = {
    "en": re.compile(
        r"\b(?:what|how|who|whom|whose|which|when|where|why|do|does|did|can|could|should|would|is|are|was|were|am|be|i"
        r"|you|we|my|your|our|me|us|there|have|has|had|much|many|please|tell|explain|happens?|happened|means?|meaning"
        r"|called|name|named|works?|comes?|came|gets?|got|list|describe|define|give)\b",
        re.IGNORECASE,
    ),
}
"""Words of questions that their answers lack, beside the language's stop words."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """The content terms of a question; of all its words where it has no other."""

    terms: frozenset[str]
    language: str
    joined: Mapping[str, frozenset[str]]
    """What two neighbouring words give as one ("back up", "backup"), with the terms of the two."""
    parted: Mapping[str, re.Pattern[str]]
    """The same the other way round: a term, and its word as two."""

    @classmethod
    def of(cls, question: str, language: str) -> Asked:
        asking = _ASKING.get(language)
        content = asking.sub(" ", question) if asking else question
        wanted = frozenset(terms(content, language)) or frozenset(terms(question, language))
        words = [(word[0].lower(), stem(word[0], language)) for word in _WORD.finditer(question)]
        joined = {
            stem(first + second, language): frozenset({one, other}) & wanted
            for (first, one), (second, other) in pairwise(words)
            if one in wanted
        }
        parted = {term: _in_two(word) for word, term in words if term in wanted and len(word) >= LEAST_PARTED}
        return cls(wanted, language, joined, parted)

    def within(self, text: str) -> set[str]:
        """Those of the terms that `text` has."""
        there = set(terms(text, self.language))
        found = there & self.terms
        for whole in self.joined.keys() & there:
            found |= self.joined[whole]
        found.update(term for term, in_two in self.parted.items() if term not in found and in_two.search(text))
        return found


def _in_two(word: str) -> re.Pattern[str]:
    places: Sequence[int] = range(3, len(word) - 1)
    return re.compile(r"\b(?:" + "|".join(rf"{word[:at]}[ \t\n-]{word[at:]}" for at in places) + ")", re.IGNORECASE)
