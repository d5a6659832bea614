"""The generator port."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    instructions: str
    """What the model is to do, from us alone: no text of a user or a document."""
    input: str
    """What it is to do it with."""
    max_tokens: int = 4_096
    """Longest answer, reasoning included."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took, as its provider counts."""

    input_tokens: int
    output_tokens: int
    cut: bool = False
    """The answer reached `max_tokens`, and ends there."""
    model: str = ""
    """Which model wrote, where it was not the one that was asked; empty where it was."""
    degraded: tuple[str, ...] = ()
    """What was out."""


@dataclass(frozen=True, slots=True)
class Written:
    text: str
    usage: Usage


class Generator(ABC):
    """A model that writes text."""

    @property
    @abstractmethod
    def name(self) -> str:
        """`provider:model`."""

    @abstractmethod
    def stream(self, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        """The answer's text in parts that are not empty, as they come, and at the end its `Usage`.

        One attempt. Close it (`contextlib.aclosing`) to stop the provider. Raises the errors of
        `whimbrel.errors.ModelError`, also after parts of the answer; `MissingExtra`.
        """

    async def prepare(self) -> None:
        """Have ready what can be had without the provider. Raises `MissingExtra`, `ModelKeyMissing`."""

    async def complete(self, prompt: Prompt) -> Written:
        """The whole answer. Raises as `stream`."""
        text: list[str] = []
        usage = Usage(0, 0)
        async with aclosing(self.stream(prompt)) as parts:
            async for part in parts:
                if isinstance(part, Usage):
                    usage = part
                else:
                    text.append(part)
        return Written("".join(text), usage)

    async def close(self) -> None:
        """Release the connections of the running event loop."""
