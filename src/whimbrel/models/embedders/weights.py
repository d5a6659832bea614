"""A folder with weights that torch runs, by its path or its id on the Hugging Face Hub, and what is said with it.

Only `safetensors` are downloaded and loaded: weights in pickles can run code, and code that comes with a model is never
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl

from whimbrel.errors import ConfigError, MissingExtra
from whimbrel.models.embedders.hub import REPOSITORY, download
from whimbrel.models.embedders.layout import fingerprint

_FILES = ("*.json", "*/config.json", "*.safetensors", "*/*.safetensors", "vocab.txt", "merges.txt", "*.model")
_NUMBERS = {"max_tokens": 8, "batch": 1}
"""Options that are numbers, and the least of each."""


@dataclass(frozen=True, slots=True)
class Weights:
    folder: Path
    name: str
    revision: str
    options: dict[str, str]

    def number(self, option: str) -> int | None:
        return int(self.options[option]) if option in self.options else None


def located(named: str, options: Sequence[str]) -> Weights:
    """Of `PATH_OR_HUB_ID[@REVISION][?option=...]`. Raises `MissingExtra`, `ConfigError`, `ModelDown`,
    `ModelKeyRefused`."""
    if not all(find_spec(module) for module in ("torch", "sentence_transformers")):
        raise MissingExtra(
            "Models of sentence-transformers need torch, which is not installed.",
            "Install the extra: pip install 'whimbrel[sentence-transformers]'",
        )
    place, _, query = named.partition("?")
    said = _options(query, options)
    folder = Path(place).expanduser()
    repository = REPOSITORY.fullmatch(place)
    if folder.is_dir() or repository is None or place.startswith((".", "~", "/")):
        return Weights(_checked(folder), folder.resolve().name, _fingerprint(folder), said)
    folder = _checked(download(repository["id"], repository["revision"], lambda _: _FILES))
    return Weights(folder, repository["id"], folder.name, said)


def _options(query: str, known: Sequence[str]) -> dict[str, str]:
    said = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(said) - set(known)):
        raise ConfigError(
            f"'sentence-transformers' takes no option {unknown[0]!r} here.", f"Options: {', '.join(sorted(known))}."
        )
    for option, least in _NUMBERS.items():
        value = said.get(option)
        if value is not None and not (value.isdecimal() and int(value) >= least):
            raise ConfigError(f"{option} is no number that can be used: {value!r}.", f"Give {least} or more.")
    return said


def _checked(folder: Path) -> Path:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} is not a model: it has no {name}.", "A folder is one as sentence-transformers saves it."
            )
    if not any(folder.rglob("*.safetensors")):
        raise ConfigError(
            f"{folder} has no weights as safetensors. Pickles are not loaded: they can run code.",
            "Take a revision that has them, or convert the weights.",
        )
    return folder


def _fingerprint(folder: Path) -> str:
    return fingerprint([*folder.rglob("*.safetensors"), folder / "tokenizer.json"]) if folder.is_dir() else ""
