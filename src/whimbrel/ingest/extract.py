"""A file's bytes to Markdown text. Runs inside a worker process: see `workers`."""

from __future__ import annotations

import csv
import html
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from whimbrel.domain import Extracted
from whimbrel.errors import (
    CorruptFile,
    EmptyFile,
    EncryptedFile,
    ExtractionFailed,
    FileTooLarge,
    UnreadableFile,
    UnsupportedFormat,
)
from whimbrel.ingest import notebook, odp, reader, rst
from whimbrel.ingest.archives import ARCHIVES, MAX_DEPTH, check_zip, members
from whimbrel.ingest.blocks import Kind, blocks
from whimbrel.ingest.contexts import plain_heading
from whimbrel.ingest.decode import decode
from whimbrel.ingest.formats import BINARY, OUTLOOK, Format, format_of
from whimbrel.ingest.mail import DECRYPT_HINT, read_mail
from whimbrel.ingest.markup import lowered, says_something
from whimbrel.ingest.page import all_of_it, main_part
from whimbrel.ingest.reader import NO_OPTIONS, Options

MAX_WARNINGS = 100


@dataclass(frozen=True, slots=True)
class Limits:
    max_file_bytes: int = 256 << 20
    max_unpacked_bytes: int = 1 << 30
    """Of a zip-based file or an archive, nested ones included."""


def extract(source: Path | bytes, *, name: str, limits: Limits = Limits(), options: Options = NO_OPTIONS) -> Extracted:
    """The text of one file as Markdown. `name` says the format where the content does not.

    Raises a kind of `ExtractionFailed`, with the reason and what to do.
    """
    data = source if isinstance(source, bytes) else read_file(source, limits)
    return _extract(data, name, _Given(limits, options), depth=0)


@dataclass(frozen=True, slots=True)
class _Given:
    limits: Limits
    options: Options


