"""Columns of rows that stay Arrow: what a database or the catalog gave as arrays is not made into objects on its way.

Both are sequences like any other, so who wants strings and mappings reads those; who can take arrays asks for them.
pyarrow is imported where an array is made, since it takes longer to import than all of the stores' modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Metadata
from whimbrel.stores.envelope import loads

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

Codes = npt.NDArray[np.int32]
"""int32[n]: for each row, the number of its value among the distinct ones."""

_MOST_BYTES = 2**31 - 1
"""Of an array of `string`: its offsets are int32."""


class _Column(Sequence[T]):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same items."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list


class Texts(_Column[str]):
    """Strings in an Arrow array; a slice is a view of it, an item is a str."""

    __slots__ = ("arrow",)

    arrow: pa.Array
    """string[n] or large_string[n], without nulls."""

    def __init__(self, arrow: pa.Array) -> None:
        self.arrow = arrow

    @classmethod
    def of(cls, strings: Sequence[str]) -> Texts:
        """The strings as an array; what is one already stays as it is. Raises `UnicodeEncodeError` for half of a
        surrogate pair."""
        if isinstance(strings, Texts):
            return strings
        import pyarrow as pa

        made = pa.array(strings, pa.string())
        if isinstance(made, pa.ChunkedArray):  # more than one array of `string` can hold
            made = made.cast(pa.large_string()).combine_chunks()
        return cls(made)

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        import pyarrow as pa

        arrays = [part.arrow for part in parts]
        if sum(array.nbytes for array in arrays) > _MOST_BYTES or len({array.type for array in arrays}) > 1:
            arrays = [array.cast(pa.large_string()) for array in arrays]
        return cls(pa.concat_arrays(arrays))

    def taken(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> Texts:
        """The strings of these rows, in this order."""
        return Texts(self.arrow.take(_numbers(rows)))

    def __len__(self) -> int:
        return len(self.arrow)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Texts: ...
    def __getitem__(self, row: int | slice) -> str | Texts:
        if isinstance(row, slice):
            return Texts(self.arrow[row])
        text: str = self.arrow[row].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrow.to_pylist())


class CodedMetadata(_Column[Metadata]):
    """Metadata of rows of which many have the same: each distinct one is held once, the rows have its number.

    A distinct one is an object, or its JSON as `envelope.dumps` writes it; either is made from the other once, and only
    when it is asked for. Slices and `taken` share what they are of, so `distinct` may hold some that no row has
    (`compact` leaves those out), and one twice. Rows of one number have one object.
    """

    __slots__ = ("_held", "codes")

    codes: Codes

    def __init__(self, codes: Codes, distinct: Sequence[Metadata] | pa.Array) -> None:
        """`distinct`: the objects, or an Arrow array of their JSON, string[number of distinct]."""
        self.codes = codes
        if isinstance(distinct, Sequence):
            self._held = _Distinct(distinct, None)
        else:
            self._held = _Distinct([None] * len(distinct), distinct)

    @classmethod
    def _sharing(cls, codes: Codes, held: _Distinct) -> CodedMetadata:
        column = cls.__new__(cls)
        column.codes = codes
        column._held = held
        return column

    @classmethod
    def of(cls, metadata: Sequence[Metadata]) -> CodedMetadata:
        """Rows that share one object, as the chunks of a document do, share one number; what is coded already stays as
        it is."""
        if isinstance(metadata, CodedMetadata):
            return metadata
        every = list(metadata)
        addresses = list(map(id, every))
        known = dict(zip(addresses, every, strict=True))
        if len(known) == len(every):
            return cls(np.arange(len(every), dtype=np.int32), every)
        numbers = {address: number for number, address in enumerate(known)}
        codes = np.fromiter(map(numbers.__getitem__, addresses), np.int32, len(every))
        return cls(codes, list(known.values()))

    @classmethod
    def from_json(cls, envelopes: pa.Array) -> CodedMetadata:
        """Of the JSON of each row, string[n]; equal ones are one."""
        coded = envelopes.dictionary_encode()
        return cls(coded.indices.to_numpy(zero_copy_only=False), coded.dictionary)

    @classmethod
    def joined(cls, parts: Sequence[CodedMetadata]) -> CodedMetadata:
        if all(part._held is parts[0]._held for part in parts):
            return cls._sharing(np.concatenate([part.codes for part in parts]), parts[0]._held)
        starts = np.cumsum([0, *(len(part._held) for part in parts[:-1])]).astype(np.int32)
        codes = np.concatenate([part.codes + start for part, start in zip(parts, starts, strict=True)])
        return cls._sharing(codes, _Distinct.joined([part._held for part in parts]))

    @property
    def distinct(self) -> list[Metadata]:
        """The object of each number: decodes all."""
        return self._held.every()

    @property
    def has_json(self) -> bool:
        """Whether the JSON is there already."""
        return self._held.has_json

    @property
    def json(self) -> pa.Array:
        """string[number of distinct]: the JSON of each number. Raises what `envelope.dumps` does."""
        return self._held.json()

    @property
    def arrow(self) -> pa.DictionaryArray:
        """dictionary<int32, string>[n]: the JSON of each row."""
        import pyarrow as pa

        return pa.DictionaryArray.from_arrays(pa.array(self.codes, pa.int32()), self.json)

    def taken(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> CodedMetadata:
        """The metadata of these rows, in this order."""
        return self._sharing(self.codes[_numbers(rows)], self._held)

    def compact(self) -> CodedMetadata:
        """The same rows; of the distinct ones only those that a row has."""
        counts = np.bincount(self.codes, minlength=len(self._held))
        if counts.all():
            return self
        used = counts.nonzero()[0]
        numbers = np.zeros(len(self._held), np.int32)
        numbers[used] = np.arange(len(used), dtype=np.int32)
        return self._sharing(numbers[self.codes], self._held.taken(used))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, row: int) -> Metadata: ...
    @overload
    def __getitem__(self, row: slice) -> CodedMetadata: ...
    def __getitem__(self, row: int | slice) -> Metadata | CodedMetadata:
        if isinstance(row, slice):
            return self._sharing(self.codes[row], self._held)
        return self._held.of(int(self.codes[row]))

    def __iter__(self) -> Iterator[Metadata]:
        return map(self._held.of, self.codes.tolist())


class _Distinct:
    """Metadata as objects, as JSON, or both; shared by all slices of a column."""

    __slots__ = ("_json", "_objects")

    def __init__(self, objects: Sequence[Metadata | None], json: pa.Array | None) -> None:
        """`objects`: None where only the JSON is known."""
        self._objects = list(objects)
        self._json = json

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        if all(part.has_json for part in parts):
            objects = chain.from_iterable(part._objects for part in parts)
            return cls(list(objects), Texts.joined([Texts(part.json()) for part in parts]).arrow)
        return cls(list(chain.from_iterable(part.every() for part in parts)), None)

    @property
    def has_json(self) -> bool:
        return self._json is not None

    def json(self) -> pa.Array:
        if self._json is None:
            from whimbrel.stores.tabular import dumps_all

            self._json = dumps_all(self.every())
        return self._json

    def taken(self, numbers: npt.NDArray[np.integer]) -> _Distinct:
        objects = [self._objects[number] for number in numbers]
        return _Distinct(objects, None if self._json is None else self._json.take(numbers))

    def every(self) -> list[Metadata]:
        """Decoded, all of them."""
        if None in self._objects:
            return list(map(self.of, range(len(self))))
        return self._objects  # type: ignore[return-value]

    def of(self, number: int) -> Metadata:
        found = self._objects[number]
        if found is None:
            assert self._json is not None
            found = self._objects[number] = loads(self._json[number].as_py())
        return found

    def __len__(self) -> int:
        return len(self._objects)


def join_columns(parts: Sequence[Sequence[T]]) -> Sequence[Any]:
    """The values of all parts, in their order; Arrow where all of them are."""
    for kind in (Texts, CodedMetadata):
        if all(isinstance(part, kind) for part in parts):
            return kind.joined(parts)  # type: ignore[arg-type]
    return list(chain.from_iterable(parts))


def take_rows(column: Sequence[T], rows: Sequence[int]) -> Sequence[Any]:
    """The values of these rows, in this order; Arrow where the column is."""
    if isinstance(column, Texts | CodedMetadata):
        return column.taken(rows)
    return [column[row] for row in rows]


def _numbers(rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    return np.asarray(rows, np.int64)
