"""A generator behind its guards."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from whimbrel.guards.calls import Taken
from whimbrel.guards.guard import Guard, Patience
from whimbrel.models.generators.base import Generator, Prompt, Usage

BYTES_A_TOKEN = 3
"""An estimate, rather too high than too low; what a provider counts takes its place."""


class GuardedGenerator(Generator):
    def __init__(self, inner: Generator, guard: Guard, patience: Patience) -> None:
        self.inner = inner
        self.guard = guard
        self._patience = patience

    @property
    def name(self) -> str:
        return self.inner.name

    async def prepare(self) -> None:
        await self.inner.prepare()

    async def stream(self, prompt: Prompt, *, instead_of: str = "") -> AsyncGenerator[str | Usage]:
        """As the model's own; and raises `ModelPaused`, `BudgetSpent`, `ModelQueueFull` before the first part."""
        asked = estimated(prompt.instructions) + estimated(prompt.input)
        taken = Taken(asked, prompt.max_tokens, instead_of)
        written = 0
        async with self.guard.around(taken):
            first, parts = await self.guard.attempts(lambda: self._begin(prompt), taken, self._patience)
            taken.begun, taken.output_tokens = True, 0
            async with aclosing(parts):
                part: str | Usage | None = first
                while part is not None:
                    if isinstance(part, Usage):
                        taken.input_tokens, taken.output_tokens = part.input_tokens, part.output_tokens
                    else:
                        written += estimated(part)
                        taken.output_tokens = written  # should it break off, or nobody want the rest
                    yield part
                    part = await anext(parts, None)

    async def _begin(self, prompt: Prompt) -> tuple[str | Usage | None, AsyncGenerator[str | Usage]]:
        parts = self.inner.stream(prompt)
        try:
            return await anext(parts, None), parts
        except BaseException:
            await parts.aclose()
            raise

    async def close(self) -> None:
        await self.inner.close()


def estimated(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)
