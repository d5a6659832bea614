"""What can be set: one field per setting, with its default, form and meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from whimbrel.config.values import CATALOG_FORMS, absolute_path, listed, mask_url, normalise_catalog, parse_size
from whimbrel.errors import ConfigError

Size = Annotated[int, BeforeValidator(parse_size)]
"""Bytes."""


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _joined(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


class Section(BaseModel):
    """A group of settings. Errors never carry the input, which may be a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Chunking(Section):
    tokens: int = Field(default=186, ge=16, le=32_768, description="Longest chunk, in tokens of the embedder.")
    overlap: int = Field(
        default=18, ge=0, description="Tokens that a chunk repeats from the one before; at most half of `tokens`."
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Chunking:
        if self.overlap > self.tokens // 2:
            raise ValueError("`chunking.overlap` must be at most half of `chunking.tokens`")
        return self


class Ingest(Section):
    max_file_bytes: Size = Field(
        default=256 << 20, ge=1, description="A larger file is refused before any of it is written."
    )
    max_unpacked_bytes: Size = Field(
        default=1 << 30, ge=1, description="An archive or compressed file that unpacks to more than this is refused."
    )
    passwords: SecretStr | None = Field(
        default=None,
        description="Tried on encrypted PDFs.",
        json_schema_extra={"expected": "passwords joined by commas; one that has a comma in it: on a line of its own"},
    )
    ocr_languages: str = Field(
        default="all",
        min_length=1,
        description="Languages of text in pictures, by Tesseract's names (`eng+deu`); `all` that are installed.",
        json_schema_extra={"expected": "language codes joined by `+`, or `all`"},
    )
    workers: int = Field(default=2, ge=1, le=256, description="Processes that extract text from files.")
    timeout_s: float = Field(default=60.0, gt=0, description="Seconds that the extraction of one file may take.")
    memory_bytes: Size = Field(default=2 << 30, ge=64 << 20, description="Memory that one extraction process may use.")
    gone_guard_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="If more than this share of a source's documents vanished, nothing is removed and the run says so.",
    )
    gone_guard_min: int = Field(
        default=10,
        ge=1,
        description="Fewer vanished documents than this are removed without asking, whatever their share.",
    )

    def parsed_passwords(self) -> list[str]:
        """Each line, and each part between commas: to try one too many does no harm."""
        lines = (self.passwords.get_secret_value() if self.passwords else "").splitlines()
        parts = [part.strip() for line in lines for part in line.split(",")]
        return list(dict.fromkeys(one for one in [*(line.strip() for line in lines), *parts] if one))


class Search(Section):
    top_k: int = Field(default=10, ge=1, description="Hits returned when the request does not say.")
    max_top_k: int = Field(default=1_000, ge=1, le=10_000, description="Most hits that a request may ask for.")
    max_query_chars: int = Field(default=8_000, ge=1, description="Longest query, in characters.")
    candidates: int = Field(default=100, ge=1, description="Hits read from each view before they are fused.")
    timeout_s: float = Field(default=10.0, gt=0, description="Seconds that a search may take.")
    queries: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Queries that a search is made of: the question and others that ask the same, by the model that "
        "writes answers, or by rules without one.",
    )

    @model_validator(mode="after")
    def _default_fits(self) -> Search:
        if self.top_k > self.max_top_k:
            raise ValueError("`search.top_k` must not be larger than `search.max_top_k`")
        return self


class Server(Section):
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. Without `api_keys`, one that is not loopback allows only reading.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allowed_hosts: str | None = Field(
        default=None,
        description="Names that requests without a key may use for this machine, beside its own and its addresses.",
        json_schema_extra={"expected": "host names, several joined by commas"},
    )
    cors_origins: str | None = Field(
        default=None,
        description="Other sites whose pages may call the API. `*`, for all of them, needs `api_keys`.",
        json_schema_extra={"expected": "origins such as `https://app.example`, several joined by commas, or `*`"},
    )
    max_body_bytes: Size = Field(default=64 << 20, ge=1024, description="Largest request body, uploads aside.")
    max_upload_bytes: Size = Field(
        default=256 << 20, ge=1024, description="Largest upload of files, all files of a request together."
    )
    max_header_bytes: Size = Field(
        default=64 << 10, ge=4096, description="Largest head of a request: its address and headers."
    )
    head_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds in which the head of a request must have arrived."
    )
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="Seconds that a body may be behind a rate of 16 KiB a second."
    )
    request_timeout_s: float = Field(
        default=300.0, gt=0, description="Seconds in which an answer must have begun, once the request is read."
    )
    keep_alive_s: int = Field(default=30, ge=1, description="Seconds that a connection may be idle.")
    heartbeat_s: float = Field(
        default=15.0, gt=0, description="Seconds of silence in a stream of events after which a comment is sent."
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str | None) -> str | None:
        for origin in listed(value):
            if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
                raise ValueError("an origin is `http://` or `https://` and a host, without a path")
        return value


