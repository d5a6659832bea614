"""Whether the files of an index are as tantivy wrote them."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

from whimbrel.lexicon.layout import segment_ids

_MAGIC = 1337
_BLOCK = 1 << 20


def damaged_files(path: Path) -> list[str]:
    """The names of files of living segments whose checksum is wrong. Reads every byte: 400 MB/s or so.

    Each file of tantivy's (format 7) ends in a footer: JSON that holds the CRC-32 of what is before it, the JSON's
    length, and 1337, both as 32 bits, little-endian.
    """
    living = segment_ids(path)
    found = []
    for file in sorted(path.iterdir()):
        if file.name.split(".")[0] in living:
            try:
                whole = _is_whole(file)
            except FileNotFoundError:  # a merge took its segment meanwhile
                continue
            if not whole:
                found.append(file.name)
    return found


def _is_whole(file: Path) -> bool:
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size < 8:
            return False
        stream.seek(size - 8)
        length, magic = struct.unpack("<II", stream.read(8))
        left = size - 8 - length
        if magic != _MAGIC or left < 0:
            return False
        stream.seek(left)
        try:
            expected = json.loads(stream.read(length))["crc"]
        except (ValueError, KeyError, TypeError):
            return False
        stream.seek(0)
        crc = 0
        while left:
            block = stream.read(min(_BLOCK, left))
            if not block:
                return False
            crc = zlib.crc32(block, crc)
            left -= len(block)
        return bool(crc == expected)
