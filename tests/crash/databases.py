"""The databases that collections are moved between: real ones, of which the servers can be killed."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chroma_server import ChromaServer
from milvus_server import MilvusServer, milvus_python, own_milvus
from own_postgres import OwnPostgres, own_postgres
from small_disk import fill, mount, unmount

_MILVUS = ("milvus server",) if milvus_python() else ()
NAMES = ("lancedb", "postgres", "chroma folder", "chroma server", "qdrant folder", "milvus lite", *_MILVUS)
SERVERS = ("postgres", "chroma server", *_MILVUS)
FOLDERS = {"lancedb": "lancedb:", "chroma folder": "chroma:", "qdrant folder": "qdrant:", "milvus lite": "milvus:"}
DISKS = {"lancedb": "home/views", "chroma folder": "home/chroma", "qdrant folder": "home/qdrant"} | {
    "postgres": "postgres-disk",
    "chroma server": "chroma-disk",
}
"""Where their data lies that may have a small disk of its own."""
AWAY_WHEN_FULL = (*SERVERS, "chroma folder")
"""Of those: a server may be unable to go on, and chromadb to open a folder again in which a write of it failed."""
DISK_MB = {"postgres": 400}
"""Else 96. A server of Postgres keeps segments of 16 MB for what is yet to be written."""
_VIEW = re.compile(r"c\d+-v\d+-[0-9a-f]{6}")
_IN_MILVUS = re.compile(r"^v_(c\d+)_(v\d+)_([0-9a-f]{6})_[0-9a-f]+$")
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'whimbrel'"


@dataclass(slots=True)
class Databases:
    folder: Path
    servers: Mapping[str, OwnPostgres | ChromaServer | MilvusServer]
    kills: int = 0
    due: dict[str, float] = field(default_factory=dict)
    """Servers that were killed, and when they come back."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """When one was away: from, until."""
    disks: set[str] = field(default_factory=set)
    """Those whose data lies on a small disk of its own."""
    fills: int = 0
    """How often one of those was full."""
    full: dict[str, tuple[Path, float]] = field(default_factory=dict)
    """Those whose disk is full: by what, and until when."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def uri(self, name: str) -> str:
        return self.servers[name].uri if name in SERVERS else FOLDERS[name]

    def name(self, uri: str) -> str:
        there = (name for name in NAMES if name not in SERVERS or name in self.servers)
        return next(name for name in there if self.uri(name) == uri)

    def kill(self, name: str, away_s: float) -> None:
        if name in self.due:
            return
        self.outages.append((time.time(), math.inf))
        self.servers[name].kill()
        self.kills += 1
        self.due[name] = time.time() + away_s

    def fill(self, name: str, for_s: float) -> None:
        """Leave no room on the disk under a database."""
        if name in self.full:
            return
        disk = self.folder / DISKS[name]
        if name in AWAY_WHEN_FULL:
            self.outages.append((time.time(), math.inf))
        self.full[name] = fill(disk), time.time() + for_s
        self.fills += 1

    def revive(self, *, at_once: bool = False) -> bool:
        """Start those whose time has come again, and make room. Returns whether all are there."""
        for name, (ballast, at) in list(self.full.items()):
            if at_once or time.time() >= at:
                ballast.unlink()
                del self.full[name]
                if name == "chroma server":  # it writes again when it has been started anew
                    self.servers[name].kill()
                if name in SERVERS and not self.servers[name].alive:
                    self.due.setdefault(name, 0.0)
        for name, at in list(self.due.items()):
            if (at_once or time.time() >= at) and name not in self.full:
                self.servers[name].start()
                del self.due[name]
        if not self.due and not self.full.keys() & set(AWAY_WHEN_FULL):
            self.outages = [(since, min(until, time.time())) for since, until in self.outages]
        return not self.due and not self.full

    def views(self) -> set[str]:
        """The names of the views whose data, or part of it, lies in any of them."""
        found = {path.name for path in (self.home / "views").glob("*")}
        for server in self.servers.values():
            found |= _held(server)
        found |= self._in_folder() | {path.name for path in (self.home / "qdrant" / "collection").glob("*")}
        found |= {_named(path.name) for path in (self.home / "milvus.db" / "collections").glob("*")}
        return {match.group() for match in map(_VIEW.search, found) if match}

    def _in_folder(self) -> set[str]:
        folder = self.home / "chroma"
        if not (folder / "chroma.sqlite3").exists():
            return set()
        with closing(sqlite3.connect(f"{(folder / 'chroma.sqlite3').as_uri()}?mode=ro", uri=True)) as database:
            names = {row[0] for row in database.execute("SELECT name FROM collections")}
            segments = {row[0] for row in database.execute("SELECT id FROM segments")}
        stray = {path.name for path in folder.iterdir() if path.is_dir()} - segments
        assert not stray, f"index folders of no collection: {stray}"
        return names


def _held(server: OwnPostgres | ChromaServer | MilvusServer) -> set[str]:
    if isinstance(server, OwnPostgres):
        return _tables(server)
    return _collections(server) if isinstance(server, ChromaServer) else _in_milvus(server)


def _in_milvus(server: MilvusServer) -> set[str]:
    import pymilvus

    client = pymilvus.MilvusClient(server.url, dedicated=True)
    try:
        return set(map(_named, client.list_collections()))
    finally:
        client.close()


def _named(collection: str) -> str:
    """The view's name, of which that of its collection in Milvus was made."""
    return _IN_MILVUS.sub(r"\1-\2-\3", collection)


def _tables(server: OwnPostgres) -> set[str]:
    tables = {str(row[0]) for row in server.run(_TABLES)}
    positions = server.run("SELECT view FROM whimbrel.positions") if "positions" in tables else []
    return tables | {str(row[0]) for row in positions}


def _collections(server: ChromaServer) -> set[str]:
    url = f"http://127.0.0.1:{server.port}/api/v2/tenants/default_tenant/databases/default_database/collections"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return {str(one["name"]) for one in json.load(answer)}


@contextmanager
def databases(folder: Path, servers: Sequence[str] = SERVERS, disks: Sequence[str] = ()) -> Iterator[Databases]:
    """`servers`: those that are started. `disks`: those that get a small disk of their own, where one may mount."""
    with ExitStack() as stack:
        running: dict[str, OwnPostgres | ChromaServer | MilvusServer] = {}
        made = Databases(folder, running)
        made.home.mkdir(mode=0o700, exist_ok=True)
        for name in disks:
            if mount(folder / DISKS[name], DISK_MB.get(name, 96)):
                stack.callback(unmount, folder / DISKS[name])
                made.disks.add(name)
        if "postgres" in servers:
            place = folder / DISKS["postgres"] if "postgres" in made.disks else None
            running["postgres"] = stack.enter_context(own_postgres(place))
        if "chroma server" in servers:
            chroma = running["chroma server"] = ChromaServer(folder / "chroma-disk" / "server")
            chroma.start()
            stack.callback(chroma.kill)
        if "milvus server" in servers:
            running["milvus server"] = stack.enter_context(own_milvus())
        stack.callback(made.revive, at_once=True)  # first of all at the end: Postgres stops in order
        yield made
