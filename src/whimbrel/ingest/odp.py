"""Slides of OpenDocument (ODP, ODF 1.3 part 3) as Markdown, which Kreuzberg does not read: titles as headings, lists,
tables, and the speaker's notes."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from whimbrel.errors import CorruptFile, EncryptedFile

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_ODF = "{urn:oasis:names:tc:opendocument:xmlns:"
_PAGE, _FRAME = f"{_ODF}drawing:1.0}}page", f"{_ODF}drawing:1.0}}frame"
_CLASS, _NOTES = f"{_ODF}presentation:1.0}}class", f"{_ODF}presentation:1.0}}notes"
_TEXT = f"{_ODF}text:1.0}}"
_PARAGRAPH, _HEADING, _LIST, _ITEM = (f"{_TEXT}{name}" for name in ("p", "h", "list", "list-item"))
_TABLE, _ROW, _CELL = (f"{_ODF}table:1.0}}{name}" for name in ("table", "table-row", "table-cell"))
_BETWEEN = {f"{_TEXT}s": " ", f"{_TEXT}tab": " ", f"{_TEXT}line-break": " "}
_LEFT_OUT = frozenset({_NOTES, f"{_ODF}office:1.0}}annotation"})
_MANIFEST = "META-INF/manifest.xml"
_DEEPEST = 100
"""Elements within each other; programs write a tenth of that."""


def to_markdown(data: bytes) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text, and (start, number) of each slide that has any. Raises `EncryptedFile`, `CorruptFile`."""
    from xml.etree.ElementTree import ParseError, fromstring

    try:
        root = fromstring(_content(data))
        slides = [_slide(page) for page in root.iter(_PAGE)]
    except (ParseError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise CorruptFile("It cannot be read as slides of OpenDocument.", "Does it open in its own program?") from error
    parts: list[str] = []
    pages: list[tuple[int, int]] = []
    size = 0
    for number, slide in enumerate(slides, 1):
        if slide:
            pages.append((size, number))
            parts.append(f"{slide}\n\n")
            size += len(parts[-1])
    return "".join(parts).rstrip() + "\n", tuple(pages)


def _content(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if _MANIFEST in archive.namelist() and b"encryption-data" in archive.read(_MANIFEST):
            raise EncryptedFile("The file is protected by a password.", "Save it without one, and ingest it again.")
        return archive.read("content.xml")


def _slide(page: Element) -> str:
    titles, others = [], []
    for frame in page:
        blocks = list(_blocks(frame))
        if frame.tag == _FRAME and frame.get(_CLASS) == "title":
            titles += blocks
        else:
            others += blocks
    notes = [block for found in page.findall(_NOTES) for child in found for block in _blocks(child)]
    heading = [f"## {' '.join(' '.join(titles).split())}"] if titles else []
    return "\n\n".join([*heading, *others, *(["Notes:", *notes] if notes else [])])


def _blocks(element: Element, depth: int = 0) -> Iterator[str]:
    """Paragraphs, lists and tables, in their order."""
    if element.tag in _LEFT_OUT or depth > _DEEPEST:
        return
    if element.tag in (_PARAGRAPH, _HEADING):
        if text := _line(element):
            yield text
    elif element.tag == _LIST:
        if items := "\n".join(_items(element, 0)):
            yield items
    elif element.tag == _TABLE:
        if rows := "\n".join(_rows(element)):
            yield rows
    else:
        for child in element:
            yield from _blocks(child, depth + 1)


def _items(element: Element, level: int) -> Iterator[str]:
    for item in element.findall(_ITEM):
        for child in item:
            if child.tag == _LIST and level < _DEEPEST:
                yield from _items(child, level + 1)
            elif child.tag in (_PARAGRAPH, _HEADING) and (text := _line(child)):
                yield f"{'  ' * level}- {text}"


def _rows(table: Element) -> Iterator[str]:
    rows = [[" ".join(map(_line, cell.iter(_PARAGRAPH))) for cell in row.iter(_CELL)] for row in table.iter(_ROW)]
    for number, row in enumerate(row for row in rows if any(row)):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        if number == 0:
            yield "|" + " --- |" * len(row)


def _line(element: Element) -> str:
    return re.sub(r"\s+", " ", "".join(_said(element))).strip()


def _said(element: Element, depth: int = 0) -> Iterator[str]:
    yield _BETWEEN.get(element.tag, element.text or "")
    for child in element:
        if child.tag not in _LEFT_OUT and depth < _DEEPEST:
            yield from _said(child, depth + 1)
        yield child.tail or ""
