"""What the guards share: what a call is, who it is for, and clocks."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
Call = Callable[[], Awaitable[T]]
"""One attempt. It may be made again."""

Kind = Literal["embed", "rerank", "generate"]

caller: ContextVar[str] = ContextVar("caller", default="")
"""The name of the API key that a request came with; empty outside of requests, and where there are no keys."""

stood_in: ContextVar[list[str] | None] = ContextVar("stood_in", default=None)
"""Where a task wants to be told what stood in for what: see `tell`."""


def tell(said: str) -> None:
    """Once for each task that asked to be told."""
    told = stood_in.get()
    if told is not None and said not in told:
        told.append(said)


@dataclass(frozen=True, slots=True)
class Clock:
    """`monotonic` measures; `wall` is what processes have in common, and may jump."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass(slots=True)
class Taken:
    """What a call is expected to take, and then what it took."""

    input_tokens: int = 0
    output_tokens: int = 0
    instead_of: str = ""
    """The model that this one stands in for."""
    begun: bool = False
    """An answer came, at least in part: it is paid for, also if it broke off."""
