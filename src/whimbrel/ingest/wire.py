"""What goes between the pool and its workers: frames of a JSON object and bytes, over a pipe. No pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from whimbrel import errors
from whimbrel.domain import ChunkSpan
from whimbrel.errors import WhimbrelError

HEADER = struct.Struct(">IQ")
"""Lengths of the JSON and of the bytes after it."""

Head = Mapping[str, Any]


def frame(head: Head, body: bytes = b"") -> list[bytes]:
    """The parts of a frame, in order; not joined, because a body may be 100 MB."""
    data = json.dumps(head, separators=(",", ":")).encode()
    return [HEADER.pack(len(data), len(body)), data, body]


def read_frame(file: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """None at the end of the file, also in the middle of a frame."""
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    head_size, body_size = HEADER.unpack(header)
    head, body = file.read(head_size), file.read(body_size)
    return (json.loads(head), body) if len(body) == body_size else None


def pack_spans(spans: Sequence[ChunkSpan]) -> tuple[list[str], bytes]:
    """`(contexts, int64[5, n])`: each context once; start, end, tokens, index of the context, page (-1: none)."""
    contexts: dict[str, int] = {}
    columns = np.array(
        [
            (
                span.start,
                span.end,
                span.tokens,
                contexts.setdefault(span.context, len(contexts)),
                -1 if span.page is None else span.page,
            )
            for span in spans
        ],
        np.int64,
    ).reshape(-1, 5)
    return list(contexts), np.ascontiguousarray(columns.T).tobytes()


def unpack_spans(contexts: Sequence[str], data: bytes) -> list[ChunkSpan]:
    columns: list[list[int]] = np.frombuffer(data, np.int64).reshape(5, -1).tolist()
    return [
        ChunkSpan(start, end, tokens, contexts[context], None if page < 0 else page)
        for start, end, tokens, context, page in zip(*columns, strict=True)
    ]


def pack_error(error: WhimbrelError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def unpack_error(packed: Mapping[str, str]) -> WhimbrelError:
    kind = getattr(errors, packed["code"], None)
    if not (isinstance(kind, type) and issubclass(kind, WhimbrelError)):
        kind = WhimbrelError
    return kind(packed["message"], packed["hint"])
