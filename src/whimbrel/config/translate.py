"""The configuration of a pipeline of components (trees `answer_generator`, `retriever`, `embedder`, `global_settings`)
in our settings. What has no counterpart is named, line by line; a secret is never copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import ValidationError

from whimbrel.config.alerts import translated_alert
from whimbrel.config.foreign import Leaf
from whimbrel.config.settings import LEAVES, Settings


class Became(StrEnum):
    TAKEN = "taken"
    BY_ITSELF = "by itself"
    """Nothing is to be set for it."""
    SECRET = "secret"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one value. The value itself is not repeated: it may be a secret."""

    line: int
    key: str
    became: Became
    said: str

    def as_dict(self) -> dict[str, object]:
        return {"line": self.line, "key": self.key, "became": self.became.value, "said": self.said}


@dataclass(slots=True)
class Translated:
    settings: dict[str, str] = field(default_factory=dict)
    """By key, sections joined by dots."""
    lines: list[Line] = field(default_factory=list)


_LLM = "answer_generator.config.llm_client"
_RERANK = "retriever.config.neural_reranking"
_EMBED = "embedder.config.model"

_GENERATORS = {name: name for name in ("huggingface", "ollama", "openai", "anthropic")}
_GENERATORS |= {"huggingface_api": "huggingface", "inference_providers": "huggingface"}
_LOCAL = dict.fromkeys(("sentence_transformer", "sentence_transformers", "cross_encoder", "local", "semantic"))
_EMBEDDERS = {name: name for name in ("huggingface", "ollama", "openai", "onnx")}
_EMBEDDERS |= {"huggingface_api": "huggingface", **dict.fromkeys(_LOCAL, "sentence-transformers")}
_RERANKERS = {name: name for name in ("huggingface", "onnx", "cohere", "jina", "voyage")}
_RERANKERS |= {"huggingface_api": "huggingface", **dict.fromkeys(_LOCAL, "sentence-transformers")}
_VARIABLES = {"huggingface": "HF_TOKEN", "openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
_VARIABLES |= {"ollama": "OLLAMA_API_KEY", "cohere": "COHERE_API_KEY"}

_SECRET = re.compile(r"(^|[._])(\w*_)?(api_?key|api_?token|token|secret|password|credentials?|key)$", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(:-[^}]*)?\}")

_PLAIN = {
    f"{_LLM}.config.max_tokens": ("answer.max_tokens",),
    f"{_LLM}.config.timeout": ("models.first_token_timeout_s",),
    f"{_RERANK}.config.max_candidates": ("rerank.candidates",),
    f"{_EMBED}.config.batch_size": ("embed.batch",),
    "global_settings.log_level": ("log.level",),
    "global_settings.max_concurrent_requests": (
        "guards.max_concurrent_embeddings", "guards.max_concurrent_rerankings", "guards.max_concurrent_generations",
    ),
}  # fmt: skip
"""Values that are taken as they are."""

_BY_ITSELF = {
    "answer_generator.type": "There is one way of answering.",
    "retriever.type": "There is one way of searching: by words and by meaning.",
    "embedder.type": "The embedder is named by provider and model.",
    "document_processor.type": "Every format is read; PDFs by their text, and by pictures where they have none.",
    "global_settings.enable_cost_monitoring": "Costs are always recorded.",
    "monitoring.metrics[]": "`/metrics` has them.",
}
_ALERTS = "monitoring.alerts[]"
_NOTHING = {
    f"{_LLM}.config.temperature": "The model's own is used.",
    f"{_EMBED}.config.fallback_to_local": "Vectors of another model are never mixed in. The same model served "
    "elsewhere may stand in.",
    f"{_RERANK}.config.fallback_to_local": "While the reranker is out, hits come in the order of the search, which "
    "says so.",
    f"{_RERANK}.config.batch_size": "A reranker has a time budget instead: `rerank.budget_ms`.",
    "document_processor.config.chunk_size": "It does not say of what. `chunking.tokens` counts tokens.",
    "document_processor.config.chunk_overlap": "It does not say of what. `chunking.overlap` counts tokens.",
    "profile": "Profiles have other names here: docs/configuration.md.",
    "global_settings.environment": "Profiles have other names here: docs/configuration.md.",
}


def translate(leaves: Sequence[Leaf]) -> Translated:
    """The settings, and what became of each value, in the order of the file."""
    return _Translator(leaves).run()


