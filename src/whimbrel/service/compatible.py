"""Declaring that a model may serve a space that another made: a move without copying."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import collections, compatible, moves, vectors
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.compatible import Compatible, CompatibleState
from whimbrel.domain import Space, ViewKind
from whimbrel.errors import Conflict, MoveNotFound, SpaceMismatch, WhimbrelError
from whimbrel.ingest.chunk import Chunking, check_readable
from whimbrel.models.embedders.base import Embedder
from whimbrel.move.compatible import check_probed, check_quality, check_spaces, probe
from whimbrel.search.quality import JudgedHere, Quality, judged_here
from whimbrel.service.moves import Moves, judged_folder


class CompatibleSpaces(Moves):
    """What changes the model of a collection without embedding it anew."""

    @abstractmethod
    def _look_again(self, space_id: int) -> None:
        """What serves a space was decided anew: the next call follows it."""

    @abstractmethod
    def _quality(self) -> Quality:
        """What judges how well searches find."""

    def declare_compatible(
        self, collection: str, embedder: str, *, judged: str | Path | None = None, min_ndcg: float = 0.0
    ) -> Compatible:
        """Let `embedder`, a `provider:model`, serve the space of a collection from now on, in every process and for
        every collection of that space: it embeds the queries and the new texts; the vectors of record stay.

        First its vectors of probe texts (chunks from all over, and recent questions) are compared with those of record.
        What was measured is kept with the decision. `withdraw_compatible` goes back, until `finalise_compatible`.
        `judged`: a folder of judged queries in BEIR's layout, which are embedded by the model that serves now and by
        the other, and searched for; with `min_ndcg`, the other must reach that nDCG@10 by hybrid search.

        Raises `SpaceMismatch` where what was measured is below what is wanted, or the vectors can never be compared;
        `BadInput` and `PathNotFound` for what cannot be judged by; `ConfigError` where the model reads less than the
        longest chunk may have; `Conflict` while another declaration can be taken back, a move of the collection is
        under way, or it has too few chunks; and what the model raises.
        """
        row, space, spec, chunking = self._served(collection)
        model = self.embedder(embedder)
        check_spaces(space, self._serving_space(row, space), model.space, embedder)
        cut = Chunking.parse(chunking)
        if not cut.adopted:  # rows of another program are as long as they are; how many are too long is measured
            check_readable(cut, model.space)
        self._check_free(collection, row)
        judgements = self._judgements(row, judged, min_ndcg)
        probed = asyncio.run(probe(self.catalog, row, model, self._own_model(space, spec)))
        check_probed(probed, embedder)
        assert row.view.space_id is not None
        measured = probed.as_dict()
        if judgements is not None:
            measured["quality"] = asyncio.run(self._judged_models(row, judgements, model))
            check_quality(measured["quality"], min_ndcg, embedder)
        with self.catalog.write() as connection:
            found = compatible.declare(connection, row.view.space_id, collection, embedder, model.space, measured)
        self._decided(row.view.space_id)
        return found

    def compatible(self, collection: str) -> Compatible | None:
        """The last declaration about a collection's space; None where there never was one."""
        with self.catalog.read() as connection:
            store = _store_view(connection, collection)
            if store is None or store.view.space_id is None:
                return None
            return compatible.latest(connection, store.view.space_id)

    def withdraw_compatible(self, collection: str) -> Compatible:
        """Let the space's own model serve it again. Texts that were embedded meanwhile keep their vectors.

        Raises `MoveNotFound` where nothing was declared, `Conflict` after it was finalised.
        """
        return self._decide(collection, CompatibleState.ROLLED_BACK)

    def finalise_compatible(self, collection: str) -> Compatible:
        """Give up the way back. Raises as `withdraw_compatible`."""
        return self._decide(collection, CompatibleState.FINALISED)

    def _decide(self, collection: str, state: CompatibleState) -> Compatible:
        found = self.compatible(collection)
        if found is None:
            raise MoveNotFound(
                f"No model was declared compatible with the space of {collection!r}.",
                f"`whimbrel move start {collection} --embedder MODEL --compatible` declares one.",
            )
        with self.catalog.write() as connection:
            changed = compatible.change(connection, found, state)
        self._decided(found.space_id)
        return changed

    def _served(self, collection: str) -> tuple[ViewRow, Space, str, str]:
        """The live store view, its space, the embedder that made it, and how it is cut."""
        with self.catalog.read() as connection:
            store = _store_view(connection, collection)
            if store is None or store.view.space_id is None:
                raise Conflict(
                    f"The collection {collection!r} has no live view yet: it is being built. Nothing was changed.",
                    "Try again when `whimbrel status` shows it live.",
                )
            space, spec = vectors.read_space(connection, store.view.space_id)
            return store, space, spec, collections.chunking_spec(connection, store.view.chunking_id)

    def _judgements(self, row: ViewRow, judged: str | Path | None, min_ndcg: float) -> JudgedHere | None:
        folder = judged_folder(judged, min_ndcg)
        return judged_here(self.catalog, row.view.collection_id, folder) if folder is not None else None

    async def _judged_models(self, row: ViewRow, judged: JudgedHere, model: Embedder) -> dict[str, Any]:
        assert row.view.space_id is not None
        try:
            serving = await asyncio.to_thread(self.embedder_for, row.view.space_id)
        except SpaceMismatch as error:
            raise Conflict(
                "Judged queries compare two models, and none serves the collection's vectors now. Nothing was changed.",
                "Leave --eval out; `whimbrel eval` judges the collection afterwards.",
            ) from error
        return await self._quality().of_models(row, judged, serving, model)

    def _check_free(self, collection: str, row: ViewRow) -> None:
        assert row.view.space_id is not None
        with self.catalog.read() as connection:
            compatible.check_open(compatible.latest(connection, row.view.space_id))
            going = [
                one for one in moves.listing(connection, under_way=True, limit=None) if one.collection == collection
            ]
        if going:
            raise Conflict(
                f"The collection {collection!r} is being moved: move {going[0].id} is {going[0].state}. Nothing was "
                "changed.",
                "End that one first: `whimbrel move finalise`, or `move abort`.",
            )

    def _serving_space(self, row: ViewRow, space: Space) -> Space:
        assert row.view.space_id is not None
        with self.catalog.read() as connection:
            declared = compatible.serving(connection, row.view.space_id)
        return declared.space if declared is not None else space

    def _own_model(self, space: Space, spec: str) -> Embedder | None:
        """The model that made a space; None where it is not here, or is another by now."""
        try:
            found = self.embedder(spec)
        except WhimbrelError:  # then the vectors of record are all there is to compare with, and the report says so
            return None
        return found if found.space.key == space.key else None

    def _decided(self, space_id: int) -> None:
        self._look_again(space_id)
        self._wake()


def _store_view(connection: Connection, collection: str) -> ViewRow | None:
    """The live store view; else the one that is being built: of an imported collection whose model is not here, it
    stands still until another is declared."""
    found = collections.find(connection, collection)
    store, _ = collections.live_views(connection, found)
    if store is not None:
        return store
    return next((row for row in collections.views(connection, found.id) if row.view.kind is ViewKind.STORE), None)
