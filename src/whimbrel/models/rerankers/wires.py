"""The providers of reranking over HTTP: Text Embeddings Inference, Cohere and who speaks its protocol, Hugging Face.

Keys come from the environment alone, and each goes to its own provider only. A provider's own words are not repeated in
errors: they may hold the text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, quote, urlsplit

from whimbrel.errors import ConfigError, ModelKeyMissing
from whimbrel.models.embedders.remote import LOOK_AGAIN_S
from whimbrel.models.embedders.wires import CONNECT_S, TIMEOUT_S, Where, fault, malformed, unreached
from whimbrel.models.http import answered
from whimbrel.models.rerankers.onnx import sigmoid
from whimbrel.models.rerankers.remote import RerankWire

if TYPE_CHECKING:
    import httpx

Scores = Sequence[tuple[int, float]]


def wire(provider: str, model: str) -> RerankWire:
    """Raises `ConfigError`."""
    if provider == "tei":
        return Tei(f"tei:{_shown(model)}", model, Where("TEI_API_KEY", "the URL after `tei:`"))
    if provider == "huggingface":
        if model.startswith(("http://", "https://")):
            return Tei(f"huggingface:{_shown(model)}", model, Where("HF_TOKEN", "the URL after `huggingface:`"))
        return HuggingFace(model)
    return CohereLike(_dialect(provider, model), model)


class _Http(RerankWire):
    """One client, opened at first use."""

    def __init__(self, name: str, where: Where) -> None:
        self.name = name
        self._where = where
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _key(self) -> str:
        return os.environ.get(self._where.key, "").strip()

    async def _call(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        import httpx

        if self._client is None:
            key = self._key()
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
                headers={"authorization": f"Bearer {key}"} if key else {},
            )
        try:
            answer = await answered(self._client, self.name, method, url, body)
        except httpx.HTTPError as error:
            slow = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
            raise unreached(self.name, self._where, slow=slow) from error
        if not answer.is_success:
            raise fault(self.name, self._where, answer.status_code, answer.headers.get("retry-after"))
        try:
            return answer.json()
        except ValueError as error:
            raise malformed(self.name) from error

    def _scored(self, said: Any, name: str) -> list[tuple[int, float]]:
        """[{"index": n, name: x}, ...]."""
        try:
            return [(_whole(one["index"]), float(one[name])) for one in said]
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(self.name) from error


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(value)
    return value


class Tei(_Http):
    """https://huggingface.github.io/text-embeddings-inference: `/info` and `/rerank`."""

    def __init__(self, name: str, url: str, where: Where) -> None:
        super().__init__(name, where)
        self._url = _address(url, f"`{name.partition(':')[0]}:http://HOST:PORT`")
        self._said: dict[str, Any] | None = None
        self._said_at = 0.0

    async def identity(self) -> str:
        said = await self._about()
        if isinstance(own := said.get("whimbrel_reranker"), str):  # by `whimbrel models`, wherever it runs
            return own
        return f"{self.name} {said.get('model_id')} {said.get('model_sha')} {said.get('model_dtype')}"

    async def look(self) -> None:
        await self._about()

    async def scores(self, query: str, texts: Sequence[str]) -> Scores:
        body = {"query": query, "texts": list(texts), "raw_scores": False, "truncate": False, "return_text": False}
        return self._scored(await self._call("POST", f"{self._url}/rerank", body), "score")

    async def _about(self) -> dict[str, Any]:
        if self._said is None or time.monotonic() - self._said_at > LOOK_AGAIN_S:
            said = await self._call("GET", f"{self._url}/info")
            if not isinstance(said, dict):
                raise malformed(self.name)
            kind = said.get("model_type")
            if isinstance(kind, dict) and not {"reranker", "Reranker"} & kind.keys():
                raise ConfigError(f"{self.name} serves {said.get('model_id')}, which is no reranker.", "Name another.")
            most = said.get("max_client_batch_size")
            self.batch = most if isinstance(most, int) and most > 0 else RerankWire.batch
            self._said, self._said_at = said, time.monotonic()
        return self._said


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one provider speaks Cohere's protocol."""

    provider: str
    address: str
    """Of its API, where the variable does not say another."""
    path: str
    key: str
    """The variable of its key; one of a server of one's own may stay unset."""
    variable: str = ""
    """Leads to another address."""
    wants_key: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)


DIALECTS: Mapping[str, Dialect] = {
    "cohere": Dialect("cohere", "https://api.cohere.com", "/v2/rerank", "COHERE_API_KEY", "COHERE_BASE_URL"),
    "jina": Dialect(
        "jina", "https://api.jina.ai", "/v1/rerank", "JINA_API_KEY", "JINA_BASE_URL", more={"return_documents": False}
    ),
    "voyage": Dialect(
        "voyage", "https://api.voyageai.com", "/v1/rerank", "VOYAGE_API_KEY", "VOYAGE_BASE_URL",
        more={"return_documents": False, "truncation": False},
    ),
}  # fmt: skip
OWN = Dialect("cohere", "", "/v1/rerank", "RERANK_API_KEY", wants_key=False, more={"return_documents": False})
"""A server of one's own, whose address is in the specification: no provider's key is sent to it."""


