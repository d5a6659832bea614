"""Opening a database of another program to look at it, or to adopt it, in words that fit both."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from whimbrel.config import mask_url
from whimbrel.config.values import canonical_store, without_credentials
from whimbrel.errors import ConfigError, WhimbrelError
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign import chroma_files, resolve
from whimbrel.stores.foreign.base import Chosen, Database, Source
from whimbrel.stores.foreign.resolve import Address, open_database
from whimbrel.stores.resolve import same_place

_OPTIONS = {"--id": "--id-field", "--text": "--text-field", "--vector": "--vector-field"}
_BOTH = re.compile(r"`--\w+` or (`--\w+-field`)")
"""An option of a copy, and that of adopting."""
REACH = Reach(timeout_s=120.0)
COPIES = "files-"
"""Begins the names of folders with copies of files."""
_FOLDERS = ("chroma", "qdrant", "milvus")
"""Schemes whose folders one process may open."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a collection to be adopted is."""

    address: Address
    """May hold credentials."""
    bare: str
    """The database's URI without them: the same for the same place."""

    @property
    def uri(self) -> str:
        """Of the collection, without credentials."""
        head, mark, query = self.bare.partition("?")
        return f"{head.rstrip('/')}/{self.address.collection}{mark}{query}"

    @property
    def single_process(self) -> bool:
        return self.address.is_folder and self.address.scheme in _FOLDERS


def scratch_of(address: Address, bare: str, base: Path, adopted: Path) -> Path:
    """Where a copy of the files of a place may lie: one for all its collections, another after the files have changed,
    since the copy before may be searched just now."""
    name = f"{COPIES}{blake2b(bare.encode(), digest_size=8).hexdigest()}"
    folder = files_of(address, base)
    return adopted / (f"{name}-{chroma_files.version(folder)[:12]}" if folder is not None else name)


def files_of(address: Address, base: Path) -> Path | None:
    """The folder of a Chroma: what is read of it is a copy, and what changes is the folder."""
    folder = address.folder(base) if address.scheme == "chroma" and address.is_folder else None
    return folder if folder is not None and folder.is_dir() else None


def place_of(uri: str, base: Path, configured: Iterable[str]) -> Place:
    """Raises `ConfigError` where the URI names no collection, or holds a credential that the configuration has not: the
    catalog keeps none."""
    from whimbrel.adopt.unnamed import parse

    address = parse(uri, base)
    if address.collection == resolve.ALL:
        raise ConfigError(
            "One collection is adopted at a time; `*` is all.", "`whimbrel inspect URI` names those that there are."
        )
    if address.is_folder:
        folder = address.folder(base).resolve()
        address = replace(address, place=f"{address.scheme}:{folder}")
        return Place(address, address.place)
    bare = without_credentials(address.place)
    known = any(same_place(one, address.place) for one in configured)
    if bare != canonical_store(address.place).replace(":@", "@", 1) and not known:
        raise ConfigError(
            f"The URI holds a credential, which the catalog does not keep: {mask_url(uri)!r}. Nothing was adopted.",
            "Put the whole URI of the database into `stores.others` (WHIMBREL_STORES_OTHERS) of every process, then "
            "name it here without the credential.",
        )
    if bare == canonical_store(address.place):
        whole = next((one for one in configured if same_place(one, bare)), address.place)
        address = replace(address, place=canonical_store(whole))
    return Place(address, bare)


@asynccontextmanager
async def opened(
    address: Address, chosen: Chosen, *, base: Path, scratch: Path, reach: Reach
) -> AsyncIterator[tuple[Database, Source]]:
    """The database and the collection, to be read. Errors speak of adopting."""
    from whimbrel.adopt.unnamed import noticed

    with adopting():
        database = open_database(address, base=base, scratch=scratch, reach=reach)
        source = database.source(address.collection, chosen)
        try:
            async with noticed(address, base):
                yield database, source
        finally:
            await source.close()
            await database.close()


@contextmanager
def adopting() -> Iterator[None]:
    """What reads foreign databases speaks of copies."""
    try:
        yield
    except WhimbrelError as error:
        error.message = error.message.replace("Nothing was copied", "Nothing was adopted")
        error.args = (error.message, *error.args[1:])
        hint = _BOTH.sub(r"\1", error.hint)
        hint = re.sub(r"(--(?:id|text|vector))(?![\w-])", lambda found: _OPTIONS[found[1]], hint)
        error.hint = hint.replace("copy from its server", "adopt from its server")
        raise
