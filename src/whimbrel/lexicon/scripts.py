"""Which script a language is written in, and which language a letter tells of by its script."""

from __future__ import annotations

import unicodedata

LATIN = "LATIN"

_LANGUAGES = {
    **{"ARABIC": "ar ckb fa ps sd ug ur", "ARMENIAN": "hy", "BENGALI": "bn as", "CJK": "zh", "ETHIOPIC": "am ti"},
    **{"CYRILLIC": "ru be bg kk ky mk mn sr tg uk", "DEVANAGARI": "hi mr ne sa", "GEORGIAN": "ka", "GREEK": "el"},
    **{"GUJARATI": "gu", "GURMUKHI": "pa", "HANGUL": "ko", "HEBREW": "he yi", "HIRAGANA": "ja", "KANNADA": "kn"},
    **{"KATAKANA": "ja", "KHMER": "km", "LAO": "lo", "MALAYALAM": "ml", "MYANMAR": "my", "ORIYA": "or"},
    **{"SINHALA": "si", "TAMIL": "ta", "TELUGU": "te", "THAI": "th", "TIBETAN": "bo dz"},
}
"""Scripts, as Unicode's names of letters begin, and the languages written in them: first the one with most texts."""

_SCRIPT_OF = {code: script for script, codes in _LANGUAGES.items() for code in codes.split()}
_FIRST = {script: codes.split()[0] for script, codes in _LANGUAGES.items()}


def script_of(code: str) -> str:
    """The script that a language is mostly written in; Latin for those that are not known here."""
    return _SCRIPT_OF.get(code, LATIN)


def shares_script(code: str) -> bool:
    """Whether a language's script is not enough to tell it."""
    script = script_of(code)
    return script == LATIN or " " in _LANGUAGES[script]


def language_of_letter(letter: str) -> str:
    """The language with most texts in a letter's script; empty for Latin, and where it is not known."""
    return _FIRST.get(unicodedata.name(letter, "").partition(" ")[0], "")
