"""The reranker port."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Reranker(ABC):
    """Judges texts by a question. Scores are 0..1, higher is better, by one rule of each provider:

    | provider | score |
    |---|---|
    | `onnx`, `sentence-transformers` | `1 / (1 + exp(-x))` of the model's one logit x; of two, the softmax share of the relevant |
    | `tei` | the server's, which is that of `onnx` (`raw_scores` false) |
    | `cohere`, `jina`, `voyage` | `relevance_score` as it is; with `?scores=raw`, `1 / (1 + exp(-x))` of it |
    | `huggingface` | as `tei` for an address; of a named model the score of its one label |

    A score outside of 0..1 is refused, never cut.
    """  # noqa: E501

    @property
    @abstractmethod
    def name(self) -> str:
        """`provider:model`, as it is configured."""

    @property
    def batch(self) -> int:
        """How many texts are best given at once: what a time budget cuts off in the middle of a call is lost."""
        return 32

    @abstractmethod
    async def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32[len(texts)], 0..1, in their order. Raises `ModelError`, `MissingExtra`.

        The same question and text give the same score, whatever else is judged beside them. A text that the model
        does not read whole is read in parts, and is as good as its best part.
        """

    async def identity(self) -> str:
        """What the scores of one model are told from another's by, where `name` alone does not tell: part of the key
        of cached scores. May ask the server. Raises `ModelError`."""
        return self.name

    async def close(self) -> None:
        """Release what the model holds."""
