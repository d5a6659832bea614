"""What a view holds does not depend on who fed it, from where, or how often it was begun."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crash.harness import opened, paid_again, settle, verified
from crash.test_heal import built_beside, stopped_embedding
from support import document
from whimbrel.catalog import collections, documents, log, rows, sources
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.domain import document_id
from whimbrel.owner import lock
from whimbrel.owner.embedding import EmbeddingStage
from whimbrel.owner.follower import Follower
from whimbrel.service import Service


def live(whimbrel: Service, kind: str) -> tuple[Collection, ViewRow]:
    with whimbrel.catalog.read() as connection:
        found = collections.find(connection, "default")
        return found, next(row for row in collections.live_views(connection, found) if row and row.view.kind == kind)


def test_two_views_of_one_space_cost_one_embedding_also_when_both_begin_at_once(tmp_path: Path) -> None:
    """After a restart each had a stage of its own, and each paid for the same texts."""
    home = tmp_path / "home"
    with opened(home) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew."}])
        _, row = live(whimbrel, "store")
        with stopped_embedding(whimbrel):
            texts = [{"id": str(number), "text": f"Another curlew, {number}."} for number in range(40)]
            whimbrel.add(texts, wait="job")
            whimbrel.start_view_job("rebuild_view", row.id)
            built_beside(whimbrel, row.id)
            assert whimbrel.owner is not None
            whimbrel.owner.stop()
    for _ in range(2):
        with opened(home) as whimbrel:
            settle(whimbrel)
            verified(whimbrel)
    assert paid_again(tmp_path / "journal") == 0


def test_a_view_behind_the_stage_gets_its_vectors_all_the_same(tmp_path: Path) -> None:
    """A stage that began further on than the view stood left out what was between them."""
    with opened(tmp_path / "home") as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew."}])
        settle(whimbrel)
        assert whimbrel.owner is not None
        whimbrel.owner.stop()
        collection, row = live(whimbrel, "store")
        with whimbrel.catalog.write() as connection:
            writes = [document(f"text:{number}", f"Another curlew, {number}.") for number in range(5)]
            documents.write_documents(connection, collection.id, row.view.chunking_id, writes)
            head = log.head(connection, collection.id).head
        assert row.view.space_id is not None
        ownership = lock.acquire(whimbrel.home, whimbrel.catalog, lease_s=30)
        stage = EmbeddingStage(
            whimbrel.catalog,
            whimbrel.embedder_for(row.view.space_id),
            collection_id=collection.id,
            chunking_id=row.view.chunking_id,
            space_id=row.view.space_id,
            after=head,
            fence=ownership.token,
        )

        async def follow() -> int:
            target = whimbrel._target(collection, row)
            follower = Follower(
                whimbrel.catalog, collection, row, target, stage, fence=ownership.token, on_position=lambda: None
            )
            await follower.open()
            while await follower.step():
                pass
            held = await target.count()
            await target.close()
            return held

        assert asyncio.run(follow()) == 6
        ownership.release()


@contextmanager
def half_built(home: Path) -> Iterator[tuple[Service, Collection, ViewRow, list[int], int]]:
    """A lexicon being built beside the live one by an owner that was killed: ten chunks to copy, nothing copied; with
    the keys of the chunks and the fence of who may go on."""
    with opened(home) as whimbrel:
        whimbrel.add([{"id": str(number), "text": f"A curlew, {number}."} for number in range(10)])
        settle(whimbrel)
        assert whimbrel.owner is not None
        whimbrel.owner.stop()
        collection, row = live(whimbrel, "lexicon")
        with whimbrel.catalog.write() as connection:
            made = collections.add_view(
                connection,
                collection,
                row.view.kind,
                uri=row.view.uri,
                space_id=None,
                chunking_id=row.view.chunking_id,
                replaces=row.id,
            )
            keys = rows.next_keys(connection, collection.id, row.view.chunking_id, after=0, upto=1_000, limit=10)
        ownership = lock.acquire(whimbrel.home, whimbrel.catalog, lease_s=30)
        yield whimbrel, collection, made, keys, ownership.token
        ownership.release()
        settle(whimbrel)
        verified(whimbrel)


def follow(whimbrel: Service, collection: Collection, row: ViewRow, fence: int, steps: int = 0) -> None:
    """Begin to feed a view, and be killed after some steps."""

    async def run() -> None:
        target = whimbrel._target(collection, row)
        follower = Follower(whimbrel.catalog, collection, row, target, None, fence=fence, on_position=lambda: None)
        await follower.open()
        for _ in range(steps):
            await follower.step()
        await target.close()

    asyncio.run(run())


def test_a_building_view_whose_data_is_lost_begins_at_the_beginning(tmp_path: Path) -> None:
    """It went on from the cursor of the data that was lost, and lacked all before it."""
    with half_built(tmp_path / "home") as (whimbrel, collection, made, keys, fence):
        with whimbrel.catalog.write() as connection:
            collections.set_view(connection, made.id, build_after=keys[4])  # so far it had come
            made = collections.view(connection, made.id)
        follow(whimbrel, collection, made, fence)
    with opened(tmp_path / "home") as whimbrel:
        assert made.id in [row.id for row in whimbrel.views()]


def test_a_building_view_whose_data_is_on_another_machine_begins_at_the_beginning(tmp_path: Path) -> None:
    """One that had copied nothing, because its collection was empty, and followed the log since: the next owner went
    on from there with an empty table, and its first rows were never in it."""
    with half_built(tmp_path / "home") as (whimbrel, collection, made, _, fence):
        with whimbrel.catalog.write() as connection:  # as it is for a view that was made before the first document
            collections.set_view(connection, made.id, build_upto=0)
            made = collections.view(connection, made.id)
        follow(whimbrel, collection, made, fence, steps=3)
        with whimbrel.catalog.read() as connection:
            assert rows.count_chunks(connection, collection.id, made.view.chunking_id) == 10
    with opened(tmp_path / "home") as whimbrel:
        assert made.id in [row.id for row in whimbrel.views()]


def test_a_view_that_lacks_rows_when_it_is_built_does_not_become_live(tmp_path: Path) -> None:
    """Two machines that took turns as the owner, each with a folder of its own: neither had all of what was copied."""
    with half_built(tmp_path / "home") as (whimbrel, collection, made, keys, fence):
        follow(whimbrel, collection, made, fence)
        with whimbrel.catalog.write() as connection:
            collections.set_view(connection, made.id, build_after=keys[4])  # copied by the other one
    with opened(tmp_path / "home") as whimbrel:
        held = {row.id: row.view.state for row in whimbrel.views()}
        assert held.get(made.id) != "live"


def test_new_metadata_for_a_document_that_was_purged_meanwhile_is_no_error(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew."}, {"id": "two", "text": "Another curlew."}])
        ids = {name: document_id(external_id=name, uri="") for name in ("one", "two")}
        with whimbrel.catalog.read() as connection:
            known = sources.known(connection, 1, list(ids.values()))
        whimbrel.purge(["one"])
        with whimbrel.catalog.write() as connection:
            sources.relabel(connection, 1, [(row.key, row.public_id, {"year": 2026}) for row in known.values()])
        settle(whimbrel)
        verified(whimbrel)
        assert [hit.metadata for hit in whimbrel.search("curlew", filter={"year": 2026}).hits] == [{"year": 2026}]
