"""What a copy did and found: for programs, and kept beside the copy's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from whimbrel.errors import WhimbrelError

Mode = str
"""`full`, `sample` or `none`."""

EXAMPLES = 20
"""Ids that a report names of each kind of difference."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What comparing source and target gave."""

    mode: Mode
    rows: int
    """Compared in full: text, metadata and vector."""
    seed: int | None = None
    """Of the sample."""
    tolerance: float = 0.0
    """Of each component of a vector, as a share of its length; 0: the same bits."""
    missing: int = 0
    """Rows of the source that the target does not have."""
    extra: int = 0
    """Rows of the target that the source does not have."""
    differing: int = 0
    """Rows whose text, metadata or vector is not what the source has."""
    examples: Mapping[str, str] = field(default_factory=dict)
    """What differs, by id; of the first few."""
    changed: int = 0
    """Rows that the source changed while they were copied, found by comparing."""

    @property
    def holds(self) -> bool:
        return not (self.missing or self.extra or self.differing)


@dataclass(frozen=True, slots=True)
class CopyReport:
    """Of one collection."""

    source: str
    target: str
    """For people: no credentials."""
    rows: int
    """Of the source."""
    dimensions: int
    metric: str | None
    """None: the source says none."""
    written: int
    unchanged: int
    """Rows that were there already."""
    removed: int
    """Rows of an earlier run that the source does not have any more."""
    rejected: int
    source_changed: bool
    """It was written to meanwhile: the same command brings the changes over."""
    verified: Verified
    seconds: float
    seconds_writing: float
    notes: Sequence[str]
    """What was not carried, or is not as it was."""
    state: str
    """The folder with what the copy knows."""

    @property
    def holds(self) -> bool:
        """The target has every row of the source, as far as was asked."""
        return self.verified.holds and not self.rejected and not self.source_changed

    def as_dict(self) -> dict[str, object]:
        verified = self.verified
        return {
            "source": self.source,
            "target": self.target,
            "holds": self.holds,
            "rows": self.rows,
            "dimensions": self.dimensions,
            "metric": self.metric,
            "written": self.written,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "rejected": self.rejected,
            "source_changed": self.source_changed,
            "verified": {
                "mode": verified.mode,
                "rows": verified.rows,
                "seed": verified.seed,
                "tolerance": verified.tolerance,
                "missing": verified.missing,
                "extra": verified.extra,
                "differing": verified.differing,
                "changed": verified.changed,
                "examples": dict(verified.examples),
            },
            "seconds": round(self.seconds, 3),
            "seconds_writing": round(self.seconds_writing, 3),
            "notes": list(self.notes),
            "state": self.state,
        }


@dataclass(frozen=True, slots=True)
class CopyFailure:
    """One collection of all that could not go."""

    source: str
    target: str
    """As those of a report."""
    error: WhimbrelError

    holds: ClassVar[bool] = False

    def as_dict(self) -> dict[str, object]:
        error = self.error
        return {
            "source": self.source,
            "target": self.target,
            "holds": self.holds,
            "error": error.code,
            "message": error.message,
            "hint": error.hint,
        }


Told = CopyReport | CopyFailure