class Owner(Section):
    lease_s: float = Field(
        default=15.0, ge=1, description="Seconds after which the lease of a silent owner may be taken over."
    )
    poll_s: float = Field(default=0.2, gt=0, description="Seconds between two looks at the catalog for new work.")
    erasure_grace_s: float = Field(
        default=3_600.0,
        ge=0,
        description="Seconds that old versions of a view are kept for readers that have them open; a purge ends after.",
    )

    @model_validator(mode="after")
    def _renews_in_time(self) -> Owner:
        if self.poll_s >= self.lease_s:
            raise ValueError("`owner.poll_s` must be smaller than `owner.lease_s`")
        return self


class Stores(Section):
    connect_timeout_s: float = Field(default=5.0, gt=0, description="Seconds to reach a vector store that is a server.")
    timeout_s: float = Field(default=30.0, gt=0, description="Seconds in which such a server must answer a read.")
    max_connections: int = Field(
        default=8, ge=1, le=1_000, description="Connections of one process to one such server, at most."
    )
    others: SecretStr | None = Field(
        default=None,
        description="Credentials of stores that collections are in beside `store`: the catalog keeps none.",
        json_schema_extra={"expected": "store URIs with their credentials, joined by blanks"},
    )

    @property
    def reach(self) -> tuple[float, float, int]:
        """Connect timeout and read timeout in seconds, and connections."""
        return self.connect_timeout_s, self.timeout_s, self.max_connections


class Embed(Section):
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="Threads of an embedder in this process; without one, one per core."
    )
    batch: int = Field(default=64, ge=1, le=10_000, description="Texts given to the embedder at once.")


class Answer(Section):
    abstain: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="How sure an answer must be to be given, 0 to 1; 0 always answers where there is a hit.",
    )
    passage_tokens: int = Field(
        default=4_000, ge=100, description="Most tokens of passages that a model is given; what does not fit is named."
    )
    history_tokens: int = Field(
        default=1_000, ge=0, description="Most tokens of earlier questions and answers that a model is given."
    )
    max_tokens: int = Field(
        default=4_096, ge=16, description="Longest answer that a model may write, its reasoning included."
    )
    judge: Annotated[Literal["none", "model"], BeforeValidator(_lower)] = Field(
        default="none",
        description="`model` asks the model that writes answers about each citation too; that costs a call for each.",
    )


class Rerank(Section):
    candidates: int = Field(default=50, ge=1, le=1_000, description="Hits that the reranker judges, at most.")
    budget_ms: float = Field(
        default=1_000, gt=0, description="Milliseconds that it has; what is not judged then stays after what is."
    )


class Models(Section):
    connect_timeout_s: float = Field(default=5.0, gt=0, description="Seconds to reach a model's provider.")
    first_token_timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds until a model's answer begins; models that reason first need many."
    )
    token_timeout_s: float = Field(default=30.0, gt=0, description="Seconds between two parts of a model's answer.")
    max_waiting: int = Field(
        default=2_048, ge=1, description="Texts that may wait in `whimbrel models`; more are refused at once (429)."
    )


class Cache(Section):
    max_bytes: Size = Field(
        default=256 << 20, ge=0, description="Largest size of what is kept of models' work; `0` keeps nothing."
    )
    ttl_s: float = Field(
        default=604_800, ge=0, description="Seconds that a query's vector or a reranker's score is kept; 0 for never."
    )
    answers_s: float = Field(
        default=3_600,
        ge=0,
        description="Seconds that an answer is given again where nothing has changed; 0 makes each anew.",
    )


