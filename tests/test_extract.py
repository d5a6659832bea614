"""Bytes to text: what is read, and what each bad file is called."""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from whimbrel.ingest.extract import Limits, extract


def read(data: bytes, name: str = "a.txt", **limits: int) -> Extracted:
    return extract(data, name=name, limits=Limits(**limits))


def text_or_reason(data: bytes, name: str) -> str:
    try:
        return read(data, name).text
    except ExtractionFailed as error:
        return error.message + error.hint


def zipped(members: dict[str, bytes | str], **more: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **more) as archive:  # type: ignore[arg-type]
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
WORD_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def docx(*paragraphs: str) -> bytes:
    """The least that is a Word document."""
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    return zipped(
        {
            "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="rels" ContentType='
            '"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" '
            f'ContentType="{WORD_TYPE}.main+xml"/></Types>',
            "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r" Type="{OFFICE}" '
            'Target="word/document.xml"/></Relationships>',
            "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
        }
    )


def pdf(*pages: str, encrypted: bool = False) -> bytes:
    """The least that is a PDF with text; `encrypted` names a password handler whose key nobody has."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    if encrypted:
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O <{'41' * 32}> /U <{'42' * 32}> /P -4 >>")
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    key = f"/Encrypt {len(objects)} 0 R /ID [<{'00' * 16}> <{'00' * 16}>]" if encrypted else ""
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {key} >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode() + trailer.encode()


# --- text ------------------------------------------------------------------------------------------------------------


def test_markdown_is_taken_as_it_is() -> None:
    text = "# A  title #\n\nSome *text*.\n\n    code\n"
    assert read(text.encode(), "x.md") == Extracted(text, "A title", "text/markdown")


def test_newlines_are_normalised() -> None:
    assert read(b"a\r\nb\rc\n").text == "a\nb\nc\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_unicode_encodings(encoding: str) -> None:
    text = "Plain words, and Grüße.\n"
    assert read(text.encode(encoding)).text == text
    assert not read(text.encode(encoding)).warnings


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Grüße aus München, schöne Füße – und „so“ weiter.\n"),
        ("cp932", "日本語のテキストです。これはテストのための文章です。\n"),
        ("euc_jp", "日本語のテキストです。これはテストのための文章です。\n"),
        ("gb18030", "这是一个中文的句子，我们在这里说明它是什么。\n"),
        ("big5", "這是一個中文的句子，我們在這裡說明它是什麼。\n"),
        ("euc_kr", "이것은 한국어 문장입니다. 우리는 여기에서 설명합니다.\n"),
        ("cp1251", "Это русский текст, который мы здесь читаем.\n"),
        ("koi8_r", "Это русский текст, который мы здесь читаем.\n"),
    ],
)
def test_older_encodings_are_guessed_with_a_warning(encoding: str, text: str) -> None:
    extracted = read(text.encode(encoding))
    assert extracted.text == text
    assert extracted.warnings == (f"not UTF-8; read as {encoding}",)


def test_invalid_utf8_is_replaced_and_counted() -> None:
    extracted = read("Grüße und Füße".encode() + b" \xff\xfe!")
    assert extracted.text == "Grüße und Füße \ufffd\ufffd!"
    assert extracted.warnings == ("2 invalid UTF-8 sequences were replaced by U+FFFD",)


def test_control_characters_are_left_out_and_counted() -> None:
    extracted = read(b"some words\x00 and more of them, which make it text that a person wrote " * 10 + b"\x07")
    assert "\0" not in extracted.text
    assert extracted.warnings == ("11 control characters were left out",)


def test_lone_surrogates_never_come_out() -> None:
    data = "words before ".encode("utf-16") + b"\x00\xd8" + " and after".encode("utf-16-le")
    read(data).text.encode("utf-8")
    read("words \ud800 after, Grüße, Füße".encode("utf-8", "surrogatepass")).text.encode("utf-8")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_a_named_error(data: bytes) -> None:
    text = text_or_reason(data, "x.txt")
    assert text.strip()
    text.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=300))
def test_utf8_text_is_taken_unchanged(text: str) -> None:
    text = "x" + text.replace("\ufeff", "")
    assert read(text.encode()).text == text


def test_source_code_becomes_a_fenced_block() -> None:
    extracted = read(b"# a comment\nx = '```'\n", "x.py")
    assert extracted.text == "````python\n# a comment\nx = '```'\n````\n"
    assert extracted.title == "x"


def test_csv_becomes_a_table() -> None:
    assert read(b'name,price\n"a|b",3\n"two\nlines",4\n\n', "x.csv").text == (
        "| name | price |\n| --- | --- |\n| a\\|b | 3 |\n| two lines | 4 |\n"
    )
    assert read("naïve;b\n1,5;2\n".encode(), "x.csv").text == "| naïve | b |\n| --- | --- |\n| 1,5 | 2 |\n"


@pytest.mark.parametrize(
    ("text", "name", "title"),
    [
        ("text\n\n# The `First` [one](x)\n", "f.md", "The First one"),
        ("Set\n===\n\ntext", "f.md", "Set"),
        ("## Second level\n", "f.md", "f"),
        ("```\n# comment\n```\n", "f.md", "f"),
        ("---\nid: x\ntitle: 'Front matter'\n---\n# Heading\n", "f.md", "Front matter"),
        ("no heading", "dir/report 2024.txt", "report 2024"),
    ],
)
def test_titles(text: str, name: str, title: str) -> None:
    assert read(text.encode(), name).title == title


# --- other formats ---------------------------------------------------------------------------------------------------


def test_html_without_its_head() -> None:
    head = "<head><title>A &amp; B</title><style>p {}</style></head>"
    page = f"<!doctype html><html>{head}<body><h2>Hé</h2><p>text <b>bold</b></p></body></html>"
    extracted = read(page.encode(), "x.html")
    assert "## Hé" in extracted.text
    assert "text **bold**" in extracted.text
    assert "title" not in extracted.text
    assert extracted.title == "A & B"


def test_html_in_a_declared_encoding() -> None:
    page = '<html><head><meta charset="cp1250"></head><body><p>Příliš žluťoučký kůň</p></body></html>'
    assert "Příliš žluťoučký kůň" in read(page.encode("cp1250"), "x.html").text


def test_docx() -> None:
    extracted = read(docx("Hello there.", "A second paragraph."), "x.docx")
    assert extracted.text.split("\n\n")[:2] == ["Hello there.", "A second paragraph.\n"]
    assert extracted.media_type == WORD_TYPE


def test_pdf_with_pages() -> None:
    pages = [f"This is what page {word} says, and it says no more." for word in ("one", "two", "three")]
    extracted = read(pdf(*pages), "x.pdf")
    assert [number for _, number in extracted.pages] == [1, 2, 3]
    for (offset, _), page in zip(extracted.pages, pages, strict=True):
        assert extracted.text[offset:].startswith(page)


def test_email() -> None:
    mail = b"From: a@example.com\r\nTo: b@example.com\r\nSubject: The plan\r\n\r\nWe meet at noon.\r\n"
    assert "We meet at noon." in read(mail, "x.eml").text


def test_archives_are_read_member_by_member() -> None:
    inner = zipped({"deep.md": "# Deep\n\ninner text"})
    extracted = read(
        zipped({"a.txt": "first", "b/c.md": "second", "d.bin": b"\0\1\2" * 99, "in.zip": inner}), "all.zip"
    )
    for heading in ("# a.txt\n\nfirst", "# b/c.md\n\nsecond", "# in.zip\n\n## deep.md\n\n### Deep\n\ninner text"):
        assert heading in extracted.text
    assert any(warning.startswith("d.bin: ") for warning in extracted.warnings)
    assert extracted.title == "all"


def test_tar_and_gzip() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo("x.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))
    assert "# x.txt\n\nhello" in read(file.getvalue(), "x.tar.gz").text
    assert "hello" in read(gzip.compress(b"hello"), "x.txt.gz").text


@pytest.mark.parametrize(
    "text",
    ["x" * 256 + "mustard", "ID3 tags hold the title.", "RIFF is a container.", "OggS begins it.", "BZh was first."],
)
def test_a_text_that_has_the_mark_of_a_binary_format_is_text(text: str) -> None:
    extracted = read(text.encode(), "a.md")
    assert extracted.text == text
    assert not extracted.warnings
    assert text in read(gzip.compress(text.encode()), "a.md.gz").text


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b" \n\t\r\n ", b"\0" * 100])
def test_empty(data: bytes) -> None:
    with pytest.raises(EmptyFile):
        read(data)


def test_a_document_without_text_is_empty() -> None:
    with pytest.raises(EmptyFile, match="scan"):
        read(pdf(""), "scan.pdf")


def test_binary_junk() -> None:
    junk = random.Random(1).randbytes(10_000)
    with pytest.raises(CorruptFile):
        read(junk, "x.txt")
    with pytest.raises(CorruptFile):
        read(junk, "x.pdf")
    with pytest.raises(CorruptFile):
        read(junk, "x.docx")
    with pytest.raises(UnsupportedFormat, match=r"\.xyz"):
        read(junk, "x.xyz")


@pytest.mark.parametrize(
    "data",
    [b"\x7fELF" + b"\0" * 99, b"SQLite format 3\0" + b"\1" * 99, b"Rar!\x1a\x07\0" + b"x" * 99, b"OggS" + b"\0" * 99],
)
def test_formats_that_nothing_reads(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat):
        read(data, "x.bin")


def test_damaged_files() -> None:
    whole = docx("Hello there.")
    with pytest.raises(CorruptFile):
        read(whole[: len(whole) // 2], "x.docx")
    with pytest.raises(CorruptFile):
        read(b"%PDF-1.4\nnothing of a PDF follows", "x.pdf")


def test_encrypted_pdf() -> None:
    with pytest.raises(EncryptedFile):
        read(pdf("secret words", encrypted=True), "x.pdf")


def test_encrypted_zip() -> None:
    data = bytearray(zipped({"a.txt": "hello"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(EncryptedFile):
        read(bytes(data), "x.zip")


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.docx", "bomb.epub"])
def test_zip_bombs_are_refused_before_they_are_unpacked(name: str) -> None:
    with pytest.raises(FileTooLarge) as caught:
        read(zipped({"a.txt": b"0" * (60 << 20)}, compresslevel=9), name)
    assert "unpacks to" in caught.value.message
    with pytest.raises(FileTooLarge):
        read(zipped({"a.txt": os.urandom(2_000)}), name, max_unpacked_bytes=1_000)


def test_a_bomb_in_a_bomb_is_refused() -> None:
    bomb = zipped({"a.txt": b"0" * (60 << 20)}, compresslevel=9)
    with pytest.raises(FileTooLarge):
        read(zipped({"in.zip": bomb}), "x.zip")
    with pytest.raises(FileTooLarge):
        read(gzip.compress(b"0" * (60 << 20)), "x.gz")
    nested = zipped({"a.txt": "text"})
    for _ in range(6):
        nested = zipped({"in.zip": nested})
    with pytest.raises(FileTooLarge, match="nested"):
        read(nested, "x.zip")


def test_a_zip_that_lies_about_its_size() -> None:
    data = bytearray(zipped({"a.txt": b"0" * 5_000_000}))
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (10).to_bytes(4, "little")
    with pytest.raises(ExtractionFailed):
        read(bytes(data), "x.zip", max_unpacked_bytes=1_000_000)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileTooLarge, match="1,099,511,627,776"):
        extract(path, name=path.name)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile):
        extract(tmp_path / "nothing.txt", name="nothing.txt")
    with pytest.raises(UnreadableFile):
        extract(tmp_path, name="folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFile, match="regular"):
        extract(tmp_path / "pipe", name="pipe")


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (docx("Hello there."), "x.pdf", WORD_TYPE),
        (pdf("Hello there."), "x.docx", "application/pdf"),
        (pdf("Hello there."), "x.txt", "application/pdf"),
        (b"<!DOCTYPE html><html><body><p>Hello there.</p></body></html>", "x.pdf", "text/html"),
    ],
)
def test_content_is_trusted_over_a_wrong_extension(data: bytes, name: str, expected: str) -> None:
    extracted = read(data, name)
    assert "Hello there." in extracted.text
    assert extracted.media_type == expected
    assert "though the name says" in extracted.warnings[0]


def test_text_under_the_name_of_another_format() -> None:
    extracted = read(b"Just some text.\n", "x.docx")
    assert extracted.text == "Just some text.\n"
    assert "the content is text" in extracted.warnings[0]


def test_names_without_extension() -> None:
    assert read(pdf("Hello there."), "x").media_type == "application/pdf"
    assert read(b"all: build\n", "Makefile").text.startswith("```makefile")
    assert read(b"just text", "LICENSE").text == "just text"


@pytest.mark.skipif(reader.ocr_available(), reason="Tesseract is installed")
def test_an_image_says_that_it_needs_tesseract() -> None:
    with pytest.raises(UnsupportedFormat, match="Tesseract") as caught:
        read(b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "x.png")
    assert "tesseract" in caught.value.hint


def test_an_error_never_holds_text_of_the_document() -> None:
    for name in ("x.docx", "x.xlsx", "x.pdf", "x.json", "x.ipynb", "x.xml", "x.opml", "x.eml"):
        outcome = text_or_reason(b'\x01\x02{"secret": "swordfish" <<<\x03\x04', name)
        assert "swordfish" not in outcome
