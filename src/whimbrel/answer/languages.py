"""Which language a question is in: by its script, or by its most frequent words."""

from __future__ import annotations

import re
from collections import Counter

from whimbrel.lexicon.scripts import LATIN, language_of_letter, script_of

NAMES = {
    **{"en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese"},
    **{"nl": "Dutch", "ru": "Russian", "el": "Greek", "ar": "Arabic", "he": "Hebrew", "hi": "Hindi", "th": "Thai"},
    **{"ja": "Japanese", "zh": "Chinese", "ko": "Korean", "ro": "Romanian", "hy": "Armenian", "bn": "Bengali"},
    **{"am": "Amharic", "ka": "Georgian", "gu": "Gujarati", "pa": "Punjabi", "kn": "Kannada", "km": "Khmer"},
    **{"lo": "Lao", "ml": "Malayalam", "my": "Burmese", "or": "Odia", "si": "Sinhala", "ta": "Tamil", "te": "Telugu"},
    **{"bo": "Tibetan"},
}
"""Of the languages that a question can be told to be in."""

_WORDS = {
    "en": "the of is are what how does do who when where which why in and to a it was did for with on can you",
    "de": "der die das den dem des ist sind was wie wer wann wo welche welcher welches warum und ein eine einen "
    "einem einer eines im zu von mit für auf nicht wird werden kann ich hat wurde bei",
    "fr": "le la les des du est sont quel quelle quels quelles comment qui quand où pourquoi et un une dans de pour "
    "avec sur que quoi combien a été se il elle",
    "es": "el la los las del es son qué cuál cuáles cómo quién cuándo dónde por y un una en de para con fue cuántos "
    "cuánto se que al",
    "it": "il lo la gli le del della dei è sono che cosa quale quali come chi quando dove perché e un una "
    "in di per con quanti quanto si nel nella",
    "pt": "o a os as do da dos das é são que qual quais como quem quando onde porque e um uma em de para com foi no na "
    "quantos quanto se",
    "ro": "care este sunt ce cum unde când de la și în a fost pe cu din cât câte câți cine al ale o un lui",
    "nl": "de het een is zijn wat hoe wie wanneer waar welke waarom en in van voor met op niet wordt kan ik er heeft",
}
_KNOWN = {code: frozenset(words.split()) for code, words in _WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str | None:
    """An ISO 639 code; None where it is not plain. Cyrillic counts as Russian: the script is what matters."""
    letters = [letter for letter in text if letter.isalpha()]
    other = Counter(language_of_letter(letter) for letter in letters if letter > "ɏ")
    if letters and sum(other.values()) > len(letters) / 2:
        code = "ja" if other["ja"] else other.most_common(1)[0][0]
        return code or None
    words = [word.lower() for word in _WORD.findall(text)]
    counts = Counter({code: sum(word in known for word in words) for code, known in _KNOWN.items()})
    (first, most), (_, second) = counts.most_common(2)
    return first if most >= 2 and most > second else None


def foreign(question: str, spoken: str) -> str:
    """The name of the question's language where it is plainly none of those that are `spoken`, `ru+en`; else empty."""
    asked_in, codes = language_of(question), spoken.split("+")
    if asked_in is None or codes[0] not in NAMES or asked_in in codes:
        return ""
    if asked_in == "zh" and "ja" in codes:  # a few words of Japanese may have no kana
        return ""
    script = script_of(asked_in)
    if script != LATIN and script in map(script_of, codes):  # it told by its script, which the collection has too
        return ""
    return NAMES[asked_in]
