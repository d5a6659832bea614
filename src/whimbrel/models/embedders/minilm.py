"""The built-in model: all-MiniLM-L6-v2, int8 per channel, in the package. Needs no key, no network and no torch.

384 dimensions, texts of up to 256 tokens (as the model's own configuration says, though its network could take 512),
English. `tools/make_minilm.py` makes the files from the published weights.

On one machine the same text gives the same bits. Between kinds of CPU, floats may differ in the last place, which moves
a few activations to the next int8 step: differences of 2e-7, made on purpose, gave a mean cosine of 0.9994 (least
0.9957) on 100 texts; against fp32 it is 0.9945. So vectors of two machines are not equal; they are comparable.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from whimbrel.models.embedders.onnx import OnnxEmbedder


class MiniLM(OnnxEmbedder):
    """The embedder `minilm`."""

    def __init__(self, *, threads: int | None = None) -> None:
        super().__init__(folder(), threads=threads)


def folder() -> Path:
    """Where the installed package keeps the model."""
    return Path(str(resources.files("whimbrel.models.embedders").joinpath("assets", "minilm")))
