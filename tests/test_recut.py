"""Another chunking, cut from the catalog's own text: what a fresh ingest would have made, and nothing is read again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from running import reads
from whimbrel.app import Whimbrel
from whimbrel.catalog import collections, spans
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import DocumentState, MoveState, ViewKind, ViewState
from whimbrel.errors import Conflict, ExtractionFailed, ExtractionTimeout
from whimbrel.ingest.chunk import Chunking
from whimbrel.ingest.extract import Limits
from whimbrel.ingest.pipeline import Cutting, Guard, Ingest, IngestArgs
from whimbrel.ingest.recut import Recut, Step
from whimbrel.ingest.workers import ExtractionPool, Measured, Processed, Request
from whimbrel.models.embedders import minilm

pytestmark = pytest.mark.timeout(300)

LARGE, SMALL = "tokens=186,overlap=18", "tokens=48,overlap=6"
EACH = 2
"""Real files of each ending."""
MOST_BYTES = 400_000


@pytest.fixture
async def pool() -> AsyncIterator[ExtractionPool]:
    pool = ExtractionPool(workers=2, timeout_s=60)
    yield pool
    await pool.close()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """An empty folder for files to be read."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


class There:
    """A collection with a live view in one chunking, and what reads into it and cuts it."""

    def __init__(self, catalog: Catalog, pool: ExtractionPool, name: str = "docs", spec: str = LARGE) -> None:
        self.catalog = catalog
        self.pool = pool
        with catalog.write() as connection:
            self.collection = collections.create(connection, name)
        self.live = self.view(spec)
        with catalog.write() as connection:
            collections.switch(connection, self.collection.id, collections.view(connection, self.live))

    def key(self, spec: str) -> int:
        with self.catalog.write() as connection:
            return collections.chunking_id(connection, spec)

    def view(self, spec: str) -> int:
        key = self.key(spec)
        with self.catalog.write() as connection:
            kind = ViewKind.STORE
            added = collections.add_view(connection, self.collection, kind, uri="x:", space_id=None, chunking_id=key)
        return added.id

    def cutting(self, _of: Collection | None = None) -> Cutting:
        with self.catalog.read() as connection:
            keys = collections.collection_chunkings(connection, self.collection.id)
            specs = {key: collections.chunking_spec(connection, key) for key in keys}
        tokenizer = minilm.folder() / "tokenizer.json"
        return Cutting({key: Measured(Chunking.parse(spec), tokenizer) for key, spec in specs.items()}, Limits())

    def ingest(self) -> Ingest:
        return Ingest(
            self.catalog,
            self.collection.id,
            cutting=self.cutting,
            pool=self.pool,
            guard=Guard(0.5, 10),
            fence=None,
            in_flight=8,
        )

    async def read(self, *paths: Path) -> dict[str, Any]:
        run = self.ingest()
        async with aclosing(run.files(IngestArgs([str(path) for path in paths]))) as reports:
            async for _ in reports:
                pass
        return run.report.as_dict()

    async def step(self, spec: str, after: int = 0, kept: Callable[[Connection, Step], None] | None = None) -> Step:
        recut = Recut(lambda: self.pool, self.cutting)
        return await recut.step(
            self.catalog,
            self.collection,
            self.key(spec),
            after=after,
            upto=10**9,
            fence=None,
            also=kept or (lambda _connection, _step: None),
        )

    def chunks(self, spec: str) -> dict[str, tuple[Any, ...]]:
        """With all that is kept of them but their keys."""
        chunks = t.chunks.c
        query = (
            select(chunks, t.documents.c.uri, t.texts.c.hash)
            .join(t.documents)
            .join(t.texts, t.texts.c.id == chunks.text_id)
            .where(chunks.collection_id == self.collection.id, chunks.chunking_id == self.key(spec))
        )
        with self.catalog.read() as connection:
            found = connection.execute(query).all()
            texts = spans.read_spans(connection, found)
        named = ("uri", "ordinal", "start", "end", "tokens", "context", "page", "hash")
        return {
            row.public_id.hex(): (*(getattr(row, name) for name in named), text)
            for row, text in zip(found, texts, strict=True)
        }


