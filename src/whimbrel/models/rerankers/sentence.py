"""Cross-encoders of sentence-transformers, run by torch: one pair of question and text per run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.errors import ConfigError, ModelError, TextRefused, spot
from whimbrel.models.embedders.layout import TOKENS_AT_MOST
from whimbrel.models.embedders.sentence import opened
from whimbrel.models.embedders.tokens import TextTokenizer
from whimbrel.models.embedders.weights import located
from whimbrel.models.rerankers.base import Reranker

OPTIONS = ("batch", "device", "max_tokens")

PAIR = 4
"""Special tokens of a pair, at most."""
LEAST_ROOM = 16
"""Tokens of a text that must fit beside the question."""


class SentenceReranker(Reranker):
    """Loaded at first use. Safe to call from any thread and event loop."""

    def __init__(self, model: str, *, threads: int | None = None) -> None:
        """`threads`: of torch, within one pair. Raises `MissingExtra`, `ConfigError`."""
        self._weights = located(model, OPTIONS)
        self._spec = f"sentence-transformers:{model}"
        self._threads = threads
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="torch-rerank")
        self._model: Any = None
        self._tokens = TextTokenizer(self._weights.folder / "tokenizer.json")
        self._closed = False

    @property
    def name(self) -> str:
        return self._spec

    async def identity(self) -> str:
        return f"{self._spec} {self._weights.revision}"

    async def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As the port says: `1 / (1 + exp(-x))` of the model's one logit. Raises `TextRefused` for a question that
        leaves no room for a text."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._rerank, query, list(texts))

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown, wait=True)
        self._model = None

    def _rerank(self, query: str, texts: list[str]) -> npt.NDArray[np.float32]:
        model = self._loaded()
        room = self._longest(model) - self._tokens.count(query) - PAIR
        if room < LEAST_ROOM:
            raise TextRefused(
                "The question is so long that the reranker has no room for a text beside it.", "Ask in fewer words."
            )
        parts = [self._tokens.parts(text, room) if text.strip() else [text] for text in texts]
        pairs = [(query, part) for of_text in parts for part in of_text]
        found = self._scores(model, pairs) if pairs else np.empty(0, np.float32)
        ends = np.cumsum([len(of_text) for of_text in parts])
        best = [found[end - len(of_text) : end].max() for of_text, end in zip(parts, ends, strict=True)]
        return np.array(best, np.float32)

    def _scores(self, model: Any, pairs: list[tuple[str, str]]) -> npt.NDArray[np.float32]:
        import torch

        try:
            found = model.predict(
                pairs,
                batch_size=self._weights.number("batch") or 1,
                show_progress_bar=False,
                activation_fn=torch.nn.Sigmoid(),
            )
        except Exception as error:  # torch's own, of every kind; its message may quote a text
            raise ModelError(f"{self._weights.name} failed: {spot(error)}.", "Its memory may be used up.") from error
        return np.asarray(found, np.float32).reshape(-1)

    def _longest(self, model: Any) -> int:
        return self._weights.number("max_tokens") or int(model.get_max_seq_length() or TOKENS_AT_MOST)

    def _loaded(self) -> Any:
        with self._lock:
            if self._closed:
                raise ModelError(f"The reranker {self._weights.name} has been closed.")
            if self._model is None:
                found = opened("CrossEncoder", self._weights, self._threads)
                if int(found.num_labels) != 1:
                    raise ConfigError(
                        f"{self._weights.name} tells {found.num_labels} labels apart: it does not judge relevance.",
                        "Name a cross-encoder, which gives one score for a question and a text.",
                    )
                self._model = found
            return self._model
