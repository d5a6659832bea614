"""Whether a move's target is what the catalog says, and finds what it should.

Every row of each target is compared with the catalog at one position; then both sides are searched, and judged against
exact search over the vectors of record.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.catalog import collections, conversations, moves, rows
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import now
from whimbrel.catalog.moves import Move
from whimbrel.domain import EmbedKind, ViewKind
from whimbrel.errors import ViewDamaged, WhimbrelError
from whimbrel.models.embedders.base import Embedder
from whimbrel.move.recall import ExactSearch, Found, K, ask
from whimbrel.owner.compare import Comparison, compare
from whimbrel.owner.owner import Owner
from whimbrel.owner.runner import JobContext
from whimbrel.owner.targets import StoreTarget
from whimbrel.owner.tasks import follower_of
from whimbrel.stores.base import Store

Asker = Callable[[int], Embedder]
"""The embedder of a space, by its key."""

Judge = Callable[[Move, Callable[[int, int], Awaitable[None]]], Awaitable[dict[str, Any]]]
"""Searches both sides of a move for judged queries; told how far that is."""

SAMPLED = 50
"""Vectors of record that are searched for on each side."""
RECENT = 50
"""The last questions of stored conversations that are searched for too."""
RECALL = 0.95
"""What the target must find of the nearest ten; or as much as the source does."""
BLOCK = 5_000
MAX_MENDED = 100_000
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two store views, to be searched."""

    row: ViewRow
    store: Store
    queries: npt.NDArray[np.float32]
    """float32[n, d]: of sampled chunks, then of recent questions."""

    def like(self, other: _Side) -> bool:
        """Whether both hold the same vectors, and are asked the same."""
        one, two = self.row.view, other.row.view
        return (one.space_id, one.chunking_id) == (two.space_id, two.chunking_id)


