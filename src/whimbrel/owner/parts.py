"""What an owner works with, and how it says what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import ViewKind
from whimbrel.errors import SpaceMismatch, WhimbrelError, place, spot
from whimbrel.models.embedders.base import Embedder
from whimbrel.owner.targets import Target

if TYPE_CHECKING:
    from whimbrel.owner.runner import Handler

Where = tuple[str, int | None, int]
"""(uri, space, chunking) of a view to be made."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the owner works with; wired by `whimbrel.app`."""

    catalog: Catalog
    open_target: Callable[[Collection, ViewRow], Target]
    embedder_for: Callable[[int], Embedder]
    """By space key of the catalog. Raises when the configured model is not of that space."""
    default_view: Callable[[Collection, ViewKind], Where | None]
    """Where a collection's first view of a kind goes; None while that cannot be told yet."""
    socket: Path
    """Where other processes ask about stores that allow one process."""
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    on_stop: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Runs last on the owner's loop: what jobs have opened on it is closed there."""
    watch: Callable[[int], Coroutine[Any, Any, Any]] | None = None
    """Looks now and then whether what was adopted is still what it was; told the owner's token."""
    poll_s: float = 0.2
    lease_s: float = 15.0
    batch: int = 128


def said(error: Exception) -> str:
    """For people. The message of an error that is not ours may quote a document."""
    if isinstance(error, SpaceMismatch):  # a view that waits for its model is told the way on
        return f"{error.message} {error.hint}".strip()
    if isinstance(error, WhimbrelError):
        return error.message
    return f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else spot(error)


def logged(error: Exception) -> str:
    return said(error) if isinstance(error, WhimbrelError | OSError) else place(error)
