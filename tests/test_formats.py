"""What a user has of the formats: passwords, page numbers, pictures, forms, notebooks, and how a collection is cut."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import until
from test_extract import pdf
from whimbrel.app import Whimbrel
from whimbrel.domain import Extracted, JobState
from whimbrel.errors import ConfigError, Conflict, CorruptFile, EmptyFile, EncryptedFile, UnsupportedFormat
from whimbrel.ingest import reader
from whimbrel.ingest.extract import extract
from whimbrel.ingest.markup import bulleted, lowered, unescaped, without_empty_rows, without_pictures
from whimbrel.ingest.reader import Options

pytestmark = pytest.mark.timeout(300)
DATA = Path(os.environ.get("WHIMBREL_TEST_DATA", "/nowhere")) / "files"
PASSWORD = "open, sesame"


# --- encrypted PDFs --------------------------------------------------------------------------------------------------


def rc4(key: bytes, data: bytes) -> bytes:
    state, swap = list(range(256)), 0
    for i in range(256):
        swap = (swap + state[i] + key[i % len(key)]) % 256
        state[i], state[swap] = state[swap], state[i]
    out, i, swap = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        swap = (swap + state[i]) % 256
        state[i], state[swap] = state[swap], state[i]
        out.append(byte ^ state[(state[i] + state[swap]) % 256])
    return bytes(out)


PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def locked_pdf(text: str, password: str) -> bytes:
    """A PDF of one page, encrypted by the standard handler's first revision (PDF 1.7, 7.6.3): really so."""
    user = (password.encode() + PAD)[:32]
    owner = rc4(hashlib.md5(PAD).digest()[:5], user)
    key = hashlib.md5(user + owner + struct.pack("<i", -4) + bytes(16)).digest()[:5]
    stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode()
    locked = rc4(hashlib.md5(key + (5).to_bytes(3, "little") + b"\0\0").digest()[:10], stream)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R "
        b"/Resources << /Font << /F1 3 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(locked), locked),
        b"<< /Filter /Standard /V 1 /R 2 /O <%b> /U <%b> /P -4 >>"
        % (owner.hex().encode(), rc4(key, PAD).hex().encode()),
    ]
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = (
        f"trailer\n<< /Size 7 /Root 1 0 R /Encrypt 6 0 R /ID [<{'00' * 16}> <{'00' * 16}>] >>\nstartxref\n{len(out)}\n"
    )
    return out + b"xref\n0 7\n0000000000 65535 f \n" + table + trailer.encode() + b"%%EOF\n"


