"""Kreuzberg, which reads the formats that are not text: imported when the first such file comes (0.1 s)."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from whimbrel.errors import CorruptFile, EncryptedFile, UnsupportedFormat
from whimbrel.ingest.forms import MISSING, UNREADABLE, filled_in, may_be_form, with_fields
from whimbrel.ingest.markup import bulleted, unescaped, without_empty_rows, without_pictures

if TYPE_CHECKING:
    from kreuzberg import ExtractionResult
    from kreuzberg._internal_bindings import HtmlConversionOptions  # a type that only its stub has

OCR_HINT = "Install Tesseract (`tesseract-ocr` and the language packs you need), and ingest the file again."
PASSWORD_HINT = "Give it: `whimbrel ingest --password`, `password` with an upload, or the setting `ingest.passwords`."
TESSDATA = (
    "/usr/share/tesseract-ocr/5/tessdata",
    "/usr/share/tesseract-ocr/4/tessdata",
    "/usr/share/tessdata",
    "/usr/local/share/tessdata",
    "/opt/homebrew/share/tessdata",
)
"""Where Kreuzberg, which has Tesseract's engine built in, looks for what it knows of languages."""
SOUGHT_EVERY_S = 5.0
"""Looking through all these folders takes a tenth as long as reading a small document."""


@dataclass(frozen=True, slots=True)
class Options:
    """What reading a file takes beside the file."""

    passwords: Sequence[str] = field(default=(), repr=False)
    """Tried on encrypted PDFs, in order."""
    ocr_languages: str = "all"
    """Those that text in pictures is read in, by Tesseract's names: `eng+deu`; `all` for those that are installed."""


NO_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class Reading:
    text: str
    """Markdown."""
    title: str
    pages: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """An Outlook message."""

    headers: tuple[tuple[str, str], ...]
    """(name, value) of those that people read."""
    subject: str
    body: str
    attachments: tuple[tuple[str, str], ...]
    """(name, Markdown); empty text where nothing could be read."""


def ocr_available() -> bool:
    """Whether Tesseract is there. Looked for anew every few seconds: it may be installed while a worker runs."""
    return _ocr_found(os.environ.get("TESSDATA_PREFIX"), os.environ.get("PATH"), int(time.monotonic() / SOUGHT_EVERY_S))


@lru_cache(maxsize=1)
def _ocr_found(prefix: str | None, path: str | None, at: int) -> bool:
    places = TESSDATA if prefix is None else [prefix]
    found = any(any(Path(place).glob("*.traineddata")) for place in places)
    return found or shutil.which("tesseract", path=path) is not None


def read(data: bytes, media_type: str, options: Options = NO_OPTIONS) -> Reading:
    """A document as Markdown; `pages` for slides and for PDF, where each page's beginning is found again by its words.

    Raises `EncryptedFile`, `UnsupportedFormat`, `CorruptFile`.
    """
    if media_type.startswith("image/") and media_type != "image/svg+xml" and not ocr_available():
        raise UnsupportedFormat("Reading the text of an image (OCR) needs Tesseract, which is not there.", OCR_HINT)
    result = _extracted(data, media_type, options, output_format="markdown")
    text, pages = _without_marks(_cleaned(result.content, within=media_type == "application/pdf"))
    warnings = [f"{warning.source}: {_short(warning.message)}" for warning in result.processing_warnings]
    if media_type == "application/pdf" and result.pages:
        contents = [(page["page_number"], page["content"]) for page in result.pages]
        pages = pages or _find_pages(text, contents)
        warnings += _without_text(contents)
        if may_be_form(data):
            text, pages, missing = _with_form(text, pages, data, options)
            warnings += missing
    return Reading(text, _title(result.metadata.get("title")), tuple(pages), tuple(warnings))


def _with_form(
    text: str, pages: list[tuple[int, int]], data: bytes, options: Options
) -> tuple[str, list[tuple[int, int]], list[str]]:
    """(text, pages, warnings) with what was filled into the form, if the PDF is one."""
    try:
        fields = filled_in(data, options.passwords)
    except (ImportError, ValueError) as error:
        told = MISSING if isinstance(error, ImportError) else UNREADABLE
        return text, pages, [told] if b"/AcroForm" in data else []
    return (*with_fields(text, pages, fields), []) if fields else (text, pages, [])


