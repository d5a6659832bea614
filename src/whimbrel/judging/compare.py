"""Whether one evaluation is better than another, or only luckier: a paired test over the queries of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whimbrel.errors import BadInput, PathNotFound
from whimbrel.judging.metrics import METRICS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PerQuery = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Mode -> metric -> query id -> value."""

ROUNDS = 10_000
SEED = 0
_BLOCK_VALUES = 4_000_000


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two means over the same queries."""

    before: float
    after: float
    difference: float
    """`after` less `before`."""
    low: float
    """The 95 % interval of the difference: percentiles 2.5 and 97.5 of 10,000 bootstrap samples of the queries."""
    high: float
    p: float
    """Two-sided, by randomisation: how often, of 10,000 times, a difference as large comes when each query's two values
    change places by chance. Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for
    Information Retrieval Evaluation" (2007)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    queries: int
    """Those that both have."""
    left_out: int
    """Those that one of them lacks."""
    modes: Mapping[str, Mapping[str, Difference]]

    def as_dict(self) -> dict[str, Any]:
        found = {
            mode: {metric: {name: round(value, 6) for name, value in asdict(one).items()} for metric, one in of.items()}
            for mode, of in self.modes.items()
        }
        return {"queries": self.queries, "left_out": self.left_out, "modes": found}


def compare(before: PerQuery, after: PerQuery) -> Comparison:
    """`after` against `before`, in each mode and metric that both have. The same input gives the same figures.

    Raises `BadInput` where they have no mode, or no query, in common.
    """
    shared = [mode for mode in after if mode in before]
    if not shared:
        raise BadInput(
            f"The two evaluations have no mode in common: {', '.join(before)}, and {', '.join(after)}.",
            "Evaluate one of them again with the other's --modes.",
        )
    every = [set(values) for side in (before, after) for mode in shared for values in side[mode].values()]
    both = sorted(set.intersection(*every))
    if not both:
        raise BadInput(
            "The two evaluations have no query in common.", "Only evaluations of one collection can be compared."
        )
    modes = {
        mode: {
            metric: difference(_values(before[mode][metric], both), _values(after[mode][metric], both))
            for metric in METRICS
            if metric in before[mode] and metric in after[mode]
        }
        for mode in shared
    }
    return Comparison(len(both), len(set.union(*every)) - len(both), modes)


def difference(before: Sequence[float], after: Sequence[float]) -> Difference:
    """Of two measurements of the same queries, in the same order."""
    import numpy as np

    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    change = second - first
    chance = np.random.default_rng(SEED)
    means = np.empty(ROUNDS)
    flipped = np.empty(ROUNDS)
    block = max(1, _BLOCK_VALUES // len(change))
    for start in range(0, ROUNDS, block):
        rounds = min(block, ROUNDS - start)
        means[start : start + rounds] = change[chance.integers(0, len(change), (rounds, len(change)))].mean(axis=1)
        flipped[start : start + rounds] = _signs(chance, rounds, len(change)) @ change / len(change)
    observed = float(change.mean())
    as_large = int(np.count_nonzero(np.abs(flipped) >= abs(observed) - 1e-12))
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(
        before=float(first.mean()),
        after=float(second.mean()),
        difference=observed,
        low=float(low),
        high=float(high),
        p=(as_large + 1) / (ROUNDS + 1),
    )


def read_report(path: str | Path) -> PerQuery:
    """The values per query of what `whimbrel eval --json` has printed. Raises `PathNotFound`, `BadInput`."""
    place = Path(path).expanduser()
    try:
        report = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PathNotFound(f"There is no {place}.", _WANTED) from None
    except OSError as error:
        raise BadInput(f"{place} cannot be read: {error.strerror}.", _WANTED) from error
    except ValueError as error:
        raise BadInput(f"{place} is not JSON.", _WANTED) from error
    found = report.get("per_query") if isinstance(report, dict) else None
    if not isinstance(found, dict) or not found or not all(_is_mode(mode) for mode in found.values()):
        raise BadInput(f"{place} holds no values per query.", _WANTED)
    return found


_WANTED = "Give what `whimbrel eval DIR --json > A.json` has written."


def _is_mode(values: object) -> bool:
    return (
        isinstance(values, dict)
        and any(metric in values for metric in METRICS)
        and all(map(_is_metric, values.values()))
    )


def _is_metric(values: object) -> bool:
    return isinstance(values, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()
    )


def _values(of: Mapping[str, float], queries: Sequence[str]) -> list[float]:
    return [of[query] for query in queries]


def _signs(chance: np.random.Generator, rounds: int, queries: int) -> npt.NDArray[np.float32]:
    import numpy as np

    signs: npt.NDArray[np.float32] = chance.integers(0, 2, (rounds, queries)).astype(np.float32) * 2 - 1
    return signs
