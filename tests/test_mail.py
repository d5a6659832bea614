"""Messages: bodies, attachments, and what cannot be read of them."""

from __future__ import annotations

import os
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import pytest

from test_extract import pdf, zipped
from whimbrel.domain import Extracted
from whimbrel.errors import CorruptFile, EncryptedFile
from whimbrel.ingest.extract import extract

DATA = Path(os.environ.get("WHIMBREL_TEST_DATA", "/nowhere")) / "files"


def message(
    body: str = "We meet at noon.\n\n- bring bread\n- bring wine\n", subject: str = "Das Fest für alle"
) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = subject, "Ann <ann@example.com>", "bob@example.com"
    mail["Date"] = "Mon, 02 Nov 2026 09:00:00 +0100"
    mail.set_content(body)
    return mail


def read(mail: EmailMessage | MIMEMultipart | bytes) -> Extracted:
    return extract(mail if isinstance(mail, bytes) else mail.as_bytes(), name="x.eml")


def test_headers_and_body() -> None:
    extracted = read(message())
    assert extracted.title == "Das Fest für alle"
    assert extracted.text == (
        "# Das Fest für alle\n\n**From:** Ann <ann@example.com>  \n**To:** bob@example.com  \n"
        "**Date:** Mon, 02 Nov 2026 09:00:00 +0100\n\nWe meet at noon.\n\n- bring bread\n- bring wine\n"
    )


def test_of_a_body_in_two_forms_the_one_that_says_it_is_taken() -> None:
    rich = "<p>" + "All of the words are here. " * 20 + "</p><ul><li>one</ul>"
    mail = message("See the HTML version.")
    mail.add_alternative(rich, subtype="html")
    assert "See the HTML" not in read(mail).text
    assert "- one" in read(mail).text
    mail = message("All of the words are here. " * 20)
    mail.add_alternative(rich, subtype="html")
    assert "- one" not in read(mail).text


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1252", "shift_jis", "utf-16"])
def test_bodies_in_any_encoding(charset: str) -> None:
    text = "日本語のテキストです。\n" if charset == "shift_jis" else "Grüße aus München\n"
    part = MIMEText("", "plain", "us-ascii")
    part.replace_header("Content-Type", f'text/plain; charset="{charset}"')
    part.set_payload(text.encode(charset))
    part["Subject"] = "x"
    assert text.strip() in read(part.as_bytes() if charset != "utf-16" else _base64(text, charset)).text


def _base64(text: str, charset: str) -> bytes:
    import base64

    body = base64.b64encode(text.encode(charset))
    head = f'Subject: x\nContent-Type: text/plain; charset="{charset}"\nContent-Transfer-Encoding: base64\n\n'
    return head.encode() + body + b"\n"


def test_attachments_are_text_of_the_message_each_under_its_name() -> None:
    mail = message()
    mail.add_attachment(pdf("What the plan says."), maintype="application", subtype="pdf", filename="plan.pdf")
    mail.add_attachment(b"# List\n\none", maintype="text", subtype="markdown", filename="Liste für alle.md")
    mail.add_attachment(zipped({"in.csv": "a,b\n1,2\n"}), maintype="application", subtype="zip", filename="all.zip")
    mail.add_attachment(b"\0\1\2" * 50, maintype="application", subtype="octet-stream", filename="x.bin")
    extracted = read(mail)
    for part in ("## plan.pdf\n\nWhat the plan says.", "## Liste für alle.md\n\n### List\n\none", "| 1 | 2 |"):
        assert part in extracted.text
    assert [warning.split(":")[0] for warning in extracted.warnings] == ["x.bin"]


def test_an_attached_message_is_read_with_its_own_attachments() -> None:
    inner = message("The inner body.", "Inner")
    inner.add_attachment(b"deep text", maintype="text", subtype="plain", filename="deep.txt")
    outer = message()
    outer.add_attachment(inner)
    text = read(outer).text
    assert "## Inner.eml" in text
    assert "The inner body." in text
    assert "deep text" in text


@pytest.mark.parametrize("kind", ["encrypted", "pkcs7"])
def test_encrypted_messages_say_so(kind: str) -> None:
    mail = MIMEMultipart("encrypted") if kind == "encrypted" else MIMEText("x", "plain")
    if kind == "pkcs7":
        mail.replace_header("Content-Type", "application/pkcs7-mime; smime-type=enveloped-data")
    mail["Subject"] = "secret"
    with pytest.raises(EncryptedFile) as caught:
        read(mail.as_bytes())
    assert "mail program" in caught.value.hint


def test_parts_in_parts_are_bounded() -> None:
    mail = MIMEText("deep")
    for _ in range(60):
        outer = MIMEMultipart("mixed")
        outer.attach(mail)
        mail = outer  # type: ignore[assignment]
    mail["Subject"] = "x"
    with pytest.raises(CorruptFile, match="too many parts"):
        read(mail.as_bytes())


@pytest.mark.skipif(not DATA.is_dir(), reason="WHIMBREL_TEST_DATA is not set")
def test_an_outlook_message_with_its_attachment() -> None:
    path = DATA / "kreuzberg" / "email" / "fake_email_attachment.msg"
    extracted = extract(path, name=path.name)
    assert extracted.title == "Fake email with attachment"
    assert "   - Little to no content" in extracted.text
    assert "## fake-attachment.txt\n\nHey this is a fake attachment!" in extracted.text
