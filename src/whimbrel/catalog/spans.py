"""The texts of chunks, which are spans of their documents' segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, select

from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import batched
from whimbrel.catalog.engine import AnyRow
from whimbrel.catalog.keys import among
from whimbrel.catalog.tables import SEGMENT_CHARS

_SEGMENTS = select(t.segments.c.id, t.segments.c.text).where(among(t.segments.c.id, "keys"))


def read_spans(connection: Connection, rows: Sequence[AnyRow]) -> list[str]:
    """The texts of chunk rows (with `start`, `end`, `segment_id`), reading each segment once."""
    return read_texts(
        connection, [row.segment_id for row in rows], [row.start for row in rows], [row.end for row in rows]
    )


def read_texts(
    connection: Connection, segments: Sequence[int], starts: Sequence[int], ends: Sequence[int]
) -> list[str]:
    """The texts of spans `[start, end)`, each of which begins in its segment; each segment is read once."""
    longer = dict(_longer(segments, starts, ends))
    wanted = set(segments).union(*longer.values())
    pieces: dict[int, str] = {}
    for batch in batched(sorted(wanted), 5_000):
        pieces.update(connection.execute(_SEGMENTS, {"keys": batch}).all())
    texts = [
        pieces[segment][start % SEGMENT_CHARS : start % SEGMENT_CHARS + end - start]
        for segment, start, end in zip(segments, starts, ends, strict=True)
    ]
    for row, spanned in longer.items():
        offset = starts[row] % SEGMENT_CHARS
        texts[row] = "".join(pieces[key] for key in spanned)[offset : offset + ends[row] - starts[row]]
    return texts


def _longer(segments: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> Iterator[tuple[int, range]]:
    """The spans that end in a later segment than they begin in: their row, and the keys of their segments."""
    for row, (segment, start, end) in enumerate(zip(segments, starts, ends, strict=True)):
        beyond = (end - 1) // SEGMENT_CHARS - start // SEGMENT_CHARS
        if beyond > 0:
            yield row, range(segment, segment + beyond + 1)
