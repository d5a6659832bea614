"""Reading every source of settings, in order, and checking the result."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from whimbrel.config.settings import ENVIRONMENT, LEAVES, Settings, default_home
from whimbrel.config.show import expected, is_secret
from whimbrel.config.values import Given, absolute_path, nearest, unknown_key
from whimbrel.errors import ConfigError

if TYPE_CHECKING:
    from whimbrel.config.file import ConfigFile

PROFILES: Mapping[str, Mapping[str, str]] = {
    "local": {},
    "server": {"log.format": "json", "ingest.workers": "4", "search.timeout_s": "5"},
}
"""Built-in profiles: what each sets, by key. One more is one more entry."""

FOREIGN_VARIABLES: Mapping[str, str] = {
    "DATABASE_URL": "catalog",
    "CHROMADB_HOST": "store",
    "MILVUS_URI": "store",
    "MAX_CONCURRENT_EMBEDDINGS": "guards.max_concurrent_embeddings",
    "CHROMADB_CONNECTION_TIMEOUT": "stores.connect_timeout_s",
    "CHROMADB_MAX_CONNECTIONS": "stores.max_connections",
    "QDRANT_URL": "store",
    "QDRANT_HOST": "store",
    "MAX_CONCURRENT_QDRANT": "stores.max_connections",
}
"""Variables of other programs that are read too. Any setting of Whimbrel's own beats them.

`QDRANT_URL` goes before `QDRANT_HOST`, which makes a URI with `QDRANT_PORT` (6333), with TLS where there is a
`QDRANT_API_KEY`; `MAX_CONCURRENT_QDRANT` counts only beside one of them.
`CHROMADB_HOST` makes a URI with `CHROMADB_PORT` (8000, or 443 with TLS) and `CHROMADB_SSL`; the other two count only
beside it. `MILVUS_URI` is `http://HOST:PORT` or a file that ends in `.db`, as pymilvus takes it."""

RESERVED_VARIABLES = frozenset({"WHIMBREL_CONFIG"})
"""Read by the loader itself; no setting."""

FILE_NAME = "whimbrel.yaml"


def load_settings(
    *,
    home: Path | None = None,
    config_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read every source and check the result.

    `config_file` is read instead of the file that would be looked for; `env` stands in for the process's environment;
    `overrides` are flags by key (`{"server.port": 80}`, or nested), of which None means not given. Raises ConfigError.
    """
    variables = os.environ if env is None else env
    flags = _from_flags({"home": home, **(overrides or {})})
    environment = _from_environment(variables)
    file = _file(config_file, variables, flags.get("home") or environment.get("home"))
    in_file = file.settings if file else {}
    named = flags.get("profile") or environment.get("profile") or in_file.get("profile") or Given("local", "default")
    profile = _profile(named, file.profiles if file else {})

    named_ours = {**profile, **in_file, **environment, **flags}
    merged = {**_from_others(variables, named_ours.keys()), **named_ours}
    settings = _checked(merged)
    settings._sources.update({key: given.source for key, given in merged.items()})
    settings._file = file.path.absolute() if file else None
    return settings


def _file(explicit: Path | None, variables: Mapping[str, str], home: Given | None) -> ConfigFile | None:
    """The configuration file: the one that is named, else one here, else one in the home, else none."""
    named = explicit or variables.get("WHIMBREL_CONFIG", "").strip()
    if named:
        by = "--config" if explicit else "WHIMBREL_CONFIG"
        places = [_folder(Given(named, by), "the configuration file")]
    else:
        places = [Path(FILE_NAME), (_folder(home, "`home`") if home else default_home()) / FILE_NAME]
    for path in places:
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Correct its permissions.") from error
        from whimbrel.config.file import read_config_file

        return read_config_file(path, data, variables, LEAVES.keys())
    if named:
        raise ConfigError(f"The configuration file {places[0]}, named by {by}, does not exist.", "Correct the path.")
    return None


def _folder(given: Given, what: str) -> Path:
    try:
        return Path(str(absolute_path(given.value)))
    except ValueError as error:
        raise ConfigError(f"{what} from {given.source}: {error}.", "Give an absolute path.") from error


