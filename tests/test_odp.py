"""Slides of OpenDocument: titles, lists, tables, notes, and the slide that a passage is on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_extract import zipped
from whimbrel.errors import CorruptFile, EmptyFile, EncryptedFile
from whimbrel.ingest.extract import extract

ODF = "urn:oasis:names:tc:opendocument:xmlns"
NAMES = ("office", "text", "table", "presentation")
SPACES = f'xmlns:draw="{ODF}:drawing:1.0" ' + " ".join(f'xmlns:{name}="{ODF}:{name}:1.0"' for name in NAMES)
KIND = "application/vnd.oasis.opendocument.presentation"
TITLE = '<draw:frame presentation:class="title"><draw:text-box><text:p>{}</text:p></draw:text-box></draw:frame>'
BOX = "<draw:frame><draw:text-box>{}</draw:text-box></draw:frame>"


def odp(*slides: str, manifest: str = "") -> bytes:
    pages = "".join(f"<draw:page>{slide}</draw:page>" for slide in slides)
    body = f"<office:body><office:presentation>{pages}</office:presentation></office:body>"
    content = f'<?xml version="1.0"?><office:document-content {SPACES}>{body}</office:document-content>'
    return zipped({"mimetype": KIND, "content.xml": content, "META-INF/manifest.xml": manifest})


def test_slides_become_sections_with_their_numbers() -> None:
    listed = (
        "<text:list><text:list-item><text:p>Far<text:s/>flights</text:p><text:list><text:list-item>"
        "<text:p>to the <text:span>south</text:span> pole</text:p></text:list-item></text:list></text:list-item>"
        "</text:list>"
    )
    row = "<table:table-row>{}</table:table-row>"
    cell = "<table:table-cell><text:p>{}</text:p></table:table-cell>"
    rows = [row.format("".join(map(cell.format, cells))) for cells in (["Bird", "Grams"], ["Tern", "100 | 110"])]
    notes = f"<presentation:notes>{BOX.format('<text:p>Mention Iceland.</text:p>')}</presentation:notes>"
    first = BOX.format(listed) + TITLE.format("The  tern")
    last = TITLE.format("Weights") + f"<draw:frame><table:table>{''.join(rows)}</table:table></draw:frame>" + notes
    read = extract(odp(first, "", last), name="a.odp")
    assert read.text == (
        "## The tern\n\n- Far flights\n  - to the south pole\n\n"
        "## Weights\n\n| Bird | Grams |\n| --- | --- |\n| Tern | 100 \\| 110 |\n\nNotes:\n\nMention Iceland.\n"
    )
    assert read.pages == ((0, 1), (read.text.index("## Weights"), 3))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (odp("", ""), EmptyFile),
        (odp(BOX.format("<text:p>x</text:p>"), manifest="<encryption-data/>"), EncryptedFile),
        (zipped({"mimetype": KIND, "content.xml": "<a>"}), CorruptFile),
        (zipped({"mimetype": KIND}), CorruptFile),
        (zipped({"mimetype": KIND, "content.xml": "<a>" * 100_000}), CorruptFile),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        extract(data, name="a.odp")


def test_elements_deep_within_each_other_are_survived() -> None:
    deep = "<draw:g>" * 5_000 + "<text:p>lost</text:p>" + "</draw:g>" * 5_000
    assert extract(odp(deep, TITLE.format("Kept")), name="a.odp").text == "## Kept\n"


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20), min_size=1, max_size=5))
def test_a_slide_is_where_its_words_are(titles: list[str]) -> None:
    read = extract(odp(*map(TITLE.format, titles)), name="a.odp")
    assert [number for _, number in read.pages] == list(range(1, len(titles) + 1))
    for (start, _), title in zip(read.pages, titles, strict=True):
        assert read.text.startswith(f"## {title}\n", start)
