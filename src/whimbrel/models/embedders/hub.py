"""Where a model is that is named by a path or by its id on the Hugging Face Hub, and what is said with it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from whimbrel.errors import ConfigError, ModelDown, ModelKeyRefused
from whimbrel.models.embedders.layout import POOLINGS, Options

REPOSITORY = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_TEXTS = ("*.json", "1_Pooling/config.json", "vocab.txt", "*.model")


def locate(named: str) -> tuple[Path, Options, str, str]:
    """(folder, options, model, revision) of `PATH_OR_HUB_ID[?pooling=...&file=...]`; model and revision are empty for a
    folder. Downloads what is not in the Hub's cache yet. Raises `ConfigError`, `ModelDown`, `ModelKeyRefused`."""
    place, _, query = named.partition("?")
    options = _options(query)
    folder = Path(place).expanduser()
    repository = REPOSITORY.fullmatch(place)
    if folder.is_dir() or repository is None or place.startswith((".", "~", "/")):
        return folder, options, "", ""
    folder = _download(repository["id"], repository["revision"], options.file)
    return folder, options, repository["id"], f"{folder.name}{' ' + options.file if options.file else ''}"


def _options(query: str) -> Options:
    said = dict(parse_qsl(query, keep_blank_values=True))
    known = {"file", "pooling", "query_prefix", "document_prefix", "max_tokens"}
    if unknown := sorted(set(said) - known):
        raise ConfigError(f"'onnx' takes no option {unknown[0]!r}.", f"Options: {', '.join(sorted(known))}.")
    if said.get("pooling", "mean") not in POOLINGS:
        raise ConfigError(f"There is no pooling {said['pooling']!r}.", f"Poolings: {', '.join(POOLINGS)}.")
    most = said.get("max_tokens", "")
    if most and not (most.isdecimal() and int(most) >= 8):
        raise ConfigError(f"max_tokens is no number of tokens: {most!r}.", "Give 8 or more.")
    return Options(
        file=said.get("file", ""),
        pooling=said.get("pooling", ""),
        query_prefix=said.get("query_prefix"),
        document_prefix=said.get("document_prefix"),
        max_tokens=int(most) if most else None,
    )


def _download(repository: str, revision: str | None, file: str) -> Path:
    def wanted(found: Sequence[str]) -> list[str]:
        networks = [file] if file else [name for name in ("onnx/model.onnx", "model.onnx") if name in found][:1]
        return [*_TEXTS, *(name for network in networks for name in (network, f"{network}_data"))]

    return download(repository, revision, wanted)


def download(repository: str, revision: str | None, wanted: Callable[[Sequence[str]], Sequence[str]]) -> Path:
    """The folder of a snapshot; `wanted` chooses among the names of its files, by patterns. Raises as `locate`."""
    from httpx import HTTPError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as raised

    endpoint = os.environ.get("HF_ENDPOINT") or None
    token = os.environ.get("HF_TOKEN") or None
    try:
        found = HfApi(endpoint=endpoint, token=token).list_repo_files(repository, revision=revision)
        patterns = list(wanted(found))
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=patterns, endpoint=endpoint, token=token)
        )
    except (raised.GatedRepoError, raised.RepositoryNotFoundError, raised.RevisionNotFoundError) as error:
        if isinstance(error, raised.GatedRepoError):
            raise ModelKeyRefused(
                f"The Hub gives {repository} only to accounts that have accepted its terms.",
                "Accept them on the model's page, and set HF_TOKEN.",
            ) from error
        raise ConfigError(
            f"The Hub knows no model {repository}{'@' + revision if revision else ''}, or HF_TOKEN may not read it.",
            "Check its name, or give the path of a folder (`onnx:./PATH`).",
        ) from error
    except (
        raised.HfHubHTTPError,
        raised.OfflineModeIsEnabled,
        raised.LocalEntryNotFoundError,
        HTTPError,
        OSError,
    ) as error:
        return _cached(repository, revision, error)


def _cached(repository: str, revision: str | None, error: Exception) -> Path:
    """What an earlier download has left: a model that is here needs no Hub."""
    from huggingface_hub import errors as raised
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except raised.LocalEntryNotFoundError:
        raise ModelDown(
            f"{repository} is not on this machine, and the Hub does not answer ({type(error).__name__}).",
            "Check the network, or copy the model's folder here and name it: `onnx:./PATH`.",
        ) from error
