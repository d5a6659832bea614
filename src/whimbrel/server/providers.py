"""The state of the model that writes answers, by how its last answer went: asking it only to know would cost money."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whimbrel.domain import Answer
from whimbrel.errors import WhimbrelError
from whimbrel.server.health import State

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel

OUTAGE = "model: "
"""How an answer's `degraded` begins to tell of its model."""


class Provider:
    """The provider that is configured, or whose key is set; none where answers are quotes."""

    def __init__(self, whimbrel: Whimbrel) -> None:
        self._model = ""
        self._state: State = "unknown"
        self._reason = ""
        try:
            generator = whimbrel.models.generator()
        except WhimbrelError as error:  # a provider that there is not: the rest is served
            self._model = whimbrel.settings.model or ""
            self._state, self._reason = "unhealthy", error.message
        else:
            self._model = generator.name if generator is not None else ""

    @property
    def service(self) -> str:
        """`openai_api` and the like; empty where there is none."""
        name = self._model.partition(":")[0]
        return f"{name}_api" if name else ""

    def saw(self, answer: Answer) -> None:
        """Take note of an answer that the configured model was to write."""
        if answer.model == self._model and answer.usage.get("output_tokens"):
            self._state, self._reason = "healthy", ""
        elif answer.model != self._model:
            said = [one for one in answer.degraded if one.startswith(OUTAGE)]
            if said:
                self._state, self._reason = "unhealthy", said[0].removeprefix(OUTAGE)

    def state(self) -> tuple[dict[str, State], list[str]]:
        """By service, and why it is not healthy."""
        if not self.service:
            return {}, []
        return {self.service: self._state}, [f"{self.service}: {self._reason}"] if self._reason else []
