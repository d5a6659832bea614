"""What a check says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from whimbrel.errors import WhimbrelError


class Level(StrEnum):
    """Worst first."""

    PROBLEM = "problem"
    """Something is out, lost or in danger."""
    WARNING = "warning"
    """It works, and somebody should look at it."""
    NOTE = "note"
    """Good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    """Name of the check that found it."""
    level: Level
    what: str
    why: str = ""
    """What it means, and how it can come about."""
    fix: str = ""
    """What to do."""
    mend: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    """Does it; None where it takes a person."""
    mended: bool = False

    @property
    def mendable(self) -> bool:
        return self.mend is not None

    def as_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "level": self.level.value,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
            "mendable": self.mendable,
            "mended": self.mended,
        }


def checked(check: Callable[..., Iterable[Finding]], *args: Any) -> Iterator[Finding]:
    """The findings of a check; that it could not be done is one too."""
    try:
        yield from check(*args)
    except WhimbrelError as error:
        yield Finding(check.__name__, Level.PROBLEM, error.message, f"Found by the check {check.__name__}.", error.hint)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        yield Finding(
            check.__name__,
            Level.PROBLEM,
            f"The check {check.__name__} could not be done:{where} {error.strerror or error}.",
            fix="Check the permissions of the home, and its disk.",
        )


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
