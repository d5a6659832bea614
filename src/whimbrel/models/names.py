"""The names that models have in settings, logs and the ledger: `provider:model`."""

from __future__ import annotations

from difflib import get_close_matches

PROVIDERS = (
    "anthropic",
    "cohere",
    "huggingface",
    "jina",
    "minilm",
    "ollama",
    "onnx",
    "openai",
    "sentence-transformers",
    "tei",
    "voyage",
)
"""Of any kind of model. Which provider has which kind, its own `resolve` says."""


def complaint(name: str) -> str:
    """Why no model can have this name; empty where one can."""
    provider, _, model = name.partition(":")
    if provider not in PROVIDERS:
        near = get_close_matches(provider.lower(), PROVIDERS, n=1)
        return f"There is no provider {provider!r}." + (f" Did you mean {near[0]!r}?" if near else "")
    return "" if model or provider == "minilm" else f"{provider!r} is a provider, and not one of its models."