class Guards(Section):
    attempts: int = Field(
        default=3, ge=1, le=10, description="Attempts of a call of a model, where its failure may pass."
    )
    retry_deadline_s: float = Field(
        default=60.0, gt=0, description="Seconds after which a call that failed is not made again."
    )
    timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds that a server may take for the vectors of 64 chunks."
    )
    query_timeout_s: float = Field(
        default=4.0, gt=0, description="Seconds that a server may take for the vector of a query, or to judge passages."
    )
    breaker_failures: int = Field(default=8, ge=1, description="Failures in a row after which a model is not asked.")
    breaker_window_s: float = Field(
        default=60.0, gt=0, description="Seconds after which a failure no longer counts for that."
    )
    breaker_pause_s: float = Field(
        default=30.0, gt=0, le=3_600, description="Seconds that such a model is not asked; then one process tries."
    )
    max_concurrent_embeddings: int = Field(
        default=16, ge=1, le=10_000, description="Calls of embedders at a time in this process."
    )
    max_concurrent_rerankings: int = Field(
        default=8, ge=1, le=10_000, description="Calls of rerankers at a time in this process."
    )
    max_concurrent_generations: int = Field(
        default=16, ge=1, le=10_000, description="Answers that models write at a time in this process."
    )
    max_waiting: int = Field(
        default=128, ge=0, description="Calls of each of these kinds that wait; one more is refused at once (503)."
    )
    rates: str | None = Field(
        default=None,
        description="Requests and tokens that a model is sent in a minute, by all processes together.",
        json_schema_extra={"expected": "`PROVIDER:MODEL=500 requests, 200k tokens`, joined by `;`"},
    )
    prices: str | None = Field(
        default=None,
        description="USD for a million tokens of input and output, where the built-in table is wrong or has none.",
        json_schema_extra={"expected": "`PROVIDER:MODEL=0.15/0.60`, joined by `;`"},
    )
    budgets: str | None = Field(
        default=None,
        description="What may be spent: of `all`, of a model, of an API key. With `warn` nothing is refused.",
        json_schema_extra={"expected": "`all=25 USD/month; key:NAME=1 USD/day, 500k tokens/day warn`"},
    )
    alert_at: str = Field(
        default="0.8, 1",
        description="Shares of a budget at which the log and the webhook are told.",
        json_schema_extra={"expected": "numbers up to 1, joined by commas"},
    )
    alert_error_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of a model's calls in five minutes, 20 at least; if more fail, log and webhook are told.",
    )
    alert_response_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds; if a model's calls in five minutes, 20 at least, take longer on average, likewise.",
    )
    webhook: SecretStr | None = Field(
        default=None,
        description="Where alerts are posted to, as JSON.",
        json_schema_extra={"expected": "an address, `https://...`"},
    )
    redis: SecretStr | None = Field(
        default=None,
        description="A Redis in which hosts with homes of their own share breakers and rates, instead of the catalog.",
        json_schema_extra={"expected": "`redis://USER:PASSWORD@HOST:6379/0`, or `rediss://` for TLS"},
    )


class Log(Section):
    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="Least severe message that is logged."
    )
    format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = Field(
        default="text", description="`text` for people, `json` for one object a line."
    )


def default_home() -> Path:
    """The user's data folder of this platform."""
    import platformdirs

    return Path(platformdirs.user_data_dir("whimbrel", appauthor=False)).absolute()


def _default_catalog(data: dict[str, Any]) -> str:
    return f"sqlite:///{(data['home'] / 'catalog.db').as_posix()}"


