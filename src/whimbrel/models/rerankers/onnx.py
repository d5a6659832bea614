"""A cross-encoder that runs as an ONNX network in this process: one pair of question and text per run.

A folder is one as on the Hugging Face Hub: `config.json`, `tokenizer.json`, and an ONNX file whose first output is the
logits, float32[batch, labels]. One label is the relevance. Two are taken where `id2label` says which of them it is;
more are a classifier of something else, and refused.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whimbrel.errors import ConfigError, ModelError, TextRefused
from whimbrel.models.embedders.layout import Options, fingerprint, longest, network_file, read_json, there
from whimbrel.models.embedders.network import session_options
from whimbrel.models.embedders.onnx import usable_cores
from whimbrel.models.rerankers.base import Reranker

if TYPE_CHECKING:
    from tokenizers import Encoding

RELEVANT = frozenset({"relevant", "positive", "yes", "true", "entailment", "match", "related"})
"""Names of the one of two labels that speaks for a text."""

LEAST_ROOM = 16
"""Tokens of a text that must fit beside the question."""


@dataclass(frozen=True, slots=True)
class CrossEncoder:
    """What a folder says of itself."""

    name: str
    revision: str
    network: Path
    tokenizer: Path
    max_tokens: int
    labels: Sequence[str]
    """By their index in the output; empty where `config.json` names none."""


def read_cross_encoder(folder: Path, options: Options, name: str = "", revision: str = "") -> CrossEncoder:
    """`name`, `revision`: of a model from a hub. Raises `ConfigError` for a folder that is no cross-encoder."""
    there(folder, "config.json", "A reranker's folder is one as on the Hugging Face Hub, with an ONNX file.")
    if options.pooling or options.query_prefix is not None or options.document_prefix is not None:
        raise ConfigError("A reranker takes no pooling and no prefixes.", "Its options: `file`, `max_tokens`.")
    network = network_file(folder, options.file)
    tokenizer = there(folder, "tokenizer.json", "It must be of a fast tokenizer (`tokenizers`).")
    config = read_json(folder / "config.json")
    labels = _labels(config.get("id2label"))
    if len(labels) > 2:
        raise ConfigError(
            f"{folder} tells {len(labels)} labels apart ({', '.join(labels[:5])}): it does not judge relevance.",
            "Name a cross-encoder, which gives one score for a question and a text.",
        )
    return CrossEncoder(
        name=name or str(config.get("_name_or_path") or folder.name),
        revision=revision or fingerprint([network, *network.parent.glob(f"{network.name}_data"), tokenizer]),
        network=network,
        tokenizer=tokenizer,
        max_tokens=options.max_tokens or longest(folder, config),
        labels=labels,
    )


def _labels(said: Any) -> list[str]:
    if not isinstance(said, dict) or not all(str(key).isdecimal() for key in said):
        return []
    return [str(said[key]) for key in sorted(said, key=int)]


class OnnxReranker(Reranker):
    """Files are opened at first use. Safe to call from any thread and event loop."""

    def __init__(self, about: CrossEncoder, *, spec: str, threads: int | None = None) -> None:
        """`threads`: runs at a time, by default the cores that this process may use."""
        self._about = about
        self._spec = spec
        self._threads = threads or usable_cores()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="rerank")
        self._lock = threading.Lock()
        self._loaded: tuple[_Network, _Pairs] | None = None
        self._closed = False

    @property
    def name(self) -> str:
        return self._spec

    @property
    def batch(self) -> int:
        return 2 * self._threads

    async def identity(self) -> str:
        return f"onnx:{self._about.name} {self._about.revision} {self._about.max_tokens}"

    async def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if self._closed:
            raise ModelError(f"The reranker {self._spec} has been closed.")
        runs = [self._pool.submit(self._judge, query, text) for text in texts]
        try:
            scores = await asyncio.gather(*(asyncio.wrap_future(run) for run in runs))
        finally:
            for run in runs:  # cut off, or one has failed: those that have not begun need not
                run.cancel()
        return np.array(scores, np.float32)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        self._loaded = None

    def _judge(self, query: str, text: str) -> float:
        network, pairs = self._parts()
        return max(network.run(window) for window in pairs.windows(query, text))

    def _parts(self) -> tuple[_Network, _Pairs]:
        with self._lock:
            if self._loaded is None:
                self._loaded = _Network(self._about), _Pairs(self._about)
            return self._loaded


class _Pairs:
    """Question and text as the tokens that the model reads."""

    def __init__(self, about: CrossEncoder) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(about.tokenizer))
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{about.tokenizer} cannot be loaded: {error}", "Is it a tokenizers file?") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = int(self._tokenizer.num_special_tokens_to_add(is_pair=True))
        self._most = about.max_tokens
        self._model = about.name

    def windows(self, query: str, text: str) -> list[Encoding]:
        """The pair; where the text does not fit beside the question, the fewest windows of it that do, of nearly equal
        length. Raises `TextRefused` for a question that leaves no room."""
        asked, read = self._encode(query), self._encode(text)
        room = self._most - self._special - len(asked)
        if room < min(LEAST_ROOM, len(read)):
            raise TextRefused(
                f"The question has {len(asked)} tokens, and {self._model} reads {self._most}, the passage included.",
                "Ask a shorter question.",
            )
        parts = max(1, -(-len(read) // max(room, 1)))
        if parts > 1:
            read.truncate(-(-len(read) // parts))
        return [self._tokenizer.post_process(asked, part) for part in (read, *read.overflowing)]

    def _encode(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:  # what the library says of a lone surrogate
            raise TextRefused("The text holds half a character, which no model can read.") from error


class _Network:
    """`run` may be called from many threads at once."""

    def __init__(self, about: CrossEncoder) -> None:
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(
                about.network, session_options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelError(f"{about.network} cannot be loaded: {error}", "Is it an ONNX network?") from error
        self._model = about.name
        self._labels = about.labels
        outputs = {output.name: output for output in self._session.get_outputs()}
        output = outputs.get("logits", self._session.get_outputs()[0])
        self._output = [output.name]
        self._inputs = [item.name for item in self._session.get_inputs()]
        unknown = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
        if unknown:
            raise ConfigError(f"{about.network} asks for {', '.join(sorted(unknown))}, which a text does not have.")

    def run(self, pair: Encoding) -> float:
        """0..1 for one pair."""
        ids = np.array([pair.ids], np.int64)
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.array([pair.type_ids], np.int64),
            "position_ids": np.arange(ids.size, dtype=np.int64).reshape(1, -1),
        }
        try:
            logits = self._session.run(self._output, {name: feeds[name] for name in self._inputs})[0]
        except Exception as error:
            raise ModelError(f"{self._model} failed on a pair of {ids.size} tokens: {type(error).__name__}.") from error
        return self._normalised(np.asarray(logits, np.float64).reshape(-1))

    def _normalised(self, logits: npt.NDArray[np.float64]) -> float:
        if not np.isfinite(logits).all():
            raise ModelError(f"{self._model} gave no number for a pair.", "Its ONNX file may be damaged.")
        if logits.size == 1:
            return sigmoid(float(logits[0]))
        relevant = [index for index, label in enumerate(self._labels) if label.lower() in RELEVANT]
        if logits.size != 2 or len(relevant) != 1:
            raise ConfigError(
                f"{self._model} gives {logits.size} numbers for a pair, and does not say which of them is the "
                "relevance.",
                "Name a cross-encoder with one label, or name the labels in `id2label` of its config.json.",
            )
        return sigmoid(float(logits[relevant[0]] - logits[1 - relevant[0]]))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
