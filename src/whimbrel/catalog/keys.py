"""Rows by many integer keys, which go to the database as one parameter, however many they are.

`IN (?, ?, ...)` with 5,000 keys costs more to write down than to answer: SQLAlchemy names each of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Dialect, Text, TypeDecorator, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class _Keys(TypeDecorator[Any]):
    """A list of integers: JSON on SQLite, `bigint[]` on Postgres."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(ARRAY(BigInteger()) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return list(value) if dialect.name == "postgresql" else json.dumps(list(value))


class _Rows(FunctionElement[int]):
    """The keys as rows."""

    inherit_cache = True
    name = "keys"


@compiles(_Rows, "sqlite")
def _on_sqlite(element: _Rows, compiler: Any, **options: Any) -> str:
    return f"(SELECT value FROM json_each({compiler.process(element.clauses, **options)}))"


@compiles(_Rows, "postgresql")
def _on_postgres(element: _Rows, compiler: Any, **options: Any) -> str:
    return f"(SELECT unnest({compiler.process(element.clauses, **options)}))"


def among(column: ColumnElement[int], keys: Collection[int] | str) -> ColumnElement[bool]:
    """Whether an integer column is one of `keys`; a string names the parameter that they will be given as."""
    given = bindparam(keys, type_=_Keys()) if isinstance(keys, str) else bindparam(None, keys, _Keys(), unique=True)
    found: ColumnElement[bool] = column.op("IN", is_comparison=True)(_Rows(given))
    return found
