"""Kreuzberg, which reads the formats that are not text: imported when the first such file comes (0.1 s)."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from whimbrel.errors import CorruptFile, EncryptedFile, UnsupportedFormat

_OCR_HINT = "Install Tesseract (`tesseract-ocr` and the language packs you need) and ingest the file again."


@dataclass(frozen=True, slots=True)
class Reading:
    text: str
    """Markdown."""
    title: str
    pages: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...]


def ocr_available() -> bool:
    return shutil.which("tesseract") is not None or "TESSDATA_PREFIX" in os.environ


def read(data: bytes, media_type: str) -> Reading:
    """A document as Markdown; `pages` for slides and for PDF, where each page's beginning is found again by its words.

    Raises `EncryptedFile`, `UnsupportedFormat`, `CorruptFile`.
    """
    import kreuzberg

    ocr = ocr_available()
    if media_type.startswith("image/") and media_type != "image/svg+xml" and not ocr:
        raise UnsupportedFormat(
            "Reading the text of an image (OCR) needs Tesseract, which is not installed.", _OCR_HINT
        )
    config = kreuzberg.ExtractionConfig(
        output_format="markdown",
        use_cache=False,
        disable_ocr=not ocr,  # type: ignore[call-arg]  # there, though its stub leaves it out
        concurrency=kreuzberg.ConcurrencyConfig(max_threads=1),
        pages=kreuzberg.PageConfig(extract_pages=True, insert_page_markers=True, marker_format=_MARK),
    )
    try:
        result = kreuzberg.extract_bytes_sync(data, media_type, config)
    except MemoryError:
        raise
    except Exception as error:  # mostly its own kinds, but RuntimeError for OPML
        raise _named(error, media_type) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a panic in Rust becomes; no Exception
            raise
        message = f"Its reader ({media_type}) failed: {_short(str(error))}"
        raise CorruptFile(message, "Does the file open in its own program?") from None
    text, pages = _without_marks(result.content)
    if not pages and media_type == "application/pdf" and result.pages:
        pages = _find_pages(text, [(page["page_number"], page["content"]) for page in result.pages])
    warnings = tuple(f"{warning.source}: {_short(warning.message)}" for warning in result.processing_warnings)
    return Reading(text, _title(result.metadata.get("title")), tuple(pages), warnings)


def _title(title: object) -> str:
    """Without what programs write where nobody gave a title."""
    title = " ".join(str(title or "").split())
    return "" if title.lower() in ("untitled", "title", "none") or title.startswith("Microsoft ") else title


def _named(error: Exception, media_type: str) -> CorruptFile | EncryptedFile | UnsupportedFormat:
    import kreuzberg

    reason = _short(str(error))
    if re.search(r"password|encrypt", reason, re.IGNORECASE):
        return EncryptedFile("The file is protected by a password.", "Save it without one, and ingest it again.")
    if isinstance(error, kreuzberg.OCRError):
        return UnsupportedFormat(f"The text of the image could not be read: {reason}", _OCR_HINT)
    if isinstance(error, kreuzberg.MissingDependencyError):
        return UnsupportedFormat(f"Reading {media_type} needs another program: {reason}")
    if reason.lower() == media_type.lower() or "unsupported format" in reason.lower():
        return UnsupportedFormat(f"Nothing here reads {media_type}.", "Convert the file to PDF, HTML or text.")
    return CorruptFile(f"It cannot be read as {media_type}: {reason}", "Does the file open in its own program?")


def _short(message: str) -> str:
    message = " ".join(re.sub(r"\b(\w+Error|Parsing error|Extraction failed): ", "", message).split())
    half = len(message) // 2
    if half and message[half + 1 :].lstrip(": ") == message[: half - 1].rstrip(": "):
        message = message[:half].rstrip(": ")
    return message[:200]


_MARK = "\n\n\ue000{page_num}\ue001\n\n"
_MARKS = re.compile("\\s*\ue000(\\d+)\ue001\\s*")


def _without_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    parts, pages, size, last = [], [], 0, 0
    for mark in _MARKS.finditer(text):
        parts.append(text[last : mark.start()] + ("\n\n" if size or mark.start() > last else ""))
        size += len(parts[-1])
        pages.append((size, int(mark[1])))
        last = mark.end()
    return "".join([*parts, text[last:]]), pages


_PROBE = 32
_SHORT_PROBE = 14
_REACH = 2_000
_WORD_CHARS = re.compile(r"[^\W_]")


def _find_pages(markdown: str, pages: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """Where each page begins in the Markdown, which is made of the whole document. Looks for the first letters from
    each of the page's lines on, after the page before; so a running head, which the Markdown leaves out, is passed
    over. A page of which nothing is found is left out: what is of it counts to the page before."""
    places = [match.start() for match in _WORD_CHARS.finditer(markdown)]
    letters = "".join(markdown[place] for place in places)
    found: list[tuple[int, int]] = []
    after = 0
    reach = 0
    for number, content in pages:
        reach += 2 * len(content) + _REACH
        for probe in _probes(content):
            at = letters.find(probe, after, after + reach)
            if at >= 0:
                found.append((places[at] if found else 0, number))
                after, reach = at + 1, 0
                break
    return found


def _probes(content: str) -> Iterator[str]:
    """What may be found of a page: its letters from each of the first lines on; all of them, of a short page; single
    lines, where tables have changed the order."""
    lines = ["".join(_WORD_CHARS.findall(line)) for line in content.split("\n")]
    lines = [line for line in lines if line][:40]
    for place in range(min(len(lines), 12)):
        probe = "".join(lines[place : place + _PROBE])[:_PROBE]
        if len(probe) == _PROBE:
            yield probe
    if 3 <= sum(map(len, lines)) < _PROBE:
        yield "".join(lines)
    yield from (line for line in lines if len(line) >= _SHORT_PROBE)
