"""A store that allows one process: the owner has it open, and every other process of the home asks the owner."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.single_store import SingleStore

from whimbrel import Whimbrel
from whimbrel.config import load_settings
from whimbrel.doctor import diagnose, is_healthy
from whimbrel.domain import Mode
from whimbrel.errors import AlreadyOwned, BadFilter, Forbidden, StoreUnavailable
from whimbrel.filters import parse
from whimbrel.owner.lending import BorrowedStore, Lender, _asked
from whimbrel.testing import Place, StoreConformance, rows_of, unit_vectors
from whimbrel.testing.base import NewPlace
from whimbrel.testing.place import SPACE, by_id, scanned

ROOT = Path(__file__).parents[1]


class TestSingleProcess(StoreConformance):
    """What the suite says of such a store is said of this one; the rest of it is LanceDB."""

    name = "one process (example)"
    selective_rows = 1_000

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
        return lambda: Place(
            "single:here", tmp_path_factory.mktemp("single"), opener="tests.single_store:SingleStore.at"
        )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    packages = tmp_path / "packages"
    about = packages / "single-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: single\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[whimbrel.stores]\nsingle = tests.single_store:SingleStore.at\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), str(ROOT), *filter(None, sys.path)]))
    monkeypatch.setenv("WHIMBREL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHIMBREL_STORE", "single:folder")
    (tmp_path / "documents").mkdir()
    for number in range(5):
        (tmp_path / "documents" / f"{number}.md").write_text(f"Whimbrel number {number} flies over the sea.")
    return tmp_path / "home"


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whimbrel", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_other_processes_ask_the_owner(home: Path) -> None:
    with Whimbrel() as whimbrel:
        whimbrel.ingest([home.parent / "documents"])
        assert whimbrel.own()
        assert len(whimbrel.search("a bird at sea", mode=Mode.DENSE).hits) == 5
        found = cli("search", "a bird at sea", "--mode", "dense", "--json")
        assert found.returncode == 0, found.stderr
        assert found.stdout.count('"chunk_id"') == 5
        assert (home / "owner.sock").stat().st_mode & 0o777 == 0o600
        refused = subprocess.run(
            [sys.executable, "-c", _OUTSIDE, str(home)], capture_output=True, text=True, timeout=60, check=False
        )
        assert "AlreadyOwned" in refused.stdout, refused.stderr
        found_by_doctor = diagnose(load_settings())
        assert is_healthy(found_by_doctor), found_by_doctor
    assert not (home / "owner.sock").exists()


_OUTSIDE = """
import asyncio, sys
from pathlib import Path
from tests.single_store import SingleStore
from whimbrel.domain import Space
from whimbrel.errors import AlreadyOwned
try:
    asyncio.run(SingleStore(Path(sys.argv[1]) / "folder", "x", Space("m", "1", 4)).exists())
except AlreadyOwned as error:
    print(error.code, error.hint)
"""


def test_without_an_owner_the_store_is_open_for_a_moment_only(home: Path) -> None:
    with Whimbrel() as whimbrel:
        whimbrel.ingest([home.parent / "documents"])
    with Whimbrel() as first, Whimbrel() as second:
        assert len(first.search("a bird at sea", mode=Mode.DENSE).hits) == 5
        found = cli("search", "a bird at sea", "--mode", "dense", "--json")
        assert found.returncode == 0, found.stderr
        assert second.own(), "nobody else has it open"
        assert len(first.search("a bird at sea", mode=Mode.DENSE).hits) == 5


async def test_the_owner_answers_every_read_and_no_write(tmp_path: Path) -> None:
    store = SingleStore(tmp_path / "data", "view", SPACE)
    await store.create()
    rows = rows_of([{"n": i, "odd": [None, {"x": i}]} for i in range(30)])
    await store.upsert(rows)
    lender = Lender(tmp_path / "owner.sock", {7: store}.get)
    await lender.listen()

    def borrowed(view: int) -> BorrowedStore:
        own = SingleStore(tmp_path / "elsewhere", "view", SPACE)
        return BorrowedStore(own, view, tmp_path / "owner.sock", is_owner=lambda: False, is_owned=lambda: True)

    there = borrowed(7)
    query = unit_vectors(1, seed=4)[0]
    for where, ids in ((None, None), (parse({"n": {"$gte": 10}}), None), (None, ["000003", "000004"])):
        ours, theirs = await store.search(query, 8, where, ids=ids), await there.search(query, 8, where, ids=ids)
        assert list(ours.ids) == list(theirs.ids)
        assert np.array_equal(ours.scores, theirs.scores)
    assert by_id(await scanned(there, batch=7)) == by_id(rows)
    assert np.array_equal((await there.fetch(["000005"])).vectors["dense"], rows.vectors["dense"][5:6])
    assert (await there.count(), await there.exists(), await there.position()) == (30, True, None)
    with pytest.raises(Forbidden):
        await there.upsert(rows)
    with pytest.raises(StoreUnavailable, match="not opened view 8"):
        await borrowed(8).count()
    with pytest.raises(BadFilter):
        await _asked(
            tmp_path / "owner.sock", {"call": "search", "view": 7, "where": {"a": {"$no": 1}}, "vector": "", "k": 1}
        )
    for junk in (b"\n", b"{}\n", b"not json\n", b""):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "owner.sock")
        writer.write(junk)
        writer.write_eof()
        await reader.read()
        writer.close()
    assert await there.count() == 30
    await lender.close()
    await store.close()


async def test_a_store_that_others_keep_open_is_refused_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whimbrel.owner.lending.PATIENCE_S", 0.3)

    class Taken(SingleStore):
        async def count(self) -> int:
            raise AlreadyOwned("Another process has it open.", "Stop it.")

    for owned, error in ((False, AlreadyOwned), (True, StoreUnavailable)):
        store = BorrowedStore(
            Taken(tmp_path, "view", SPACE),
            1,
            tmp_path / "owner.sock",
            is_owner=lambda: False,
            is_owned=lambda owned=owned: owned,
        )
        with pytest.raises(error) as refused:
            await store.count()
        assert refused.value.hint
