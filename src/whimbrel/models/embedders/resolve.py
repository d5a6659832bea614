"""From a specification, `provider` or `provider:model`, to an embedder.

| specification | embedder |
|---|---|
| `minilm` | the built-in all-MiniLM-L6-v2 |
| `onnx:PATH_OR_HUB_ID` | the ONNX network in a folder, or of the Hugging Face Hub (`ORG/NAME[@REVISION]`) |

Each provider's module is imported by its own branch, so that what is not used costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from whimbrel.errors import ConfigError
from whimbrel.models.embedders.base import Embedder


def resolve_embedder(spec: str, *, threads: int | None = None) -> Embedder:
    """The embedder that `spec` names; `threads` bounds what runs at a time in this process. Raises `ConfigError`."""
    provider, _, model = spec.strip().partition(":")
    if provider not in _PROVIDERS:
        known = ", ".join(_PROVIDERS)
        near = get_close_matches(provider.lower(), _PROVIDERS, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no embedder {spec!r}.{guess}", hint=f"Embedders: {known} (as `provider:model`).")
    return _PROVIDERS[provider](model, threads)


def _minilm(model: str, threads: int | None) -> Embedder:
    from whimbrel.models.embedders.minilm import MiniLM

    if model:
        raise ConfigError(f"'minilm' is one model; it takes no {model!r}.", hint="Write `minilm`.")
    return MiniLM(threads=threads)


def _onnx(model: str, threads: int | None) -> Embedder:
    from whimbrel.models.embedders.hub import locate
    from whimbrel.models.embedders.layout import read_layout
    from whimbrel.models.embedders.onnx import OnnxEmbedder

    if not model:
        raise ConfigError("'onnx' needs the folder of a model.", hint="Write `onnx:PATH`, or `onnx:ORG/NAME`.")
    folder, options, name, revision = locate(model)
    return OnnxEmbedder(read_layout(folder, options, name, revision), threads=threads)


_PROVIDERS: dict[str, Callable[[str, int | None], Embedder]] = {"minilm": _minilm, "onnx": _onnx}
