"""Numbers in a text, whatever they are written as, and which of a claim's are not in its source."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from whimbrel.answer.words import in_order, terms


@dataclass(frozen=True, slots=True)
class Quantity:
    written: str
    """As in the text."""
    readings: frozenset[str]
    """What it may mean, in plain digits: "1.024" is 1.024, and in many languages 1024."""
    unit: str = ""
    """In one form ("percent", "second", "km"); empty where none is known."""
    about: bool = False
    """A word before it says that it is rounded."""


class Numbers(NamedTuple):
    """What speaks against a claim's numbers, one phrase each."""

    faults: Sequence[str] = ()
    """Numbers that the source does not have."""
    doubts: Sequence[str] = ()
    """Small numbers in words, which may count what the source lists ("the three states")."""


def missing_numbers(claim: str, part: Sequence[str], passage: Sequence[str], *, language: str = "en") -> Numbers:
    """Which numbers of `claim` are not those of its source.

    Both are sentences; `part` are those of `passage` that come nearest to the claim. A number that is only in the rest
    counts as missing where `part` has another number that the claim lacks, which is then what was said, unless it
    stands beside the same word there.

    "five" is 5, "1.5 million" 1,500,000, "2011-05-05" holds 2011 and 5, "1934-42" also 1942, "II" and "second" are 2.
    A unit counts where both sides give one. A rounded number ("about 12 million") agrees with what it rounds. 0 and 1
    are not looked for: "one" and "first" are words of their own. Digits in a name ("BGE-M3") belong to the name.
    """
    asked = [quantity for quantity in quantities(claim, language) if not quantity.readings & {"0", "1"}]
    if not asked:
        return Numbers()
    near = quantities("\n".join(part), language)
    unsaid = [given for given in near if not any(_agrees(quantity, given) for quantity in asked)]
    others = [given for given in unsaid if not given.readings & {"0", "1"}]
    faults, doubts = [], []
    for quantity in asked:
        if any(_agrees(quantity, given) for given in near) or _elsewhere(quantity, claim, passage, others, language):
            continue
        units = {given.unit for given in near if given.readings & quantity.readings and given.unit}
        if quantity.unit and units:
            faults.append(f"{quantity.written} is there in another unit ({', '.join(sorted(units))})")
        elif not others and quantity.readings & _COUNTS and not quantity.written[0].isdecimal():
            doubts.append(f"the number {quantity.written} is not in it")
        else:
            faults.append(f"the number {quantity.written} is not in it")
    return Numbers(list(dict.fromkeys(faults)), list(dict.fromkeys(doubts)))


def _elsewhere(asked: Quantity, claim: str, passage: Sequence[str], others: Sequence[Quantity], language: str) -> bool:
    """In another sentence, beside the same word; beside any, where the nearest sentences have no other number."""
    beside = _beside(asked, claim, language)
    for sentence in passage:
        for given in quantities(sentence, language):
            if _agrees(asked, given) and (not others or beside & _beside(given, sentence, language)):
                return True
    return False


def _beside(quantity: Quantity, text: str, language: str) -> frozenset[str]:
    """The content terms before and behind a number."""
    before, _, after = text.partition(quantity.written)
    around = [*in_order(before, language)[-2:], *in_order(after, language)[:2]]
    return frozenset(around) & frozenset(terms(text, language))


_COUNTS = {str(number) for number in range(2, 11)}


def quantities(text: str, language: str = "en") -> list[Quantity]:
    """The numbers of `text` in order: digits, words, Roman numerals after a capitalised word."""
    text = _NOT_NUMBERS.sub(lambda match: " " * len(match[0]), unicodedata.normalize("NFKC", text))
    found = [*_in_digits(text, language), *_in_words(text), *_roman(text)]
    return [quantity for _, quantity in sorted(found, key=lambda pair: pair[0])]


def _agrees(asked: Quantity, given: Quantity) -> bool:
    if asked.unit and given.unit and asked.unit != given.unit:
        return False
    if asked.readings & given.readings:
        return True
    return (asked.about or given.about) and any(
        _rounds(a, b) for a in asked.readings for b in given.readings if _plain(a) and _plain(b)
    )


def _rounds(asked: str, given: str) -> bool:
    """12000000 rounds 11983000: as many of the leading digits as the rounder one has are the same, rounded."""
    significant = len(asked.replace(".", "").strip("0")) or 1
    return float(asked) == float(f"{float(given):.{significant - 1}e}") and float(asked) != 0


def _plain(reading: str) -> bool:
    return reading.count(".") <= 1


