"""From a specification, `provider:model` or `provider`, to a generator; and which it is where none is given.

| specification | generator |
|---|---|
| `openai:MODEL` | OpenAI, or what speaks its protocol at OPENAI_BASE_URL |
| `anthropic:MODEL` | Anthropic |
| `ollama:MODEL` | Ollama, at OLLAMA_BASE_URL or OLLAMA_HOST |
| `huggingface:MODEL` | Hugging Face's Inference Providers, or a server at HF_BASE_URL |
| `extractive` | none: answers in the documents' own sentences |
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from whimbrel.errors import ConfigError
from whimbrel.models.generators.base import Generator
from whimbrel.models.generators.direct import DirectGenerator
from whimbrel.models.generators.providers import PROVIDERS, Timeouts

EXTRACTIVE = "extractive"


def chosen(configured: str | None, environment: Mapping[str, str]) -> str:
    """What answers: the model that is configured, else that of the first provider with its key set, else `extractive`.

    Of several providers with a key, the first whose package is installed; if none is, the first.
    """
    if configured is not None:
        return configured
    with_key = [one for one in PROVIDERS.values() if one.chosen_by(environment)]
    if not with_key:
        return EXTRACTIVE
    return next((one for one in with_key if one.installed), with_key[0]).name


def resolve_generator(spec: str, timeouts: Timeouts | None = None) -> Generator | None:
    """The generator that `spec` names; None for `extractive`. Keys and packages are looked for when it is asked.

    Raises `ConfigError`.
    """
    name, _, model = spec.strip().partition(":")
    if name == EXTRACTIVE and not model:
        return None
    provider = PROVIDERS.get(name)
    if provider is None:
        near = get_close_matches(name.lower(), [*PROVIDERS, EXTRACTIVE], n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"There is no provider of models {name!r}.{guess}",
            f"Providers: {', '.join(PROVIDERS)} (as `PROVIDER:MODEL`), or `{EXTRACTIVE}`.",
        )
    return DirectGenerator(provider, model.strip() or provider.model, timeouts or Timeouts())
