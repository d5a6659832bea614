"""Which space the configured embedder makes vectors of, asked for without making anybody wait long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from whimbrel.errors import WhimbrelError
from whimbrel.models.embedders.base import Embedder

WAIT_S = 2.0
"""For the first answer; a server that is out is asked again in the background."""
AGAIN_S = 10.0

_TELL = ("minilm", "tei")
_TELL_OF_FOLDERS = ("onnx", "sentence-transformers")
"""Providers that are asked: what they say costs nothing, and names the model and its revision. One of the Hub may have
to be downloaded first, which is not done for a collection that has a model."""


class ConfiguredSpace:
    """Safe to call from any thread."""

    def __init__(self, spec: str, open_: Callable[[], Embedder]) -> None:
        self.spec = spec
        self._open = open_
        self._tells = _tells(spec)
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._asked = 0.0
        self._waits_until = 0.0
        """For the first answer."""
        self._key = ""

    def is_of(self, key: str) -> bool:
        """Whether the configured embedder is known to make vectors of the space of this key."""
        if not self._tells:
            return False
        self._ask()
        self._answered.wait(max(self._waits_until - time.monotonic(), 0.0))  # whoever asks meanwhile, too
        return self._key == key

    def _ask(self) -> None:
        with self._lock:
            at = time.monotonic()
            if self._key or (self._asked and at - self._asked < AGAIN_S):
                return
            self._waits_until = self._waits_until or at + WAIT_S
            self._asked = at
        threading.Thread(target=self._learn, name="configured-space", daemon=True).start()

    def _learn(self) -> None:
        try:
            self._key = self._open().space.key
        except WhimbrelError:  # out, or wrong: who uses it is told; a collection's own model serves meanwhile
            pass
        finally:
            self._answered.set()


def _tells(spec: str) -> bool:
    provider, _, model = spec.partition(":")
    return provider in _TELL or (provider in _TELL_OF_FOLDERS and Path(model.partition("?")[0]).expanduser().is_dir())
