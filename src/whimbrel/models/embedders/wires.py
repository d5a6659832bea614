"""The providers of embeddings: Text Embeddings Inference, OpenAI and what speaks its protocol, Ollama, Hugging Face.

Keys come from the environment alone. A provider's own words are not repeated in errors: they may hold the text.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import (
    ConfigError,
    MissingExtra,
    ModelBusy,
    ModelDown,
    ModelError,
    ModelKeyMissing,
    ModelKeyRefused,
    ModelMalformed,
    ModelNotFound,
    ModelRefused,
    ModelSlow,
    SpaceMismatch,
)
from whimbrel.models.embedders.network import Vectors
from whimbrel.models.embedders.remote import About, Wire
from whimbrel.models.http import answered

if TYPE_CHECKING:
    import httpx
    from openai.types import Embedding

TIMEOUT_S = 60.0
CONNECT_S = 5.0
_REFUSED = (400, 413, 422)


@dataclass(frozen=True, slots=True)
class Where:
    """Which variables lead to a provider: for messages."""

    key: str
    address: str


def fault(name: str, where: Where, status: int, retry_after: str | None = None) -> ModelError:
    """The named error for a provider's status that is no answer."""
    if status < 400:
        return ModelMalformed(
            f"{name} answers with a redirect ({status}), which is not followed.", f"Check {where.address}."
        )
    if status in (401, 403):
        said = f"{name}: the provider refuses the key of {where.key} ({status})."
        return ModelKeyRefused(said, f"Set {where.key} to a key that it takes.")
    if status == 404:
        return ModelNotFound(
            f"The provider knows no model of that name: {name} (404).", f"Check it, and {where.address}."
        )
    if status == 402:
        return ModelDown(f"{name}: the account's credit is used up (402).", "Top it up.")
    wait = seconds_to_wait(retry_after)
    if status == 429:
        when = f"It asks to wait {wait:.0f} s." if wait is not None else "Wait a little."
        return ModelBusy(f"The rate limit of {name} is reached (429).", when, retry_after_s=wait)
    if status in _REFUSED:
        return ModelRefused(f"The server refuses it ({status}); most often it is longer than the model reads.")
    said = f"{name} says that it cannot answer now ({status})."
    return ModelDown(said, "It is tried again by itself.", retry_after_s=wait)


def seconds_to_wait(retry_after: str | None) -> float | None:
    """Of the header `Retry-After`, which holds seconds or a date (RFC 9110, 10.2.3); None for what is neither."""
    said = (retry_after or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{0,9})?", said):
        return float(said)
    try:
        when = parsedate_to_datetime(said)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def unreached(name: str, where: Where, *, slow: bool) -> ModelError:
    if slow:
        return ModelSlow(f"{name} had not answered after {TIMEOUT_S:g} s.", "It is tried again by itself.")
    return ModelDown(f"Nobody answers at the address of {name}.", f"Start it, or check {where.address}.")


def malformed(name: str) -> ModelError:
    return ModelMalformed(
        f"The answer of {name} is not what its protocol says. Nothing was kept of it.", "Check its address."
    )


# --- Text Embeddings Inference ---------------------------------------------------------------------------------------


FLOAT32 = "application/vnd.whimbrel.float32"


def float32_of(space: str) -> str:
    """The media type of vectors of a space, by its key: float32, little-endian, one vector after the other."""
    return f"{FLOAT32}; space={space}"


