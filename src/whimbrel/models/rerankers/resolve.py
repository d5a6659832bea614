"""From a specification, `provider:model`, to a reranker.

| specification | reranker |
|---|---|
| `onnx:PATH_OR_HUB_ID` | the cross-encoder in a folder, or of the Hugging Face Hub (`ORG/NAME[@REVISION]`) |
| `tei:URL` | a server of Text Embeddings Inference, or what speaks its protocol |
| `cohere:MODEL` | Cohere |
| `cohere:URL?model=MODEL` | any server that speaks Cohere's protocol: vLLM, llama.cpp, ... |
| `jina:MODEL`, `voyage:MODEL` | Jina, Voyage |
| `sentence-transformers:PATH_OR_HUB_ID` | the cross-encoder in a folder, or of the Hugging Face Hub, run by torch |
| `huggingface:MODEL`, `huggingface:URL` | Hugging Face's Inference API; an endpoint of Text Embeddings Inference |

Each provider's module is imported by its own branch, so that what is not used costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from whimbrel.errors import ConfigError
from whimbrel.models.rerankers.base import Reranker


def resolve_reranker(spec: str, *, threads: int | None = None) -> Reranker:
    """The reranker that `spec` names; `threads` bounds what runs at a time in this process. Raises `ConfigError`."""
    return _PROVIDERS[check_provider(spec)](spec.strip().partition(":")[2], threads)


def check_provider(spec: str) -> str:
    """The provider of `spec`. Raises `ConfigError` where there is none of that name; opens nothing."""
    provider, _, model = spec.strip().partition(":")
    if provider not in _PROVIDERS:
        known = ", ".join(_PROVIDERS)
        near = get_close_matches(provider.lower(), _PROVIDERS, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no reranker {spec!r}.{guess}", f"Rerankers: {known} (as `provider:model`).")
    if not model:
        raise ConfigError(f"{provider!r} needs a model.", f"Write `{provider}:{_EXAMPLES[provider]}`.")
    return provider


def _onnx(model: str, threads: int | None) -> Reranker:
    from whimbrel.models.embedders.hub import locate
    from whimbrel.models.rerankers.onnx import OnnxReranker, read_cross_encoder

    folder, options, name, revision = locate(model)
    about = read_cross_encoder(folder, options, name, revision)
    return OnnxReranker(about, spec=f"onnx:{model}", threads=threads)


def _sentence_transformers(model: str, threads: int | None) -> Reranker:
    from whimbrel.models.rerankers.sentence import SentenceReranker

    return SentenceReranker(model, threads=threads)


def _remote(provider: str) -> Callable[[str, int | None], Reranker]:
    def made(model: str, threads: int | None) -> Reranker:
        from whimbrel.models.rerankers.remote import RemoteReranker
        from whimbrel.models.rerankers.wires import wire

        return RemoteReranker(wire(provider, model))

    return made


_PROVIDERS: dict[str, Callable[[str, int | None], Reranker]] = {
    "onnx": _onnx,
    "sentence-transformers": _sentence_transformers,
    **{provider: _remote(provider) for provider in ("tei", "cohere", "jina", "voyage", "huggingface")},
}

_EXAMPLES = {
    "onnx": "cross-encoder/ms-marco-MiniLM-L6-v2",
    "sentence-transformers": "cross-encoder/ms-marco-MiniLM-L6-v2",
    "tei": "http://HOST:PORT",
    "cohere": "rerank-v3.5",
    "jina": "jina-reranker-v2-base-multilingual",
    "voyage": "rerank-2.5",
    "huggingface": "BAAI/bge-reranker-v2-m3",
}
