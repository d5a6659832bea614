"""Names in a text: capitalised words inside a sentence, and identifiers."""

from __future__ import annotations

import re
from collections.abc import Collection

from whimbrel.answer.words import listed, stem

_TOKEN = re.compile(r"[^\W_][\w.+#/-]*\w|\w")
_IDENTIFIER = re.compile(r"[A-Za-z][\w.+#/-]*\d[\w.+#/-]*|\w+_\w+|[a-z]+[A-Z]\w*|[A-Z]{2,}\w*")
_SENTENCE_START = re.compile(r"(?:\A|[.!?:;]\s+|\n\s*(?:[-*+•]\s+|\d+[.)]\s+)?|[\"“«(])\Z")
_ALL_NOUNS = {"de"}
"""Languages that capitalise every noun: there only identifiers count."""
_NO_NAMES = listed(
    "i i'm i'd a the this that these those it they he she we you in on at but if when as for an after and or so yes no"
    " mr mrs ms dr st"
)


def names(text: str, *, language: str = "en") -> list[str]:
    """The names of `text`, each once, in order, without those that only begin a sentence."""
    found: list[str] = []
    for match in _TOKEN.finditer(text):
        word = match[0]
        if word.casefold() in _NO_NAMES:
            continue
        identifier = _IDENTIFIER.fullmatch(word) is not None
        capital = word[0].isupper() and language not in _ALL_NOUNS
        if identifier or (capital and not _SENTENCE_START.search(text, 0, match.start())):
            found.append(word)
    return list(dict.fromkeys(found))


def missing_names(claim: str, source: str, *, language: str = "en") -> list[str]:
    """The names of `claim` that `source` does not have: not as written, in another form, or as initials."""
    wanted = names(claim, language=language)
    if not wanted:
        return []
    words = [match[0] for match in _TOKEN.finditer(source)]
    there = {form for word in words for form in _forms(word, language)}
    initials = "".join(word[0] for word in words if word[0].isupper())
    return [name for name in wanted if not _is_there(name, there, initials, language)]


def renumbered_names(absent: Collection[str], source: str) -> list[str]:
    """Those of `absent` that `source` has with other digits: "GPT-5" where it says "GPT-4"."""
    there = {_skeleton(match[0]) for match in _TOKEN.finditer(source)}
    return [name for name in absent if _skeleton(name) in there and any(char.isdecimal() for char in name)]


def _skeleton(name: str) -> str:
    return re.sub(r"\d+", "0", name.casefold())


def _is_there(name: str, there: Collection[str], initials: str, language: str) -> bool:
    if any(form in there for form in _forms(name, language)):
        return True
    if name.isupper() and 2 <= len(name) <= 6:
        return name in initials
    parts = [part for part in re.split(r"[._/-]", name) if part]
    return len(parts) > 1 and all(any(form in there for form in _forms(part, language)) for part in parts)


def _forms(word: str, language: str) -> set[str]:
    folded = word.casefold()
    forms = {folded, stem(word, language)}
    if len(folded) > 5:  # France's, Frances; Italy, Italian
        forms.add(folded[:5])
    forms |= {part for part in re.split(r"[._/-]", folded) if part}
    return forms - {""}
