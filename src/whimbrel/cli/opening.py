"""From the command line's options to an open home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whimbrel.memory import importing

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel
    from whimbrel.config import Settings


@dataclass(slots=True)
class Given:
    """The options before the command."""

    home: Path | None = None
    config: Path | None = None
    profile: str | None = None
    verbose: bool = False


given = Given()
"""Of this process: it runs one command."""


def settings(**flags: Any) -> Settings:
    """Raises `ConfigError`."""
    with importing():
        from whimbrel.config import load_settings

    level = "debug" if given.verbose else None
    overrides = {"profile": given.profile, "log.level": level, **flags}
    return load_settings(home=given.home, config_file=given.config, overrides=overrides)


@contextmanager
def opened(found: Settings | None = None) -> Iterator[Whimbrel]:
    """The home, open, with its logs on stderr."""
    found = found or settings()
    log_to_stderr(found, quiet=True)
    with importing():
        from whimbrel.app import Whimbrel

    with Whimbrel(settings=found) as whimbrel:
        yield whimbrel


def log_to_stderr(found: Settings, *, quiet: bool) -> None:
    """`quiet`: warnings and errors only, unless the configuration or `-v` asks for more."""
    from whimbrel.config.settings import Log
    from whimbrel.server.logs import set_up_logging

    log = found.log
    if quiet and found.sources["log.level"] == "default":
        log = Log(level="warning", format=log.format)
    set_up_logging(log)