def _dialect(provider: str, model: str) -> Dialect:
    """By the provider's name; of an address, by its host."""
    if not model.startswith(("http://", "https://")):
        return DIALECTS[provider]
    host = (urlsplit(model).hostname or "").lower()
    known = {urlsplit(one.address).hostname: one for one in DIALECTS.values()}
    return known.get(host, OWN)


class CohereLike(_Http):
    """`{model, query, documents}` to `results` (Voyage: `data`) of `{index, relevance_score}`. Cohere's reference:
    https://docs.cohere.com/reference/rerank."""

    _FORMS: ClassVar = ("normalised", "raw")

    def __init__(self, dialect: Dialect, model: str) -> None:
        place, _, query = model.partition("?")
        said = dict(parse_qsl(query, keep_blank_values=True))
        by_address = place.startswith(("http://", "https://"))
        known = ("model", "scores") if by_address else ("scores",)
        if unknown := sorted(set(said) - set(known)):
            raise ConfigError(f"{dialect.provider!r} takes no option {unknown[0]!r}.", f"Options: {', '.join(known)}.")
        if said.get("scores", "raw") not in self._FORMS:
            raise ConfigError(f"There are no scores {said['scores']!r}.", f"Forms: {', '.join(self._FORMS)}.")
        self._model = said.get("model", "") if by_address else place
        if not self._model:
            raise ConfigError(f"{_shown(place)} needs a model.", f"Write `cohere:{_shown(place)}?model=MODEL`.")
        shown = f"{_shown(place)}?model={self._model}" if by_address else place
        super().__init__(f"{dialect.provider}:{shown}", Where(dialect.key, dialect.variable or "its URL"))
        self._dialect = dialect
        self._raw = said.get("scores") == "raw"
        base = place if by_address else os.environ.get(dialect.variable, "").strip() or dialect.address
        base = _address(base, "`cohere:http://HOST:PORT?model=MODEL`")
        self._url = base if base.endswith("/rerank") else base + dialect.path

    async def identity(self) -> str:
        return f"{self.name} {'raw' if self._raw else ''} {self._url}"

    async def scores(self, query: str, texts: Sequence[str]) -> Scores:
        if self._dialect.wants_key and not self._key():
            raise ModelKeyMissing(
                f"{self._dialect.key} is not set: {self._dialect.provider} answers nobody without a key. Nothing was "
                "sent anywhere.",
                f"Set {self._dialect.key}, or choose another reranker.",
            )
        most = "top_k" if self._dialect.provider == "voyage" else "top_n"
        body = {"model": self._model, "query": query, "documents": list(texts), most: len(texts), **self._dialect.more}
        said = await self._call("POST", self._url, body)
        if not isinstance(said, dict):
            raise malformed(self.name)
        found = self._scored(said.get("results", said.get("data")), "relevance_score")
        return [(index, sigmoid(score)) for index, score in found] if self._raw else found


class HuggingFace(_Http):
    """Its Inference API: text classification of pairs, by a model with one label. `HF_TOKEN`; `HF_BASE_URL`."""

    batch = 16

    def __init__(self, model: str) -> None:
        super().__init__(f"huggingface:{model}", Where("HF_TOKEN", "HF_BASE_URL"))
        base = os.environ.get("HF_BASE_URL", "").strip()
        self._url = base or f"https://router.huggingface.co/hf-inference/models/{quote(model)}"

    async def scores(self, query: str, texts: Sequence[str]) -> Scores:
        if not self._key():
            raise ModelKeyMissing(
                "HF_TOKEN is not set: Hugging Face answers nobody without one. Nothing was sent anywhere.",
                "Set HF_TOKEN, or choose another reranker.",
            )
        pairs = [{"text": query, "text_pair": text} for text in texts]
        said = await self._call("POST", self._url, {"inputs": pairs, "parameters": {"function_to_apply": "sigmoid"}})
        try:
            return [(index, self._only(labels)) for index, labels in enumerate(said)]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise malformed(self.name) from error

    def _only(self, labels: Any) -> float:
        """Of a pair, as a list of its labels or the one label itself."""
        found = labels if isinstance(labels, list) else [labels]
        if len(found) != 1:
            raise ConfigError(
                f"{self.name} gives {len(found)} labels for a pair: it does not judge relevance.",
                "Name a cross-encoder, which gives one score for a question and a text.",
            )
        return float(found[0]["score"])


def _address(url: str, form: str) -> str:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"{_shown(url)!r} is no address of a server.", f"Write {form}.")
    return url.rstrip("/")


def _shown(url: str) -> str:
    """Without credentials and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url
