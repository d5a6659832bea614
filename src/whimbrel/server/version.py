"""The version of this program."""

from __future__ import annotations

from functools import cache


@cache
def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("whimbrel")
    except PackageNotFoundError:  # run from its source
        return "0.0.0"
