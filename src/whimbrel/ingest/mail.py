"""Messages (EML): headers, body and attachments. Python's own reader: it repairs what Kreuzberg's leaves damaged, and
hands out attachments."""

from __future__ import annotations

import binascii
import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whimbrel.errors import CorruptFile, EncryptedFile
from whimbrel.ingest.decode import decode
from whimbrel.ingest.formats import BINARY, by_name, format_of

if TYPE_CHECKING:
    from email.message import Message

Html = Callable[[str], str]
"""From an HTML body to Markdown."""

DECRYPT_HINT = "Save it decrypted from your mail program, and ingest that."
MAX_PARTS = 1_000
DEEPEST = 20
_SHOWN = ("From", "To", "Cc", "Date")
_ENOUGH = 40
_LEAST_PLAIN = 0.3
"""A plain body says what the HTML one says if it has so many words, or such a share of that one's. Others say "see the
HTML version"."""


@dataclass(slots=True)
class Mail:
    subject: str = ""
    text: str = ""
    """Markdown: the headers that people read, and the body."""
    attachments: list[tuple[str, bytes]] = field(default_factory=list)
    """(name, content), in their order; a message that was attached is one of them."""
    parts: int = 0


def read_mail(data: bytes, html: Html) -> Mail:
    """Raises `EncryptedFile` for S/MIME and PGP."""
    if data.startswith(codecs.BOM_UTF8) or b"\0" in data[:64] or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = decode(data)[0].encode()
    from email import message_from_bytes  # 0.03 s, which only mail costs

    message = message_from_bytes(data)
    mail = Mail(_header(message, "Subject"))
    bodies = list(_bodies(message, mail, html))
    lines = [f"**{name}:** {shown}" for name in _SHOWN if (shown := _header(message, name))]
    heading = f"# {mail.subject}" if mail.subject else ""
    mail.text = "\n\n".join(filter(None, [heading, "  \n".join(lines), *bodies])) + "\n"
    return mail


def _bodies(message: Message, mail: Mail, html: Html, depth: int = 0) -> Iterator[str]:
    """The texts of a message in their order; what is none goes to the attachments."""
    mail.parts += 1
    if mail.parts > MAX_PARTS or depth > DEEPEST:
        raise CorruptFile("The message has too many parts, or parts in parts.", "Save its attachments by themselves.")
    kind = message.get_content_type()
    if kind in ("multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"):
        raise EncryptedFile("The message is encrypted.", DECRYPT_HINT)
    parts = _parts(message)
    if kind == "multipart/alternative":
        yield from _best(parts, mail, html, depth)
    elif kind == "multipart/related":
        for part in parts[:1]:
            yield from _bodies(part, mail, html, depth + 1)
        for part in parts[1:]:
            if part.get_filename() and part.get_content_maintype() != "image":  # pictures of the body are its look
                _attach(part, mail)
    elif message.is_multipart() and kind != "message/rfc822":
        for part in parts:
            yield from _bodies(part, mail, html, depth + 1)
    elif _is_text(message):
        yield _text(message, html)
    elif not kind.startswith("multipart/"):
        _attach(message, mail)


def _parts(message: Message) -> list[Message]:
    payload: Any = message.get_payload()
    return list(payload) if isinstance(payload, list) else []


def _best(parts: list[Message], mail: Mail, html: Html, depth: int) -> Iterator[str]:
    """Of one body in several forms: the plain one, which needs no guessing, unless it holds much less."""
    plain = "\n\n".join(_text(part, html) for part in parts if part.get_content_type() == "text/plain")
    others = [part for part in parts if part.get_content_type() != "text/plain"]
    words = len(plain.split())
    converter = _nothing if words >= _ENOUGH else html  # the others are gone through for what is attached in them
    formatted = "\n\n".join(text for part in others for text in _bodies(part, mail, converter, depth + 1))
    yield plain if words and words >= _LEAST_PLAIN * len(formatted.split()) else formatted


def _nothing(page: str) -> str:
    return ""


def _is_text(part: Message) -> bool:
    attached = part.get_content_disposition() == "attachment" or bool(part.get_filename())
    return part.get_content_type() in ("text/plain", "text/html") and not attached


def _text(part: Message, html: Html) -> str:
    raw = _content(part)
    if not raw.strip(b" \t\r\n\0"):
        return ""
    text = decode(raw, declared=part.get_content_charset("") or "")[0]
    return html(text).strip() if part.get_content_type() == "text/html" else _BLANKS.sub("\n\n", text).strip()


_BLANKS = re.compile(r"\n[^\S\n]*\n\s*\n(?=[^\S\n]*\S)|\n[^\S\n]+\n")


def _content(part: Message) -> bytes:
    raw = part.get_payload(decode=True)
    return raw if isinstance(raw, bytes) else b""


def _attach(part: Message, mail: Mail) -> None:
    if part.get_content_type() == "message/rfc822":
        for inner in _parts(part):
            mail.attachments.append((f"{_header(inner, 'Subject') or 'message'}.eml", inner.as_bytes()))
        return
    kind = part.get_content_subtype()
    name = _decoded(part.get_filename() or "") or f"unnamed.{kind if kind.isalnum() else 'bin'}"
    name = " ".join(name.replace("/", "_").split())
    mail.attachments.append((name, _doubly_encoded(name, _content(part))))


def _doubly_encoded(name: str, content: bytes) -> bytes:
    """What is base64 still, where the name says a binary format: encoded twice, or cut off and so left."""
    if by_name(name).media_type not in BINARY or b" " in content:
        return content
    letters = _NOT_BASE64.sub(b"", content)
    if len(letters) < 0.9 * len(content):
        return content
    inner = binascii.a2b_base64(letters[: len(letters) // 4 * 4])
    return inner if format_of("", inner).media_type else content


_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


def _header(message: Message, name: str) -> str:
    return _decoded(str(message.get(name, "")))


def _decoded(value: str) -> str:
    """A header with its encoded words read, on one line."""
    from email.header import decode_header

    try:
        found = decode_header(value)
    except ValueError:  # damaged base64
        found = [(value, None)]
    parts = [part if isinstance(part, str) else _read(part, charset) for part, charset in found]
    return " ".join("".join(parts).split())


def _read(part: bytes, charset: str | None) -> str:
    try:
        return part.decode(charset or "utf-8", "replace")
    except LookupError:
        return part.decode("utf-8", "replace")
