"""Generators through pydantic-ai's models, which speak to the providers: with our timeouts and our errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from whimbrel.errors import ModelEmpty, ModelEndedEarly, ModelError, ModelRefused
from whimbrel.models.generators.base import Generator, Prompt, Usage
from whimbrel.models.generators.providers import Opened, Provider, Timeouts

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponseStreamEvent
    from pydantic_ai.models import StreamedResponse


class DirectGenerator(Generator):
    """A model of one provider. Thread-safe: each event loop has a client of its own."""

    def __init__(self, provider: Provider, model: str, timeouts: Timeouts) -> None:
        self._provider = provider
        self._model = model
        self._timeouts = timeouts
        self._opened: WeakKeyDictionary[asyncio.AbstractEventLoop, Opened] = WeakKeyDictionary()

    @property
    def name(self) -> str:
        return f"{self._provider.name}:{self._model}"

    async def prepare(self) -> None:
        opened = await self._client()
        if not self._provider.keeps_connections:
            await opened.close()

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        opened = await self._client()
        from whimbrel.models.generators.failures import failure

        begun = False
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._timeouts.first_token_s):
                    response = await self._begin(opened, prompt, stack)
                    events = aiter(response)
                    event = await anext(events, None)
                while event is not None:
                    text = _sayable(_text(event))
                    if text:
                        begun = True
                        yield text
                    async with asyncio.timeout(self._timeouts.token_s):
                        event = await anext(events, None)
            yield self._usage(response, begun=begun)
        except ModelError:
            raise
        except Exception as error:  # the SDKs let many kinds through when an answer is not what they expect
            # Without its cause: that may hold the prompt, which is documents' text.
            raise failure(error, self.name, self._timeouts, begun=begun) from None

    async def _begin(self, opened: Opened, prompt: Prompt, stack: AsyncExitStack) -> StreamedResponse:
        from pydantic_ai.direct import model_request_stream
        from pydantic_ai.messages import ModelRequest
        from pydantic_ai.settings import ModelSettings

        if not self._provider.keeps_connections:
            stack.push_async_callback(opened.close)
        request = ModelRequest.user_text_prompt(prompt.input, instructions=prompt.instructions)
        settings = ModelSettings(max_tokens=prompt.max_tokens)
        return await stack.enter_async_context(
            model_request_stream(opened.model, [request], model_settings=settings, instrument=False)
        )

    async def _client(self) -> Opened:
        """Made in a thread: the imports take up to 3 s the first time, for which no event loop need stand still."""
        loop = asyncio.get_running_loop()
        opened = self._opened.get(loop)
        if opened is None:
            self._provider.require()
            opened = await asyncio.to_thread(self._provider.open, self._model, self._timeouts)
            if self._provider.keeps_connections:
                self._opened[loop] = opened
        return opened

    def _usage(self, response: StreamedResponse, *, begun: bool) -> Usage:
        reason = response.finish_reason
        if reason == "content_filter":
            raise ModelRefused(
                f"{self.name} would not answer: its rules forbid it. Nothing here was changed.",
                "Ask in other words, or another model.",
            )
        if reason is None:
            raise ModelEndedEarly(f"The answer of {self.name} ended before it was complete.", "Ask again.")
        if not begun:
            cut = reason == "length"
            raise ModelEmpty(
                f"{self.name} answered without any text{', having used up `answer.max_tokens`' if cut else ''}.",
                "Raise `answer.max_tokens`: reasoning counts, too." if cut else "Ask again, or another model.",
            )
        counted = response.usage
        return Usage(counted.input_tokens, counted.output_tokens, cut=reason == "length")

    async def close(self) -> None:
        opened = self._opened.pop(asyncio.get_running_loop(), None)
        if opened is not None:
            await opened.close()


def _sayable(text: str) -> str:
    """Without what no database and no JSON can hold: NULs, and halves of characters, which JSON's escapes can write."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(event: ModelResponseStreamEvent) -> str:
    """What an event adds to the answer; empty for reasoning and everything else."""
    from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return ""
