"""Reading `whimbrel.yaml`: every value with its line, `${VAR}` filled in, unknown and repeated keys refused.

Scalars are taken as they are written, and the setting gives them their type: `level: off` is a wrong level, not a
boolean. Imported only when there is a file: the YAML parser takes 20 ms of the CLI's start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from whimbrel.config.values import Given, unknown_key
from whimbrel.errors import ConfigError

_STANDARD_TAG = "tag:yaml.org,2002:"

LISTS = frozenset({"model", "embedder_fallback"})
"""Settings that may be written as a list: its parts are joined by commas."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    path: Path
    settings: Mapping[str, Given]
    profiles: Mapping[str, Callable[[], dict[str, Given]]]
    """Own profiles, each filled in when called: a variable that only another profile needs may be unset."""


def read_config_file(path: Path, data: bytes, variables: Mapping[str, str], known: Collection[str]) -> ConfigFile:
    """The settings and profiles in the file; `known` are all keys. Raises ConfigError, which shows no value."""
    reader = _Reader(path, variables, known)
    settings: dict[str, Given] = {}
    profiles: dict[str, Callable[[], dict[str, Given]]] = {}
    for key, line, node in reader.entries(reader.root(data), ""):
        if key == "profiles":
            for name, at, profile in reader.entries(node, "", inside=key):
                reader.check_keys(profile, f"profiles.{name}", at)
                profiles[name] = partial(reader.profile, name, profile)
        else:
            settings |= reader.settings(key, line, node)
    return ConfigFile(path, settings, profiles)


class _Reader:
    def __init__(self, path: Path, variables: Mapping[str, str], known: Collection[str]) -> None:
        self._path = path
        self._label = str(path)
        self._variables = variables
        self._known = known
        self._sections = {key.rpartition(".")[0] for key in known} - {""}

    def root(self, data: bytes) -> yaml.Node | None:
        loader: yaml.SafeLoader | None = None
        try:
            loader = yaml.SafeLoader(data)
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            # Not the parser's own text: it quotes the line, which may hold a secret.
            place = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            problem = f"{self._label}{place} is not YAML: {error.problem or error.context}."
        except (yaml.YAMLError, UnicodeDecodeError):
            problem = f"{self._label} is not text in UTF-8."
        except RecursionError:
            problem = f"{self._label} is nested too deeply."
        else:
            return node
        finally:
            if loader is not None:
                loader.dispose()
        raise ConfigError(problem, "Put quotes around values that hold any of `: # { } [ ] , & * ! | > % @`.")

    def entries(self, node: yaml.Node | None, prefix: str, inside: str = "") -> Iterator[tuple[str, int, yaml.Node]]:
        """(key, line, value) of a mapping; nothing for one that is left empty. `inside` is what errors call it."""
        where = inside or prefix.rstrip(".")
        if node is None or _is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{f'`{where}`' if where else 'the file'} must be a mapping of keys to values")
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key must be a plain text")
            if key.value in seen:
                raise self._error(key, f"`{prefix}{key.value}` is given twice")
            if "." in key.value and f"{prefix}{key.value}" in self._known:
                section, _, name = key.value.rpartition(".")
                raise self._error(key, f"`{key.value}` must be written as `{name}` below `{section}`")
            seen.add(key.value)
            yield f"{prefix}{key.value}", key.start_mark.line + 1, value

    def settings(self, key: str, line: int, node: yaml.Node) -> dict[str, Given]:
        """What the file sets at `key` and below."""
        source = f"{self._label}:{line}"
        if key in self._sections:
            below: dict[str, Given] = {}
            for name, at, value in self.entries(node, f"{key}."):
                below |= self.settings(name, at, value)
            return below
        if key not in self._known:
            raise unknown_key(key, source, [*self._known, *self._sections, "profiles"])
        if key in LISTS and isinstance(node, yaml.SequenceNode):
            return {key: self._listed(key, source, node)}
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, f"`{key}` must be a single value")
        if not node.tag.startswith(_STANDARD_TAG):
            raise self._error(node, f"`{key}` has a tag that means nothing here")
        if _is_null(node):
            return {key: Given(None, source)}
        text = self._filled(node.value, key, source)
        filled = str(self._path.parent / Path(text).expanduser()) if key == "home" and text else text
        return {key: Given(filled, source, shown=text == node.value)}

    def _listed(self, key: str, source: str, node: yaml.SequenceNode) -> Given:
        if not node.value or not all(isinstance(one, yaml.ScalarNode) and not _is_null(one) for one in node.value):
            raise self._error(node, f"`{key}` must be a single value, or a list of such")
        texts = [self._filled(one.value, key, source) for one in node.value]
        shown = texts == [one.value for one in node.value]
        return Given(", ".join(texts), source, shown=shown)

    def profile(self, name: str, node: yaml.Node) -> dict[str, Given]:
        """What the profile sets."""
        found: dict[str, Given] = {}
        for key, line, value in self.entries(node, "", inside=f"profiles.{name}"):
            found |= self.settings(key, line, value)
        return {key: Given(one.value, f"profile {name} ({one.source})", one.shown) for key, one in found.items()}

    def check_keys(self, node: yaml.Node, where: str, line: int) -> None:
        """Refuse unknown keys also in profiles that are not in use: they would fail on the day that they are needed."""
        for key, at, value in self.entries(node, "", inside=where):
            names = [(key, at)]
            if key in self._sections:
                names = [(name, below) for name, below, _ in self.entries(value, f"{key}.")]
            for name, place in names:
                if name not in self._known or name == "profile":
                    raise unknown_key(name, f"`{where}` at {self._label}:{place}", set(self._known) - {"profile"})

    def _filled(self, text: str, key: str, source: str) -> str:
        def value_of(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            name, default = match["name"], match["default"]
            if name is None or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ConfigError(
                    f"`{key}` in {source} holds a `${{` that begins no variable.",
                    "Write ${NAME}, ${NAME:-default}, or $${ for the characters themselves.",
                )
            value = self._variables.get(name, "")
            if default is not None:
                return value or default
            if name not in self._variables:
                raise ConfigError(
                    f"`{key}` in {source} needs the environment variable {name}, which is not set.",
                    f"Set {name}, or give a default: ${{{name}:-default}}.",
                )
            return value

        return _VARIABLE.sub(value_of, text)

    def _error(self, node: yaml.Node, problem: str) -> ConfigError:
        return ConfigError(
            f"{self._label}:{node.start_mark.line + 1}: {problem}.", "docs/configuration.md has examples."
        )


_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[^}:]*)(?::-(?P<default>[^}]*))?\}|\$\{")


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and bool(node.tag == f"{_STANDARD_TAG}null")
