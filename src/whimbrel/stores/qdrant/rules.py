"""What a Qdrant server takes: ids, names and sizes. Its local mode takes more, so these are held to everywhere.

An id there is an integer of 64 bits without a sign, or a UUID. A row's id becomes a UUID: one of 32 hexadecimal digits
is its own, any other is hashed, and the row's payload holds the id itself.
"""

from __future__ import annotations

from hashlib import sha256
from uuid import UUID

from whimbrel.errors import StoreRefused

MAX_DIMENSIONS = 65_536
MAX_REQUEST_BYTES = 32 << 20
"""`max_request_size_mb` of a server that says nothing else."""
MAX_NAME = 255
MAX_INT = 2**64 - 1
NAMES = 'Names have 1 to 255 characters, none of `<>:"/\\|?*` and no control character, and are not `.` or `..`.'

MARKER = "00000000-7768-8d62-9272-656c00000000"
"""The point that says of a collection that it is ours, whose it is, and where its view is. It has no vector, so that
no search finds it."""

_HEX = frozenset("0123456789abcdef")
_NOT_IN_NAMES = frozenset('<>:"/\\|?*')


def to_point(id_: str) -> str:
    """The id of a row's point, a UUID as Qdrant writes it. Of distinct ids that are hashed, two of 10^15 are the same
    with a probability of 10^-7; `store` reads no row by the id of another."""
    if len(id_) == 32 and _HEX.issuperset(id_):
        point = str(UUID(id_))
        if point != MARKER:
            return point
    return str(UUID(bytes=sha256(id_.encode("utf-8", "surrogatepass")).digest()[:16]))


def check_name(name: str) -> None:
    """Raises `StoreRefused` for what is no name of a collection."""
    control = any(ord(character) < 32 for character in name)
    if not name or len(name) > MAX_NAME or name in (".", "..") or control or _NOT_IN_NAMES & set(name):
        raise StoreRefused(f"Qdrant does not take {name[:80]!r} as the name of a collection.", NAMES)


def point_id(id_: object) -> int | UUID:
    """An id as a server has it. Raises ValueError for one that a server refuses, and local mode does not."""
    if isinstance(id_, bool) or not isinstance(id_, int | str | UUID):
        raise ValueError("it is neither an integer nor a UUID")
    if isinstance(id_, int):
        if not 0 <= id_ <= MAX_INT:
            raise ValueError("it is no integer of 64 bits without a sign")
        return id_
    return id_ if isinstance(id_, UUID) else UUID(id_)
