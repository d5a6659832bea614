"""Encoders of sentence-transformers, run by torch: any that it can load, on whatever device torch finds.

The space is made of the model's own modules. Its numeric form is `fp32 (torch)`, or whatever the weights are: the same
model as ONNX is another space, which may be declared compatible.

Each text is run by itself, so that its vector does not depend on its neighbours. `?batch=N` runs N together, which is
quicker on a GPU; vectors then differ in their last digits from batch to batch.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import ConfigError, ModelError, TextRefused, spot
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.layout import TOKENS_AT_MOST
from whimbrel.models.embedders.onnx import mean, refusal
from whimbrel.models.embedders.tokens import TextTokenizer
from whimbrel.models.embedders.weights import Weights, located

Vectors = npt.NDArray[np.float32]

OPTIONS = ("batch", "device", "document_prefix", "max_tokens", "query_prefix")


class SentenceEmbedder(Embedder):
    """Loaded at first use. Safe to call from any thread and event loop."""

    def __init__(self, model: str, *, threads: int | None = None) -> None:
        """`threads`: of torch, within one text. Raises `MissingExtra`, `ConfigError`."""
        if not model:
            raise ConfigError("'sentence-transformers' needs a model.", "For example: `...:BAAI/bge-small-en-v1.5`.")
        self._weights = located(model, OPTIONS)
        if not (self._weights.folder / "modules.json").is_file():
            raise ConfigError(
                f"{self._weights.folder} has no modules.json: it does not say how the vectors of tokens become one.",
                "Take a model of sentence-transformers.",
            )
        self._threads = threads
        self._lock = threading.Lock()
        self._model: Any = None
        self._space: Space | None = None
        self._tokens: TextTokenizer | None = None
        self._closed = False
        # Two, so that a question never waits behind a batch of documents.
        self._pools = {kind: ThreadPoolExecutor(1, thread_name_prefix=f"torch-{kind}") for kind in EmbedKind}

    @property
    def space(self) -> Space:
        self._loaded()
        assert self._space is not None
        return self._space

    @property
    def tokenizer(self) -> Path:
        return self._weights.folder / "tokenizer.json"

    def count_tokens(self, text: str) -> int:
        return self._words().count(self.space.document_prefix + text)

    def reads(self, text: str) -> float:
        return self._words().familiar(text)

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        """As the port says. A query that is longer than the model reads is read in the fewest windows that fit; its
        vector is the mean of theirs."""
        pool = self._pools[kind]
        return await asyncio.get_running_loop().run_in_executor(pool, self._embed, list(texts), kind)

    async def close(self) -> None:
        self._closed = True
        for pool in self._pools.values():
            await asyncio.to_thread(pool.shutdown, wait=True)
        self._model = None

    # --- in its threads ----------------------------------------------------------------------------------------------

    def _embed(self, texts: list[str], kind: EmbedKind) -> Vectors:
        model, space = self._loaded(), self.space
        prefix = space.query_prefix if kind is EmbedKind.QUERY else space.document_prefix
        windows = self._windows(texts, prefix, kind)
        flat = [window for of_text in windows for window in of_text]
        found = self._run(model, flat, prefix) if flat else np.empty((0, space.dimensions), np.float32)
        vectors = np.empty((len(texts), space.dimensions), np.float32)
        start = 0
        for index, of_text in enumerate(windows):
            own = found[start : start + len(of_text)]
            vectors[index] = own[0] if len(own) == 1 else mean(list(own), space)
            start += len(of_text)
        return vectors

    def _windows(self, texts: list[str], prefix: str, kind: EmbedKind) -> list[list[str]]:
        words, most = self._words(), self.space.max_tokens
        room = most - words.count(prefix)
        refused: dict[int, str] = {}
        windows = []
        for index, text in enumerate(texts):
            try:
                tokens = words.count(prefix + text)
            except TextRefused as error:
                refused[index] = error.message
                continue
            if tokens > most and kind is EmbedKind.DOCUMENT:
                refused[index] = f"It has {tokens} tokens, and the model reads {most}."
            windows.append(words.parts(text, room) if tokens > most else [text])
        if refused:
            raise refusal(refused, len(texts), self.space)
        return windows

    def _run(self, model: Any, texts: list[str], prefix: str) -> Vectors:
        try:
            found: Vectors = model.encode(
                texts,
                prompt=prefix or None,
                batch_size=self._weights.number("batch") or 1,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        except Exception as error:  # torch's own, of every kind; its message may quote a text
            raise ModelError(f"{self._weights.name} failed: {spot(error)}.", "Its memory may be used up.") from error
        return found.astype(np.float32, copy=False)

    def _words(self) -> TextTokenizer:
        with self._lock:
            if self._tokens is None:
                self._tokens = TextTokenizer(self.tokenizer)
            return self._tokens

    def _loaded(self) -> Any:
        with self._lock:
            if self._closed:
                raise ModelError(f"The embedder of {self._weights.name} has been closed.")
            if self._model is None:
                self._model = opened("SentenceTransformer", self._weights, self._threads)
                self._space = _space(self._model, self._weights)
            return self._model


def opened(kind: str, weights: Weights, threads: int | None) -> Any:
    """A `SentenceTransformer` or `CrossEncoder`. Raises `ModelError` for weights that cannot be loaded."""
    import sentence_transformers
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return getattr(sentence_transformers, kind)(
            str(weights.folder),
            device=weights.options.get("device"),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:  # of transformers, of torch, of safetensors: whatever a folder can do wrong
        raise ModelError(
            f"{weights.folder} cannot be loaded: {error}", "Is it a model of sentence-transformers, and whole?"
        ) from error


def numeric(model: Any) -> str:
    """The form of the weights, as in a space."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    return f"{short.get(dtype, dtype)} (torch)"


def _space(model: Any, weights: Weights) -> Space:
    modules = {type(module).__name__: module for module in model}
    prompts, options = dict(model.prompts or {}), weights.options
    always = prompts.get(model.default_prompt_name or "") or ""
    model.default_prompt_name = None  # what is put before a text is said at each call
    document = next((prompts[key] for key in ("document", "passage") if prompts.get(key)), always)
    return Space(
        model=weights.name,
        revision=weights.revision,
        dimensions=int(model.get_embedding_dimension()),
        pooling=_pooling(modules),
        normalised="Normalize" in modules,
        query_prefix=options.get("query_prefix", prompts.get("query") or always),
        document_prefix=options.get("document_prefix", document),
        numeric=numeric(model),
        max_tokens=weights.number("max_tokens") or int(model.get_max_seq_length() or TOKENS_AT_MOST),
    )


def _pooling(modules: dict[str, Any]) -> str:
    """`mean`, or with what else a vector goes through: `mean, Dense`."""
    pooling = modules.get("Pooling")
    named = []
    if pooling is not None:
        mode = pooling.pooling_mode
        named.append(mode if isinstance(mode, str) else "+".join(mode))
        if not pooling.include_prompt:
            named.append("without prompts")
    return ", ".join([*named, *(name for name in modules if name not in ("Transformer", "Pooling", "Normalize"))])