class _Translator:
    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._leaves = leaves
        self._first: dict[str, Leaf] = {}
        for leaf in leaves:
            self._first.setdefault(leaf.path, leaf)
        self._made = Translated()
        self._providers: dict[str, str] = {}
        """Of a tree, by the path that it begins with."""

    def run(self) -> Translated:
        self._models()
        for leaf in self._leaves:
            if not any(one.line == leaf.line and one.key == leaf.path for one in self._made.lines):
                self._one(leaf)
        self._made.lines.sort(key=lambda one: one.line)
        return self._made

    def _models(self) -> None:
        chain = [f"{_LLM}.config.model_name", f"{_LLM}.config.fallback_models[]"]
        self._model("model", f"{_LLM}.type", _LLM, _GENERATORS, chain)
        self._model("embedder", f"{_EMBED}.type", _EMBED, _EMBEDDERS, [f"{_EMBED}.config.model_name"])
        enabled = self._first.get(f"{_RERANK}.enabled")
        kind, named = f"{_RERANK}.model_type", f"{_RERANK}.config.model_name"
        if enabled is not None and enabled.value.lower() in ("false", "no", "off", "0"):
            self._say(enabled, Became.BY_ITSELF, "Nothing reranks unless `reranker` is set.")
            for leaf in (self._first.get(kind), self._first.get(named)):
                if leaf is not None:
                    self._say(leaf, Became.NOTHING, "It was switched off.")
            return
        if enabled is not None:
            self._say(enabled, Became.BY_ITSELF, "`reranker` says so.")
        self._model("reranker", kind, _RERANK, _RERANKERS, [named])

    def _model(self, key: str, kind: str, tree: str, known: Mapping[str, str], names: Sequence[str]) -> None:
        """`provider:model` of a tree's type and the names of its models; several in a chain."""
        typed = self._first.get(kind)
        found = [leaf for leaf in self._leaves if leaf.path in names and leaf.value]
        provider = known.get(typed.value.lower()) if typed is not None else None
        if typed is None or provider is None or not found:
            for leaf in [*([typed] if typed is not None else []), *found]:
                self._say(leaf, Became.NOTHING, f"It names no provider that `{key}` has; docs/models.md lists them.")
            return
        self._providers[tree] = provider
        self._set(key, ", ".join(f"{provider}:{leaf.value}" for leaf in found), [typed, *found])

    def _one(self, leaf: Leaf) -> None:
        if _SECRET.search(leaf.path):
            self._say(leaf, Became.SECRET, self._secret(leaf))
        elif leaf.path.startswith(f"{_ALERTS}."):
            self._alert(leaf)
        elif leaf.path in _PLAIN:
            for key in _PLAIN[leaf.path]:
                self._set(key, leaf.value, [leaf])
        elif leaf.path in _BY_ITSELF:
            self._say(leaf, Became.BY_ITSELF, _BY_ITSELF[leaf.path])
        else:
            self._say(leaf, Became.NOTHING, _NOTHING.get(leaf.path, "There is no counterpart."))

    def _alert(self, leaf: Leaf) -> None:
        """What is told of at a threshold. One of costs is that of a budget which refuses nothing."""
        found = translated_alert(leaf.path.rpartition(".")[2], leaf.value)
        if isinstance(found, str):
            self._say(leaf, Became.NOTHING, found)
        elif found[0] in self._made.settings:
            self._say(leaf, Became.NOTHING, f"`{found[0]}` is set by a line before.")
        else:
            self._set(*found, [leaf])

    def _secret(self, leaf: Leaf) -> str:
        provider = next((one for tree, one in self._providers.items() if leaf.path.startswith(tree)), "")
        ours = _VARIABLES.get(provider, "the provider's variable")
        held = _VARIABLE.fullmatch(leaf.value.strip())
        if held is None:
            return f"It stands in the clear, and was not copied. Set {ours} in the environment; give it a new value."
        if held["name"] == ours:
            return f"{ours} is read from the environment."
        return f"Set {ours} to what {held['name']} holds: keys are read from the environment only."

    def _set(self, key: str, value: str, of: Sequence[Leaf]) -> None:
        problem = _problem(key, value)
        for leaf in of:
            if problem:
                self._say(leaf, Became.NOTHING, problem)
            else:
                self._say(leaf, Became.TAKEN, f"`{key}`")
        if not problem:
            self._made.settings[key] = value

    def _say(self, leaf: Leaf, became: Became, said: str) -> None:
        self._made.lines.append(Line(leaf.line, leaf.path, became, said))


def _problem(key: str, value: str) -> str:
    """Why a setting cannot have this value; empty where it can, or where a variable will say."""
    if key not in LEAVES:
        return f"This version has no `{key}`."
    if "${" in value:
        return "" if not _VARIABLE.sub("", value).count("${") else "It holds a `${` that begins no variable."
    section, _, name = key.rpartition(".")
    try:
        Settings.model_validate({section: {name: value}} if section else {name: value})
    except ValidationError:
        return f"`{key}` takes other values: docs/configuration.md."
    return ""


def as_yaml(made: Translated, source: str) -> str:
    """A `whimbrel.yaml`, every value quoted; what was not taken is named at its end."""
    lines = [f"# Made from {source.splitlines()[0]} by `whimbrel config import`."]
    sections: dict[str, list[str]] = {}
    for key, value in made.settings.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(f"{name}: {_quoted(value)}")
    lines += sections.pop("", [])
    for section, entries in sections.items():
        lines += [f"{section}:", *(f"  {entry}" for entry in entries)]
    lines += _remarks(made, "Not taken:", lambda one: one.became is Became.NOTHING)
    lines += _remarks(made, "Keys and tokens:", lambda one: one.became is Became.SECRET)
    return "\n".join(lines) + "\n"


def _remarks(made: Translated, title: str, wanted: Callable[[Line], bool]) -> list[str]:
    found = [f"#   line {one.line}, {one.key}: {one.said}" for one in made.lines if wanted(one)]
    return ["", f"# {title}", *found] if found else []


def _quoted(value: str) -> str:
    """A YAML scalar in double quotes, as JSON writes it; the one form in which every text is itself."""
    import json

    return json.dumps(value)
