"""The table of behaviour in the documentation, made by the suite: a plugin of pytest.

    pytest -p whimbrel.testing.table --store-table docs/stores/behaviour.md tests/test_store_*.py

A row for each promise of `StoreConformance`, a column for each store that the run has tests of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from whimbrel.filters import OPERATORS
from whimbrel.stores.base import StoreInfo

_HEAD = """# What each store does

Made by the [conformance suite](adding.md#the-suite) with the databases themselves (`make stores`): each line is a
promise that every store is held to, and each ✓ a run that kept it.
"""


@dataclass(slots=True)
class _Column:
    info: StoreInfo | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    """By promise: `passed`, `failed`, or why it was skipped."""
    measured: dict[str, str] = field(default_factory=dict)


class TablePlugin:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, _Column] = {}
        self._promises: dict[str, None] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        name = getattr(getattr(item, "cls", None), "name", "")
        promise = _promise(item)
        if not name or not promise or (report.when != "call" and report.outcome == "passed"):
            return report
        column = self._columns.setdefault(name, _Column())
        self._promises.setdefault(promise)
        said: str = report.outcome
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            said = report.longrepr[2].removeprefix("Skipped: ")
        if column.outcomes.get(promise, "passed") == "passed":  # a promise with several tests is kept by all
            column.outcomes[promise] = said
        column.measured |= {name: str(value) for name, value in report.user_properties}
        store = getattr(item, "funcargs", {}).get("store")
        if store is not None:
            column.info = store.describe()
        return report

    def pytest_sessionfinish(self) -> None:
        ran = {name: column for name, column in self._columns.items() if column.info is not None}
        if ran:  # a database that is not here, all of whose tests were skipped, has no column
            self._path.write_text(markdown(ran, self._promises), encoding="utf-8")


def _promise(item: pytest.Item) -> str:
    """What the suite says of the test, also where a store's own class has it otherwise."""
    name = getattr(getattr(item, "function", None), "__name__", "")
    for base in getattr(getattr(item, "cls", None), "__mro__", ()):
        if base.__module__.startswith("whimbrel.testing.") and name in vars(base):
            return " ".join((inspect.getdoc(vars(base)[name]) or "").split())
    return ""


def markdown(columns: Mapping[str, Any], promises: Mapping[str, None]) -> str:
    """The whole page."""
    parts = [_HEAD, "## What it is\n", _table("", columns, {name: _fact(fact) for name, fact in _FACTS.items()})]
    measured = sorted({name for column in columns.values() for name in column.measured})
    if measured:
        rows = {name: _measured(name) for name in measured}
        parts += ["## Measured by the suite\n", _table("on real embeddings", columns, rows)]
    kept = {promise: _outcome(promise) for promise in promises}
    parts += ["## What it promises\n", _table("promise", columns, kept)]
    parts += [
        "## What a database cannot do\n",
        "\n".join(_cannot(name, column) for name, column in columns.items()) + "\n",
    ]
    return "\n".join(parts)


def _table(corner: str, columns: Mapping[str, Any], rows: Mapping[str, Callable[[Any], str]]) -> str:
    lines = [f"| {corner} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [
        f"| {_cell(name)} | {' | '.join(_cell(cell(c)) for c in columns.values())} |" for name, cell in rows.items()
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fact(fact: Callable[[StoreInfo], str]) -> Callable[[Any], str]:
    return lambda column: fact(column.info) if column.info is not None else "?"


def _measured(name: str) -> Callable[[Any], str]:
    return lambda column: column.measured.get(name, "")


def _outcome(promise: str) -> Callable[[Any], str]:
    words = {"passed": "✓", "failed": "**no**", "": ""}

    def cell(column: Any) -> str:
        said = column.outcomes.get(promise, "")
        return words.get(said, f"— {said}")

    return cell


def _cannot(name: str, column: _Column) -> str:
    what = "; ".join(column.info.cannot) if column.info is not None else ""
    return f"- **{name}**: {what or 'nothing that a view needs'}."


def _operators(info: StoreInfo) -> str:
    missing = OPERATORS - info.filter_operators
    return f"all but {', '.join(f'`{one}`' for one in sorted(missing))}" if missing else "all"


_FACTS: dict[str, Callable[[StoreInfo], str]] = {
    "metric of a table that we make": lambda info: info.metric.value,
    "dimensions, at most": lambda info: f"{info.max_dimensions:,}" if info.max_dimensions else "any",
    "filters that it answers itself": _operators,
    "ids that a search may be held to": lambda info: f"{info.max_ids:,}",
    "rows of one write": lambda info: f"{info.max_batch_rows:,}" if info.max_batch_rows else "any",
    "bytes of one write": lambda info: f"{info.max_batch_bytes >> 20} MiB" if info.max_batch_bytes else "any",
    "vectors come back": lambda info: "bit for bit" if info.exact_vectors else "within 1e-6",
    "a batch and its position": lambda info: "one commit" if info.atomic else "the position after the rows",
    "a scan beside writes": lambda info: "one version" if info.snapshots else "what stays is met once",
    "processes": lambda info: "one: the owner" if info.single_process else "any number read",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store-table", metavar="FILE", help="Write the table of what each store does, as Markdown.")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--store-table")
    if path:
        config.pluginmanager.register(TablePlugin(Path(path)))
