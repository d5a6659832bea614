"""Reading what the settings say of prices, rates and budgets.

prices:  openai:my-model=0.15/0.60; ...                    USD for a million tokens of input / of output
rates:   openai:gpt-5.6-luna=500 requests, 200k tokens; ...    a minute
budgets: all=25 USD/month; openai:gpt-5.6-luna=1 USD/day, 500k tokens/day; key:alice=5 USD/month warn
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from whimbrel.errors import ConfigError
from whimbrel.models.names import complaint

Unit = Literal["usd", "tokens"]
_NUMBER = r"(\d+(?:\.\d+)?)\s*([kM]?)"
_TIMES = {"": 1, "k": 1_000, "M": 1_000_000}


@dataclass(frozen=True, slots=True)
class Limit:
    scope: str
    """`all`, a `provider:model`, or `key:NAME`."""
    amount: float
    unit: Unit
    period: Literal["day", "month"]
    warns: bool = False
    """It refuses nothing; it is only told of."""

    @property
    def said(self) -> str:
        """Such as `25 USD/month for all`."""
        unit = "USD" if self.unit == "usd" else "tokens"
        return f"{self.amount:,.10g} {unit}/{self.period} for {self.scope}"

    def holds_for(self, model: str, api_key: str) -> bool:
        if self.scope.startswith("key:"):
            return self.scope == f"key:{api_key}"
        return self.scope in ("all", model)

    def begun(self, now: float) -> tuple[str, float]:
        """The day or month of a time, in UTC: its name, and when it began."""
        day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self.period == "day":
            return f"{day:%Y-%m-%d}", day.timestamp()
        return f"{day:%Y-%m}", day.replace(day=1).timestamp()


def parse_prices(text: str | None) -> dict[str, tuple[float, float]]:
    """Raises `ConfigError`."""
    found = {}
    for model, said in _entries(text, "guards.prices"):
        _check_name(model, "guards.prices")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)", said)
        if not match:
            raise _wrong("guards.prices", said, "`PROVIDER:MODEL=INPUT/OUTPUT`, USD for a million tokens")
        found[model] = float(match[1]), float(match[2])
    return found


def parse_rates(text: str | None) -> dict[str, dict[str, float]]:
    """`requests` and `tokens` a minute by model. Raises `ConfigError`."""
    found: dict[str, dict[str, float]] = {}
    for model, said in _entries(text, "guards.rates"):
        _check_name(model, "guards.rates")
        for part in said.split(","):
            match = re.fullmatch(_NUMBER + r"\s*(requests|tokens)", part.strip())
            if not match or not float(match[1]):
                raise _wrong("guards.rates", part, "`PROVIDER:MODEL=500 requests, 200k tokens`, a minute")
            found.setdefault(model, {})[match[3]] = float(match[1]) * _TIMES[match[2]]
    return found


def parse_budgets(text: str | None) -> list[Limit]:
    """Raises `ConfigError`."""
    found: list[Limit] = []
    for scope, said in _entries(text, "guards.budgets"):
        if scope != "all" and not (scope.startswith("key:") and len(scope) > 4):
            _check_name(scope, "guards.budgets")
        for part in said.split(","):
            match = re.fullmatch(_NUMBER + r"\s*(usd|USD|tokens)\s*/\s*(day|month)(\s+warn)?", part.strip())
            if not match:
                form = "`SCOPE=25 USD/month, 500k tokens/day warn`; a scope is `all`, `PROVIDER:MODEL` or `key:NAME`"
                raise _wrong("guards.budgets", part, form)
            unit: Unit = "tokens" if match[3] == "tokens" else "usd"
            period: Literal["day", "month"] = "day" if match[4] == "day" else "month"
            limit = Limit(scope, float(match[1]) * _TIMES[match[2]], unit, period, bool(match[5]))
            if any((one.scope, one.unit, one.period) == (scope, unit, period) for one in found):
                raise ConfigError(
                    f"`guards.budgets`: there are two budgets in {match[3]}/{period} for {scope!r:.80}.",
                    "Keep one; `guards.alert_at` tells of a part of it.",
                )
            found.append(limit)
    return found


def parse_shares(text: str) -> list[float]:
    """Raises `ConfigError`."""
    try:
        found = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        found = [0.0]
    if any(not 0 < share <= 1 for share in found):
        raise _wrong("guards.alert_at", text, "shares of a budget such as `0.8, 1`")
    return found


def _entries(text: str | None, setting: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(r"[;\n]", text or ""):
        if not entry.strip():
            continue
        name, equals, said = (part.strip() for part in entry.rpartition("="))
        if not (name and equals and said):
            raise _wrong(setting, entry, "entries `NAME=...`, joined by `;`")
        yield name, said


def _check_name(name: str, setting: str) -> None:
    """A limit of a model that there cannot be would hold nothing, and nobody would know."""
    if said := complaint(name):
        raise ConfigError(
            f"`{setting}`: {name!r:.80} is no model. {said}", "Write `PROVIDER:MODEL`, as usage shows it."
        )


def _wrong(setting: str, said: str, form: str) -> ConfigError:
    return ConfigError(f"`{setting}`: {said.strip()!r:.80} is not understood.", f"Write {form}.")
