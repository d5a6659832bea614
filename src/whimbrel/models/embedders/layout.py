"""A folder with an encoder in it: our own form, or the one that models have on the Hugging Face Hub.

| file | says |
|---|---|
| `model.json` | all of it (our own form; the others are not looked at) |
| `config.json` | dimensions, positions |
| `tokenizer.json` | the tokens |
| `modules.json`, `1_Pooling/config.json` | pooling, and whether vectors are brought to unit length |
| `sentence_bert_config.json`, `tokenizer_config.json` | how many tokens are read |
| `config_sentence_transformers.json` | what is put before questions and before passages |
| `onnx/model.onnx` or `model.onnx` | the network; other files by name |

What a folder does not say is asked for, never guessed: vectors of another pooling look like vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from whimbrel.domain import Space
from whimbrel.errors import ConfigError

Pooling = Literal["mean", "cls", "max", "lasttoken"]
POOLINGS: Sequence[Pooling] = ("mean", "cls", "max", "lasttoken")

NETWORKS = ("onnx/model.onnx", "model.onnx")
TOKENS_AT_MOST = 8192
"""Where a folder names no limit that a text could have, as `tokenizer_config.json` often does (10^30)."""

_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10


@dataclass(frozen=True, slots=True)
class Options:
    """What the user adds to a folder: empty for what it says."""

    file: str = ""
    """Of the network, relative to the folder."""
    pooling: str = ""
    query_prefix: str | None = None
    document_prefix: str | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    space: Space
    network: Path
    tokenizer: Path
    checksums: Mapping[str, str]
    """SHA-256 by file name, of what `model.json` says it of."""
    pooled: bool
    """The network pools by itself, and its first output is float32[batch, dimensions]."""


def read_layout(folder: Path, options: Options, name: str = "", revision: str = "") -> Layout:
    """`name`, `revision`: of a model from a hub. Raises `ConfigError` for a folder that is no encoder."""
    if (folder / "model.json").is_file() or not (folder / "config.json").is_file():
        return _own(folder)
    network = network_file(folder, options.file)
    tokenizer = there(folder, "tokenizer.json", "It must be of a fast tokenizer (`tokenizers`).")
    config = read_json(folder / "config.json")
    pooling, normalised = _modules(folder)
    pooling = options.pooling or pooling
    if pooling not in POOLINGS:
        raise ConfigError(
            f"{folder} does not say how the vectors of tokens become one, and those of a wrong pooling are wrong.",
            f"Look at the model's page and add it: `onnx:{folder}?pooling=mean` (or {', '.join(POOLINGS[1:])}).",
        )
    prompts = _prompts(folder)
    space = Space(
        model=name or str(config.get("_name_or_path") or folder.name),
        revision=revision or fingerprint([network, *network.parent.glob(f"{network.name}_data"), tokenizer]),
        dimensions=_dimensions(folder, config),
        pooling=pooling,
        normalised=normalised,
        query_prefix=prompts["query"] if options.query_prefix is None else options.query_prefix,
        document_prefix=prompts["document"] if options.document_prefix is None else options.document_prefix,
        numeric=_numeric(network),
        max_tokens=options.max_tokens or longest(folder, config),
    )
    return Layout(space, network, tokenizer, {}, pooled=False)


def fingerprint(files: Sequence[Path]) -> str:
    """16 hex characters: of names, sizes and 64 samples of each file, so that a network of gigabytes is told from
    another in milliseconds. Who changes a few bytes elsewhere by hand is not noticed."""
    found = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                found.update(file.read(_SAMPLE_BYTES))
                if size <= _SAMPLE_BYTES:
                    break
    return found.hexdigest()[:16]


def _own(folder: Path) -> Layout:
    path = folder / "model.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is not a model: it has no model.json, and no config.json.",
            hint="A model's folder is one as on the Hugging Face Hub, with an ONNX file; see docs/models.md.",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for name in ("model.onnx", "tokenizer.json"):
        there(folder, name, "Copy the model's folder again.")
    try:
        space = Space(**{field.name: about[field.name] for field in fields(Space) if field.name in about})
    except TypeError as error:
        raise ConfigError(f"{path} lacks a field: {error}") from error
    checksums = dict(about.get("sha256", {}))
    return Layout(space, folder / "model.onnx", folder / "tokenizer.json", checksums, pooled=True)


def network_file(folder: Path, chosen: str) -> Path:
    others = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.onnx"))
    if chosen:
        if chosen not in others:
            raise ConfigError(f"{folder} has no {chosen!r}.", f"Its networks: {', '.join(others) or 'none'}.")
        return folder / chosen
    for name in NETWORKS:
        if name in others:
            return folder / name
    if others:
        raise ConfigError(
            f"{folder} has no {NETWORKS[0]}, but {', '.join(others)}.", f"Name one: `onnx:{folder}?file={others[0]}`."
        )
    raise ConfigError(
        f"{folder} has no ONNX network.",
        "Export it: `optimum-cli export onnx --model MODEL FOLDER`, or take a repository that has a folder `onnx`.",
    )


def there(folder: Path, name: str, hint: str) -> Path:
    if not (folder / name).is_file():
        raise ConfigError(f"{folder} is not a model: it has no {name}.", hint)
    return folder / name


def read_json(path: Path) -> dict[str, Any]:
    """Empty where the file is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "Copy the model's folder again.") from error
    return found if isinstance(found, dict) else {}