def _from_flags(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Given]:
    flags: dict[str, Given] = {}
    for name, value in overrides.items():
        key = prefix + name
        if isinstance(value, Mapping):
            flags |= _from_flags(value, f"{key}.")
        elif key not in LEAVES:
            raise unknown_key(key, "flags", LEAVES)
        elif value is not None:
            flags[key] = Given(value, f"--{key.rpartition('.')[2].replace('_', '-')}")
    return flags


def _from_environment(variables: Mapping[str, str]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for name, value in variables.items():
        if not name.startswith("WHIMBREL_") or name in RESERVED_VARIABLES or _is_of_others(name, value):
            continue
        if name not in ENVIRONMENT:
            key = name.removeprefix("WHIMBREL_").lower()
            near = nearest(key, {known.replace(".", "_"): known for known in LEAVES})
            guess = next((variable for variable, known in ENVIRONMENT.items() if known == near), "")
            raise ConfigError(
                f"The environment variable {name} is no setting of Whimbrel.",
                (f"Did you mean {guess}? " if guess else "") + "docs/configuration.md lists them all.",
            )
        # Compose files and CI pass variables that are set to nothing; they mean "not set".
        if value.strip():
            given[ENVIRONMENT[name]] = Given(value.strip(), name)
    return given


_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?$")


def _is_of_others(name: str, value: str) -> bool:
    """Kubernetes describes a service called `whimbrel` in variables that begin like ours; the tests have theirs."""
    link = _SERVICE_LINK.search(name) or (name.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", value))
    return bool(link) or name.startswith(("WHIMBREL_TEST_", "WHIMBREL_BENCH_"))


def _from_others(variables: Mapping[str, str], taken: Collection[str]) -> dict[str, Given]:
    """What variables of other programs say of settings that are not `taken`."""
    known = {name: variables.get(name, "").strip() for name in (*FOREIGN_VARIABLES, "CHROMADB_PORT", "CHROMADB_SSL")}
    if known["CHROMADB_HOST"] and "store" not in taken:
        known["CHROMADB_HOST"] = _chroma(known["CHROMADB_HOST"], known["CHROMADB_PORT"], known["CHROMADB_SSL"])
    elif not known["CHROMADB_HOST"]:
        known |= dict.fromkeys(("CHROMADB_CONNECTION_TIMEOUT", "CHROMADB_MAX_CONNECTIONS"), "")
    known |= _qdrant(variables, known, "store" not in taken)
    if known["MILVUS_URI"]:
        taken_by_others = known["CHROMADB_HOST"] or known["QDRANT_URL"] or known["QDRANT_HOST"]
        known["MILVUS_URI"] = "" if taken_by_others else _milvus(known["MILVUS_URI"])
    given = {key: Given(known[name], name, shown=False) for name, key in FOREIGN_VARIABLES.items() if known[name]}
    return {key: value for key, value in given.items() if key not in taken}


def _chroma(host: str, port: str, ssl: str) -> str:
    """The URI of the Chroma server that these variables name. Raises ConfigError."""
    if ssl.lower() not in ("", "0", "1", "false", "true", "no", "yes", "off", "on"):
        raise ConfigError(
            "CHROMADB_SSL is neither `true` nor `false`.", "If it is not meant for us: set WHIMBREL_STORE."
        )
    if port and not (port.isdecimal() and 0 < int(port) < 65_536):
        raise ConfigError("CHROMADB_PORT is no port.", "If it is not meant for us: set WHIMBREL_STORE.")
    tls = ssl.lower() in ("1", "true", "yes", "on")
    bare = f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host
    return f"chroma+{'https' if tls else 'http'}://{bare}:{port or (443 if tls else 8000)}"


def _qdrant(variables: Mapping[str, str], known: Mapping[str, str], wanted: bool) -> dict[str, str]:
    """What the variables of a Qdrant server say, of which the URL goes before the host. Raises ConfigError."""
    url, host = known["QDRANT_URL"], known["QDRANT_HOST"]
    if not url and not host:
        return {"MAX_CONCURRENT_QDRANT": ""}
    if not wanted:
        return {}
    name = "QDRANT_URL" if url else "QDRANT_HOST"
    if known["CHROMADB_HOST"]:
        raise ConfigError(f"CHROMADB_HOST and {name} each name a store.", "Say which one it is: set WHIMBREL_STORE.")
    if "://" in (url or host):
        return {"QDRANT_URL": _qdrant_url(url or host, name), "QDRANT_HOST": ""}
    port = variables.get("QDRANT_PORT", "").strip() or "6333"
    if not (port.isdecimal() and 0 < int(port) < 65_536):
        raise ConfigError("QDRANT_PORT is no port.", "If it is not meant for us: set WHIMBREL_STORE.")
    tls = bool(variables.get("QDRANT_API_KEY", "").strip())  # as Qdrant's own client does it
    bare = url or host
    bare = f"[{bare}]" if bare.count(":") > 1 and not bare.startswith("[") else bare
    port = "" if re.search(r":\d+$", bare) and not bare.endswith("]") else f":{port}"
    return {"QDRANT_URL": f"qdrant+{'https' if tls else 'http'}://{bare}{port}", "QDRANT_HOST": ""}


def _qdrant_url(url: str, name: str) -> str:
    if not re.match(r"https?://[^/]", url, re.IGNORECASE):
        raise ConfigError(
            f"{name} is no URL of a Qdrant server.",
            "For example `https://host:6333`. If it is not meant for us: set WHIMBREL_STORE.",
        )
    return f"qdrant+{url}"


def _milvus(uri: str) -> str:
    """The store that `MILVUS_URI` names; empty where it names none."""
    if re.match(r"https?://", uri, re.IGNORECASE):
        return f"milvus+{uri}"
    return f"milvus:{uri}" if uri.endswith(".db") else ""


def _profile(named: Given, own: Mapping[str, Callable[[], dict[str, Given]]]) -> dict[str, Given]:
    name = str(named.value or "")
    if both := sorted(PROFILES.keys() & own.keys()):
        raise ConfigError(f"`profiles.{both[0]}`: there is a built-in profile of that name.", "Choose another name.")
    if name in own:
        return own[name]()
    if name in PROFILES:
        return {key: Given(value, f"profile {name}") for key, value in PROFILES[name].items()}
    known = [*PROFILES, *own]
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        f"`profile` from {named.source}: there is no profile{f' {name!r}' if named.shown else ' of that name'}.",
        (f"Did you mean {near[0]!r}? " if near else "") + f"There are: {', '.join(known)}.",
    )


def _checked(merged: Mapping[str, Given]) -> Settings:
    nested: dict[str, Any] = {}
    for key, given in merged.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = given.value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        # A default that hangs on another value is reported beside that value's own error, which is the one to show.
        details = [one for one in error.errors(include_input=False) if one["type"] != "default_factory_not_called"]
        problems = [_problem(".".join(map(str, one["loc"])), one["msg"], one["type"], merged) for one in details]
        blamed = {merged[key].source for key in (".".join(map(str, one["loc"])) for one in details) if key in merged}
    foreign = sorted(blamed & FOREIGN_VARIABLES.keys())
    ours = f"WHIMBREL_{FOREIGN_VARIABLES[foreign[0]].upper().replace('.', '_')}" if foreign else ""
    # Outside the handler: pydantic's error holds the input, and would be printed as this one's context.
    raise ConfigError(
        " ".join(problems),
        f"If {foreign[0]} is meant for another program, set {ours}."
        if foreign
        else "docs/configuration.md lists every setting.",
    )


def _problem(key: str, reason: str, kind: str, merged: Mapping[str, Given]) -> str:
    reason = reason.removeprefix("Value error, ")
    given = merged.get(key)
    if given is None:  # a rule between the settings of one section
        blamed = sorted(f"`{one}` from {merged[one].source}" for one in merged if one.startswith(f"{key}."))
        return f"{reason} ({', '.join(blamed)})."
    text = f" is {str(given.value)!r:.80}" if given.shown and not is_secret(key) else ""
    text = " is empty" if given.value is None or str(given.value) == "" else text
    detail = f" ({reason})" if kind == "value_error" else ""
    return f"`{key}` from {given.source}{text}: expected {expected(LEAVES[key])}{detail}."