class Checker:
    def __init__(self, context: JobContext, owner: Owner, asker: Asker, judge: Judge) -> None:
        self._context = context
        self._catalog = context.catalog
        self._owner = owner
        self._asker = asker
        self._judge = judge

    async def check(self, move: Move, *, mend: bool = False) -> dict[str, Any]:
        """All checks as one JSON object; `holds` says whether all is well, `said` what is not.

        `mend`: rows that differ are written again, and compared again; `mended` says how many.
        """
        began = time.monotonic()
        questions = await asyncio.to_thread(self._questions, move.collection_id)
        of_source, of_target = _stores(move)
        target = await self._side(of_target, questions, seed=move.id)
        exact = ExactSearch(target.queries)
        found = [await self._rows(view, exact if view == target.row.id else None) for view in move.targets]
        mended = 0
        if mend and not all(one.equal for one in found):
            for one in found:
                mended += await self._mend(one)
            exact = ExactSearch(target.queries)
            found = [await self._rows(view, exact if view == target.row.id else None) for view in move.targets]
        seconds = time.monotonic() - began
        rejected = await asyncio.to_thread(self._rejected, move)
        sides = await self._searched(move, of_source, target, exact, questions)
        said = [_said(one) for one in found if not one.equal]
        if rejected:
            said.append(f"{rejected:,} rows cannot go: the target, or its model, refuses them.")
        found_by = sides["target"][f"recall@{K}"]
        if not said and found_by < min(RECALL, sides["source"].get(f"recall@{K}", RECALL)):
            others = sides["source"].get(f"recall@{K}")
            compared = f", the source {others:.3f}" if others is not None else ""
            said.append(f"The target finds {found_by:.3f} of the nearest {K}{compared}.")
        quality = await self._judged(move)
        found_well = quality.get("modes", {}).get("hybrid", {}).get("ndcg@10", {}).get("after")
        if move.request.min_ndcg and (found_well is None or found_well < move.request.min_ndcg):
            reached = f"{found_well:.4f}" if found_well is not None else f"unknown ({quality.get('error')})"
            said.append(f"The target's nDCG@10 is {reached}; at least {move.request.min_ndcg:g} was asked for.")
        return {
            "at": now(),
            "holds": not said,
            "said": " ".join(said),
            "views": [one.report() for one in found],
            "seconds": round(seconds, 2),
            "mended": mended,
            "rejected": rejected,
            "search": sides,
            **({"quality": quality} if quality else {}),
        }

    async def _judged(self, move: Move) -> dict[str, Any]:
        """How well both sides find, by judged queries; nothing where nobody asked for it. What stands in its way is
        said, and holds up nobody who has not named a least nDCG."""
        if not move.request.judged:
            return {}

        async def tell(done: int, total: int) -> None:
            await self._progress(judged_queries=done, of=total)

        try:
            return await self._judge(move, tell)
        except WhimbrelError as error:
            return {"error": error.message}

    # --- every row ---------------------------------------------------------------------------------------------------

    async def _rows(self, view: int, exact: ExactSearch | None) -> Comparison:
        """`exact` is shown the vectors of record that are read for it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            follower = await follower_of(self._owner, view)
            try:
                async with follower.standing_still() as still:
                    if still is not None:
                        connection, changing = still
                        rejected = await asyncio.to_thread(moves.rejects, connection, follower.row)
                        besides = changing | {one.chunk_id for one in rejected}
                        witness = exact.add if exact is not None else None
                        return await compare(follower, connection, besides, self._progress, witness)
            except ViewDamaged as damaged:
                return Comparison(view, follower.row.view.kind, follower.position, damage=damaged.message)
            if time.monotonic() > deadline:
                raise ViewDamaged(
                    f"View {view} did not come to rest at the head of its log in {PATIENCE_S / 60:.0f} minutes.",
                    "Verify again when less is being written.",
                )
            await self._context.checkpoint(state="verifying", waiting_for="the view to catch up")
            await asyncio.sleep(0.1)

    async def _progress(self, **counts: Any) -> None:
        await self._context.checkpoint(state="verifying", **counts)

    def _rejected(self, move: Move) -> int:
        with self._catalog.read() as connection:
            return len(moves.lost(connection, move))

    async def _mend(self, found: Comparison) -> int:
        """Write again what differs, and remove what should not be there."""
        follower = await follower_of(self._owner, found.view)
        wrong = [*found.missing, *found.different, *found.extra]
        if found.damage or found.doubled or len(wrong) > MAX_MENDED:
            raise ViewDamaged(
                f"{_said(found)} That is too much to be mended row by row.",
                "`whimbrel move abort` drops the target; start the move again.",
            )
        for start in range(0, len(wrong), BLOCK):
            await follower.write_again(wrong[start : start + BLOCK])
        return len(wrong)

    # --- searching both sides ----------------------------------------------------------------------------------------

    async def _searched(
        self, move: Move, of_source: int, target: _Side, exact: ExactSearch, questions: Sequence[str]
    ) -> dict[str, Any]:
        """`exact`: what a search of the target should find. A source that does not answer holds up nobody: it may be
        why the collection moves."""
        there = await ask(target.store, target.queries, exact, partial(self._vectors_now, target))
        told: dict[str, Any] = {"target": there.as_dict(len(target.queries)), "questions": len(questions)}
        try:
            source = await self._side(of_source, questions, seed=move.id)
            if source.like(
                target
            ):  # others write meanwhile: a sample drawn now may not be that which `exact` was asked
                source = replace(source, queries=target.queries)
            else:
                exact = await asyncio.to_thread(self._exact, source)
            here = await ask(source.store, source.queries, exact, partial(self._vectors_now, source))
        except WhimbrelError as error:
            told["source"] = {"error": error.message}
            return told
        told["source"] = here.as_dict(len(source.queries))
        if questions:
            told["overlap"] = await asyncio.to_thread(
                self._overlap, {"source": source, "target": target}, {"source": here, "target": there}, len(questions)
            )
        return told

    def _questions(self, collection_id: int) -> list[str]:
        with self._catalog.read() as connection:
            return conversations.recent_questions(connection, collection_id, RECENT)

    async def _side(self, view: int, questions: Sequence[str], seed: str) -> _Side:
        row, store = await self._opened(view)
        assert row.view.space_id is not None
        sampled = await asyncio.to_thread(self._sample, row, seed)
        embedder = await asyncio.to_thread(self._asker, row.view.space_id)
        parts = [sampled] if len(sampled) else []
        if questions:
            parts.append(await embedder.embed(list(questions), EmbedKind.QUERY))
        queries = np.concatenate(parts) if parts else np.zeros((0, embedder.space.dimensions), np.float32)
        return _Side(row, store, queries)

    async def _opened(self, view: int) -> tuple[ViewRow, Store]:
        frozen = self._owner.views.frozen(view)
        if frozen is not None:
            with self._catalog.read() as connection:
                return collections.view(connection, view), frozen
        follower = await follower_of(self._owner, view)
        assert isinstance(follower.target, StoreTarget)
        return follower.row, follower.target.store

    def _sample(self, row: ViewRow, seed: str) -> npt.NDArray[np.float32]:
        """Vectors of record from all over the collection; the same ones each time."""
        with self._catalog.read() as connection:
            last = rows.max_chunk_key(connection, row.view.collection_id, row.view.chunking_id)
            places = sorted(random.Random(seed).sample(range(last), min(SAMPLED, last)))
            where = (row.view.collection_id, row.view.chunking_id)
            near = (rows.next_keys(connection, *where, after=place, upto=last, limit=1) for place in places)
            keys = sorted({key for found in near for key in found})
            _, vectors = rows.load_vectors(connection, keys, row.view.space_id)
        return vectors

    def _exact(self, side: _Side) -> ExactSearch:
        exact = ExactSearch(side.queries)
        view = side.row.view
        with self._catalog.read() as connection:
            last = rows.max_chunk_key(connection, view.collection_id, view.chunking_id)
            after = 0
            while keys := rows.next_keys(
                connection, view.collection_id, view.chunking_id, after=after, upto=last, limit=BLOCK
            ):
                after = keys[-1]
                exact.add(*rows.load_vectors(connection, keys, view.space_id))
        return exact

    def _vectors_now(self, side: _Side, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Of those chunks that there are."""
        view = side.row.view
        with self._catalog.read() as connection:
            keys = rows.keys_of(connection, view.collection_id, view.chunking_id, ids)
            return dict(zip(*rows.load_vectors(connection, keys, view.space_id), strict=True))

    def _overlap(self, sides: dict[str, _Side], found: dict[str, Found], questions: int) -> float:
        """Of the documents that a recent question finds on one side, how many the other finds too; the mean."""
        shares = []
        with self._catalog.read() as connection:
            documents = {
                name: [
                    {
                        chunk.document_id
                        for chunk in rows.hydrate(
                            connection, side.row.view.collection_id, side.row.view.chunking_id, ids
                        ).values()
                    }
                    for ids in found[name].ids[-questions:]
                ]
                for name, side in sides.items()
            }
        for one, other in zip(documents["source"], documents["target"], strict=True):
            if one or other:
                shares.append(len(one & other) / max(len(one), len(other)))
        return round(float(np.mean(shares)), 4) if shares else 1.0


def _stores(move: Move) -> tuple[int, int]:
    assert move.source_store is not None
    assert move.target_store is not None
    return move.source_store, move.target_store


def _said(found: Comparison) -> str:
    what = "lexicon" if found.kind is ViewKind.LEXICON else "target"
    if found.damage:
        return f"The {what} cannot be read: {found.damage}"
    counts = [
        f"{len(ids):,} {word}"
        for word, ids in (("missing", found.missing), ("extra", found.extra), ("different", found.different))
        if ids
    ]
    counts += [f"{found.doubled:,} twice"] if found.doubled else []
    return f"The {what} differs from the catalog at position {found.position}: rows {', '.join(counts)}."