def some_of_each(folder: Path) -> Iterator[Path]:
    """Real files of every ending that there is, in a fixed order."""
    taken: dict[str, int] = defaultdict(int)
    for path in sorted(folder.rglob("*")):
        ending = path.suffix.lower()
        if path.is_file() and path.stat().st_size <= MOST_BYTES and taken[ending] < EACH:
            taken[ending] += 1
            yield path


async def test_real_documents_are_cut_as_if_they_were_read_anew(
    tmp_path: Path, data_dir: Path, pool: ExtractionPool
) -> None:
    from support import opened

    papers = sorted((data_dir / "pdf_qa" / "aragog").rglob("*.pdf"))[:1]
    guides = sorted((data_dir / "docs" / "frc-docs").rglob("*.rst"))[:5]
    pages = sorted((data_dir / "sites" / "jekyll").rglob("*.html"))[:5]
    files = [*some_of_each(data_dir / "files"), *papers, *guides, *pages]
    catalog = opened(f"sqlite:///{tmp_path / 'catalog.db'}", tmp_path / "copies")
    there, fresh = There(catalog, pool), There(catalog, pool, "fresh", SMALL)
    report = await there.read(*files)
    assert report["added"] > 30
    before = there.chunks(LARGE)
    there.view(SMALL)
    step = await there.step(SMALL)
    while step.reached < 10**9:
        step = await there.step(SMALL, step.reached)
    await fresh.read(*files)
    made = there.chunks(SMALL)
    assert made == fresh.chunks(SMALL)
    assert there.chunks(LARGE) == before
    with catalog.read() as connection:
        documents = t.documents.c
        here = select(documents.media_type).where(
            documents.collection_id == there.collection.id, documents.text_length > 0
        )
        formats = set(connection.execute(here.distinct()).scalars())
    assert len(formats) > 15, formats
    assert any(page is not None and page > 1 for *_, page, _, _ in made.values())
    assert sum(bool(row[5]) for row in made.values()) > 100, "contexts"
    assert len(made) > 1.5 * len(before)
    catalog.close()


async def test_titles_by_hand_and_by_name(catalog: Catalog, pool: ExtractionPool, tmp_path: Path) -> None:
    given = [
        ({"id": "1", "title": "By hand"}, b"# In the text\n\nSome words.\n\n## Below\n\nMore words."),
        ({"id": "2"}, b"No heading at all, only words."),
        ({"uri": "upload:notes.txt", "name": "notes.txt"}, b"Words of a file that has but a name."),
        (
            {"uri": "upload:page.html", "name": "page.html"},
            b"<title>A page</title><p>Words of it.</p><h2>Two</h2><p>More.",
        ),
    ]
    there, fresh = There(catalog, pool), There(catalog, pool, "fresh", SMALL)
    for one in (there, fresh):
        run = one.ingest()
        await run.texts([run.text(about, data) for about, data in given])
    there.view(SMALL)
    await there.step(SMALL)
    assert there.chunks(SMALL) == fresh.chunks(SMALL)
    contexts = {row[5] for row in there.chunks(SMALL).values()}
    assert contexts == {"", "In the text", "A page"}


async def test_a_text_that_could_not_be_read_again_is_cut_too(
    catalog: Catalog, pool: ExtractionPool, tmp_path: Path
) -> None:
    there = There(catalog, pool)
    file = tmp_path / "a.md"
    file.write_text("# One\n\nThe text that was read before.")
    await there.read(file)
    file.write_bytes(b"")
    assert (await there.read(file))["failed"] == 1
    there.view(SMALL)
    step = await there.step(SMALL)
    assert (step.documents, step.chunks) == (1, 1)
    with catalog.read() as connection:
        [state] = connection.execute(select(t.documents.c.state)).scalars()
    assert state == DocumentState.FAILED


# --- beside writers --------------------------------------------------------------------------------------------------


