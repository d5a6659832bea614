"""Bytes to text: encodings, newlines, and what is no text at all."""

from __future__ import annotations

import codecs
import re

from whimbrel.errors import CorruptFile

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_JUNK_SHARE = 0.02
"""Control characters in random bytes: 11 %. In text with terminal colours: below 1 %."""
_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\r\f\x08\x1b"})


def decode(data: bytes, *, declared: str = "") -> tuple[str, list[str]]:
    """`(text, warnings)`: Unicode with `\\n` as its only newline, without NULs or other control characters but tabs.

    A byte order mark decides, then UTF-8 where the bytes are UTF-8 but for a few, then the `declared` encoding, then a
    guess. What cannot be decoded becomes U+FFFD, and a warning says how often. Raises `CorruptFile` for binary data.
    """
    text, warnings = _decoded(data, declared)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _CONTROL.search(text):
        text = text.replace("\f", "\n\n").replace("\v", "\n")
        text, count = _CONTROL.subn("", text)
        if count:
            warnings.append(f"{count} control characters were left out")
    return text, warnings


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufeff\ud800-\udfff]")


def _decoded(data: bytes, declared: str) -> tuple[str, list[str]]:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _replacing(data[len(mark) :], encoding)
    if wide := _wide_without_mark(data):
        return _replacing(data, wide)
    _refuse_junk(data)
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd") - data.count("\ufffd".encode())
    good = sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text)))
    if good >= bad:
        return text, [f"{bad} invalid UTF-8 sequences were replaced by U+FFFD"]
    encoding = _declared(data, declared) or _guess(data)
    text, warnings = _replacing(data, encoding)
    return text, [f"not UTF-8; read as {encoding}", *warnings]


def _replacing(data: bytes, encoding: str) -> tuple[str, list[str]]:
    text = data.decode(encoding, "replace")
    bad = text.count("\ufffd")
    if bad > len(text) // 10:
        raise CorruptFile(f"{bad:,} of {len(text):,} characters are not valid {encoding}.", "Is this a text file?")
    return text, [f"{bad} characters that are not valid {encoding} were replaced by U+FFFD"] if bad else []


def _wide_without_mark(data: bytes) -> str:
    """UTF-16 of Latin text has a zero in every second byte."""
    sample = data[:4_096]
    sample = sample[: len(sample) // 2 * 2]
    half = len(sample) // 2
    if half < 4 or not sample.count(0):
        return ""
    even, odd = sample[::2].count(0) / half, sample[1::2].count(0) / half
    if odd > 0.6 and even < 0.05:
        return "utf-16-le"
    return "utf-16-be" if even > 0.6 and odd < 0.05 else ""


def _refuse_junk(data: bytes) -> None:
    junk = len(data) - len(data.translate(None, _CONTROLS))
    if junk > max(len(data) * _JUNK_SHARE, 1):
        message = f"The content is binary: {junk:,} of {len(data):,} bytes are control characters."
        raise CorruptFile(message, "Give the file the extension of its format, or leave it out.")


def _declared(data: bytes, declared: str) -> str:
    try:
        name = codecs.lookup(declared).name if declared else ""
        if name:
            data.decode(name)
    except (LookupError, UnicodeDecodeError):
        return ""  # the declaration is wrong; the caller guesses, and its warning names what it took
    return name


_COMMON_HAN = frozenset(
    "的一是不了人在有我他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子"
    "日年月本名前住所東京都県市区間株式会社田山川木"
)


def _guess(data: bytes) -> str:
    """The likeliest of the encodings that text without a mark still comes in; cp1252 where none fits better."""
    sample = data[:65_536]
    scores = {encoding: _score(sample, encoding) for encoding in ("cp932", "euc_jp", "euc_kr", "gb18030", "big5")}
    best = max(scores, key=scores.__getitem__)
    if scores[best] > 0.5:
        return best
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", sample)]
    if runs and sum(runs) / len(runs) >= 3:  # whole words of letters above ASCII: Cyrillic rather than accents
        lower = len(re.findall(rb"[\xe0-\xff]", sample))
        upper = len(re.findall(rb"[\xc0-\xdf]", sample))
        return "cp1251" if lower >= upper else "koi8_r"
    return "cp1252"


def _score(sample: bytes, encoding: str) -> float:
    """How much of what is not ASCII looks like the language of the encoding, 0..1."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(sample)
    wide: list[str] = re.findall(r"[^\x00-\x7f]", text)
    if not wide or "\ufffd" in text:
        return 0.0
    if encoding == "euc_kr":
        return sum("\uac00" <= char <= "\ud7a3" for char in wide) / len(wide)
    fits = sum("\u3000" <= char <= "\u9fff" or "\uff00" <= char <= "\uff60" for char in wide) / len(wide)
    if encoding in ("cp932", "euc_jp") and sum("\u3040" <= char <= "\u30ff" for char in wide) * 5 >= len(wide):
        return fits
    common = sum(char in _COMMON_HAN for char in wide) / len(wide)
    return min(fits, 0.5 + common) if common > 0.02 and fits > 0.95 else 0.0
