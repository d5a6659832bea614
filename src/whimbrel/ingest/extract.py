"""A file's bytes to Markdown text. Runs inside a worker process: see `workers`."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections.abc import Iterator
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
from whimbrel.ingest import reader
from whimbrel.ingest.archives import ARCHIVES, MAX_DEPTH, check_zip, members
from whimbrel.ingest.blocks import Kind, blocks
from whimbrel.ingest.contexts import plain_heading
from whimbrel.ingest.decode import decode
from whimbrel.ingest.formats import BINARY, Format, format_of


@dataclass(frozen=True, slots=True)
class Limits:
    max_file_bytes: int = 256 << 20
    max_unpacked_bytes: int = 1 << 30
    """Of a zip-based file or an archive, nested ones included."""


def extract(source: Path | bytes, *, name: str, limits: Limits = Limits()) -> Extracted:
    """The text of one file as Markdown. `name` says the format where the content does not.

    Raises a kind of `ExtractionFailed`, with the reason and what to do.
    """
    data = source if isinstance(source, bytes) else read_file(source, limits)
    return _extract(data, name, limits, depth=0)


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


def _extract(data: bytes, name: str, limits: Limits, depth: int) -> Extracted:
    if len(data) > limits.max_file_bytes:
        raise _too_large(len(data), limits)
    if not data.strip(b" \t\r\n\f\v\0"):
        raise EmptyFile("The file is empty." if not data else "There is nothing but blanks in the file.", _EMPTY)
    form = format_of(name, data)
    if data.startswith(b"PK\x03\x04"):
        check_zip(data, limits.max_unpacked_bytes)
    media_type = form.media_type
    if media_type == "application/encrypted":
        raise EncryptedFile("The file is protected by a password.", "Save it without one, and ingest it again.")
    if form.language:
        extracted = _code(data, media_type, form.language)
    elif media_type in _OWN:
        extracted = _OWN[media_type](data, media_type)
    elif media_type in ARCHIVES:
        extracted = _archive(data, media_type, name, limits, depth)
    elif not media_type or (media_type in BINARY and not _begins_as(data, form)):
        extracted = _unknown(data, name, media_type, limits, depth)
    else:
        extracted = _read(data, media_type)
    if not extracted.text.strip():
        scan = " It may be a scan: reading those needs Tesseract." if media_type == "application/pdf" else ""
        raise EmptyFile(f"There is no text in the file.{scan}", _EMPTY)
    warnings = [form.warning, *extracted.warnings] if form.warning else extracted.warnings
    title = extracted.title or PurePath(name).stem
    return replace(extracted, title=title[:500], warnings=tuple(warnings))


_EMPTY = "Was it saved completely? If it is meant to be empty, nothing needs to be done."


def _begins_as(data: bytes, form: Format) -> bool:
    """Whether a file whose name says a binary format has any sign of one."""
    return format_of("", data).media_type != "" or b"\0" in data[:4_096] or b"endobj" in data


def _unknown(data: bytes, name: str, media_type: str, limits: Limits, depth: int) -> Extracted:
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


_HEAD = re.compile(r"<head\b[^>]*>.*?</head\s*>", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title\s*>", re.IGNORECASE | re.DOTALL)
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)


def _html(data: bytes, media_type: str) -> Extracted:
    """Without its head, which would come out as a block of text before the page's own."""
    import html

    charset = _CHARSET.search(data[:4_096])
    text, warnings = decode(data, declared=charset[1].decode("ascii", "replace") if charset else "")
    title = _TITLE.search(text[:200_000])
    head = _HEAD.search(text)
    body = text[: head.start()] + text[head.end() :] if head and head.start() < 10_000 else text
    extracted = _read(body.encode(), media_type)
    name = _first_heading(extracted.text) or " ".join(html.unescape(title[1]).split() if title else [])
    return replace(extracted, title=name, warnings=(*warnings, *extracted.warnings))


_OWN = {
    **dict.fromkeys(("text/plain", "text/markdown", "text/x-rst", "text/x-org", "text/asciidoc"), _plain),
    "text/csv": _table,
    "text/tab-separated-values": _table,
    "text/html": _html,
}


# --- the rest --------------------------------------------------------------------------------------------------------


def _read(data: bytes, media_type: str) -> Extracted:
    reading = reader.read(data, media_type)
    warnings = reading.warnings
    text = reading.text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    if not text.strip() and media_type not in BINARY:
        text = decode(data)[0]
        warnings = (*warnings, f"its reader found no text ({media_type}); taken as it is")
    return Extracted(text, _first_heading(text) or reading.title, media_type, reading.pages, warnings)


def _archive(data: bytes, media_type: str, name: str, limits: Limits, depth: int) -> Extracted:
    """The members that can be read, each under its name; what cannot is a warning."""
    if depth >= MAX_DEPTH:
        raise FileTooLarge(f"Archives are nested more than {MAX_DEPTH} deep.", "Unpack the outer ones.")
    texts: list[str] = []
    warnings: list[str] = []
    for member, content in members(data, media_type, PurePath(name).name, limits.max_unpacked_bytes):
        try:
            inner = _extract(content, member, limits, depth + 1)
        except FileTooLarge:
            raise
        except ExtractionFailed as error:
            warnings.append(f"{member}: {error.message}")
            continue
        texts.append(f"# {member}\n\n{inner.text.strip()}\n")
        warnings += [f"{member}: {warning}" for warning in inner.warnings]
    if not texts and warnings:
        raise EmptyFile(f"Nothing in the archive could be read. {warnings[0]}", "Unpack it, and look at what is in it.")
    return Extracted("\n".join(texts), PurePath(name).stem, media_type, (), tuple(warnings[:100]))


_FRONT_TITLE = re.compile(r"\A---\n(?:[^\n]*\n){0,40}?title:[ \t]*[\"']?([^\n]+?)[\"']?[ \t]*\n(?:[^\n]*\n){0,60}?---")


def _first_heading(text: str) -> str:
    """The title in the front matter, else the first heading of the first level in the first 64k characters; plain, and
    empty where there is none."""
    head = text[:65_536]
    if front := _FRONT_TITLE.match(head):
        return plain_heading(front[1])
    first = next((block for block in blocks(head) if block.kind is Kind.HEADING and block.level == 1), None)
    return plain_heading(head[first.start : first.end]) if first else ""
