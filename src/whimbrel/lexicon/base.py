"""What goes into a lexicon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whimbrel.domain import Metadata
from whimbrel.errors import BadInput


@dataclass(frozen=True, slots=True)
class LexicalRows:
    """Rows as columns; all of one length."""

    ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    metadata: Sequence[Metadata]
    """Normalised: what `whimbrel.filters.normalise_metadata` returns."""
    digests: Sequence[str]
    """The caller's hash of each row, kept beside it and given back by `scan`."""

    def __post_init__(self) -> None:
        lengths = {len(c) for c in (self.ids, self.titles, self.texts, self.metadata, self.digests)}
        if len(lengths) != 1:
            raise BadInput(f"The columns of lexical rows are of different lengths: {sorted(lengths)}.")

    def __len__(self) -> int:
        return len(self.ids)