async def test_what_was_read_before_a_move_began_is_cut_again_before_it_is_written(
    catalog: Catalog, pool: ExtractionPool, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, fresh = There(catalog, pool), There(catalog, pool, "fresh", SMALL)
    for number in range(6):
        (notes / f"{number}.md").write_text(f"# Note {number}\n\n" + f"Some words of number {number}. " * 40)
    extract = Ingest._extract
    begun: list[int] = []

    async def late(self: Ingest, pending: Any) -> Any:
        ready = await extract(self, pending)
        if not begun:
            begun.append(await asyncio.to_thread(there.view, SMALL))
        return ready

    monkeypatch.setattr(Ingest, "_extract", late)
    with reads(monkeypatch) as read:
        report = await there.read(notes)
    assert (report["added"], report["failed"]) == (6, 0)
    assert report["chunks_added"] == len(there.chunks(LARGE)), "counted in the live chunking"
    assert sorted(read) == sorted([f"{n}.md" for n in range(6)] + [f"Note {n}" for n in range(6)]), "each cut once more"
    await fresh.read(notes)
    assert there.chunks(SMALL) == fresh.chunks(SMALL)
    assert (await there.step(SMALL)).documents == 0


async def test_a_switch_while_documents_are_read_loses_none(
    catalog: Catalog, pool: ExtractionPool, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, fresh = There(catalog, pool), There(catalog, pool, "fresh", SMALL)
    for number in range(6):
        (notes / f"{number}.md").write_text(f"# Note {number}\n\n" + f"Some words of number {number}. " * 40)
    extract = Ingest._extract
    moving = asyncio.Lock()
    moved: list[int] = []

    def move() -> None:
        key = there.view(SMALL)
        with catalog.write() as connection:
            collections.switch(connection, there.collection.id, collections.view(connection, key))
            collections.set_view(connection, there.live, state=ViewState.RETIRED)

    async def late(self: Ingest, pending: Any) -> Any:
        ready = await extract(self, pending)
        async with moving:  # none is written down before it
            if not moved:
                await asyncio.to_thread(move)
                moved.append(1)
        return ready

    monkeypatch.setattr(Ingest, "_extract", late)
    report = await there.read(notes)
    monkeypatch.undo()
    await fresh.read(notes)
    assert there.chunks(SMALL) == fresh.chunks(SMALL)
    assert there.chunks(LARGE) == {}
    assert report["chunks_added"] == len(fresh.chunks(SMALL))


async def test_after_a_switch_nothing_is_read_again(
    catalog: Catalog, pool: ExtractionPool, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = There(catalog, pool)
    (notes / "a.md").write_text("# One\n\n" + "Some words. " * 100)
    await there.read(notes)
    key = there.view(SMALL)
    await there.step(SMALL)
    with catalog.write() as connection:
        collections.switch(connection, there.collection.id, collections.view(connection, key))
    with reads(monkeypatch) as read:
        report = await there.read(notes)
    assert (read, report["unchanged"]) == ([], 1)


# --- when it cannot go on --------------------------------------------------------------------------------------------


async def test_the_cursor_is_kept_with_the_chunks(catalog: Catalog, pool: ExtractionPool, notes: Path) -> None:
    there = There(catalog, pool)
    (notes / "a.md").write_text("# One\n\nSome words.")
    await there.read(notes)
    there.view(SMALL)

    def dies(_connection: Connection, _step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await there.step(SMALL, kept=dies)
    assert there.chunks(SMALL) == {}
    kept: list[Step] = []
    step = await there.step(SMALL, kept=lambda _connection, done: kept.append(done))
    assert kept == [step]
    assert len(there.chunks(SMALL)) == 1
    assert (await there.step(SMALL)).documents == 0


async def test_a_text_that_cannot_be_cut_is_named_and_keeps_no_other(
    catalog: Catalog, pool: ExtractionPool, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = There(catalog, pool)
    for number in range(3):
        (notes / f"{number}.md").write_text(f"# Note {number}\n\nSome words.")
    await there.read(notes)
    there.view(SMALL)
    process = ExtractionPool.process

    async def slow(self: ExtractionPool, request: Request) -> Processed:
        if request.name == "Note 1":
            raise ExtractionTimeout("Stopped: it took too long.", "Raise `ingest.timeout_s`.")
        return await process(self, request)

    monkeypatch.setattr(ExtractionPool, "process", slow)
    with pytest.raises(ExtractionFailed, match=r"1\.md cannot be cut: Stopped"):
        await there.step(SMALL)
    assert len(there.chunks(SMALL)) == 2
    monkeypatch.undo()
    assert (await there.step(SMALL)).documents == 1, "the others are passed over"
    assert len(there.chunks(SMALL)) == 3


async def test_a_chunking_that_no_view_has_is_refused(catalog: Catalog, pool: ExtractionPool) -> None:
    there = There(catalog, pool)
    with pytest.raises(Conflict, match="No view"):
        await there.step(SMALL)


# --- the whole way ---------------------------------------------------------------------------------------------------


def live_chunks(home: Whimbrel, name: str) -> dict[str, tuple[Any, ...]]:
    chunks = t.chunks.c
    with home.catalog.read() as connection:
        found = collections.find(connection, name)
        store, lexicon = collections.live_views(connection, found)
        assert store is not None
        assert lexicon is not None
        assert store.view.chunking_id == lexicon.view.chunking_id
        here = (chunks.collection_id == found.id) & (chunks.chunking_id == store.view.chunking_id)
        query = select(chunks.public_id, chunks.start, chunks.end, chunks.tokens, chunks.context, chunks.page)
        return {row.public_id.hex(): tuple(row)[1:] for row in connection.execute(query.where(here))}


def test_a_move_to_another_chunking_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(12):
        text = f"# Note {number}\n\n" + "\n\n".join(f"Paragraph {n} of note {number} on birds. " * 6 for n in range(8))
        (folder / f"{number:02}.md").write_text(text)
    with Whimbrel(home=tmp_path / "home") as home:
        home.ingest([folder], "notes")
        home.ingest([folder], "fresh", chunking=SMALL)
        move, job = home.start_move("notes", chunking=SMALL)
        (folder / "late.md").write_text("# Late\n\n" + "A note that came while it moved. " * 30)
        home.ingest([folder], "notes", wait="job")
        home.finish(job, timeout_s=200)
        assert home.move_by_id(move.id).state is MoveState.READY, home.move_by_id(move.id).error
        with reads(monkeypatch) as read:
            home.finish(home.switch_move(move), timeout_s=60)
            home.ingest([folder], "fresh")
            assert read == ["late.md"]
            assert home.ingest([folder], "notes")["unchanged"] == 13
            assert read == ["late.md"]
        assert live_chunks(home, "notes") == live_chunks(home, "fresh")
        assert home.search("note that came while it moved", "notes").hits[0].uri.endswith("late.md")
        shown = {one["uri"]: one["chunks"] for one in home.documents("notes")}
        assert shown == {one["uri"]: one["chunks"] for one in home.documents("fresh")}

        (folder / "00.md").unlink()
        (folder / "01.md").write_text("# Another\n\n" + "What was written after the switch. " * 30)
        home.ingest([folder], "notes")
        home.finish(home.rollback_move(move), timeout_s=60)
        home.ingest([folder], "again")
        assert live_chunks(home, "notes") == live_chunks(home, "again"), "the way back was kept up to date"
        home.abort_move(home.move_by_id(move.id))
        [forgetting] = [one for one in home.jobs() if one.kind == "forget_chunkings"]
        home.finish(forgetting, timeout_s=60)
        with home.catalog.read() as connection:
            of = collections.find(connection, "notes").id
            left = set(
                connection.execute(select(t.chunks.c.chunking_id).where(t.chunks.c.collection_id == of)).scalars()
            )
            assert left == set(collections.collection_chunkings(connection, of))
            assert len(left) == 1
