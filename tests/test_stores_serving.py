"""A collection in a store of another package: found by its entry point, searched with filters that it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import TABLES, MemoryStore

from whimbrel import Whimbrel
from whimbrel.domain import Mode
from whimbrel.errors import BadFilter, StoreUnavailable
from whimbrel.stores.base import StoreInfo


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose collections are made in the store of the package `other`, with ten documents."""
    about = tmp_path / "packages" / "other-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[whimbrel.stores]\nother = tests.memory_store:MemoryStore\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    TABLES.clear()
    with Whimbrel(tmp_path / "home", store="other://me:s3cret@here/db") as whimbrel:
        for number in range(10):
            file = tmp_path / f"{number}.md"
            file.write_text(f"# Birds {number}\n\nThe whimbrel number {number} flies far over the sea.")
            whimbrel.ingest([file], metadata={"year": 2015 + number, "tags": ["even"] if number % 2 == 0 else []})
    yield tmp_path / "home"
    TABLES.clear()


def test_filters_that_the_store_lacks_go_through_the_catalog(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []
    search = MemoryStore.search

    async def seen(self, vector, k, where=None, *, ids=None):
        asked.append((where, ids))
        return await search(self, vector, k, where, ids=ids)

    monkeypatch.setattr(MemoryStore, "search", seen)
    with Whimbrel(home, store="other://me:s3cret@here/db") as whimbrel:
        for raw, years in (
            ({"year": {"$gte": 2020}}, range(2020, 2025)),
            ({"tags": {"$exists": False}}, range(2016, 2025, 2)),
            ({"$not": {"year": {"$in": [2015, 2016]}}}, range(2017, 2025)),
            ({"year": 2018}, [2018]),
        ):
            for mode in (Mode.DENSE, Mode.LEXICAL, Mode.HYBRID):
                found = whimbrel.search("a bird over the sea", mode=mode, filter=raw, top_k=10)
                assert sorted(hit.metadata["year"] for hit in found.hits) == list(years), (raw, mode)
                assert not found.degraded
    emulated = [ids for where, ids in asked if where is None]
    assert len(emulated) == 6, "all but the equality go through ids, in two modes each"
    assert {len(ids) for ids in emulated} == {5, 8}


def test_a_filter_that_cannot_be_emulated_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = MemoryStore.describe

    def few(self) -> StoreInfo:
        info = describe(self)
        return StoreInfo(info.name, info.metric, info.dimensions, filter_operators=info.filter_operators, max_ids=4)

    monkeypatch.setattr(MemoryStore, "describe", few)
    with Whimbrel(home, store="other://me:s3cret@here/db") as whimbrel:
        with pytest.raises(BadFilter, match=r"memory does not answer filters with \$gte itself.* more than 4 chunks"):
            whimbrel.search("birds", filter={"year": {"$gte": 2016}})
        assert len(whimbrel.search("birds", filter={"year": {"$gte": 2021}}).hits) == 4
        assert len(whimbrel.search("birds", filter={"year": {"$gte": 2016}}, mode=Mode.LEXICAL).hits) == 9


def test_the_catalog_holds_no_password_and_wins_over_the_configuration(home: Path) -> None:
    assert b"s3cret" not in (home / "catalog.db").read_bytes()
    assert {uri for uri, _ in TABLES} == {"other://me:s3cret@here/db"}
    with Whimbrel(home, store="other://me:changed@here/db") as whimbrel:
        (collection,) = whimbrel.status()["collections"]
        assert collection["differs"] == []
    with Whimbrel(home, store="lancedb:") as whimbrel:
        (collection,) = whimbrel.status()["collections"]
        assert collection["differs"] == ["store: configured 'lancedb:', the collection is in 'other://me@here/db'"]
        (store,) = (one for one in collection["views"] if one["kind"] == "store")
        assert store["uri"] == "other://me@here/db"


def test_a_store_that_was_named_wrongly_at_first_is_left_when_the_setting_is_mended(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self) -> bool:
        raise StoreUnavailable("Nobody answers at here:1.", "Is it running?")

    monkeypatch.setattr(MemoryStore, "exists", away)
    note = home.parent / "0.md"
    with Whimbrel(home, store="other://here:1/db") as whimbrel:
        whimbrel.ingest([note], "second", wait="lexical")
        found = whimbrel.search("birds", "second")
        assert [hit.title for hit in found.hits] == ["Birds 0"]
        assert any("store: no live view" in said for said in found.degraded)
    with Whimbrel(home, store="lancedb:") as whimbrel:
        whimbrel.ingest([note], "second", wait="all")
        found = whimbrel.search("birds", "second", mode=Mode.DENSE)
        assert [hit.title for hit in found.hits] == ["Birds 0"]
        assert not found.degraded
