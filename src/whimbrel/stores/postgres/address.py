"""The URI of a Postgres store: libpq's own, and one parameter of ours.

    postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require&schema=NAME

`schema` is where the tables are, `whimbrel` unless it is given. All else goes to libpq as it is: several hosts,
sockets, services, `sslmode`, `options`. What the URI leaves out libpq takes from the environment (`PGHOST`,
`PGPASSWORD`, ...) and from `~/.pgpass`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from whimbrel.errors import ConfigError

SCHEMA = "whimbrel"
_EXAMPLE = "For example: `postgresql://user@db.example.org/app`; the password may come from PGPASSWORD or ~/.pgpass."


@dataclass(frozen=True, slots=True)
class Address:
    conninfo: str = field(repr=False)
    """For libpq. May hold a password."""
    schema: str
    shown: str
    """Without user and password: for messages."""


def parse_address(uri: str) -> Address:
    """Raises `ConfigError` for what libpq cannot read."""
    conninfo, schema = _without_schema(re.sub(r"^postgres(ql)?(\+\w+)?:", "postgresql:", uri.strip()))
    try:
        parts = conninfo_to_dict(conninfo)
    except ProgrammingError as error:
        # libpq's message quotes the URI, which may hold a password.
        raise ConfigError("The URI of the Postgres store cannot be read.", _EXAMPLE) from error
    host = str(parts.get("host") or parts.get("hostaddr") or parts.get("service") or "its default host")
    port, database = parts.get("port"), parts.get("dbname")
    shown = f"Postgres at {host}" + (f":{port}" if port else "") + (f"/{database}" if database else "")
    return Address(conninfo, schema, shown)


def _without_schema(uri: str) -> tuple[str, str]:
    """The URI without our parameter, and its value. By hand: libpq's escapes are not those of forms."""
    head, _, query = uri.partition("?")
    parameters = [part for part in query.split("&") if part]
    ours = [part for part in parameters if part.startswith("schema=")]
    kept = [part for part in parameters if part not in ours]
    schema = unquote(ours[-1].removeprefix("schema=")) if ours else SCHEMA
    if not schema or schema.startswith("pg_") or re.search("[\0%]", schema) or len(schema.encode()) > 63:
        raise ConfigError(
            f"{schema!r} cannot be the schema of a Postgres store.",
            "1 to 63 bytes, without `%`.",
        )
    return head + ("?" + "&".join(kept) if kept else ""), schema