class Tei(Wire):
    """https://huggingface.github.io/text-embeddings-inference: `/info` and `/embed`. `TEI_API_KEY` if it wants one.

    `whimbrel models` speaks it too, and says in `/info` which space it serves: then it is told what a text is, and
    gives its vectors as bytes.
    """

    where = Where("TEI_API_KEY", "the URL after `tei:`")
    tells = True

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError(f"{url!r} is no address of a TEI server.", "Write `tei:http://HOST:PORT`.")
        self._url = url.rstrip("/")
        parts = urlsplit(self._url)
        self.name = f"tei:{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._client: httpx.AsyncClient | None = None
        self._space: Space | None = None
        """What `whimbrel models` serves; None of another server."""

    async def about(self) -> About:
        about = await self._about()
        self._space = about.space
        return about

    async def _about(self) -> About:
        said = _json(await self._call("GET", "/info"), self.name)
        try:
            kind = said["model_type"]
            kind = kind.get("embedding") or kind.get("Embedding") if isinstance(kind, dict) else None
            if not isinstance(kind, dict):
                raise ConfigError(f"{self.name} serves {said['model_id']}, which makes no vectors.", "Name another.")
            return About(
                model=str(said["model_id"]),
                revision=str(said.get("model_sha") or "served"),
                pooling=str(kind.get("pooling", "served")),
                numeric=str(said.get("model_dtype", "served")),
                max_tokens=int(said["max_input_length"]),
                batch_texts=int(said.get("max_client_batch_size") or 32),
                batch_tokens=int(said.get("max_batch_tokens") or 16_384),
                space=_space(said["whimbrel_space"]) if "whimbrel_space" in said else None,
                tokenizer=str(said.get("whimbrel_tokenizer", "")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(self.name) from error

    async def vectors(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        body: dict[str, Any] = {"inputs": list(texts), "normalize": True, "truncate": False}
        if self._space is None:
            return _array(_json(await self._call("POST", "/embed", body), self.name), self.name)
        del body["normalize"]
        answer = await self._call("POST", "/embed", body | {"prompt_name": kind.value}, {"accept": FLOAT32})
        return self._unpacked(answer, self._space)

    def _unpacked(self, answer: httpx.Response, space: Space) -> Vectors:
        kind = answer.headers.get("content-type", "")
        if not kind.startswith(FLOAT32) or len(answer.content) % (4 * space.dimensions):
            raise malformed(self.name)
        if kind != float32_of(space.key):
            raise SpaceMismatch(
                f"{self.name} serves another model now than {space.model} ({space.revision[:12]}, {space.numeric}). "
                "Its vectors were not compared, and nothing was written.",
                "Have it serve the model that made the collection's vectors.",
            )
        return np.frombuffer(answer.content, "<f4").reshape(-1, space.dimensions)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        import httpx

        if self._client is None:
            key = os.environ.get("TEI_API_KEY", "").strip()
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
                headers={"authorization": f"Bearer {key}"} if key else {},
            )
        try:
            answer = await answered(self._client, self.name, method, self._url + path, body, headers)
        except httpx.HTTPError as error:
            slow = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
            raise unreached(self.name, self.where, slow=slow) from error
        if not answer.is_success:
            raise fault(self.name, self.where, answer.status_code, answer.headers.get("retry-after"))
        return answer


# --- through pydantic-ai ---------------------------------------------------------------------------------------------


class ByPydanticAi(Wire):
    """A model of `pydantic_ai.embeddings`."""

    def __init__(
        self, name: str, where: Where, about: About, open_: Callable[[], tuple[Any, Callable[[], Awaitable[None]]]]
    ) -> None:
        """`open_` gives the model and what closes its client, on the loop that it is called on."""
        self.name = name
        self._where = where
        self._said = about
        self._open = open_
        self._model: Any = None
        self._end: Callable[[], Awaitable[None]] | None = None
        self._dimensions: int | None = None

    def asking_for(self, dimensions: int | None) -> ByPydanticAi:
        """Vectors cut to so many, by models that can."""
        self._dimensions = dimensions
        if dimensions:
            self._said = replace(self._said, model=f"{self._said.model} cut to {dimensions}")
        return self

    async def about(self) -> About:
        return self._said

    async def vectors(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        from pydantic_ai import exceptions as raised

        if self._model is None:
            self._model, self._end = self._open()
        settings = {"dimensions": self._dimensions} if self._dimensions else None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await self._model.embed(list(texts), input_type=kind.value, settings=settings)
        except ModelError:
            raise
        except raised.ModelHTTPError as error:
            wait = (error.headers or {}).get("retry-after")
            raise fault(self.name, self._where, error.status_code, wait) from error
        except (TimeoutError, raised.ModelAPIError) as error:
            if isinstance(error.__cause__, ValueError):
                raise malformed(self.name) from error
            slow = isinstance(error, TimeoutError | raised.ModelRequestTimeout | raised.ModelTimeoutError)
            raise unreached(self.name, self._where, slow=slow) from error
        except Exception as error:  # the SDK lets many kinds through when an answer is not what it expects
            status = getattr(error, "status_code", None)
            raise fault(self.name, self._where, status) if status else malformed(self.name) from error
        return _array(found.embeddings, self.name)

    async def close(self) -> None:
        if self._end is not None:
            await self._end()
        self._model = self._end = None


def openai(model: str) -> ByPydanticAi:
    """OpenAI, or what `OPENAI_BASE_URL` leads to."""
    base = _set("OPENAI_BASE_URL")
    name = model or "text-embedding-3-small"

    def open_() -> tuple[Any, Callable[[], Awaitable[None]]]:
        key = _set("OPENAI_API_KEY") or ("no-key" if base else "")
        if not key:
            raise ModelKeyMissing(
                "OPENAI_API_KEY is not set: OpenAI answers nobody without a key. Nothing was sent anywhere.",
                "Set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own.",
            )
        return _openai_client(name, base, key)

    about = About(model=name, revision="served", max_tokens=8191, batch_texts=512, batch_tokens=200_000)
    where = Where("OPENAI_API_KEY", "OPENAI_BASE_URL")
    _require("openai", "openai", "pydantic_ai", "tiktoken")
    return ByPydanticAi(f"openai:{name}", where, about, open_)


def ollama(model: str) -> ByPydanticAi:
    if not model:
        raise ConfigError("'ollama' needs a model.", "For example: `ollama:nomic-embed-text`.")
    from whimbrel.models.generators.providers import ollama_url

    _require("ollama", "openai", "pydantic_ai", "tiktoken")
    url = ollama_url(os.environ)
    about = About(model=model, revision="served by ollama", max_tokens=2048)
    where = Where("OLLAMA_API_KEY", "OLLAMA_BASE_URL")
    return ByPydanticAi(
        f"ollama:{model}", where, about, lambda: _openai_client(model, url, _set("OLLAMA_API_KEY") or "no-key")
    )


def _openai_client(model: str, base: str | None, key: str) -> tuple[Any, Callable[[], Awaitable[None]]]:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
    from openai.resources.embeddings import AsyncEmbeddings
    from openai.types import CreateEmbeddingResponse
    from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class InOrder(AsyncEmbeddings):
        async def create(self, **asked: Any) -> CreateEmbeddingResponse:
            found = await super().create(**asked)
            found.data = in_order(found.data)
            return found

    class Client(AsyncOpenAI):
        """Gives vectors in the order of the texts, by the `index` of each, which pydantic-ai does not look at."""

        @property
        def embeddings(self) -> InOrder:
            return InOrder(self)

    timeout = Timeout(TIMEOUT_S, connect=CONNECT_S)
    http = DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout)  # texts go where they are meant to go
    client = Client(api_key=key, base_url=base, max_retries=0, timeout=timeout, http_client=http)
    return OpenAIEmbeddingModel(model, provider=OpenAIProvider(openai_client=client)), client.close


def in_order(data: Sequence[Embedding]) -> list[Embedding]:
    """Raises `ValueError` where an index is missing or there twice. Who gives none at all gives them in order."""
    places = [getattr(one, "index", None) for one in data]
    if all(place is None for place in places):
        return list(data)
    found = dict(zip(places, data, strict=True))
    if found.keys() != set(range(len(data))):
        raise ValueError("indexes")
    return [found[place] for place in range(len(data))]


# --- Hugging Face ----------------------------------------------------------------------------------------------------


class HuggingFace(Wire):
    """Its Inference API: `feature_extraction` of its own client. `HF_TOKEN`; `HF_BASE_URL` for an endpoint."""

    where = Where("HF_TOKEN", "HF_BASE_URL")

    def __init__(self, model: str) -> None:
        if not model:
            raise ConfigError("'huggingface' needs a model.", "For example: `huggingface:BAAI/bge-m3`.")
        _require("huggingface", "huggingface_hub", "pydantic_ai")
        self.name = f"huggingface:{model}"
        self._named = model
        self._client: Any = None

    async def about(self) -> About:
        return About(model=self._named, revision="served", batch_texts=32)

    async def vectors(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        import httpx
        from huggingface_hub import errors as raised

        try:
            found = await self._opened().feature_extraction(list(texts), normalize=True, truncate=False)
        except raised.HfHubHTTPError as error:
            answer = error.response
            raise fault(self.name, self.where, answer.status_code, answer.headers.get("retry-after")) from error
        except (raised.InferenceTimeoutError, httpx.HTTPError) as error:
            slow = isinstance(error, raised.InferenceTimeoutError | httpx.ReadTimeout)
            raise unreached(self.name, self.where, slow=slow) from error
        except (TypeError, ValueError, KeyError) as error:
            raise malformed(self.name) from error
        return _array(found, self.name)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _opened(self) -> Any:
        if self._client is None:
            from huggingface_hub import AsyncInferenceClient

            key, base = _set("HF_TOKEN"), _set("HF_BASE_URL")
            if key is None:
                raise ModelKeyMissing(
                    "HF_TOKEN is not set: Hugging Face answers nobody without one. Nothing was sent anywhere.",
                    "Set HF_TOKEN, or choose another embedder.",
                )
            self._client = AsyncInferenceClient(model=base or self._named, token=key, timeout=TIMEOUT_S)
        return self._client


def _space(said: Mapping[str, Any]) -> Space:
    """Raises `TypeError` for what is no space."""
    space = Space(**said)
    kinds = {"model": str, "revision": str, "dimensions": int, "normalised": bool, "max_tokens": int}
    for name, kind in kinds.items():
        if type(getattr(space, name)) is not kind:
            raise TypeError(name)
    if space.dimensions < 1 or space.max_tokens < 1:
        raise ValueError("sizes")
    return space


def _json(answer: httpx.Response, name: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise malformed(name) from error


def _array(found: Any, name: str) -> Vectors:
    try:
        array: Vectors = np.asarray(found, np.float32)
    except (TypeError, ValueError) as error:
        raise malformed(name) from error
    return array


def _set(variable: str) -> str | None:
    return os.environ.get(variable, "").strip() or None


def _require(extra: str, *modules: str) -> None:
    from importlib.util import find_spec

    if not all(find_spec(module) for module in modules):
        raise MissingExtra(
            f"Embedders of {extra} need a package that is not installed. Nothing was sent anywhere.",
            f"Install the extra: pip install 'whimbrel[{extra}]'",
        )
