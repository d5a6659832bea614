"""Whether a claim says the opposite of its source: a negation on one side only, or an opposite word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from whimbrel.answer.words import listed, stem, terms

REACH = 5
"""Content terms that a negation reaches, within its clause."""


class Polarity(NamedTuple):
    """What speaks against a claim, in words; empty where nothing does."""

    fault: str = ""
    """The source says the opposite."""
    doubt: str = ""
    """A negation of the claim that the source has nothing to do with."""


def polarity(claim: str, nearest: str, part: str, *, language: str = "en") -> Polarity:
    """Whether `claim` and its source can both be so.

    `nearest` is the sentence that says what `claim` is about, `part` that sentence with those around it. Three faults:

    - a negation in the claim, of words that the source has without one;
    - a negation in the source, of words that the claim has without one;
    - an opposite: "increase" against "decrease", "before" against "after", "possible" against "impossible".

    A double negation is none. A negation reaches the next `REACH` content terms of its clause; where none follow, those
    before it ("er kommt nicht"). Negations are known in English, German, French and Spanish, opposites in English.
    """
    said, given, around = _read(claim, language), _read(nearest, language), _read(part, language)
    for denied in said.denied:
        apart = set(denied[:2]) & around.terms if denied else said.terms & around.terms
        if apart and not set(denied) & around.reached and len(said.denied) > len(given.denied):
            return Polarity("it is negated here, and not in the passage")
    for denied in given.denied if len(said.denied) < len(given.denied) else ():
        shared = set(denied) & said.terms
        if shared and len(shared) >= 0.5 * len(denied) and not shared & said.reached:
            return Polarity("it is negated in the passage, and not here")
    if language == "en" and (opposite := _opposite(said, given, around)):
        return Polarity(opposite)
    return Polarity(doubt="it negates something here" if len(said.denied) > len(around.denied) else "")


# --- negation --------------------------------------------------------------------------------------------------------

_NEGATORS = listed(
    "not never none nor neither nobody nothing nowhere without cannot no hardly lack lacks lacked lacking unable fails"
    " failed nicht kein keine keinen keinem keiner keines nie niemals ohne weder pas jamais sans aucun aucune nunca"
    " tampoco sin ningún ninguna jamás"
)
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[,;:()—–.!?]")
_ENDS = listed(", ; : ( ) — – . ! ? but however although though because whereas while which except aber sondern obwohl")
_SUPPOSING = listed("if when whether unless where wenn falls ob si cuando")
_UNTIL = listed("until till unless bis jusqu'à hasta")
"""With these a negation is half of a positive: "not open until May"."""
_PAIRS = {("not", "only"), ("no", "longer"), ("not", "just"), ("no", "matter"), ("nicht", "nur"), ("not", "merely")}
_NUMBERED = re.compile(r"\bno\.?\s*\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Reading:
    terms: frozenset[str]
    words: Counter[str]
    """Every word, in lower case."""
    denied: Sequence[Sequence[str]]
    """For each negation, the terms that it reaches, in their order."""

    @property
    def reached(self) -> frozenset[str]:
        return frozenset[str]().union(*self.denied)


def _read(text: str, language: str) -> _Reading:
    tokens = [token.casefold().replace("’", "'") for token in _TOKEN.findall(_NUMBERED.sub(" ", text))]
    content = [_content(token, language) for token in tokens]
    denied = [_clause(tokens, content, place) for place in range(len(tokens)) if _negates(tokens, place)]
    return _Reading(
        frozenset(term for term in content if term),
        Counter(tokens),
        _without_doubles(denied),
    )


def _negates(tokens: Sequence[str], place: int) -> bool:
    token, following = tokens[place], tokens[place + 1] if place + 1 < len(tokens) else ""
    if (token, following) in _PAIRS:
        return (token, following) == ("no", "longer")
    if token == "no" and following in tuple(",.!"):
        return False  # the answer to a question
    if token not in _NEGATORS and not token.endswith("n't"):
        return False
    supposed = _SUPPOSING & set(tokens[max(0, place - 4) : place])
    return not supposed and not _UNTIL & set(tokens[place + 1 : place + 12])


def _clause(tokens: Sequence[str], content: Sequence[str], place: int) -> Sequence[str]:
    after: list[str] = []
    for token, term in zip(tokens[place + 1 :], content[place + 1 :], strict=True):
        if token in _ENDS or len(after) == REACH:
            break
        if term and token not in _NEGATORS:
            after.append(term)
    if after:
        return after
    before: list[str] = []
    for token, term in zip(reversed(tokens[:place]), reversed(content[:place]), strict=True):
        if token in _ENDS or len(before) == REACH:
            break
        if term and token not in _NEGATORS:
            before.append(term)
    return before


def _without_doubles(denied: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """ "not without reason" denies nothing: two that reach the same words cancel."""
    left: list[Sequence[str]] = []
    for reach in denied:
        same = next((other for other in left if other and set(reach) <= set(other)), None)
        if same is None:
            left.append(reach)
        else:
            left.remove(same)
    return left


def _content(token: str, language: str) -> str:
    if not token[0].isalnum() or token.endswith("n't"):
        return ""
    return _term(token, language)


@cache
def _empty_terms(language: str) -> frozenset[str]:
    return frozenset(
        stem(word, language) for word in ("do", "does", "did", "be", "been", "being", "ever", "any", "can")
    )


@lru_cache(maxsize=20_000)
def _term(token: str, language: str) -> str:
    found = next(iter(terms(token, language)), "")
    # A stop word alone comes back as it is; among others it would have been left out.
    if not found or found in _empty_terms(language) or next(iter(terms(f"{token} zzzz", language)), "") == "zzzz":
        return ""
    return found


# --- opposites -------------------------------------------------------------------------------------------------------

_PAIRED = """
increase/decrease increases/decreases increased/decreased increasing/decreasing more/less more/fewer most/least
before/after above/below higher/lower highest/lowest high/low larger/smaller largest/smallest bigger/smaller
greater/lesser older/younger oldest/youngest oldest/newest older/newer longer/shorter longest/shortest first/last
best/worst better/worse true/false north/south east/west northern/southern eastern/western left/right male/female
enable/disable enables/disables enabled/disabled allow/forbid allows/forbids allowed/forbidden allows/prevents
include/exclude includes/excludes included/excluded accept/reject accepts/rejects accepted/rejected open/closed
opens/closes win/lose wins/loses won/lost begin/end begins/ends began/ended start/end starts/ends started/ended
inside/outside positive/negative maximum/minimum early/late earlier/later hot/cold import/export imports/exports
rise/fall rises/falls rose/fell success/failure succeed/fail succeeds/fails succeeded/failed
add/remove adds/removes added/removed present/absent same/different
faster/slower fast/slow strong/weak stronger/weaker public/private internal/external upper/lower major/minor
majority/minority many/few required/optional often/rarely both/neither
"""
_OPPOSITES = [pair.split("/") for pair in _PAIRED.split()]
_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non")


def _opposite(said: _Reading, given: _Reading, part: _Reading) -> str:
    for left, right in _OPPOSITES:
        for ours, theirs in ((left, right), (right, left)):
            fewer = said.words[theirs] < given.words[theirs]
            if ours in said.words and fewer and ours not in part.words:
                return f'"{ours}" stands against "{theirs}"'
    claimed, source = set(said.words), set(given.words)
    for word, others in ((w, source) for w in claimed - source):
        if bare := _without_prefix(word, others - claimed):
            return f'"{word}" stands against "{bare}"'
    for word, others in ((w, claimed) for w in source - claimed):
        if bare := _without_prefix(word, others - source):
            return f'"{bare}" stands against "{word}"'
    return ""


def _without_prefix(word: str, others: Collection[str]) -> str:
    bare = (word.removeprefix(prefix) for prefix in _PREFIXES if word.startswith(prefix))
    return next((rest for rest in bare if len(rest) > 3 and rest in others), "")