_NOT_NUMBERS = re.compile(
    r"(?<![\w.,])(?!(?:mid|pre|post|late|early|non)-)[A-Za-z](?:\w*\d(?:\.\d+)+|\w*(?:[-_/]\w+)*(?<=\d)|\w*\d\w*(?:[-_/]\w+)*"
    r"|\w*(?:[-_/]\w+)*[-_/]\w*\d\w*(?:[-_/]\w+)*)(?![\w])"
    r"|(?<![^\s(])\d{1,2}\)"
)
"""Digits in a name ("BGE-M3", "v1.2.3"), and what numbers a list ("1)")."""

# --- digits ----------------------------------------------------------------------------------------------------------

_DIGITS = re.compile(r"(?<![^\W\d_])(?<![\d_][.,])(?<!_)\d+(?:[.,]\d+)*(?![_\d])")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?\Z")
_THOUSANDS_ELSEWHERE = re.compile(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?\Z")
_SHORT_END = re.compile(r"(1\d|20)(\d\d)\s?[-–—/]\s?(\d\d)(?!\d)")
_SCALE = {"hundred": 2, "thousand": 3, "million": 6, "millions": 6, "billion": 9, "billions": 9, "trillion": 12}
_SCALE |= {"k": 3, "m": 6, "mn": 6, "mio": 6, "bn": 9, "millionen": 6, "milliarden": 9, "millones": 6, "milliards": 9}
_LONG_SCALES = {name for name in _SCALE if len(name) > 1}
_AFTER = re.compile(r"\s?(?:-\s?)?(%|°\s?[CF]\b|[^\W\d_]+)")
_ABOUT = re.compile(
    r"(?:\b(?:about|around|nearly|almost|over|under|approximately|roughly|some|circa|ca\.?|c\.|approx\.?|estimated|above"
    r"|(?:more|less|fewer)\s+than|at\s+least|up\s+to|close\s+to|etwa|rund|fast|über|environ|près\s+de|plus\s+de|unos|cerca\s+de"
    r"|más\s+de)\s+(?:the\s+|an?\s+)?|[~≈]\s?)[$€£]?\Z",
    re.IGNORECASE,
)
_UNITS = {
    "percent": "% percent per pct prozent pourcent",
    "ms": "ms millisecond",
    "second": "s sec second sekunde seconde segundo",
    "minute": "min minute minuto",
    "hour": "h hr hour stunde heure hora",
    "day": "day tag jour día",
    "week": "week woche semaine semana",
    "month": "month monat mois mes",
    "year": "yr year jahr année ans año",
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "metre": "metre meter mètre metro",
    "km": "km kilometer kilometre kilomètre kilómetro",
    "mile": "mi mile",
    "foot": "ft foot feet",
    "inch": "inch",
    "gram": "g gram gramme",
    "kg": "kg kilogram",
    "pound": "lb lbs pound £",
    "ton": "ton tonne",
    "byte": "byte",
    "kb": "kb kib kilobyte",
    "mb": "mb mib megabyte",
    "gb": "gb gib gigabyte",
    "tb": "tb tib terabyte",
    "dollar": "$ dollar usd",
    "euro": "€ euro eur",
    "celsius": "°c celsius",
    "fahrenheit": "°f fahrenheit",
    "token": "token",
}
_UNIT = {form: unit for unit, forms in _UNITS.items() for form in forms.split()}
_PLURALS = "s", "es", "n", "en"


def _in_digits(text: str, language: str) -> Iterator[tuple[int, Quantity]]:
    for match in _DIGITS.finditer(text):
        readings = _readings(match[0], language)
        after = _AFTER.match(text, match.end())
        word = after[1].casefold() if after else ""
        end = match.end()
        if word in _LONG_SCALES or (word in _SCALE and text[match.end()] == word and text[match.start() - 1] in "$€£"):
            assert after is not None
            readings = frozenset(_scaled(reading, _SCALE[word]) for reading in readings)
            end = after.end()
        unit = _unit_before(text, match.start()) or _unit_after(text, end)
        about = _ABOUT.search(text, max(0, match.start() - 24), match.start()) is not None
        yield match.start(), Quantity(match[0], readings, unit, about)
    for span in _SHORT_END.finditer(text):
        if int(span[3]) > int(span[2]):
            yield span.start(3), Quantity(span[3], frozenset({span[1] + span[3], span[3].lstrip("0") or "0"}))


def _readings(digits: str, language: str) -> frozenset[str]:
    readings = set()
    if _THOUSANDS.match(digits):
        readings.add(digits.replace(",", ""))
    elif digits.count(",") == 1 and "." not in digits:
        readings.add(digits.replace(",", "."))
    else:
        readings.add(digits.replace(",", ""))
    if language != "en" and _THOUSANDS_ELSEWHERE.match(digits):
        readings.add(digits.replace(".", "").replace(",", "."))
    return frozenset(_canonical(reading) for reading in readings)


def _canonical(number: str) -> str:
    if number.count(".") > 1:
        return number  # a version, an address
    whole, _, rest = number.partition(".")
    rest = rest.rstrip("0")
    return f"{whole.lstrip('0') or '0'}.{rest}" if rest else whole.lstrip("0") or "0"


def _scaled(number: str, power: int) -> str:
    whole, _, rest = number.partition(".")
    shifted = whole + rest[:power].ljust(power, "0")
    return _canonical(f"{shifted}.{rest[power:]}")


def _unit_before(text: str, start: int) -> str:
    before = text[max(0, start - 2) : start].rstrip()
    return _UNIT.get(before[-1:], "") if before[-1:] in tuple("$€£") else ""


def _unit_after(text: str, end: int) -> str:
    after = _AFTER.match(text, end)
    if after is None:
        return ""
    word = re.sub(r"\s", "", after[1].casefold())
    if word == "per" and not re.match(r"\s?per\s?cent", text[end : end + 10], re.IGNORECASE):
        return ""
    if word == "s" and not after[0][0].isspace() and end >= 4 and text[end - 4 : end].isdecimal():
        return ""  # the 1990s
    return next((_UNIT[form] for form in (word, *(word.removesuffix(p) for p in _PLURALS)) if form in _UNIT), "")


# --- words -----------------------------------------------------------------------------------------------------------

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
fifteenth sixteenth seventeenth eighteenth nineteenth"""
_TENTHS = "twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth"
_ELSEWHERE = (
    "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "deux trois quatre cinq six sept huit neuf dix",
    "dos tres cuatro cinco seis siete ocho nueve diez",
)
_VALUE = {word: value for words in _ELSEWHERE for value, word in enumerate(words.split(), 2)}
_VALUE |= {word: value for value, word in enumerate(_ONES.split())}
_VALUE |= {word: value for value, word in enumerate(_ORDINALS.split(), 1)}
_VALUE |= {word: 10 * tens for words in (_TENS, _TENTHS) for tens, word in enumerate(words.split(), 2)}
_VALUE |= {"dozen": 12, "twice": 2, "thrice": 3}
_WORD = re.compile(r"[^\W\d_]+")
_JOINED = re.compile(r"\s+|\s?-\s?")
_HUNDRED_AND = re.compile(r"(?<=\b(?:h|H)undred)\s+and(?=\s)|(?<=\b(?:t|T)housand)\s+and(?=\s)")
_AMOUNT = re.compile(r"(?:\d|\bper|\ba|\bevery|\beach)\s+\Z", re.IGNORECASE)
"""Before "second", the unit of time."""


def _in_words(text: str) -> Iterator[tuple[int, Quantity]]:
    run: list[re.Match[str]] = []
    text = _HUNDRED_AND.sub(lambda joined: " " * len(joined[0]), text)
    for word in _WORD.finditer(text):
        if run and not (_continues(word[0].lower(), run) and _JOINED.fullmatch(text, run[-1].end(), word.start())):
            yield _spelled(text, run)
            run = []
        name = word[0].lower()
        starts = name in _VALUE and not (name == "second" and _AMOUNT.search(text, 0, word.start()))
        if run or starts:
            run.append(word)
    if run:
        yield _spelled(text, run)


def _continues(name: str, run: Sequence[re.Match[str]]) -> bool:
    """ "twenty five", "two hundred and six", "three million"; "two three" are two numbers."""
    last = run[-1][0].lower()
    if name in _SCALE and len(name) > 2:
        return True
    if name not in _VALUE:
        return False
    return (last in _TENS.split() and _VALUE[name] < 10) or last in ("hundred", "thousand", "million")


def _spelled(text: str, run: Sequence[re.Match[str]]) -> tuple[int, Quantity]:
    total = part = 0
    for word in run:
        name = word[0].lower()
        if name == "hundred":
            part = max(part, 1) * 100
        elif name in _SCALE:
            total, part = total + max(part, 1) * 10 ** _SCALE[name], 0
        else:
            part += _VALUE[name]
    start, end = run[0].start(), run[-1].end()
    about = _ABOUT.search(text, max(0, start - 24), start) is not None
    return start, Quantity(text[start:end], frozenset({str(total + part)}), _unit_after(text, end), about)


_ROMAN = re.compile(r"(?<=[^\W\d_]\s)(?:XX?|X?(?:IX|IV|VI{0,3}|I{2,3})|X[IVX]+)\b")
_ROMAN_VALUE = {"I": 1, "V": 5, "X": 10}


def _roman(text: str) -> Iterator[tuple[int, Quantity]]:
    for match in _ROMAN.finditer(text):
        values = [_ROMAN_VALUE[letter] for letter in match[0]]
        total = sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
        if total > 1 and match[0] not in ("V", "X"):
            yield match.start(), Quantity(match[0], frozenset({str(total)}))