class Settings(Section):
    """All settings. Made by `load_settings`; frozen."""

    home: Annotated[Path, BeforeValidator(absolute_path)] = Field(
        default_factory=default_home,
        description="Folder of everything that Whimbrel keeps.",
        json_schema_extra={"default": "the user's data folder", "expected": "a folder"},
    )
    catalog: str = Field(
        default_factory=_default_catalog,
        description="Database of record. A relative SQLite path is meant from `home`.",
        json_schema_extra={"default": "sqlite:///HOME/catalog.db", "expected": CATALOG_FORMS, "url": True},
    )
    profile: str = Field(
        default="local",
        min_length=1,
        description="Named configuration to start from: built in, or one under `profiles`.",
        json_schema_extra={"expected": "the name of a profile"},
    )
    store: str = Field(
        default="lancedb:",
        pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:",
        description="Vector store of new collections. `lancedb:` alone is the folder `views` in `home`.",
        json_schema_extra={"expected": "a URI such as `lancedb:`", "url": True},
    )
    embedder: str = Field(
        default="minilm",
        min_length=1,
        description="Embedding model of new collections.",
        json_schema_extra={"expected": "`minilm`, or `PROVIDER:MODEL`"},
    )
    embedder_fallback: Annotated[str | None, BeforeValidator(_joined)] = Field(
        default=None,
        min_length=1,
        description="The same model served elsewhere, for when `embedder` is out. Its vectors are compared first.",
        json_schema_extra={"expected": "`PROVIDER:MODEL`, several joined by commas"},
    )
    model: Annotated[str | None, BeforeValidator(_joined)] = Field(
        default=None,
        min_length=1,
        description="Model that writes answers; of several, each stands in for those before. Without one, that of the "
        "provider whose key is set, else `extractive`: answers in the documents' own sentences.",
        json_schema_extra={"expected": "`PROVIDER:MODEL`, `PROVIDER`, or `extractive`; several joined by commas"},
    )
    reranker: str | None = Field(
        default=None,
        min_length=1,
        description="Model that orders the hits of a search anew.",
        json_schema_extra={"expected": "`PROVIDER:MODEL`, or `none`", "url": True},
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="Who may call the API. Without keys, only this machine may write.",
        json_schema_extra={"expected": "`NAME:SECRET`, several joined by commas"},
    )
    chunking: Chunking = Field(default_factory=Chunking)
    ingest: Ingest = Field(default_factory=Ingest)
    search: Search = Field(default_factory=Search)
    server: Server = Field(default_factory=Server)
    owner: Owner = Field(default_factory=Owner)
    stores: Stores = Field(default_factory=Stores)
    embed: Embed = Field(default_factory=Embed)
    rerank: Rerank = Field(default_factory=Rerank)
    answer: Answer = Field(default_factory=Answer)
    models: Models = Field(default_factory=Models)
    cache: Cache = Field(default_factory=Cache)
    guards: Guards = Field(default_factory=Guards)
    log: Log = Field(default_factory=Log)

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    _file: Path | None = PrivateAttr(default=None)

    @field_validator("catalog")
    @classmethod
    def _one_form(cls, value: str, info: ValidationInfo) -> str:
        return normalise_catalog(value, info.data.get("home", Path()))

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each value came from, by key: `default`, `profile server`, `whimbrel.yaml:12`, `--port`, a variable."""
        return {key: self._sources.get(key, "default") for key in LEAVES}

    @property
    def config_file(self) -> Path | None:
        """The `whimbrel.yaml` that was read, if there was one."""
        return self._file

    @property
    def catalog_path(self) -> Path | None:
        """The file of an SQLite catalog; None where the catalog is on Postgres."""
        prefix = "sqlite:///"
        return Path(self.catalog.removeprefix(prefix)) if self.catalog.startswith(prefix) else None

    def configured_stores(self) -> list[str]:
        """URIs that may hold the credentials of a store: `store`, the catalog's own database, `stores.others`."""
        others = self.stores.others.get_secret_value().split() if self.stores.others else []
        return [self.store, *others, self.catalog]

    def parsed_api_keys(self) -> dict[str, SecretStr]:
        """The secrets of `api_keys` by name; empty without keys. Raises ConfigError, which shows no part of a key."""
        keys: dict[str, SecretStr] = {}
        raw = self.api_keys.get_secret_value() if self.api_keys else ""
        for number, entry in enumerate((part.strip() for part in raw.split(",")), start=1):
            name, colon, secret = (part.strip() for part in entry.partition(":"))
            if not entry:
                continue
            if not (name and colon and secret) or name in keys:
                problem = "repeats a name" if name in keys else "is not of the form NAME:SECRET"
                raise ConfigError(
                    f"`api_keys` from {self.sources['api_keys']}: entry {number} {problem}.",
                    "Write NAME:SECRET, several joined by commas, each name once.",
                )
            keys[name] = SecretStr(secret)
        return keys

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, mask_url(value) if isinstance(value, str) else value


def _leaves(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    leaves: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            leaves |= _leaves(info.annotation, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = info
    return leaves


LEAVES: Mapping[str, FieldInfo] = _leaves(Settings)
"""Every setting by its key, sections joined by dots."""

ENVIRONMENT: Mapping[str, str] = {f"WHIMBREL_{key.upper().replace('.', '_')}": key for key in LEAVES}
"""Every environment variable, and the key that it sets."""
