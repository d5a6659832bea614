"""The plan of a move: it tells what there is, what would be lost and what it takes, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, select, text
from tests.memory_store import TABLES, MemoryStore

from adopting import fill_chroma, sightings
from commands import Shell
from running import DEADLINE_S, Toy, count, files, paragraphs, until
from running import chunks as spans
from whimbrel.app import Whimbrel
from whimbrel.catalog import tables as t
from whimbrel.cli import planned
from whimbrel.domain import Space
from whimbrel.errors import (
    BadInput,
    CollectionNotFound,
    ConfigError,
    RowRefused,
    StoreUnavailable,
)
from whimbrel.models.embedders import resolve
from whimbrel.move.leftovers import Leftovers, noted
from whimbrel.move.plan import Plan
from whimbrel.move.trial import folder_of
from whimbrel.owner import owner
from whimbrel.stores.base import Records, StoreInfo
from whimbrel.stores.metrics import Metric

SERVER = "other://here/db"


@pytest.fixture(scope="module")
def every_toy() -> Iterator[dict[str, Toy]]:
    made = {"one": Toy(), "two": Toy(model="two"), "wide": Toy(model="wide", dimensions=96)}
    made["cohere"] = Toy(model="priced")
    with pytest.MonkeyPatch.context() as patch:
        for name, toy in made.items():
            patch.setitem(resolve._PROVIDERS, name, lambda _model, _threads, toy=toy: toy)
        yield made


@pytest.fixture
def toys(every_toy: dict[str, Toy]) -> dict[str, Toy]:
    """Embedders by name: `one`, `two` (of another space), `wide` (of more dimensions), `cohere` (with a price)."""
    for toy in every_toy.values():
        toy.out = ""
        toy.given.clear()
        toy._space = replace(toy._space, max_tokens=512)
    return every_toy


@pytest.fixture(scope="module")
def thirty(every_toy: dict[str, Toy], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whimbrel]:
    """Thirty documents of two chunks each; the scheme `other` is a store in memory that stands for a server."""
    folder = tmp_path_factory.mktemp("thirty")
    about = folder / "packages" / "other-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[whimbrel.stores]\nother = tests.memory_store:MemoryStore\n")
    settings: dict[str, Any] = {"embedder": "one", "guards.prices": "cohere:priced=0.5/0"}
    with pytest.MonkeyPatch.context() as patch, Whimbrel(home=folder / "home", **settings) as whimbrel:
        patch.syspath_prepend(folder / "packages")
        whimbrel.add(
            [
                {"id": f"d{number}", "text": paragraphs(f"{number}a", f"{number}b"), "metadata": {"n": number}}
                for number in range(30)
            ]
        )
        whimbrel.wait_for_head("default")
        yield whimbrel


@pytest.fixture
def home(thirty: Whimbrel, toys: dict[str, Toy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Whimbrel:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    TABLES.clear()
    return thirty


def plan_of(home: Whimbrel, **asked: str) -> Plan:
    """Whatever a plan finds, or raises: the catalog is what it was, and no scratch table or folder is left."""
    before = contents(home)
    try:
        return home.plan_move("default", **asked)
    finally:
        assert contents(home) == before
        assert not [name for _, name in TABLES if name.startswith("whimbrel-plan")]
        assert not [path for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith("whimbrel-plan")]
        assert not [note for note in home.home.plans.glob("*") if SERVER in note.read_text()]


def contents(home: Whimbrel) -> dict[str, list[Any]]:
    """Every row of every table but the owner's own: its lease, its jobs done, and its ledger of calls of models."""
    with home.catalog.read() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table)).all()))
            for table in t.metadata.sorted_tables
            if table.name not in ("leases", "jobs", "processes", "model_calls")
        }


def said(plan: Plan, what: str) -> list[str]:
    return [loss.said for loss in plan.losses if loss.what == what]


# --- what it tells ---------------------------------------------------------------------------------------------------


def test_a_move_to_another_store(home: Whimbrel, toys: dict[str, Toy]) -> None:
    given_before = len(toys["one"].given)
    plan = plan_of(home, to=SERVER)
    chunks = count(home, t.chunks)
    assert (plan.rows, plan.documents, plan.sampled) == (chunks, 30, chunks)
    assert plan.bytes.vectors == chunks * 32 * 4
    assert plan.bytes.texts == sum(end - start for _, start, end in spans(home, "default").values())
    assert plan.embedding is None
    assert plan.cut is None
    assert len(toys["one"].given) == given_before, "what is a vector of record costs nothing"
    assert (plan.source.store, plan.target.store) == ("lancedb", "memory")
    assert not plan.stopped
    assert plan.room[0].free is None, "nobody knows what is free on a server"
    assert all(part is not None and part >= 0 for part in (plan.seconds.reading, plan.seconds.writing))
    assert plan.seconds.total is not None
    assert plan.seconds.total > 0


