"""The providers of generators: what each is called, where it finds its key, and how its client is made.

Each `open_...` imports the provider's SDK itself, so that one which is not installed costs nothing. All of them: one
attempt (the SDKs would try again by themselves, unseen), no redirect (prompts go where they are meant to go; Hugging
Face's client follows them), and a timeout for connecting; the others are kept by
`whimbrel.models.generators.direct`, alike for all.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whimbrel.errors import MissingExtra, ModelKeyMissing, ModelKeyRefused

if TYPE_CHECKING:
    from pydantic_ai.models import Model


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    connect_s: float = 5.0
    first_token_s: float = 60.0
    token_s: float = 30.0

    @property
    def silence_s(self) -> float:
        """Longer than any silence that is waited through: for clients that have one timeout for reading."""
        return max(self.first_token_s, self.token_s) + 1.0


@dataclass(frozen=True, slots=True)
class Opened:
    """A model with its client, on one event loop."""

    model: Model[Any]
    close: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Provider:
    name: str
    variables: Sequence[str]
    """Any of these, set, chooses the provider where no model is configured."""
    model: str
    """What is used where no model is named: small, cheap, and good enough to answer from passages."""
    packages: Sequence[str]
    """Modules that the extra of the provider's name brings."""
    open: Callable[[str, Timeouts], Opened]
    """Raises `ModelKeyMissing`."""
    keeps_connections: bool = True
    """False where the client must be closed after each answer."""

    def chosen_by(self, environment: Mapping[str, str]) -> str:
        """The variable that is set; empty if none is."""
        return next((name for name in self.variables if environment.get(name, "").strip()), "")

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(package) is not None for package in self.packages)

    def require(self) -> None:
        """Raises `MissingExtra`."""
        if not self.installed:
            raise MissingExtra(
                f"Models of {self.name} need a package that is not installed. Nothing was sent anywhere.",
                f"Install the extra: pip install 'whimbrel[{self.name}]'",
            )


def _set(name: str) -> str | None:
    """A variable that is set to nothing counts as not set."""
    return os.environ.get(name, "").strip() or None


def _key(variable: str, provider: str) -> str:
    key = _set(variable)
    if key is None:
        raise ModelKeyMissing(
            f"{variable} is not set: {provider} answers nobody without a key. Nothing was sent anywhere.",
            f"Set {variable}, or choose another model: `--model PROVIDER:MODEL`, `--model extractive`.",
        )
    return key


# --- OpenAI, and what speaks its protocol ----------------------------------------------------------------------------


def open_openai(name: str, timeouts: Timeouts) -> Opened:
    base_url = _set("OPENAI_BASE_URL")
    # A server of one's own often wants no key; the client insists on one.
    key = _set("OPENAI_API_KEY") or "no-key" if base_url else _key("OPENAI_API_KEY", "OpenAI")
    return _chat_completions(name, timeouts, base_url, key, ollama=False)


def open_ollama(name: str, timeouts: Timeouts) -> Opened:
    return _chat_completions(name, timeouts, ollama_url(os.environ), _set("OLLAMA_API_KEY") or "no-key", ollama=True)


def ollama_url(environment: Mapping[str, str]) -> str:
    """Where Ollama speaks OpenAI's protocol, from OLLAMA_BASE_URL or else OLLAMA_HOST, else on this machine.

    OLLAMA_HOST is also what its server listens on: `0.0.0.0` is no address to connect to.
    """
    given = environment.get("OLLAMA_BASE_URL", "").strip() or environment.get("OLLAMA_HOST", "").strip()
    scheme, separator, rest = given.partition("://")
    scheme, rest = (scheme, rest) if separator else ("http", given)
    host, slash, path = rest.rstrip("/").partition("/")
    host = host.replace("0.0.0.0", "127.0.0.1") or "127.0.0.1"
    if host.startswith(":"):
        host = f"127.0.0.1{host}"
    if ":" not in host.rpartition("]")[2] and not (separator and slash):
        host += ":11434" if scheme == "http" else ""
    path = path if path == "v1" or path.endswith("/v1") else f"{path}/v1".lstrip("/")
    return f"{scheme}://{host}/{path}"


def _chat_completions(name: str, timeouts: Timeouts, base_url: str | None, key: str, *, ollama: bool) -> Opened:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
    from pydantic_ai.models.ollama import OllamaModel
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.ollama import OllamaProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    timeout = Timeout(timeouts.silence_s, connect=timeouts.connect_s)
    http = DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout)
    client = AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=http)
    # Without this, a stream that was cut off looks like one that ended.
    profile = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
    model: Model[Any]
    if ollama:
        model = OllamaModel(name, provider=OllamaProvider(openai_client=client), profile=profile)
    else:
        model = OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client), profile=profile)
    return Opened(model, client.close)


# --- Anthropic -------------------------------------------------------------------------------------------------------


def open_anthropic(name: str, timeouts: Timeouts) -> Opened:
    key = _key("ANTHROPIC_API_KEY", "Anthropic")
    from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient, Timeout
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    timeout = Timeout(timeouts.silence_s, connect=timeouts.connect_s)
    http = DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout)
    base_url = _set("ANTHROPIC_BASE_URL")
    client = AsyncAnthropic(api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=http)
    return Opened(AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client)), client.close)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def open_huggingface(name: str, timeouts: Timeouts) -> Opened:
    key = _key("HF_TOKEN", "Hugging Face")
    base_url = _set("HF_BASE_URL") or _set("HF_INFERENCE_ENDPOINT")
    if base_url is None and not key.startswith("hf_"):
        raise ModelKeyRefused(
            "HF_TOKEN is no token of Hugging Face: those begin with `hf_`. Nothing was sent anywhere.",
            "Make one at https://huggingface.co/settings/tokens that may call Inference Providers.",
        )
    from huggingface_hub import AsyncInferenceClient
    from pydantic_ai.models.huggingface import HuggingFaceModel
    from pydantic_ai.providers.huggingface import HuggingFaceProvider

    client = AsyncInferenceClient(base_url=base_url, token=key, timeout=timeouts.silence_s)
    provider = HuggingFaceProvider(hf_client=client, api_key=key)
    return Opened(HuggingFaceModel(name, provider=provider), client.close)


PROVIDERS: Mapping[str, Provider] = {
    one.name: one
    for one in (
        Provider(
            name="openai",
            variables=("OPENAI_API_KEY", "OPENAI_BASE_URL"),
            model="gpt-5.6-luna",
            packages=("pydantic_ai", "openai"),
            open=open_openai,
        ),
        Provider(
            name="anthropic",
            variables=("ANTHROPIC_API_KEY",),
            model="claude-haiku-5-5",
            packages=("pydantic_ai", "anthropic"),
            open=open_anthropic,
        ),
        Provider(
            name="ollama",
            variables=("OLLAMA_BASE_URL", "OLLAMA_HOST"),
            model="llama3.2",
            packages=("pydantic_ai", "openai"),
            open=open_ollama,
        ),
        Provider(
            name="huggingface",
            variables=("HF_TOKEN",),
            model="openai/gpt-oss-120b",
            packages=("pydantic_ai", "huggingface_hub"),
            open=open_huggingface,
            keeps_connections=False,  # it keeps every stream that it has read until it is closed; a new one costs 20 ms
        ),
    )
}
"""In the order in which they are chosen. HF_TOKEN comes last: many have it set only to download models."""