def read_file(path: Path, limits: Limits) -> bytes:
    """Raises `FileTooLarge` before any of it is read, `UnreadableFile`."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableFile("Not a regular file.", "Only files with content can be ingested.")
            if status.st_size > limits.max_file_bytes:
                raise _too_large(status.st_size, limits)
            data: bytes = file.read(limits.max_file_bytes + 1)
    except OSError as error:
        raise UnreadableFile(f"Cannot be read: {error.strerror or error}.", "Check its permissions.") from error
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would wait for ever


def _too_large(size: int, limits: Limits) -> FileTooLarge:
    message = f"{size:,} bytes; the limit is {limits.max_file_bytes:,}. Nothing of it was taken in."
    return FileTooLarge(message, "Raise `max_file_bytes`, or split the file.")


def _extract(data: bytes, name: str, given: _Given, depth: int) -> Extracted:
    if len(data) > given.limits.max_file_bytes:
        raise _too_large(len(data), given.limits)
    if not data.strip(b" \t\r\n\f\v\0"):
        raise EmptyFile("The file is empty." if not data else "There is nothing but blanks in the file.", _EMPTY)
    zipped = data.startswith(b"PK\x03\x04")
    form = format_of(name, data, check_zip(data, given.limits.max_unpacked_bytes) if zipped else None)
    extracted = _by_format(data, name, form, given, depth)
    if not says_something(extracted.text):
        raise _nothing_in(extracted)
    warnings = [form.warning, *extracted.warnings] if form.warning else extracted.warnings
    title = extracted.title or PurePath(name).stem
    return replace(extracted, title=title[:500], warnings=tuple(warnings[:MAX_WARNINGS]))


def _by_format(data: bytes, name: str, form: Format, given: _Given, depth: int) -> Extracted:
    media_type = form.media_type
    if media_type == "application/encrypted":
        raise EncryptedFile("The file is protected by a password.", "Save it without one, and ingest it again.")
    if form.language:
        return _code(data, media_type, form.language)
    if media_type in _OWN:
        return _OWN[media_type](data, media_type)
    if media_type in ARCHIVES:
        return _archive(data, media_type, name, given, depth)
    if media_type == "message/rfc822":
        return _mail(data, media_type, given, depth)
    if media_type == OUTLOOK:
        return _outlook(data, media_type, given)
    if not media_type or (media_type in BINARY and not _begins_as(data, form)):
        return _unknown(data, name, media_type)
    return _read(data, media_type, given.options)


def _nothing_in(extracted: Extracted) -> EmptyFile:
    if extracted.media_type == "application/pdf" and reader.ocr_available():
        return EmptyFile("There is no text in the PDF, and none was recognised in scans on its pages.", _EMPTY)
    if extracted.media_type == "application/pdf":
        message = "There is no text in the PDF: its pages are pictures (scans), or empty."
        return EmptyFile(message, f"To read scanned pages: {reader.OCR_HINT}")
    if extracted.warnings:
        return EmptyFile(f"There is no text in the file. {extracted.warnings[0]}", _EMPTY)
    hint = _PICTURES if extracted.media_type in BINARY else _EMPTY
    return EmptyFile("There is no text in the file.", hint)


_EMPTY = "Was it saved completely? If it is meant to be empty, nothing needs to be done."
_PICTURES = "If its text is in pictures: save it as a PDF; scanned pages are read where Tesseract is there."


def _begins_as(data: bytes, form: Format) -> bool:
    """Whether a file whose name says a binary format has any sign of one."""
    return form.in_content or b"\0" in data[:4_096] or b"endobj" in data


def _unknown(data: bytes, name: str, media_type: str) -> Extracted:
    """No format is known, or not the one that the name says: text if it reads as text."""
    try:
        extracted = _plain(data, "text/plain")
    except CorruptFile as error:
        if media_type:
            raise CorruptFile(f"The content is not {media_type}, nor text.", "Is the file complete?") from error
        suffix = PurePath(name).suffix
        what = f"files that end in {suffix}" if suffix else "this kind of file"
        raise UnsupportedFormat(
            f"Nothing here reads {what}; it is not text.", "Convert it to PDF, HTML or text."
        ) from error
    if media_type:
        warning = f"the content is text, though the name says {media_type}"
        return replace(extracted, warnings=(warning, *extracted.warnings))
    return extracted


# --- text ------------------------------------------------------------------------------------------------------------


def _plain(data: bytes, media_type: str) -> Extracted:
    text, warnings = decode(data)
    return Extracted(text, _first_heading(text), media_type, (), tuple(warnings))


def _rst(data: bytes, media_type: str) -> Extracted:
    text, warnings = decode(data)
    markdown = rst.to_markdown(text)
    return Extracted(markdown, _first_heading(markdown), media_type, (), tuple(warnings))


def _notebook(data: bytes, media_type: str) -> Extracted:
    text, warnings = decode(data)
    markdown = notebook.to_markdown(text)
    return Extracted(markdown, _first_heading(markdown), media_type, (), tuple(warnings))


def _slides(data: bytes, media_type: str) -> Extracted:
    markdown, pages = odp.to_markdown(data)
    return Extracted(markdown, _first_heading(markdown), media_type, pages, ())


def _code(data: bytes, media_type: str, language: str) -> Extracted:
    """Source code and data as one fenced block, so that a `# comment` is no heading."""
    text, warnings = decode(data)
    if not text.strip():
        return Extracted("", "", media_type, (), tuple(warnings))
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return Extracted(f"{fence}{language}\n{text.rstrip()}\n{fence}\n", "", media_type, (), tuple(warnings))


def _table(data: bytes, media_type: str) -> Extracted:
    """CSV as a Markdown table, whose header each chunk can then carry."""
    text, warnings = decode(data)
    delimiter = "\t" if media_type == "text/tab-separated-values" else _delimiter(text)
    csv.field_size_limit(max(len(text), 131_072))
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    return Extracted("".join(_rows(rows)), "", media_type, (), tuple(warnings))


def _rows(rows: Iterator[list[str]]) -> Iterator[str]:
    first = True
    for row in rows:
        if any(cell.strip() for cell in row):
            yield "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |\n"
            if first:
                yield "|" + " --- |" * len(row) + "\n"
                first = False


def _delimiter(text: str) -> str:
    """The separator that the first lines have most of, where they agree on it."""
    lines = [line for line in text[:16_384].split("\n")[:20] if line.strip()]
    counts = {mark: [line.count(mark) for line in lines] for mark in ",;\t|"}
    return max(counts, key=lambda mark: (min(counts[mark], default=0), sum(counts[mark])))


_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title\s*>", re.IGNORECASE | re.DOTALL)
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)


def _html(data: bytes, media_type: str) -> Extracted:
    """A page's main part, without its navigation."""
    charset = _CHARSET.search(data[:4_096])
    text, warnings = decode(data, declared=charset[1].decode("ascii", "replace") if charset else "")
    title = _TITLE.search(text[:200_000])
    body = text[: title.start()] + text[title.end() :] if title else text
    markdown = _markdown(main_part(body))
    name = _first_heading(markdown) or " ".join(html.unescape(title[1]).split() if title else [])
    return Extracted(markdown, name, media_type, (), tuple(warnings))


def _markdown(body: str) -> str:
    return reader.read(f"<html><body>{body}</body></html>".encode(), "text/html").text.lstrip("\n")