def test_an_encrypted_pdf_opens_with_its_password() -> None:
    data = locked_pdf("The words inside.", PASSWORD)
    assert "The words inside." in extract(data, name="x.pdf", options=Options(["wrong", PASSWORD])).text
    with pytest.raises(EncryptedFile) as caught:
        extract(data, name="x.pdf")
    assert "--password" in caught.value.hint
    with pytest.raises(EncryptedFile, match="None of those") as caught:
        extract(data, name="x.pdf", options=Options(["wrong"]))
    assert "wrong" not in caught.value.message + caught.value.hint


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path_factory.mktemp("home")) as whimbrel:
        yield whimbrel


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A collection that no other test uses."""
    return str(request.node.name).removeprefix("test_")[:40]


def test_a_password_given_to_an_ingest_opens_its_files_and_is_stored_nowhere(
    home: Whimbrel, name: str, tmp_path: Path
) -> None:
    (tmp_path / "locked.pdf").write_bytes(locked_pdf("The words inside.", PASSWORD))
    assert home.ingest([tmp_path], name)["failed"] == 1
    report = home.ingest([tmp_path], name, passwords=["wrong", PASSWORD])
    assert (report["added"], report["failed"]) == (1, 0)
    assert home.search("words inside", name).hits[0].page == 1
    for path in home.home.path.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path
    with sqlite3.connect(home.home.path / "catalog.db") as catalog:
        assert "sesame" not in json.dumps(catalog.execute("select args, result, error from jobs").fetchall())


def test_a_password_is_forgotten_when_its_job_is_done(home: Whimbrel, name: str, tmp_path: Path) -> None:
    (tmp_path / "locked.pdf").write_bytes(locked_pdf("The words inside.", PASSWORD))
    job = home.start_ingest([tmp_path], name, passwords=[PASSWORD])
    kept = job.args["secrets"]
    assert home.own()
    until(lambda: home.job(job.id).state is JobState.DONE, "the job")
    assert (home.job(job.id).result["added"], home.secrets_of(kept)) == (1, ())


def test_passwords_are_not_handed_to_another_owner(home: Whimbrel, tmp_path: Path) -> None:
    (tmp_path / "locked.pdf").write_bytes(locked_pdf("The words inside.", PASSWORD))
    assert home.own()
    with Whimbrel(home=home.home.path) as other, pytest.raises(Conflict, match="owns this home") as caught:
        other.ingest([tmp_path], "default", passwords=[PASSWORD])
    assert "WHIMBREL_INGEST_PASSWORDS" in caught.value.hint


def test_passwords_of_the_settings_are_tried(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.pdf").write_bytes(locked_pdf("One.", PASSWORD))
    (tmp_path / "in" / "b.pdf").write_bytes(locked_pdf("Two.", "second"))
    passwords = f"{PASSWORD}\nfirst, second"
    with Whimbrel(home=tmp_path / "home", **{"ingest.passwords": passwords}) as whimbrel:
        assert whimbrel.ingest([tmp_path / "in"], wait="job")["added"] == 2
        assert PASSWORD not in repr(whimbrel.settings)
        assert whimbrel.settings.ingest.parsed_passwords()[:3] == [PASSWORD, "first, second", "open"]


# --- how a collection is cut -----------------------------------------------------------------------------------------


def test_a_collection_is_cut_as_it_was_told(home: Whimbrel, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("One sentence follows another here. " * 200)
    home.create_collection(name, chunking="tokens=64,overlap=0")
    short = home.ingest([tmp_path], name)["chunks_added"]
    long = home.ingest([tmp_path], f"{name}-2", chunking="tokens=250")["chunks_added"]
    assert short > 3 * long
    views = {row.view.kind: row.view.chunking_id for row in home.views(name)}
    assert len(views) == 2
    assert len(set(views.values())) == 1


def test_a_chunking_that_cannot_be_is_refused(home: Whimbrel, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(ConfigError, match="reads 256 tokens"):
        home.create_collection(name, chunking="tokens=300")
    with pytest.raises(ConfigError, match="unknown key"):
        home.create_collection(name, chunking="tokns=100")
    assert name not in [one.name for one in home.collections()]
    home.create_collection(name, chunking="tokens=100,overlap=0")
    with pytest.raises(Conflict, match="tokens=100"):
        home.ingest([tmp_path], name, chunking="tokens=120,overlap=0")
    home.ingest([tmp_path], name, chunking="overlap=0,tokens=100")


# --- other formats ---------------------------------------------------------------------------------------------------


def test_citations_name_the_page(home: Whimbrel, name: str, tmp_path: Path) -> None:
    pages = ["The heron waits in the shallows.", "The godwit flies over the ocean.", "The rail hides in the reeds."]
    (tmp_path / "birds.pdf").write_bytes(pdf(*pages))
    home.ingest([tmp_path], name, chunking="tokens=16,overlap=0")
    assert [hit.page for hit in home.search("Which bird flies over the ocean?", name).hits][:1] == [2]
    assert home.ask("Which bird flies over the ocean?", name).citations[0].page == 2


def test_a_pdf_without_text_says_that_it_may_be_scanned() -> None:
    with pytest.raises(EmptyFile, match="scans") as caught:
        extract(pdf("", ""), name="x.pdf")
    assert reader.ocr_available() or "Tesseract" in caught.value.hint


def test_blank_pages_beside_others_are_named() -> None:
    warnings = extract(pdf("The first page has words.", "", "So has the third."), name="x.pdf").warnings
    assert any("no text on page 2 of 3" in warning for warning in warnings)


@pytest.mark.skipif(reader.ocr_available(), reason="Tesseract is installed")
def test_a_picture_says_what_it_needs() -> None:
    with pytest.raises(UnsupportedFormat) as caught:
        extract(b"\x89PNG\r\n\x1a\n" + b"x" * 99, name="x.png")
    assert "Tesseract" in caught.value.hint


@pytest.mark.skipif(not reader.ocr_available() or not DATA.is_dir(), reason="needs Tesseract and WHIMBREL_TEST_DATA")
@pytest.mark.parametrize("path", ["tesseract_ocr_images/phototest.tif", "kreuzberg/pdfs/non_searchable.pdf"])
def test_pictures_and_scanned_pages_are_read(path: str) -> None:
    text = extract(DATA / path, name=Path(path).name).text
    assert "quick brown dog jumped over the lazy fox" in text or "non-text-searchable PDF" in text


@pytest.mark.skipif(not DATA.is_dir(), reason="WHIMBREL_TEST_DATA is not set")
def test_what_was_filled_into_a_form() -> None:
    pytest.importorskip("pypdf")
    path = next(DATA.rglob("libreoffice-form.pdf"))
    assert "- First Name: Alice\n" in extract(path, name=path.name).text


def test_a_notebook() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Plan\n", "\n", "- one"]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
        {"cell_type": "code", "source": "x", "outputs": [{"data": {"image/png": "AAAA", "text/plain": "<Figure>"}}]},
    ]
    data = json.dumps({"cells": cells, "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4}).encode()
    extracted = extract(data, name="x.ipynb")
    assert extracted == Extracted(
        "# Plan\n\n- one\n\n```python\nprint(1)\n```\n\n```\n1\n```\n\n```python\nx\n```\n\n```\n<Figure>\n```\n",
        "Plan",
        "application/x-ipynb+json",
    )
    with pytest.raises(CorruptFile, match="notebook"):
        extract(b'{"cells": 3}', name="x.ipynb")


# --- Markdown as readers write it ------------------------------------------------------------------------------------


def test_marks_are_not_escaped_where_they_need_not_be() -> None:
    assert unescaped("Hi\\! a \\<b\\> c\\*\\* 1\\. \\- x C\\#") == "Hi! a <b> c** 1. - x C#"
    for kept in ("a \\| b", "\n\\# no heading", "`a\\!b`", "```\na\\!b\n```\n", "\\-----"):
        assert unescaped(kept) == kept


def test_pictures_within_a_file_are_their_descriptions() -> None:
    assert without_pictures("a ![A cat](../media/image1.png) b") == "a [image: A cat] b"
    assert without_pictures("![](media/1.png)![image1.png](x.png)") == ""
    assert without_pictures("![x](https://example.com/x.png)") == "![x](https://example.com/x.png)"


def test_rows_without_anything_are_left_out() -> None:
    assert without_empty_rows("| a |  |\n| --- | --- |\n|  |  |\n| 1 |  |\n") == "| a |  |\n| --- | --- |\n| 1 |  |\n"


def test_printed_bullets_are_list_items() -> None:
    assert bulleted("• one\n  • two\n", within=False) == "- one\n  - two\n"
    assert bulleted("It has ● one ● two", within=True) == "It has\n- one\n- two"


def test_headings_go_one_level_down_but_for_those_in_code() -> None:
    assert lowered("# A\n```\n# b\n```\n###### C\n") == "## A\n```\n# b\n```\n###### C\n"
