"""A view that is lost, damaged, or of another time is noticed and built again by itself, while searches go on."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crash.harness import opened, paid_again, settle, verified
from crash.model import Model, contents, strays
from support import document
from whimbrel.app import Whimbrel
from whimbrel.catalog import collections, log
from whimbrel.catalog.documents import write_documents
from whimbrel.domain import EmbedKind
from whimbrel.errors import ModelError, ViewError
from whimbrel.models.embedders.onnx import OnnxEmbedder

QUERY = "curlew harbour storm"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with two generations of views: `views-1` and `lexicons-1` are copies from before the last changes."""
    folder = tmp_path_factory.mktemp("saved")
    model = Model(folder / "documents", random.Random(7))
    model.root.mkdir()
    model.grow(12)
    home = folder / "home"
    with opened(home) as whimbrel:
        whimbrel.ingest([model.root])
    shutil.copytree(home, folder / "home-1")
    with opened(home) as whimbrel:
        model.grow(4)
        for path in model.files()[:5]:
            path.write_text(model.page())
        model.files()[-1].unlink()
        whimbrel.ingest([model.root], allow_gone=True)
        settle(whimbrel)
    return folder


@pytest.fixture
def home(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "home", tmp_path / "home"))


def store_of(home: Path) -> Path:
    (found,) = home.joinpath("views").glob("*.lance")
    return found


def lexicon_of(home: Path) -> Path:
    (found,) = home.joinpath("lexicons").iterdir()
    return found


def largest(files: Iterator[Path]) -> Path:
    return max(files, key=lambda path: path.stat().st_size)


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path: Path, share: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0x55
    path.write_bytes(bytes(data))


def flip_many(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 7):
        data[place] ^= 0x55
    path.write_bytes(bytes(data))


def removed(path: Path) -> None:
    """Also when an owner is writing there just now."""
    for _ in range(100):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return


def emptied(path: Path) -> None:
    for child in path.iterdir():
        removed(child) if child.is_dir() else child.unlink()


def versions(home: Path) -> list[Path]:
    return sorted(store_of(home).joinpath("_versions").iterdir(), key=lambda path: path.stat().st_mtime)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "store: folder gone": lambda home: removed(store_of(home)),
    "store: folder empty": lambda home: emptied(store_of(home)),
    "store: versions gone": lambda home: removed(store_of(home) / "_versions"),
    "store: data gone": lambda home: removed(store_of(home) / "data"),
    "store: data file gone": lambda home: largest(store_of(home).joinpath("data").iterdir()).unlink(),
    "store: data file cut off": lambda home: cut_off(largest(store_of(home).joinpath("data").iterdir())),
    "store: data file empty": lambda home: largest(store_of(home).joinpath("data").iterdir()).write_bytes(b""),
    "store: data file scrambled": lambda home: flip_many(largest(store_of(home).joinpath("data").iterdir())),
    "store: newest manifest cut off": lambda home: cut_off(versions(home)[-1]),
    "store: newest manifest empty": lambda home: versions(home)[-1].write_bytes(b""),
    "store: newest manifest scrambled": lambda home: flip_many(versions(home)[-1]),
    "store: newest manifest gone": lambda home: versions(home)[-1].unlink(),
    "lexicon: folder gone": lambda home: removed(lexicon_of(home)),
    "lexicon: folder empty": lambda home: emptied(lexicon_of(home)),
    "lexicon: meta.json gone": lambda home: lexicon_of(home).joinpath("meta.json").unlink(),
    "lexicon: meta.json cut off": lambda home: cut_off(lexicon_of(home) / "meta.json"),
    "lexicon: meta.json empty": lambda home: lexicon_of(home).joinpath("meta.json").write_bytes(b""),
    "lexicon: meta.json scrambled": lambda home: flip_many(lexicon_of(home) / "meta.json"),
    "lexicon: segment files gone": lambda home: [path.unlink() for path in lexicon_of(home).glob("*.store")],
    "lexicon: postings gone": lambda home: [path.unlink() for path in lexicon_of(home).glob("*.idx")],
    "lexicon: segment file cut off": lambda home: cut_off(largest(lexicon_of(home).glob("*.store"))),
    "lexicon: terms scrambled": lambda home: flip_many(largest(lexicon_of(home).glob("*.term"))),
}