_OWN = {
    **dict.fromkeys(("text/plain", "text/markdown", "text/asciidoc"), _plain),
    "text/x-rst": _rst,
    "application/vnd.oasis.opendocument.presentation": _slides,
    "application/x-ipynb+json": _notebook,
    "text/csv": _table,
    "text/tab-separated-values": _table,
    "text/html": _html,
}


# --- the rest --------------------------------------------------------------------------------------------------------


def _read(data: bytes, media_type: str, options: Options) -> Extracted:
    reading = reader.read(data, media_type, options)
    warnings = reading.warnings
    text = reading.text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    if not text.strip() and media_type not in BINARY:
        text = decode(data)[0]
        warnings = (*warnings, f"its reader found no text ({media_type}); taken as it is")
    return Extracted(text, _first_heading(text) or reading.title, media_type, reading.pages, warnings)


# --- files in files --------------------------------------------------------------------------------------------------


def _archive(data: bytes, media_type: str, name: str, given: _Given, depth: int) -> Extracted:
    """The members that can be read, each under its name; what cannot is a warning."""
    if depth >= MAX_DEPTH:
        raise FileTooLarge(f"Archives are nested more than {MAX_DEPTH} deep.", "Unpack the outer ones.")
    found = members(data, media_type, PurePath(name).name, given.limits.max_unpacked_bytes)
    texts, warnings = _within(found, given, depth, "#")
    if not texts and warnings:
        raise EmptyFile(f"Nothing in the archive could be read. {warnings[0]}", "Unpack it, and look at what is in it.")
    return Extracted("\n".join(texts), PurePath(name).stem, media_type, (), tuple(warnings))


def _mail(data: bytes, media_type: str, given: _Given, depth: int) -> Extracted:
    """A message with its attachments, each under a heading; what of them cannot be read is a warning."""
    mail = read_mail(data, lambda page: _markdown(all_of_it(page)))
    if depth >= MAX_DEPTH:
        left = [f"{name}: messages are nested more than {MAX_DEPTH} deep; not read" for name, _ in mail.attachments]
        return Extracted(mail.text, mail.subject, media_type, (), tuple(left))
    texts, warnings = _within(mail.attachments, given, depth, "##")
    return Extracted("\n".join([mail.text, *texts]), mail.subject, media_type, (), tuple(warnings))


def _outlook(data: bytes, media_type: str, given: _Given) -> Extracted:
    message = reader.read_message(data, media_type, given.options)
    if any(name.lower().endswith((".p7m", ".pgp-encrypted")) for name, _ in message.attachments):
        raise EncryptedFile("The message is encrypted.", DECRYPT_HINT)
    lines = [f"**{name}:** {value}" for name, value in message.headers if value]
    parts = [f"# {message.subject}" if message.subject else "", "  \n".join(lines), message.body.strip()]
    read = [(name, text.strip()) for name, text in message.attachments if says_something(text)]
    parts += [f"## {name}\n\n{lowered(lowered(text))}" for name, text in read]
    missing = [name for name, text in message.attachments if not says_something(text)]
    warnings = [f"{name}: nothing in it could be read" for name in missing]
    text = "\n\n".join(filter(None, parts)) + "\n"
    return Extracted(text, message.subject, media_type, (), tuple(warnings))


def _within(files: Iterable[tuple[str, bytes]], given: _Given, depth: int, level: str) -> tuple[list[str], list[str]]:
    """(texts, warnings) of files in a file. Their headings go below the one that each gets."""
    texts: list[str] = []
    warnings: list[str] = []
    for name, content in files:
        try:
            inner = _extract(content, name, given, depth + 1)
        except FileTooLarge:
            raise
        except ExtractionFailed as error:
            warnings.append(f"{name}: {error.message}")
            continue
        text = inner.text.strip()
        for _ in level:
            text = lowered(text)
        texts.append(f"{level} {name}\n\n{text}\n")
        warnings += [f"{name}: {warning}" for warning in inner.warnings]
    return texts, warnings


_FRONT_TITLE = re.compile(r"\A---\n(?:[^\n]*\n){0,40}?title:[ \t]*[\"']?([^\n]+?)[\"']?[ \t]*\n(?:[^\n]*\n){0,60}?---")


def _first_heading(text: str) -> str:
    """The title in the front matter, else the first heading of the first level in the first 64k characters; plain, and
    empty where there is none."""
    head = text[:65_536]
    if front := _FRONT_TITLE.match(head):
        return plain_heading(front[1])
    first = next((block for block in blocks(head) if block.kind is Kind.HEADING and block.level == 1), None)
    return plain_heading(head[first.start : first.end]) if first else ""
