"""One ONNX network on the CPU, for many single-threaded runs at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Space
from whimbrel.errors import ConfigError, ModelError

Vectors = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


_POOLED = ("sentence_embedding", "dense_vecs")
"""Outputs that are one vector for each text, as exporters name them. `pooler_output` is none: it is a layer of BERT."""
_TOKENS = ("last_hidden_state", "token_embeddings")


class Network:
    """A loaded ONNX network. `run` may be called from many threads at once."""

    def __init__(self, path: Path, space: Space, *, pooled: bool = True) -> None:
        """`pooled`: the first output is float32[batch, dimensions]; else the vectors of tokens are pooled here, as the
        space says, where the network does not do it."""
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{path} cannot be loaded: {error}", hint="Is it an ONNX network?") from error
        outputs = {output.name: output for output in session.get_outputs()}
        output = session.get_outputs()[0]
        if not pooled:
            output = next((outputs[name] for name in (*_POOLED, *_TOKENS) if name in outputs), output)
        self._pools = not pooled and len(output.shape) == 3
        if len(output.shape) != 2 + self._pools or not _may_be(output.shape[-1], space.dimensions):
            raise ConfigError(
                f"{path} gives {output.name}{output.shape}; its description promises vectors of {space.dimensions}.",
                hint="The network must give float32[batch, dimensions], or float32[batch, tokens, dimensions].",
            )
        self._space = space
        self._scales = not pooled and space.normalised
        self._session = session
        self._model = space.model
        self._output = [output.name]
        self._inputs = [item.name for item in session.get_inputs()]
        unknown = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
        if unknown:
            raise ConfigError(f"{path} asks for {', '.join(sorted(unknown))}, which a text does not have.")

    def run(self, tokens: Tokens) -> Vectors:
        """float32[dimensions] for the int64[n] tokens of one text."""
        row = tokens.reshape(1, -1)
        feed = dict.fromkeys(self._inputs, row)
        if "attention_mask" in feed:
            feed["attention_mask"] = np.ones_like(row)
        if "token_type_ids" in feed:
            feed["token_type_ids"] = np.zeros_like(row)
        if "position_ids" in feed:
            feed["position_ids"] = np.arange(tokens.size, dtype=np.int64).reshape(1, -1)
        try:
            vectors: Vectors = self._session.run(self._output, feed)[0]
        except Exception as error:
            raise ModelError(f"{self._model} failed on a text of {tokens.size} tokens: {error}") from error
        vector: Vectors = _pool(vectors[0], self._space.pooling) if self._pools else vectors[0].astype(np.float32)
        if self._scales:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return vector


def _pool(tokens: Vectors, pooling: str) -> Vectors:
    """float32[d] of float32[n, d]."""
    tokens = tokens.astype(np.float32, copy=False)
    if pooling == "mean":
        pooled: Vectors = tokens.mean(axis=0, dtype=np.float32)
    elif pooling == "max":
        pooled = tokens.max(axis=0)
    else:
        pooled = tokens[-1 if pooling == "lasttoken" else 0]
    return pooled


def _may_be(said: object, dimensions: int) -> bool:
    """Whether an output's last axis, which a network may leave open, can be of so many."""
    return not isinstance(said, int) or said == dimensions


def session_options() -> Any:
    """onnxruntime.SessionOptions for many single-threaded runs at once.

    The memory arena stays on: without it two threads took 38 MB more instead of 15, at the same speed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it remembers an allocation plan per text length
    if not adds_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def adds_exactly() -> bool:
    """Whether this CPU multiplies uint8 by int8 exactly.

    x86 without VNNI adds pairs of products in 16 bits and saturates, so the same text would get another vector than
    elsewhere. `session.x64quantprecision` has onnxruntime use uint8 by uint8 there, which is exact (bit-identical
    vectors in a test). It is asked for only where needed, as it is 1.7 times slower and so on CPUs with VNNI too.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    probe = onnxruntime.InferenceSession(
        Path(__file__).with_name("assets") / "probe.onnx", options, providers=["CPUExecutionProvider"]
    )
    sums = probe.run(None, {"a": np.full((1, 32), 255, np.uint8)})[0]
    return bool((sums == 255 * 127 * 32).all())