def searched_until_whole(whimbrel: Whimbrel, timeout_s: float = 40.0) -> list[str]:
    """Search again and again; each search answers. Returns all that was said to be degraded on the way."""
    said: list[str] = []
    deadline = time.monotonic() + timeout_s
    whole = 0
    while time.monotonic() < deadline:
        found = whimbrel.search(QUERY)
        assert found.hits
        said += found.degraded
        whole = 0 if found.degraded else whole + 1
        if whole >= 5 and not whimbrel.jobs(active=True):
            return said
        time.sleep(0.05)
    raise TimeoutError(f"degraded still: {found.degraded}; {whimbrel.status()}")


AT_THE_START = ("store: folder gone", "store: newest manifest scrambled", "lexicon: meta.json gone")
WHILE_RUNNING = ("store: data file cut off", "lexicon: postings gone")


def each(quick: tuple[str, ...]) -> list[Any]:
    """Every damage; those that are not in `quick` in the long form only."""
    return [damage if damage in quick else pytest.param(damage, marks=pytest.mark.soak) for damage in DAMAGE]


@pytest.mark.parametrize("damage", each(AT_THE_START))
def test_damage_found_at_the_start_heals(damage: str, home: Path) -> None:
    DAMAGE[damage](home)
    with opened(home) as whimbrel:
        before = contents(whimbrel)
        whimbrel.own()
        searched_until_whole(whimbrel)
        settle(whimbrel)
        verified(whimbrel)
        assert contents(whimbrel) == before
        assert not strays(whimbrel)


@pytest.mark.parametrize("damage", each(WHILE_RUNNING))
def test_damage_while_running_heals(damage: str, home: Path) -> None:
    with opened(home) as whimbrel:
        whimbrel.own()
        assert not whimbrel.search(QUERY).degraded
        DAMAGE[damage](home)
        searched_until_whole(whimbrel)
        whimbrel.add([{"id": "later", "text": "Written after the damage."}])
        searched_until_whole(whimbrel)
        settle(whimbrel)
        verified(whimbrel)
        assert not strays(whimbrel)


def test_damage_is_healed_in_the_session_that_built_the_view(tmp_path: Path) -> None:
    """The owner took such a view for one that had never been live: it was dropped, and no other was built."""
    home = tmp_path / "home"
    with opened(home) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew in the harbour before the storm."}])
        assert not whimbrel.search(QUERY).degraded
        for name in ("store: folder gone", "lexicon: folder gone", "store: data gone", "lexicon: postings gone"):
            DAMAGE[name](home)
            assert whimbrel.search(QUERY).hits
            whimbrel.add([{"id": name, "text": f"A curlew, written after: {name}."}])
            searched_until_whole(whimbrel)
            settle(whimbrel)
        verified(whimbrel)
        assert not strays(whimbrel)


@pytest.mark.parametrize("kind", ["store", "lexicon"])
def test_verifying_finds_what_a_search_does_not_and_the_view_is_built_anew(kind: str, home: Path) -> None:
    if kind == "store":
        for place in range(20):  # some of it is padding
            flip(largest(store_of(home).joinpath("data").iterdir()), place / 20)
    else:
        flip(largest(lexicon_of(home).glob("*.store")), 0.2)
    with opened(home) as whimbrel:
        whimbrel.own()
        settle(whimbrel)
        live = next(row for row in whimbrel.views("default") if row.view.kind == kind)
        report = whimbrel.finish(whimbrel.start_view_job("verify_view", live.id))
        assert not report["equal"], report
        settle(whimbrel)
        assert live.id not in [row.id for row in whimbrel.views("default")]
        verified(whimbrel)


