"""What Postgres and libpq say, as our errors. Sorted by SQLSTATE, which no language setting of the server changes.

Only a failed connection has none: libpq keeps it to itself, so there the words decide, and what they do not tell is
taken for something that may pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from whimbrel.errors import (
    BadInput,
    DiskFull,
    SpaceMismatch,
    StoreRefused,
    StoreUnavailable,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.stores.base import REBUILD

_AGAIN = "Nothing was lost: what was committed is safe, and the view catches up when the database is back."


@contextmanager
def postgres_errors(what: str) -> Iterator[None]:
    """Raises what psycopg raises inside as one of our errors, whose message begins with `what`."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(what, error) from error


def translate(what: str, error: psycopg.Error) -> WhimbrelError:
    """Never carries DETAIL, CONTEXT or parameters, which may quote a document."""
    state = error.sqlstate or ""
    for prefix, kind, said, hint in _BY_STATE:
        if state.startswith(prefix):
            return kind(f"{what}: {said}", hint)
    if not state:
        return _connection_error(what, error)
    return ViewError(
        f"{what}: Postgres refused ({type(error).__name__}, {state}).",
        "The server's log has its words; please report it.",
    )


_BY_STATE: tuple[tuple[str, type[WhimbrelError], str, str], ...] = (
    ("53100", DiskFull, "no space left on the database's disk. What was committed before is safe.", "Free some space."),
    (
        "53300",
        StoreUnavailable,
        "the server has no connection left.",
        "Raise its max_connections, or run fewer workers.",
    ),
    ("53", StoreUnavailable, "the server is out of memory or another resource.", _AGAIN),
    ("57014", StoreUnavailable, "it took longer than it may, and was cancelled.", "Try again; see the server's load."),
    ("57", StoreUnavailable, "the server is shutting down or starting.", _AGAIN),
    ("08", StoreUnavailable, "the connection broke.", _AGAIN),
    ("40", StoreUnavailable, "it collided with another transaction. Nothing was written.", "Try again."),
    ("55P03", StoreUnavailable, "others held the table too long.", "Try again; look for long transactions."),
    ("55006", StoreUnavailable, "others hold the table.", "Try again; look for long transactions."),
    ("25006", StoreRefused, "the server takes no writes (a standby, or set to read only).", "Name the primary server."),
    ("28", StoreRefused, "the server does not accept this user or password.", "Check both, and pg_hba.conf."),
    (
        "42501",
        StoreRefused,
        "this database user lacks a right.",
        "See docs/stores/postgres.md for the rights it needs.",
    ),
    ("42P01", ViewDamaged, "the table is gone.", REBUILD),
    ("3F000", ViewDamaged, "the schema is gone.", REBUILD),
    ("3D000", StoreRefused, "the server has no such database.", "Make it, or correct the URI."),
    ("42703", ViewDamaged, "the table lacks a column.", REBUILD),
    ("42704", StoreRefused, "the extension `vector` is gone.", "Run `CREATE EXTENSION vector` in the database."),
    ("42883", StoreRefused, "the extension `vector` is gone, or too old.", "Run `ALTER EXTENSION vector UPDATE`."),
    ("XX001", ViewDamaged, "a page of the table is damaged.", REBUILD),
    ("XX002", ViewDamaged, "an index of the table is damaged.", REBUILD),
    ("58P01", ViewDamaged, "a file of the table is missing.", REBUILD),
    ("58030", StoreUnavailable, "the server's disk gave an error.", "See the server's log and its disk."),
    ("22021", BadInput, "a text has a NUL character, which Postgres cannot hold. Nothing was written.", "Take it out."),
    ("22P05", BadInput, "a text has a NUL character, which Postgres cannot hold. Nothing was written.", "Take it out."),
    ("22000", SpaceMismatch, "vectors of other dimensions.", "A view holds vectors of one space only."),
    ("54000", BadInput, "a row is larger than Postgres can hold. Nothing was written.", "Give it a shorter id."),
)


def _connection_error(what: str, error: psycopg.Error) -> WhimbrelError:
    said = _first_line(error)
    for words, reason, hint in _REFUSALS:
        if re.search(words, said):
            return StoreRefused(f"{what}: {reason}", hint)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return StoreUnavailable(f"{what}: no answer: {said}", _AGAIN)
    return ViewError(f"{what}: {type(error).__name__} in the driver.", "This is a fault in Whimbrel; please report it.")


_REFUSALS = (
    (
        r"password authentication failed|no password supplied|authentication failed|role \".*\" does not exist",
        "the server does not accept this user or password.",
        "Check both in the URI, in PGPASSWORD or in ~/.pgpass.",
    ),
    (r"database \".*\" does not exist", "the server has no such database.", "Make it, or correct the URI."),
    (
        r"no encryption|SSL off|pg_hba\.conf rejects connection.*no encryption",
        "the server does not let this user connect from here without TLS.",
        "Add `?sslmode=require` to the URI, or a line to the server's pg_hba.conf.",
    ),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", "the server does not let this user connect from here.",
     "Add a line to the server's pg_hba.conf."),
    (
        r"server does not support SSL",
        "the server speaks no TLS, and the URI asks for it.",
        "Switch TLS on in the server, or take `sslmode` out of the URI where the network is safe.",
    ),
    (
        r"certificate|SSL error",
        "the server's TLS certificate was not accepted.",
        "Name the authority that signed it: `sslrootcert=FILE` in the URI.",
    ),
    (
        r"invalid response to SSL negotiation|expected authentication request|unsupported frontend protocol",
        "what answers there is not Postgres.",
        "Check host and port in the URI.",
    ),
    (r"permission denied for database|User does not have CONNECT", "this user may not connect to the database.",
     "Grant it CONNECT."),
)  # fmt: skip


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