def read_message(data: bytes, media_type: str, options: Options = NO_OPTIONS) -> Message:
    """An Outlook message: its body as it was written, and what Kreuzberg could read of its attachments."""
    result = _extracted(data, media_type, options, output_format="plain")
    about = result.metadata
    headers = {
        "From": about.get("from_email") or "",
        "To": ", ".join(about.get("to_emails") or ()),
        "Cc": ", ".join(about.get("cc_emails") or ()),
        "Date": about.get("created_at") or "",
    }
    _, _, body = result.content.replace("\r\n", "\n").partition("\n\n")
    attached = dict.fromkeys(about.get("attachments") or (), "")
    if result.children:
        formatted = _extracted(data, media_type, options, output_format="markdown")
        attached |= {child["path"]: _cleaned(child["result"].content) for child in formatted.children or ()}
    return Message(tuple(headers.items()), about.get("subject") or "", body, tuple(attached.items()))


def _extracted(data: bytes, media_type: str, options: Options, *, output_format: str) -> ExtractionResult:
    import kreuzberg

    ocr = ocr_available()
    paged = media_type == "application/pdf" or "presentation" in media_type or "powerpoint" in media_type
    config = kreuzberg.ExtractionConfig(
        output_format=output_format,
        use_cache=False,
        enable_quality_processing=False,  # costs a sixth, and changes nothing in the text
        disable_ocr=not ocr,  # type: ignore[call-arg]  # there, though its stub leaves it out
        ocr=kreuzberg.OcrConfig(backend="tesseract", language=options.ocr_languages) if ocr else None,
        concurrency=kreuzberg.ConcurrencyConfig(max_threads=1),
        html_options=_HTML,
        pages=kreuzberg.PageConfig(extract_pages=True, insert_page_markers=True, marker_format=_MARK)
        if paged
        else None,
        pdf_options=kreuzberg.PdfConfig(passwords=list(options.passwords)) if options.passwords else None,
    )
    try:
        return kreuzberg.extract_bytes_sync(data, media_type, config)
    except MemoryError:
        raise
    except Exception as error:  # mostly its own kinds, but RuntimeError for OPML
        raise _named(error, media_type, options) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a panic in Rust becomes; no Exception
            raise
        message = f"Its reader ({media_type}) failed: {_short(str(error))}"
        raise CorruptFile(message, "Does the file open in its own program?") from None


_HTML: HtmlConversionOptions = {"preprocessing": {"enabled": False}}
"""What of a page is its main part is judged before: see `page`."""


def _cleaned(text: str, *, within: bool = False) -> str:
    return bulleted(without_empty_rows(without_pictures(unescaped(text))), within=within)


def _title(title: object) -> str:
    """Without what programs write where nobody gave a title."""
    title = " ".join(str(title or "").split())
    return "" if title.lower() in ("untitled", "title", "none") or title.startswith("Microsoft ") else title


def _without_text(pages: Sequence[tuple[int, str]]) -> list[str]:
    """A warning that names the pages of a PDF that came out empty beside others that did not."""
    blank = [number for number, content in pages if not content.strip()]
    if not blank or len(blank) == len(pages):
        return []
    shown = ", ".join(map(str, blank[:10])) + (f" and {len(blank) - 10} more" if len(blank) > 10 else "")
    scans = "" if ocr_available() else "; if they are scans: reading those needs Tesseract"
    return [f"no text on page{'s' * (len(blank) > 1)} {shown} of {len(pages)}{scans}"]


def _named(error: Exception, media_type: str, options: Options) -> CorruptFile | EncryptedFile | UnsupportedFormat:
    import kreuzberg

    reason = _short(str(error))
    if re.search(r"password|encrypt", reason, re.IGNORECASE):
        if media_type != "application/pdf":
            return EncryptedFile("The file is protected by a password.", "Save it without one, and ingest it again.")
        wrong = " None of those that were given opens it." if options.passwords else ""
        return EncryptedFile(f"The PDF is protected by a password.{wrong}", PASSWORD_HINT)
    if "No page boundaries" in reason:
        return CorruptFile("The PDF has no pages.", "Does it open in its own program?")
    if isinstance(error, kreuzberg.OCRError):
        return UnsupportedFormat(f"The text of the image could not be read: {reason}", OCR_HINT)
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
    if "\ue000" not in text:
        return text, []
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