# --- of another time -------------------------------------------------------------------------------------------------


def set_back(saved: Path, home: Path, *folders: str) -> None:
    for folder in folders:
        shutil.rmtree(home / folder)
        shutil.copytree(saved / "home-1" / folder, home / folder)


def ids(whimbrel: Whimbrel) -> set[int]:
    return {row.id for row in whimbrel.views("default")}


def test_views_from_an_older_backup_catch_up_from_the_log(home: Path, saved: Path) -> None:
    set_back(saved, home, "views", "lexicons")
    with opened(home) as whimbrel:
        before = ids(whimbrel)
        whimbrel.own()
        said = searched_until_whole(whimbrel)
        settle(whimbrel)
        verified(whimbrel)
        assert ids(whimbrel) == before, said
    assert paid_again(home.parent / "journal") == 0


def test_rows_that_came_or_went_while_nobody_looked_are_noticed_when_the_view_has_caught_up(
    home: Path, saved: Path
) -> None:
    """As a Milvus server does that was killed: what had been deleted is there again, and the position is right."""
    lancedb = pytest.importorskip("lancedb")

    def table() -> Any:
        return lancedb.connect(store_of(home).parent).open_table(store_of(home).stem)

    now = {row["id"] for row in table().search().select(["id"]).to_list()}
    set_back(saved, home, "views")
    then = {row["id"] for row in table().search().select(["id"]).to_list()}
    gone = sorted(now & then)[:5]
    table().delete(f"id IN ({', '.join(map(repr, gone))})")
    with opened(home) as whimbrel:
        before = ids(whimbrel)
        whimbrel.own()
        searched_until_whole(whimbrel)
        settle(whimbrel)
        verified(whimbrel)
        assert len(ids(whimbrel) & before) == 1, "the store's view was built anew, the lexicon's not"


def test_views_from_an_older_backup_are_built_anew_where_the_log_has_been_cut(home: Path, saved: Path) -> None:
    set_back(saved, home, "views", "lexicons")
    with opened(home) as whimbrel:
        with whimbrel.catalog.write() as connection:
            log.cut(connection, 1, 1_000)
        before = ids(whimbrel)
        whimbrel.own()
        searched_until_whole(whimbrel)
        settle(whimbrel)
        verified(whimbrel)
        assert not ids(whimbrel) & before


@pytest.mark.parametrize("folder", ["views", "lexicons"])
def test_a_view_exchanged_for_an_older_copy_under_a_running_owner(folder: str, home: Path, saved: Path) -> None:
    with opened(home) as whimbrel:
        whimbrel.own()
        searched_until_whole(whimbrel)
        set_back(saved, home, folder)
        for number in range(3):
            whimbrel.add([{"id": f"later-{number}", "text": f"Written after the exchange: {number}."}], wait="job")
            assert whimbrel.search(QUERY).hits
        searched_until_whole(whimbrel)
        settle(whimbrel)
        verified(whimbrel)


@pytest.mark.parametrize(
    "written", [pytest.param(0, marks=pytest.mark.soak), 3, pytest.param(30, marks=pytest.mark.soak)]
)
def test_a_catalog_copied_back_while_the_views_are_newer(written: int, home: Path, saved: Path) -> None:
    """Also when, before an owner looks, the copy has grown as far as the views had come: the stamps tell."""
    for name in ("catalog.db-wal", "catalog.db-shm"):
        home.joinpath(name).unlink(missing_ok=True)
    shutil.copy(saved / "home-1" / "catalog.db", home / "catalog.db")
    with opened(home) as whimbrel:
        uris = sorted(contents(whimbrel))
        with whimbrel.catalog.write() as connection:
            found = collections.find(connection, "default")
            chunking = collections.collection_chunking(connection, found.id)
            assert chunking is not None
            for number in range(written):
                text = f"A curlew of another history, {number}."
                write_documents(connection, found.id, chunking, [document(f"text:{number}", text)])
        whimbrel.delete(uris[:1])
        before = ids(whimbrel)
        whimbrel.own()
        searched_until_whole(whimbrel)
        settle(whimbrel)
        verified(whimbrel)
        assert not ids(whimbrel) & before
        assert len(contents(whimbrel)) == len(uris) - 1 + written
        assert not strays(whimbrel)


