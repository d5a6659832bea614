"""From a specification, `provider` or `provider:model`, to an embedder.

| specification | embedder |
|---|---|
| `minilm` | the built-in all-MiniLM-L6-v2 |
| `tei:URL` | a server of Text Embeddings Inference, or what speaks its protocol |
| `openai:MODEL` | OpenAI, or the server at `OPENAI_BASE_URL` |
| `ollama:MODEL` | Ollama |
| `huggingface:MODEL` | Hugging Face's Inference API, or the endpoint at `HF_BASE_URL` |
| `onnx:PATH_OR_HUB_ID` | the ONNX network in a folder, or of the Hugging Face Hub (`ORG/NAME[@REVISION]`) |
| `sentence-transformers:PATH_OR_HUB_ID` | any model of sentence-transformers, run by torch |

Each provider's module is imported by its own branch, so that what is not used costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from urllib.parse import parse_qsl

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


def _sentence_transformers(model: str, threads: int | None) -> Embedder:
    from whimbrel.models.embedders.sentence import SentenceEmbedder

    return SentenceEmbedder(model, threads=threads)


def _remote(provider: str) -> Callable[[str, int | None], Embedder]:
    def made(model: str, threads: int | None) -> Embedder:
        from whimbrel.models.embedders import wires
        from whimbrel.models.embedders.remote import RemoteEmbedder, Wire

        named, said = _options(provider, model)
        dimensions = said.pop("dimensions", "")
        if dimensions and not (dimensions.isdecimal() and int(dimensions)):
            raise ConfigError(f"{dimensions!r} is no number of dimensions.", hint="Write `?dimensions=256`.")
        if dimensions and provider != "openai":
            raise ConfigError(f"{provider!r} takes no `dimensions`.", hint="Leave it out.")
        wire: Wire
        if provider == "openai":
            wire = wires.openai(named).asking_for(int(dimensions) if dimensions else None)
        else:
            wire = {"tei": wires.Tei, "ollama": wires.ollama, "huggingface": wires.HuggingFace}[provider](named)
        return RemoteEmbedder(
            wire, query_prefix=said.get("query_prefix", ""), document_prefix=said.get("document_prefix", "")
        )

    return made


def _options(provider: str, model: str) -> tuple[str, dict[str, str]]:
    """The model, and what is said of it after `?`."""
    named, _, query = model.partition("?")
    said = dict(parse_qsl(query, keep_blank_values=True))
    known = ("dimensions", "document_prefix", "query_prefix")
    if unknown := sorted(set(said) - set(known)):
        raise ConfigError(f"{provider!r} takes no option {unknown[0]!r}.", hint=f"Options: {', '.join(known)}.")
    return named, said


_PROVIDERS: dict[str, Callable[[str, int | None], Embedder]] = {
    "minilm": _minilm,
    "onnx": _onnx,
    "sentence-transformers": _sentence_transformers,
    **{provider: _remote(provider) for provider in ("tei", "openai", "ollama", "huggingface")},
}
