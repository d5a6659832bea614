"""Another program's YAML as a list of values, each with its path and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from whimbrel.errors import ConfigError, TooLarge

MOST_BYTES = 1 << 20
MOST_VALUES = 10_000
"""Anchors let a small file name a huge tree."""
MOST_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Leaf:
    path: str
    """Keys joined by dots; the entries of a list share one, which ends in `[]`."""
    value: str
    line: int


def read_leaves(path: Path) -> list[Leaf]:
    """Raises `ConfigError` and `TooLarge`, which show no value."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Correct the path.") from error
    if len(data) > MOST_BYTES:
        raise TooLarge(f"{path} is larger than 1 MiB: it is no configuration. Nothing was written.")
    root = _root(path, data)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} is not a mapping of keys to values.", "Is it the right file?")
    leaves: list[Leaf] = []
    for leaf in _leaves(root, "", 0):
        leaves.append(leaf)
        if len(leaves) > MOST_VALUES:
            raise TooLarge(f"{path} holds more than {MOST_VALUES:,} values. Nothing was written.")
    return leaves


def _root(path: Path, data: bytes) -> yaml.Node | None:
    problem = ""
    try:
        root: yaml.Node | None = yaml.compose(data, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:  # not its own text: it quotes the line, which may hold a secret
        place = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = f"{path}{place} is not YAML: {error.problem or error.context}."
    except (yaml.YAMLError, UnicodeDecodeError):
        problem = f"{path} is not text in UTF-8."
    except RecursionError:
        problem = f"{path} is nested too deeply."
    else:
        return root
    raise ConfigError(problem, "Nothing was written.")


def _leaves(node: yaml.Node, path: str, depth: int) -> Iterator[Leaf]:
    if depth > MOST_DEPTH:
        raise ConfigError(f"Line {node.start_mark.line + 1} is nested too deeply.", "Nothing was written.")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = re.sub(r"[^\w-]", "?", str(key.value)[:60]) if isinstance(key, yaml.ScalarNode) else "?"
            yield from _leaves(value, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _leaves(value, f"{path}[]", depth + 1)
    else:
        text = "" if node.tag == "tag:yaml.org,2002:null" else str(node.value)
        yield Leaf(path, text, node.start_mark.line + 1)