def test_a_restored_home_builds_its_views_and_never_trusts_older_ones(home: Path, tmp_path: Path) -> None:
    archive = tmp_path / "saved.whimbrel"
    with opened(home) as whimbrel:
        whimbrel.own()
        whimbrel.backup(archive)
        before = contents(whimbrel)
        whimbrel.add([{"id": "later", "text": "A curlew written after the backup."}])
    for place in (home, tmp_path / "another"):
        for path in place.glob("catalog.db*"):  # the same place again: its views are of another history
            path.unlink()
        with opened(place) as whimbrel:
            whimbrel.restore(archive)
            with pytest.raises(ViewError):
                whimbrel.search(QUERY)  # the one case in which there is no answer: no view has been built yet
            whimbrel.own()
            settle(whimbrel)
            assert not whimbrel.search(QUERY).degraded
            assert contents(whimbrel) == before
            verified(whimbrel)
    assert paid_again(tmp_path / "journal") == 0


def test_a_replacement_that_is_dropped_is_begun_again(home: Path) -> None:
    """The view whose place it was to take was left without an owner's care for ever."""
    with opened(home, **{"owner.poll_s": 0.02}) as whimbrel:
        whimbrel.own()
        settle(whimbrel)
        store = next(row for row in whimbrel.views("default") if row.view.kind == "store")
        DAMAGE["store: data gone"](home)
        assert whimbrel.owner is not None
        with stopped_embedding(whimbrel):
            whimbrel.add([{"id": "later", "text": "A new text that waits for its vector."}], wait="job")
            whimbrel.search(QUERY)
            made = built_beside(whimbrel, store.id)
            whimbrel.finish(whimbrel.start_view_job("drop_view", made, now=True), wait="job")
        searched_until_whole(whimbrel)
        settle(whimbrel)
        verified(whimbrel)
        assert not ids(whimbrel) & {store.id, made}


@contextmanager
def stopped_embedding(whimbrel: Whimbrel) -> Iterator[None]:
    """The model is out, for documents."""
    embed = OnnxEmbedder.embed

    async def refuse(self: OnnxEmbedder, texts: Any, kind: EmbedKind) -> Any:
        if kind is EmbedKind.DOCUMENT:
            raise ModelError("The model is out.")
        return await embed(self, texts, kind)

    OnnxEmbedder.embed = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        OnnxEmbedder.embed = embed  # type: ignore[method-assign]


def built_beside(whimbrel: Whimbrel, view: int, timeout_s: float = 20.0) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for row in whimbrel.views("default"):
            if row.replaces == view:
                return row.id
        time.sleep(0.02)
    raise TimeoutError(whimbrel.status())


def test_no_flipped_byte_makes_a_search_fail(home: Path) -> None:
    """It finds what it can, and says what it could not. Without an owner, so that nothing is mended meanwhile."""
    dice = random.Random(3)
    files = [path for path in [*store_of(home).rglob("*"), *lexicon_of(home).rglob("*")] if path.is_file()]
    files = [path for path in files if path.stat().st_size > 0 and path.name != ".tantivy-writer.lock"]
    with opened(home) as whimbrel:
        for _ in range(60):
            path = dice.choice(files)
            good = path.read_bytes()
            flip(path, dice.random())
            for mode in ("hybrid", "dense", "lexical"):
                try:
                    found = whimbrel.search(QUERY, mode=mode)
                    assert found.hits or mode != "hybrid"
                except ViewError:
                    assert mode != "hybrid", path
            path.write_bytes(good)
            asyncio.run(close_readers(whimbrel))


async def close_readers(whimbrel: Whimbrel) -> None:
    for row in whimbrel.views():
        await whimbrel.engine.readers.close(row.id)
