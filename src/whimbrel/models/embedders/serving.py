"""The embedder of a space, whichever model serves it now."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import CatalogUnavailable
from whimbrel.models.embedders.base import Embedder

LOOK_S = 1.0
"""A decision of another process is noticed after so long."""


class ServingEmbedder(Embedder):
    """Says that its vectors are of `space`, and has them made by the model that serves it: asked for again every
    second, so that what holds one of these follows a decision without being told.

    Closing it closes nothing: the models belong to whoever opened them.
    """

    def __init__(self, space: Space, serving: Callable[[], Embedder]) -> None:
        """`serving` names the model; it reads the catalog, and raises `SpaceMismatch` where there is none that may."""
        self._space = space
        self._serving = serving
        self._lock = threading.Lock()
        self._current: Embedder | None = None
        self._looked = 0.0

    @property
    def space(self) -> Space:
        """That of the vectors of record; only how much is read of a text is the model's."""
        current = self._current or self.current()
        return replace(self._space, max_tokens=current.space.max_tokens)

    @property
    def served_by(self) -> Space:
        """Of the model that makes the vectors now; may read the catalog."""
        return self.current().space

    @property
    def tokenizer(self) -> Path:
        return self.current().tokenizer

    def count_tokens(self, text: str) -> int:
        return self.current().count_tokens(text)

    def reads(self, text: str) -> float:
        return (self._current or self.current()).reads(text)

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        current = self._current
        if current is None or self._due():
            current = await asyncio.to_thread(self.current)
        return await current.embed(texts, kind)

    def current(self) -> Embedder:
        """The model that serves the space now. Raises `SpaceMismatch`."""
        with self._lock:
            current = self._current
            if current is not None and not self._due():
                return current
            try:
                current = self._serving()
            except CatalogUnavailable:
                if current is None:
                    raise
                # The decision that was read last stands until the catalog is back.
            self._current = current
            self._looked = time.monotonic()
            return current

    def look_again(self) -> None:
        """A decision was made in this process: the next call follows it."""
        self._looked = 0.0

    def _due(self) -> bool:
        return time.monotonic() - self._looked > LOOK_S
