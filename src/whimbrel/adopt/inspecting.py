"""What is in a database that any program filled. Nothing is written to it."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from whimbrel.adopt.fields import unfolded
from whimbrel.adopt.opening import REACH
from whimbrel.config import mask_url
from whimbrel.domain import hash_id
from whimbrel.errors import BadInput, ConfigError, NotFound, ViewDamaged
from whimbrel.home import Home
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign import resolve
from whimbrel.stores.foreign.base import Chosen, Database, Source, Table, VectorKind
from whimbrel.stores.foreign.resolve import Address, open_database
from whimbrel.stores.resolve import parse_uri

SAMPLED = 200
"""Rows whose metadata tells the fields, where the database declares none."""


def look_into(uri: str, home: Home, base: Path) -> dict[str, Any]:
    """As `inspect`. The home is not made; where there is one, a copy of files lies there meanwhile."""
    there = home.path.is_dir()
    scratch = home.adopted / f"inspect-{hash_id(uri)[:16]}" if there else Path(mkdtemp(prefix="whimbrel-inspect-"))
    try:
        return asyncio.run(inspect(uri, base=base, scratch=scratch, reach=REACH))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def parse(uri: str) -> Address:
    """Of a database, or of one collection of it: `resolve.ALL` where none is named, or all. Raises `ConfigError`."""
    parse_uri(uri, also=resolve.NO_STORES)  # an error is of what was typed
    with suppress(ConfigError):
        if (named := resolve.parse(uri)).collection == resolve.ALL:
            return named
    bare, mark, query = uri.partition("?")
    return resolve.parse(f"{bare.rstrip('/')}/{resolve.ALL}{mark}{query}")


async def inspect(uri: str, *, base: Path, scratch: Path, reach: Reach) -> dict[str, Any]:
    """`{"store", "collections": [{"name", "count", "dimensions", "metric", "vectors", "fields", ...}]}`.

    A collection that cannot be described has its `error` in place of the rest. Raises what the database raises.
    """
    whole = parse(uri)
    if not whole.is_folder and _names_one(uri):
        whole = resolve.parse(uri)  # to some servers, the collection would be a path that they do not have
    database = open_database(whole, base=base, scratch=scratch, reach=reach)
    try:
        names, shown = await _names(database, whole, uri, base)
        if names is None:  # a collection of the database above
            await database.close()
            one = resolve.parse(uri)
            database = open_database(one, base=base, scratch=scratch, reach=reach)
            names, shown = [one.collection], mask_url(one.place)
        found = [await _collection(database, name) for name in names]
        if len(found) == 1 and "raised" in found[0]:
            raise found[0]["raised"]
        return {
            "store": shown,
            "collections": [{key: one for key, one in each.items() if key != "raised"} for each in found],
        }
    finally:
        await database.close()


async def _names(database: Database, whole: Address, uri: str, base: Path) -> tuple[list[str] | None, str]:
    """The collections; None where the URI seems to name one itself. Raises what the database raises else."""
    if whole.collection != resolve.ALL:
        return [whole.collection], mask_url(whole.place)
    try:
        folder = whole.folder(base) if whole.is_folder else None
        names = list(await database.collections()) if folder is None or folder.exists() else []
    except NotFound:
        names = []
    except BadInput:
        if not _names_one(uri):
            raise
        names = []
    if names:
        return names, mask_url(whole.place)
    if not _names_one(uri):
        if folder is not None and not folder.exists():
            raise _nothing_at(whole)
        return [], mask_url(whole.place)
    one = resolve.parse(uri)
    above = one.folder(base) if one.is_folder else None
    is_milvus = whole.scheme == "milvus" and above is not None and above.suffix != ".db"
    if above is not None and (is_milvus or not above.exists()):
        raise _nothing_at(whole)
    if folder is not None and folder.is_dir() and not any(folder.iterdir()):
        return [], mask_url(whole.place)
    return None, ""


def _nothing_at(whole: Address) -> NotFound:
    return NotFound(f"There is nothing at {mask_url(whole.place)!r}.", "Check the path.")


def _names_one(uri: str) -> bool:
    try:
        return resolve.parse(uri).collection != resolve.ALL
    except ConfigError:
        return False


async def _collection(database: Database, name: str) -> dict[str, Any]:
    source = database.source(name, Chosen())
    try:
        return await _described(name, source)
    except (BadInput, NotFound, ViewDamaged) as error:
        error.message = error.message.replace(" Nothing was copied.", "")  # nothing was to be
        return {"name": name, "error": error.message, "hint": error.hint, "raised": error}
    finally:
        await source.close()


async def _described(name: str, source: Source) -> dict[str, Any]:
    table = await source.describe()
    count = 0
    first: list[Any] = []
    async for some in source.ids():
        count += len(some)
        first += list(some[: SAMPLED - len(first)])
    fields = {key: str(one.type) if not one.json else "json" for key, one in table.fields.items()}
    if not table.declared and first:
        fields = await _sampled(source, first)
    metric = table.metric.value if table.metric else None
    return {
        "name": name,
        "count": count,
        "dimensions": table.dimensions,
        "metric": metric,
        "vectors": _vectors(table, metric),
        "fields": fields,
        "ids": table.ids.value,
        "text": table.names.text if table.has_text else None,
        "notes": list(table.notes),
    }


def _vectors(table: Table, metric: str | None) -> list[dict[str, Any]]:
    """By the names that `--vector-field` takes, the one that is searched unless another is named first."""
    found: list[dict[str, Any]] = []
    if table.dimensions or not table.vectors:
        name = table.main or table.names.vector
        found.append({"name": name, "kind": VectorKind.DENSE.value, "dimensions": table.dimensions, "metric": metric})
    for name, one in table.vectors.items():
        found.append({"name": name, "kind": one.kind.value, "dimensions": one.dimensions, "metric": one.metric or None})
    return found


async def _sampled(source: Source, ids: list[Any]) -> dict[str, str]:
    rows = (await source.fetch(ids, range(len(ids)))).rows
    kinds: dict[str, Counter[str]] = {}
    for one in rows.metadata:
        for key, value in unfolded(one).items():
            if value is not None:
                kinds.setdefault(key, Counter())[_type(value)] += 1
    return {key: " | ".join(sorted(found)) for key, found in sorted(kinds.items())}


def _type(value: Any) -> str:
    names = {bool: "bool", int: "int", float: "float", str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)
