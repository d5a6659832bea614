"""Files and fields of a `multipart/form-data` body (RFC 7578), read as they come.

A file goes to a nameless file on the home's disk, which vanishes with the process: memory holds a megabyte of it.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from whimbrel.config.values import format_size
from whimbrel.errors import DiskFull, MalformedUpload, TooLarge

MAX_FILES = 200
MAX_FIELDS = 300
MAX_FIELD_BYTES = 1 << 20
FLUSH_BYTES = 1 << 20

_WHOLE = "Send the whole body, as a form or `curl -F file=@PATH` makes it."


@dataclass(slots=True)
class UploadedFile:
    part: str
    """Its name in the form."""
    name: str
    """As it was sent."""
    file: IO[bytes]
    size: int = 0
    _digest: Any = field(default_factory=lambda: blake2b(digest_size=16))
    _waiting: bytearray = field(default_factory=bytearray)

    @property
    def digest(self) -> str:
        return str(self._digest.hexdigest())

    def take(self, data: bytes) -> None:
        self._waiting += data
        self.size += len(data)

    def flush(self, least: int = 1) -> None:
        if len(self._waiting) < least:
            return
        self._digest.update(self._waiting)
        try:
            self.file.write(self._waiting)
            self.file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DiskFull("No space left for the upload. Nothing was written.", "Free some space.") from error
        self._waiting.clear()

    def read(self) -> bytes:
        self.file.seek(0)
        return self.file.read()


@dataclass(slots=True)
class Upload:
    """What came. `close` it: its files are gone then."""

    files: list[UploadedFile] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def close(self) -> None:
        for one in self.files:
            one.file.close()


async def read_upload(body: AsyncIterator[bytes], content_type: str, folder: Path, max_file_bytes: int) -> Upload:
    """Raises `MalformedUpload`, `TooLarge` as soon as a file passes the limit, `DiskFull`."""
    upload = Upload()
    try:
        parts = _Parts(upload, folder, max_file_bytes)
        parser = MultipartParser(_boundary(content_type), parts.callbacks())  # type: ignore[arg-type]
        async for piece in body:
            if piece:
                _fed(parser, piece)
                if parts.file is not None and parts.file.size:
                    await asyncio.to_thread(parts.file.flush, FLUSH_BYTES)
        if not parts.ended:
            raise MalformedUpload("The body breaks off. Nothing was written.", _WHOLE)
        await asyncio.to_thread(_flush_all, upload)
    except BaseException:
        upload.close()
        raise
    return upload


def _flush_all(upload: Upload) -> None:
    for one in upload.files:
        one.flush()


def _fed(parser: MultipartParser, piece: bytes) -> None:
    try:
        parser.write(piece)
    except FormParserError as error:
        raise MalformedUpload("The body is no multipart form. Nothing was written.", _WHOLE) from error


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    found = options.get(b"boundary", b"")
    if not 1 <= len(found) <= 70:  # RFC 2046
        raise MalformedUpload("The Content-Type names no boundary.", "Leave that header to your HTTP client.")
    return found


class _Parts:
    """What the parser calls."""

    def __init__(self, upload: Upload, folder: Path, max_file_bytes: int) -> None:
        self.upload = upload
        self.folder = folder
        self.max_file_bytes = max_file_bytes
        self.file: UploadedFile | None = None
        """The file that is being read; None in a field."""
        self.ended = False
        self._name = ""
        self._value = bytearray()
        self._header, self._header_value = bytearray(), bytearray()
        self._disposition = b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": getattr(self, name) for name in (*names, "headers_finished")}

    def part_begin(self) -> None:
        self._disposition, self.file = b"", None
        self._value.clear()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise MalformedUpload("A part of the body has no name. Nothing was written.", _WHOLE)
        self._name = _text(options[b"name"])
        if b"filename" in options:
            if len(self.upload.files) >= MAX_FILES:
                raise TooLarge(f"More than {MAX_FILES} files. Nothing was written.", "Send fewer at once.")
            made = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 closed with the upload
            self.file = UploadedFile(self._name, _text(options[b"filename"]), made)
            self.upload.files.append(self.file)

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self.file is None:
            self._value += data[start:end]
            if len(self._value) > MAX_FIELD_BYTES:
                raise TooLarge(f"The field {self._name[:50]!r} is larger than 1 MiB.", "Files have a `filename`.")
            return
        self.file.take(data[start:end])
        if self.file.size > self.max_file_bytes:
            raise TooLarge(
                f"A file is larger than {format_size(self.max_file_bytes)}. Nothing was written.",
                "Split it, or raise `ingest.max_file_bytes`.",
            )

    def part_end(self) -> None:
        if self.file is None:
            if sum(map(len, self.upload.fields.values())) >= MAX_FIELDS:
                raise TooLarge(f"More than {MAX_FIELDS} fields. Nothing was written.", "Send fewer files at once.")
            self.upload.fields[self._name].append(_text(bytes(self._value)))
        else:
            self.file.flush()
            self.file = None

    def end(self) -> None:
        self.ended = True


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedUpload("A name or field is not UTF-8. Nothing was written.", "Send UTF-8.") from error