def test_what_the_target_does_otherwise(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = MemoryStore.describe

    def other(self: MemoryStore) -> StoreInfo:
        return replace(
            describe(self),
            metric=Metric.L2,
            exact_vectors=False,
            single_process=True,
            max_batch_rows=300,
            max_batch_bytes=1_000_000,
            max_ids=77,
        )

    monkeypatch.setattr(MemoryStore, "describe", other)
    plan = plan_of(home, to=SERVER)
    assert said(plan, "metric") == ["Searches measure l2 instead of cosine; scores stay 0..1."]
    assert "1e-06" in said(plan, "vectors")[0]
    assert "$exists, $gt, $gte, $lt, $lte, $not, $or" in said(plan, "filters")[0]
    assert "up to 77 of them" in said(plan, "filters")[0]
    assert "the owner" in said(plan, "processes")[0]
    assert "300 rows and 1,000,000 bytes" in said(plan, "batches")[0]
    assert said(plan, "cannot") == ["Not possible with memory: rows that outlive its process."]
    assert not plan.stopped


def test_a_folder_is_tried_in_a_temporary_one(home: Whimbrel, tmp_path: Path) -> None:
    target = tmp_path / "target"
    plan = plan_of(home, to=f"chroma:{target}")
    assert not target.exists()
    assert plan.sampled == plan.rows
    free = plan.room[0].free
    assert free is not None
    assert free > 0
    assert plan.room[0].needed > plan.bytes.total, "what the database adds was measured"


def test_rows_that_the_target_refuses_or_changes(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    upsert = MemoryStore.upsert

    async def picky(self: MemoryStore, records: Records, *, new: bool = False) -> None:
        for id_, metadata in zip(records.ids, records.metadata, strict=True):
            if metadata["n"] == 7:
                raise RowRefused.of(id_, "Sevens are not taken.")
        texts = [
            text if one["n"] != 8 else text.strip() for text, one in zip(records.texts, records.metadata, strict=True)
        ]
        texts = [text[:-1] if one["n"] == 8 else text for text, one in zip(texts, records.metadata, strict=True)]
        await upsert(self, Records(records.ids, records.vectors, texts, records.metadata), new=new)

    monkeypatch.setattr(MemoryStore, "upsert", picky)
    plan = plan_of(home, to=SERVER)
    refused, changed = said(plan, "rows")
    assert "2 are refused: text:d7: Sevens are not taken." in refused
    assert "2 came back changed, of: text:d8." in changed
    assert plan.stopped
    assert plan.sampled == plan.rows - 2


def test_more_dimensions_than_the_target_holds(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = MemoryStore.describe
    monkeypatch.setattr(MemoryStore, "describe", lambda self: replace(describe(self), max_dimensions=64))
    assert not said(plan_of(home, to=SERVER), "dimensions")
    plan = plan_of(home, to=SERVER, embedder="wide")
    assert said(plan, "dimensions") == ["memory holds vectors of up to 64 dimensions; 'wide' makes 96."]
    assert plan.stopped
    assert plan.sampled == 0
    assert plan.seconds.writing is None
    assert plan.seconds.total is None


# --- another embedder, another chunking ------------------------------------------------------------------------------


def test_another_embedder_is_told_in_texts_and_tokens(home: Whimbrel, toys: dict[str, Toy]) -> None:
    plan = plan_of(home, embedder="two")
    chunks = count(home, t.chunks)
    found = plan.embedding
    assert found is not None
    assert (found.texts, found.of_record, found.too_long) == (chunks, 0, 0)
    assert 0 < found.sampled <= 64
    assert len(toys["two"].given) <= 65, "a sample, and one to warm up"
    assert 130 * chunks < found.tokens < 140 * chunks, "as the new model counts"
    assert found.seconds is not None
    assert [room.what for room in plan.room] == ["target", "catalog"]
    assert plan.room[1].needed == chunks * 32 * 4
    assert found.usd is None, "nobody has said what it takes"
    priced = plan_of(home, embedder="cohere:priced").embedding
    assert priced is not None
    assert priced.usd == pytest.approx(priced.tokens / 2e6), "at half a dollar for a million"


def test_chunks_longer_than_the_new_model_reads_are_named(
    home: Whimbrel, toys: dict[str, Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.add([{"id": "short", "text": "A few words."}])
    home.wait_for_head("default")
    toys["two"]._space = replace(toys["two"]._space, max_tokens=60)
    plan = plan_of(home, embedder="two")
    assert plan.embedding is not None
    assert plan.embedding.too_long == 60
    assert said(plan, "model") == [
        "Chunks may have 186 tokens, and 'two' reads 60: name a --chunking that it reads, in the same move."
    ]
    assert plan.stopped
    with pytest.raises(ConfigError, match="reads 60 tokens at most"):
        home.start_move("default", embedder="two")
    (told,) = said(plan, "texts")
    assert told.startswith("60 chunks are longer than the 60 tokens that 'two' reads, in: ")
    assert "20 more documents" in told
    assert "text:short" not in told
    home.delete(["short"])
    home.wait_for_head("default")


def test_a_model_that_is_out(home: Whimbrel, toys: dict[str, Toy]) -> None:
    toys["two"].out = "The key is not accepted."
    plan = plan_of(home, embedder="two")
    assert said(plan, "model") == ["The model cannot be tried now: The key is not accepted."]
    assert plan.stopped
    assert plan.seconds.embedding is None
    assert plan.seconds.total is None


def test_another_chunking_is_cut_from_a_sample(home: Whimbrel) -> None:
    plan = plan_of(home, chunking="tokens=60,overlap=0")
    assert plan.cut is not None
    assert plan.cut.exact, "all thirty were cut"
    assert plan.cut.documents == 30
    assert plan.rows == plan.cut.chunks > 2 * count(home, t.chunks)
    assert plan.embedding is not None
    assert plan.embedding.texts + plan.embedding.of_record == plan.rows


def test_what_comes_is_what_the_plan_of_a_small_collection_said(toys: dict[str, Toy], tmp_path: Path) -> None:
    with Whimbrel(home=tmp_path / "home", embedder="one") as home:
        home.ingest(files(tmp_path / "notes", 12))
        home.add([{"id": "long", "title": "Long", "text": paragraphs(*range(9))}])
        home.wait_for_head("default")
        vectors = count(home, t.vectors)
        plan = home.plan_move("default", to="lancedb:other", chunking="tokens=70,overlap=8")
        move, job = home.start_move("default", to="lancedb:other", chunking="tokens=70,overlap=8")
        home.finish(job)
        (store, *_) = home.move_by_id(move.id).checks["views"]
        assert plan.rows == store["rows"]
        assert plan.embedding is not None
        assert plan.embedding.texts == count(home, t.vectors) - vectors


# --- what it does not do ---------------------------------------------------------------------------------------------


def test_a_server_that_is_out(home: Whimbrel) -> None:
    with pytest.raises(StoreUnavailable):
        plan_of(home, to="postgresql://nobody@127.0.0.1:1/none")


@pytest.mark.parametrize("call", ["create", "begin_bulk", "upsert", "end_bulk", "scan"])
def test_the_scratch_table_is_dropped_whatever_happens(
    home: Whimbrel, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    made: list[str] = []
    create = MemoryStore.create

    async def seen(self: MemoryStore) -> None:
        made.append(self._key[1])
        await create(self)

    async def fails(self: MemoryStore, *args: Any, **options: Any) -> None:
        if call == "create":
            await create(self)  # made, and the answer lost
        raise StoreUnavailable("It has gone.")

    async def breaks(self: MemoryStore, batch: int = 5_000) -> Any:
        raise StoreUnavailable("It has gone.")
        yield

    monkeypatch.setattr(MemoryStore, "create", seen)
    monkeypatch.setattr(MemoryStore, call, breaks if call == "scan" else fails)
    with pytest.raises(StoreUnavailable, match="gone"):
        plan_of(home, to=SERVER)
    assert all(name.startswith("whimbrel-plan-") for name in made)


def test_bad_input(home: Whimbrel) -> None:
    with pytest.raises(BadInput, match="Nothing is to change"):
        plan_of(home)
    with pytest.raises(BadInput, match="is there already"):
        plan_of(home, to="lancedb:")
    with pytest.raises(BadInput, match="is there already"):
        plan_of(home, embedder="one")
    with pytest.raises(CollectionNotFound):
        home.plan_move("nothing", to=SERVER)
    with pytest.raises(ConfigError, match="no store"):
        plan_of(home, to="nowhere:x")
    with pytest.raises(ConfigError, match="no embedder"):
        plan_of(home, embedder="nobody")
    with pytest.raises(ConfigError, match="reads 512"):
        plan_of(home, chunking="tokens=600")
    with pytest.raises(ConfigError, match="credential"):
        plan_of(home, to="postgresql://me:secret@127.0.0.1/db")


def test_an_empty_collection(toys: dict[str, Toy], tmp_path: Path) -> None:
    with Whimbrel(home=tmp_path / "home", embedder="one") as home:
        home.add([{"id": "x", "text": "A word."}])
        home.delete(["x"])
        home.wait_for_head("default")
        plan = plan_of(home, embedder="two", chunking="tokens=50,overlap=0")
        assert (plan.rows, plan.sampled, plan.bytes.total) == (0, 0, 0)
        assert not plan.stopped


# --- what is lost between real stores --------------------------------------------------------------------------


def test_what_the_source_could_not_do_either_is_no_loss(toys: dict[str, Toy], tmp_path: Path) -> None:
    """A folder that one process opens is not written to by two."""
    with Whimbrel(home=tmp_path / "home", embedder="one", store="chroma:theirs") as home:
        home.ingest(files(tmp_path / "notes", 3))
        assert said(plan_of(home, to="lancedb:there"), "cannot") == []
        assert said(plan_of(home, to="qdrant:there"), "cannot") == [
            "Not possible with qdrant: an order of strings (such a filter goes through ids from the catalog).",
            "Not possible with qdrant: an index (local mode compares all rows, and holds them in memory).",
        ]


def test_what_is_told_once_is_not_told_again(home: Whimbrel) -> None:
    plan = plan_of(home, to="chroma:there")
    assert "not bit for bit" in said(plan, "vectors")[0]
    assert said(plan, "cannot") == [
        "Not possible with chroma: a read of one version while others write.",
        "Not possible with chroma: vectors of deleted rows written out of the index before it is built again.",
    ]


@pytest.mark.parametrize("to", ["chroma:there", "lancedb:there"])
def test_an_adopted_database_can_what_its_kind_can(toys: dict[str, Toy], tmp_path: Path, to: str) -> None:
    uri = fill_chroma(tmp_path / "theirs", sightings(10, toy=toys["one"]))
    with Whimbrel(home=tmp_path / "home", embedder="one") as home:
        home.adopt(uri, "default")
        home.wait_for_head("default")
        assert said(plan_of(home, to=to), "cannot") == []


# --- real stores -----------------------------------------------------------------------------------------------------


def test_the_scratch_table_of_a_postgres(toys: dict[str, Toy], fresh_postgres: str, tmp_path: Path) -> None:
    uri = fresh_postgres.replace("+psycopg", "")
    with Whimbrel(home=tmp_path / "home", embedder="one", **{"stores.others": uri}) as home:
        home.ingest(files(tmp_path / "notes", 20))
        plan = plan_of(home, to=uri)
        assert plan.sampled == 20
        assert not plan.stopped
    engine = create_engine(fresh_postgres)
    with engine.connect() as connection:
        tables = connection.execute(text("SELECT tablename FROM pg_tables WHERE tablename LIKE 'whimbrel-plan%'")).all()
    engine.dispose()
    assert tables == []


_KILLED = """
import os, sys
from whimbrel.app import Whimbrel
from whimbrel.models.embedders import resolve
from whimbrel.move import trial
from running import Toy
resolve._PROVIDERS["one"] = lambda _model, _threads: Toy(model="one")
async def killed(*args):
    os._exit(9)
trial._write = killed
with Whimbrel(home=sys.argv[1], embedder="one", **{"stores.others": sys.argv[3]}) as home:
    home.plan_move("default", to=sys.argv[2])
"""


def killed_plan(home: Path, target: str, others: str) -> None:
    """A plan that has made its scratch table, and is killed."""
    variables = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{Path(__file__).parent}"}
    command = [sys.executable, "-c", _KILLED, str(home), target, others]
    done = subprocess.run(command, env=variables, check=False, timeout=DEADLINE_S, capture_output=True)
    assert done.returncode == 9, done.stderr


@pytest.mark.parametrize("by", ["the next plan", "the owner"])
def test_what_a_killed_plan_leaves_on_a_server_is_dropped(
    by: str, toys: dict[str, Toy], fresh_postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = fresh_postgres.replace("+psycopg", "")
    options = {"stores.others": uri}
    engine = create_engine(fresh_postgres)

    def scratch() -> int:
        with engine.connect() as connection:
            return len(connection.execute(text("SELECT 1 FROM pg_tables WHERE tablename LIKE 'whimbrel-plan%'")).all())

    with Whimbrel(home=tmp_path / "home", embedder="one", **options) as home:
        home.ingest(files(tmp_path / "notes", 5))
    killed_plan(tmp_path / "home", uri, uri)
    assert scratch() == 1
    (note,) = home.home.plans.iterdir()
    with Whimbrel(home=tmp_path / "home", embedder="one", **options) as home:
        if by == "the owner":
            monkeypatch.setattr(owner, "WATCH_S", 0.05)
            assert home.own()
            until(lambda: not note.exists(), "the owner has dropped it")
        else:
            assert home.plan_move("default", to="chroma:there").sampled == 5
            assert note.exists(), "nobody waits for another server"
            assert home.plan_move("default", to=uri).sampled == 5
    assert scratch() == 0
    engine.dispose()
    assert not list(home.home.plans.iterdir())


def test_what_a_killed_plan_leaves_in_a_folder_is_removed(
    toys: dict[str, Toy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with Whimbrel(home=tmp_path / "home", embedder="one") as home:
        home.ingest(files(tmp_path / "notes", 5))
        killed_plan(tmp_path / "home", "chroma:there", "")
        (left,) = (tmp_path / "tmp").iterdir()
        assert left.name.startswith("whimbrel-plan-")
        assert home.plan_move("default", to="lancedb:there").sampled == 5
    assert not list((tmp_path / "tmp").iterdir())
    assert not list(home.home.plans.iterdir())


async def test_a_note_that_is_held_or_names_what_is_not_a_plans_is_left_alone(tmp_path: Path) -> None:
    opened: list[str] = []

    def open_(uri: str, table: str, space: Space) -> MemoryStore:
        opened.append(table)
        raise StoreUnavailable("It is out.")

    space = Space("m", "1", 3)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    plans = tmp_path / "plans"
    leftovers = Leftovers(plans, open_)
    with noted(plans, "whimbrel-plan-0", uri="other:x", space=space, folder=None):
        assert await leftovers.drop() == []
    assert opened == []
    assert await leftovers.drop() == []
    assert await leftovers.drop() == []
    assert opened == ["whimbrel-plan-0"], "what does not answer is not asked every minute"
    assert (plans / "whimbrel-plan-0.json").exists()
    (plans / "whimbrel-plan-1.json").write_text(
        json.dumps({"table": "customers", "uri": "other:x", "space": {}, "folder": str(theirs)})
    )
    (plans / "whimbrel-plan-2.json").write_text("")
    await Leftovers(plans, open_).drop()
    assert "customers" not in opened
    assert theirs.is_dir()


def test_beside_an_owner_that_holds_a_store_of_one_process(toys: dict[str, Toy], tmp_path: Path) -> None:
    """Another process plans, back to where the owner has the folder open."""
    folder = tmp_path / "chroma"
    with Whimbrel(home=tmp_path / "home", embedder="one", store=f"chroma:{folder}") as owner:
        owner.ingest(files(tmp_path / "notes", 10))
        with Whimbrel(home=tmp_path / "home", embedder="one", store=f"chroma:{folder}") as other:
            assert not other.own()
            plan = plan_of(other, embedder="two")
            assert plan.sampled == 10
            assert plan.target.uri == f"chroma:{folder}"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    commands = Shell(tmp_path / "home")
    notes = tmp_path / "notes"
    files(notes, 5)
    commands.run("ingest", str(notes))
    page, as_json, wrong = commands.several(
        ["move", "plan", "default", "--to", "chroma:there"],
        ["move", "plan", "default", "--to", "chroma:there", "--json"],
        ["move", "plan", "default"],
    )
    assert page.status == 0, page.err
    assert "default: 5 rows of 5 documents" in page.out
    assert "What is lost, or done otherwise" in page.out
    assert "in all" in page.out
    assert "GB free" in page.out or "TB free" in page.out
    assert "Nothing was changed" in page.err
    found = json.loads(as_json.out)
    assert (found["rows"], found["sampled"], found["stopped"]) == (5, 5, False)
    assert set(found["seconds"]) == {"cutting", "embedding", "reading", "writing", "indexing", "verifying", "total"}
    assert wrong.status == 2


@given(st.floats(min_value=0, max_value=1e9))
@settings(max_examples=200, deadline=None)
def test_durations_are_told_in_every_size(seconds: float) -> None:
    told = planned.duration(seconds)
    assert told.split()[0].replace(",", "").replace(".", "").isdigit()
    assert "60 s" not in told.split(" min ")[-1] or "min" not in told


def test_folders_and_servers_are_told_apart() -> None:
    base = Path("/home")
    assert folder_of("lancedb:", base) == base / "views"
    assert folder_of("chroma:a/b", base) == base / "a" / "b"
    assert folder_of("lancedb:s3://bucket/path", base) is None
    assert folder_of("postgresql://here/db", base) is None
    assert Space("m", "1", 3).normalised
