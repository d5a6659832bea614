"""Single values of the configuration: where they came from, their forms, their nearest names, their masking."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whimbrel.errors import ConfigError

SIZE_FORM = "a size in bytes, such as `256MB` or `256MiB`"
CATALOG_FORMS = "`sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as some source gives it, before it is checked."""

    value: Any
    source: str
    shown: bool = True
    """May an error repeat the value? Not if it came out of a variable that is not ours: that may be a secret."""


_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)}

_SQLITE = ("sqlite", "sqlite+pysqlite")
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")


def parse_size(value: object) -> object:
    """Bytes from `256MB` (powers of 1000), `256 MiB` (powers of 1024) or a plain number; anything but a text unchanged.

    Raises ValueError for another unit.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("the units are B, kB, MB, GB, TB and KiB, MiB, GiB, TiB")
    whole, _, fraction = match[1].partition(".")
    # Whole numbers are multiplied as such: a float would round sizes beyond 2^53.
    return int(whole) * unit + (int(float(f"0.{fraction}") * unit) if fraction else 0)


def format_size(size: int) -> str:
    """The shortest exact form that `parse_size` reads back."""
    for prefix, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << power) == 0:
            return f"{size >> power}{prefix}"
    for prefix, zeros in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if size and size % 10**zeros == 0:
            return f"{size // 10**zeros}{prefix}"
    return f"{size}B"


def listed(value: str | None) -> list[str]:
    """The parts of a text that are joined by commas, without blanks; empty parts are left out."""
    return [part for part in (piece.strip() for piece in (value or "").split(",")) if part]


def absolute_path(value: object) -> object:
    """A folder, with `~` expanded, made absolute from the working directory. Raises ValueError for an empty text."""
    if not isinstance(value, str | Path):
        return value
    if not str(value).strip() or "\0" in str(value):
        raise ValueError("the path is empty or holds a zero byte")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError:
        raise ValueError("there is no such user, or no home folder to put for `~`") from None


def normalise_catalog(url: str, home: Path) -> str:
    """`sqlite:///ABSOLUTE_PATH` or `postgresql+psycopg://…`. Raises ValueError, which does not repeat the URL."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise ValueError("this is no URL")
    if scheme in _SQLITE:
        return f"sqlite:///{_sqlite_path(rest, home).as_posix()}"
    if scheme in _POSTGRES:
        if not rest:
            raise ValueError("the URL names no server")
        server = re.split("[/?]", rest.rpartition("@")[2], maxsplit=1)[0]
        if (port := re.search(r":([^:\]]*)$", server)) and not port[1].isdecimal():
            raise ValueError("the server's port is no number")
        return f"postgresql+psycopg://{rest}"
    near = difflib.get_close_matches(scheme, [*_POSTGRES, *_SQLITE], n=1, cutoff=0.7)
    nearest = f"; did you mean {near[0]!r}?" if near else "; there are SQLite and Postgres"
    raise ValueError(f"there is no catalog on {scheme!r}{nearest}")


def _sqlite_path(rest: str, home: Path) -> Path:
    # Three slashes and a path, as SQLAlchemy writes it; two would make the first folder a host.
    path = rest.removeprefix("/")
    if path == rest or path in ("", ":memory:"):
        raise ValueError("an SQLite catalog is a file: three slashes, then its path")
    if "?" in path and not path.startswith(home.as_posix()):
        raise ValueError("an SQLite catalog takes no options")
    return home / Path(str(absolute_path(path))) if path.startswith("~") else home / path


SECRET_NAME = "pass|secret|token|key|credential|auth|sig"
"""In the name of a parameter whose value is a secret."""

ADOPTED = "adopted:"
"""Before the URI of a database that another program made, where a view serves from it: it is never written to."""

_TOKEN = re.compile(r"(?P<scheme>(?:chroma|qdrant|milvus)\+https?://)[^/?]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"(?P<user>[a-z][a-z0-9+.-]*:/*[^:/@\s]*:).*@", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r"(?P<name>[?&;][^=&;\s]*(?:" + SECRET_NAME + r")[^=&;\s]*=)[^&;\s]*", re.IGNORECASE)


def mask_url(url: str) -> str:
    """`url` with its password, and query parameters that are named like secrets, replaced by `***`.

    Greedy to the last `@`, because passwords with an unescaped `@` or `/` are common: rather too much than too little.
    The user alone of a Chroma, Milvus or Qdrant server is a token.
    """
    if url.startswith(ADOPTED):
        return f"{ADOPTED}{mask_url(url.removeprefix(ADOPTED))}"
    masked = _PASSWORD.sub(r"\g<user>***@", _TOKEN.sub(r"\g<scheme>***@", url))
    return _PARAMETER.sub(r"\g<name>***", masked)


_SYNONYMS = {"postgres": "postgresql", "postgresql+psycopg": "postgresql"}


def canonical_store(uri: str) -> str:
    """A store's URI with its scheme in the one form."""
    scheme, colon, rest = uri.strip().partition(":")
    scheme = scheme.lower()
    return f"{_SYNONYMS.get(scheme, scheme)}{colon}{rest}"


def without_credentials(uri: str) -> str:
    """A store's URI as the catalog keeps it: no password, no token, no parameter named like a secret.

    The user of a Postgres stays: it is part of where; that of a Chroma, Milvus or Qdrant server is a token.
    """
    scheme, colon, rest = canonical_store(uri).partition(":")
    if rest.startswith("//"):
        authority = re.split(r"[/?]", rest[2:], maxsplit=1)[0]
        user, at, host = authority.rpartition("@")
        if at:
            kept = "" if scheme.startswith(("chroma+", "milvus+", "qdrant+")) else user.partition(":")[0]
            rest = f"//{kept}@{host}{rest[2 + len(authority) :]}" if kept else f"//{host}{rest[2 + len(authority) :]}"
        path, mark, query = rest.partition("?")
        parameters = [one for one in query.split("&") if not re.search(SECRET_NAME, one.partition("=")[0], re.I)]
        rest = path + (mark + "&".join(parameters) if any(parameters) else "")
    return f"{scheme}{colon}{rest}"


def unknown_key(key: str, source: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that is not in `known`."""
    near = nearest(key, {one: one for one in known})
    return ConfigError(
        f"`{key}` in {source} is no setting of Whimbrel.",
        (f"Did you mean `{near}`? " if near else "") + "docs/configuration.md lists them all.",
    )


def nearest(key: str, known: Mapping[str, str]) -> str:
    """The value in `known`, a dotted key, whose name is nearest to `key`; empty if none is near.

    `port` is near `server.port` although their spelling is not: a wrong section, or none, is the commonest slip.
    """
    tail = key.rpartition(".")[2]
    same_tail = [value for value in known.values() if value.rpartition(".")[2] == tail]
    if same_tail:
        return difflib.get_close_matches(key, same_tail, n=1, cutoff=0.0)[0]
    tails = {value.rpartition(".")[2]: value for value in known.values()}
    by_name = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    by_tail = difflib.get_close_matches(tail, tails, n=1, cutoff=0.7)
    return known[by_name[0]] if by_name else tails[by_tail[0]] if by_tail else ""
