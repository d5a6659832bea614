"""From text to terms, for documents and for queries.

tantivy's analyser does the bulk: words, lower case, stems, ASCII folding. Two things it cannot do are done to the text
before, where one scan finds that they are due: identifiers are split, and runs of scripts that put no space between
words become pairs of characters.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator

from tantivy import Filter, TextAnalyzer, TextAnalyzerBuilder, Tokenizer

from whimbrel.lexicon.english import STOP_WORDS, without_contractions
from whimbrel.lexicon.scripts import LATIN, script_of

VERSION = 2
"""Part of the analyser's name in an index: raise it when the same text would give other terms."""

LONGEST_TERM = 200
"""Bytes; longer words are left out. The longest that people search for is a SHA-512 in hex, 128."""

LANGUAGES = {
    "ar": "arabic",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "fi": "finnish",
    "fr": "french",
    "hu": "hungarian",
    "it": "italian",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
"""Languages with a stemmer. In any other, words are found as they are written."""

_NO_STOP_WORDS = {"arabic", "greek", "romanian", "tamil", "turkish"}


class Analysis:
    """The terms of documents and queries in one language; see `whimbrel.lexicon.language` for how it is written."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.name = f"whimbrel_{language.replace('+', '_')}_{VERSION}"
        """What the analyser is registered as, and so written in the index's schema."""
        self.analyser = _analyser(language, stop_words=True)
        self._content = _analyser(language, stop_words=False)
        self._english = "en" in _codes(language)

    def query_terms(self, query: str) -> Counter[str]:
        """The terms of a query with how often each occurs; stop words only where there is nothing else."""
        text = query_text(without_contractions(query) if self._english else query)
        return Counter(self._content.analyze(text) or self.analyser.analyze(text))


def document_text(text: str) -> str:
    """The text as it is given to the analyser.

    To `snake_case` is added `snakecase` (its words are split anyway), to `camelCase` its words. Of a run of Chinese,
    Japanese, Korean, Thai and the like come the pairs of neighbouring characters, and each character by itself.
    """
    return _prepared(text, singles=True)


def query_text(text: str) -> str:
    """As `document_text`, but a single character only where it stands alone: within a run the pairs tell more."""
    return _prepared(text, singles=False)


def _analyser(language: str, *, stop_words: bool) -> TextAnalyzer:
    """Each stemmer changes words of its own script only, so that those of several scripts go one after the other."""
    names = [LANGUAGES[code] for code in _codes(language) if code in LANGUAGES]
    builder = TextAnalyzerBuilder(Tokenizer.simple()).filter(Filter.remove_long(LONGEST_TERM))
    builder = builder.filter(Filter.lowercase())
    if "english" in names:
        # English rules know no accents: "ünïcödé" would keep the ending that "unicode" loses.
        builder = builder.filter(Filter.ascii_fold())
    for name in names:
        if not stop_words and name == "english":
            builder = builder.filter(Filter.custom_stopword(STOP_WORDS))
        elif not stop_words and name not in _NO_STOP_WORDS:
            builder = builder.filter(Filter.stopword(name))
        builder = builder.filter(Filter.stemmer(name))
    return builder.filter(Filter.ascii_fold()).build()


def _codes(language: str) -> list[str]:
    """The languages of a collection; with English, where there is none in Latin script: what Latin words there are in
    Japanese or Russian texts are mostly English."""
    codes = language.split("+")
    return codes if any(script_of(code) == LATIN for code in codes) else [*codes, "en"]


# --- scripts without spaces ------------------------------------------------------------------------------------------

_UNSPACED = (
    "\u3005\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af\uff66-\uffdc"  # Hangul, half-width forms
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_INSIDE_WORDS = re.compile(
    "[\u00ad\u200d\u0300-\u036f\u0483-\u0487"  # soft hyphen, joiner, accents that no letter is composed with
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"  # Hebrew points
    "\u0640\u064b-\u065f\u0670"  # Arabic stretching and vowels
    "\u093c\u094d\u09bc\u09cd\u0a3c\u0a4d\u0abc\u0acd\u0b3c\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca]"  # Indic joins, dots
)
"""Marks that many write and many leave out, and at which tantivy would part a word in two."""
_WRITTEN_EITHER_WAY = str.maketrans("ёЁ", "еЕ")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")


def _prepared(text: str, *, singles: bool) -> str:
    if not text.isascii():
        text = _SURROGATE.sub(" ", text)
        if _UNSPACED_RUN.search(text):
            text = unicodedata.normalize("NFKC", text)
            text = _UNSPACED_RUN.sub(lambda run: _pairs(run.group(), singles=singles), text)
        elif not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        text = _INSIDE_WORDS.sub("", text).translate(_WRITTEN_EITHER_WAY)
    extra = [word for token in _identifiers(text) for word in _identifier_words(token)]
    return f"{text}\n{' '.join(extra)}" if extra else text


def _pairs(run: str, *, singles: bool) -> str:
    pairs = [run[i : i + 2] for i in range(len(run) - 1)]
    if singles or not pairs:
        pairs.extend(run)
    return f" {' '.join(pairs)} "


# --- identifiers -----------------------------------------------------------------------------------------------------

_HINT = re.compile(r"[a-z][0-9]*[A-Z]|[A-Z]{2}[a-z]|[A-Za-z0-9]_[A-Za-z0-9]")
_CAMEL = re.compile(r"[a-z][0-9]*[A-Z]|[A-Z]{2}[a-z]")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_NAME_CHARACTERS = string.ascii_letters + string.digits + "_"
_PLURAL_ACRONYM = re.compile(r"[A-Z]+s")
_VOWEL = re.compile("[AEIOUY]")
_CAMEL_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+")

_LONGEST_IDENTIFIER = 80
_MOST_WORDS = 10
"""Beyond these it is no name: base64 would fall into hundreds of pieces."""


def _identifiers(text: str) -> Iterator[str]:
    """The words of which a hint says that they may have parts.

    Found from the hint outwards: a pattern for the whole word takes quadratic time on a long run of letters.
    """
    end = 0
    while (hint := _HINT.search(text, end)) is not None:
        before = text[max(end, hint.start() - _LONGEST_IDENTIFIER) : hint.start()]
        name = _NAME.match(text, hint.start())
        assert name is not None
        end = name.end()
        yield before[len(before.rstrip(_NAME_CHARACTERS)) :] + name.group()


def _identifier_words(token: str) -> list[str]:
    """The terms to add for one ASCII word; mostly none."""
    if len(token) > _LONGEST_IDENTIFIER:
        return []
    parts = [part for part in token.split("_") if part]
    words = ["".join(parts)] if len(parts) > 1 else []
    for part in parts:
        if _PLURAL_ACRONYM.fullmatch(part):
            if not _VOWEL.search(part):  # the stemmer leaves "pdfs" as it is
                words.append(part[:-1])
        elif _CAMEL.search(part):
            words.extend(word for word in _CAMEL_WORD.findall(part) if len(word) > 1)
    return words if len(words) <= _MOST_WORDS else []
