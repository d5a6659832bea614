"""Archives: bounded before they are opened, and their members one by one."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from whimbrel.errors import CorruptFile, EncryptedFile, FileTooLarge

ARCHIVES = frozenset({"application/zip", "application/x-tar", "application/gzip"})
MAX_DEPTH = 3
"""Archives within archives."""
_MAX_MEMBERS = 20_000
_FREE = 50 << 20
_MAX_RATIO = 200
"""Deflate cannot pass 1,032; XML of office files reaches 50."""
_NESTED = (".zip", ".jar", ".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".epub")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a zip-based file holds, by its central directory, which takes as long to read as a small document."""

    names: Sequence[str]
    mimetype: str
    """What a first member of this name says, as OpenDocument and EPUB have it; else empty."""
    unpacked: int
    """Bytes, nested archives included."""

    @classmethod
    def of(cls, archive: zipfile.ZipFile, unpacked: int) -> Contents:
        names = archive.namelist()
        says = names[:1] == ["mimetype"] and archive.getinfo("mimetype").file_size < 200
        mimetype = archive.read("mimetype").decode("ascii", "replace").strip() if says else ""
        return cls(names, mimetype, unpacked)


def check_zip(data: bytes, max_unpacked: int, *, depth: int = 0) -> Contents:
    """What a zip-based file holds. Nothing is unpacked but its type and nested archives.

    Raises `FileTooLarge` over `max_unpacked` or at a ratio that only bombs have, `EncryptedFile`, `CorruptFile`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > max_unpacked or (total > _FREE and total > _MAX_RATIO * max(len(data), 1)):
                raise _too_large(total, len(data))
            if len(members) > _MAX_MEMBERS:
                message = f"An archive of {len(members):,} files; at most {_MAX_MEMBERS:,} are read."
                raise FileTooLarge(message, "Unpack it, and ingest what is in it.")
            if any(member.flag_bits & 1 for member in members):
                raise EncryptedFile("The archive is protected by a password.", "Unpack it, and ingest what is in it.")
            for member in members:
                if member.filename.lower().endswith(_NESTED) and not member.is_dir():
                    if depth >= MAX_DEPTH:
                        raise FileTooLarge(f"Archives are nested more than {MAX_DEPTH} deep.", "Unpack the outer ones.")
                    inner = archive.read(member)
                    if zipfile.is_zipfile(io.BytesIO(inner)):
                        total += check_zip(inner, max_unpacked - total, depth=depth + 1).unpacked
            return Contents.of(archive, total)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise CorruptFile(f"The archive is damaged: {error}.", "Is the file complete?") from error


def members(data: bytes, media_type: str, name: str, max_unpacked: int) -> Iterator[tuple[str, bytes]]:
    """`(name, content)` of each file in an archive, in its order. Raises `FileTooLarge` as soon as more than
    `max_unpacked` bytes came out, whatever the archive's directory claims; `CorruptFile`."""
    left = max_unpacked
    try:
        for member, content in _MEMBERS[media_type](data, name, max_unpacked):
            left -= len(content)
            if left < 0:
                raise _too_large(max_unpacked - left, len(data))
            yield member, content
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        NotImplementedError,
        ValueError,
        OSError,
    ) as error:
        raise CorruptFile(f"The archive is damaged: {error}.", "Is the file complete?") from error


def _from_zip(data: bytes, name: str, most: int) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as file:
                    yield member.filename, file.read(most + 1)


def _from_tar(data: bytes, name: str, most: int) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                yield member.name, file.read(most + 1)


def _from_gzip(data: bytes, name: str, most: int) -> Iterator[tuple[str, bytes]]:
    """A tar within, or one file, whose name is the archive's without its ending."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(most + 1)
    if len(content) > most or (len(content) > _FREE and len(content) > _MAX_RATIO * len(data)):
        raise _too_large(len(content), len(data))
    if content[257:262] == b"ustar" and b"\0" in content[:512]:  # a header is padded; a text may speak of mustard
        yield from _from_tar(content, name, most)
    else:
        yield name.removesuffix(".gz") if name.endswith(".gz") else name + ".txt", content


_MEMBERS = {"application/zip": _from_zip, "application/x-tar": _from_tar, "application/gzip": _from_gzip}


def _too_large(unpacked: int, packed: int) -> FileTooLarge:
    message = f"It unpacks to {unpacked:,} bytes or more from {packed:,}. Nothing of it was taken in."
    return FileTooLarge(message, "Unpack it, and ingest what you need of it.")