def _modules(folder: Path) -> tuple[str, bool]:
    """(pooling, normalised); no pooling where none is said."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        types = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    except FileNotFoundError:
        return "", True
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / 'modules.json'} cannot be read: {error}", "Copy the folder again.") from error
    if unknown := set(types) - {"Transformer", "Pooling", "Normalize"}:
        raise ConfigError(
            f"The model in {folder} has a layer that is not in its ONNX file: {', '.join(sorted(unknown))}.",
            "Use it through `sentence-transformers:` or a TEI server.",
        )
    said = read_json(folder / types.get("Pooling", "") / "config.json") if "Pooling" in types else {}
    return _pooling(said), "Normalize" in types


def _pooling(said: Mapping[str, Any]) -> str:
    names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "lasttoken"}
    chosen = [pooling for key, pooling in names.items() if said.get(f"pooling_mode_{key}") is True]
    if isinstance(said.get("pooling_mode"), str):
        chosen = [said["pooling_mode"]]
    return chosen[0] if len(chosen) == 1 else ""


def _prompts(folder: Path) -> dict[str, str]:
    said = read_json(folder / "config_sentence_transformers.json")
    prompts = said.get("prompts") or {}
    always = prompts.get(said.get("default_prompt_name") or "", "")
    document = next((prompts[key] for key in ("document", "passage") if prompts.get(key)), always)
    return {"query": prompts.get("query") or always, "document": document}


def _dimensions(folder: Path, config: Mapping[str, Any]) -> int:
    found = config.get("hidden_size", config.get("dim", config.get("d_model")))
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"{folder / 'config.json'} does not say `hidden_size`.", "Is it an encoder of text?")
    return found


def longest(folder: Path, config: Mapping[str, Any]) -> int:
    positions = config.get("max_position_embeddings")
    limits = [
        read_json(folder / "sentence_bert_config.json").get("max_seq_length"),
        read_json(folder / "tokenizer_config.json").get("model_max_length"),
        # RoBERTa and its kin count positions from the one after the padding's.
        positions - 2 if isinstance(positions, int) and config.get("position_embedding_type") != "rotary" and
        config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") else positions,
    ]  # fmt: skip
    return min([int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0] + [TOKENS_AT_MOST])


def _numeric(network: Path) -> str:
    name = network.stem.lower()
    if "fp16" in name or "float16" in name:
        return "fp16"
    if any(part in name for part in ("quint8", "uint8", "qint8", "int8", "quantized")):
        return f"int8 ({network.stem})"
    return "fp32" if name in ("model", "model_o1", "model_o2", "model_o3") else network.stem
