"""Generators in a chain: where one is out before it has written anything, the next one writes."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from whimbrel.errors import MissingExtra, ModelError, ModelPaused, ModelUnusable
from whimbrel.guards.generator import GuardedGenerator
from whimbrel.models.generators.base import Generator, Prompt, Usage

logger = logging.getLogger("whimbrel.guards")


class ChainGenerator(Generator):
    """It has the name of its first. What wrote, and what was out, is in the `Usage` at the end."""

    def __init__(self, links: Sequence[GuardedGenerator]) -> None:
        self.links = list(links)

    @property
    def name(self) -> str:
        return self.links[0].name

    async def prepare(self) -> None:
        """Raises what the first raises where none of them can be used."""
        errors: list[ModelUnusable | MissingExtra] = []
        for link in self.links:
            try:
                await link.prepare()
                return
            except (ModelUnusable, MissingExtra) as error:
                errors.append(error)
        raise errors[0]

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        out: list[ModelError | MissingExtra] = []
        for link in self.links:
            begun = False
            try:
                async with aclosing(link.stream(prompt, instead_of=self.name if out else "")) as parts:
                    async for part in parts:
                        begun = True
                        yield _told(part, link.name, out) if isinstance(part, Usage) else part
                return
            except (ModelError, MissingExtra) as error:
                if begun:
                    raise
                out.append(error)
                if link is not self.links[-1] and not isinstance(error, ModelPaused):  # its breaker has told
                    logger.warning("%s is out, and the next of the chain is asked: %s", link.name, error.message)
        raise _all(out)

    async def close(self) -> None:
        for link in self.links:
            await link.close()


def _told(usage: Usage, model: str, out: Sequence[ModelError | MissingExtra]) -> Usage:
    if not out:
        return usage
    why = " ".join(error.message for error in out)
    return replace(usage, model=model, degraded=(f"model: {why} {model} stood in.",))


def _all(out: Sequence[ModelError | MissingExtra]) -> ModelError | MissingExtra:
    """The first's error, with what the others said."""
    error = out[0]
    error.message = " ".join(one.message for one in out)
    error.args = (error.message,)
    return error
