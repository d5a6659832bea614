"""Whether a move's target is what the catalog says, and finds what it should.

Every row of each target is compared with the catalog at one position; then both sides are searched, and judged against
exact search over the vectors of record.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.catalog import collections, conversations, moves, rows
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import now
from whimbrel.catalog.moves import Move
from whimbrel.domain import EmbedKind, ViewKind
from whimbrel.errors import ViewDamaged
from whimbrel.models.embedders.base import Embedder
from whimbrel.move.recall import ExactSearch, Found, K, ask
from whimbrel.owner.compare import Comparison, compare
from whimbrel.owner.follower import Follower
from whimbrel.owner.owner import Owner
from whimbrel.owner.runner import JobContext
from whimbrel.owner.targets import StoreTarget
from whimbrel.owner.tasks import follower_of
from whimbrel.stores.base import Store

Asker = Callable[[int], Embedder]
"""The embedder of a space, by its key."""

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


class Checker:
    def __init__(self, context: JobContext, owner: Owner, asker: Asker) -> None:
        self._context = context
        self._catalog = context.catalog
        self._owner = owner
        self._asker = asker

    async def check(self, move: Move, *, mend: bool = False) -> dict[str, Any]:
        """All checks as one JSON object; `holds` says whether all is well, `said` what is not.

        `mend`: rows that differ are written again, and compared again; `mended` says how many.
        """
        began = time.monotonic()
        found = [await self._rows(view) for view in move.targets]
        mended = 0
        if mend and not all(one.equal for one in found):
            for one in found:
                mended += await self._mend(one)
            found = [await self._rows(view) for view in move.targets]
        seconds = time.monotonic() - began
        rejected = await asyncio.to_thread(self._rejected, move)
        sides = await self._sides(move)
        said = [_said(one) for one in found if not one.equal]
        if rejected:
            said.append(f"{rejected:,} rows cannot go: the target refuses them.")
        low = sides["target"][f"recall@{K}"] < min(RECALL, sides["source"][f"recall@{K}"])
        if low and not said:
            said.append(
                f"The target finds {sides['target'][f'recall@{K}']:.3f} of the nearest {K}, the source "
                f"{sides['source'][f'recall@{K}']:.3f}."
            )
        return {
            "at": now(),
            "holds": not said,
            "said": " ".join(said),
            "views": [one.report() for one in found],
            "seconds": round(seconds, 2),
            "mended": mended,
            "rejected": rejected,
            "search": sides,
        }

    # --- every row ---------------------------------------------------------------------------------------------------

    async def _rows(self, view: int) -> Comparison:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            follower = await follower_of(self._owner, view)
            try:
                async with follower.standing_still() as still:
                    if still is not None:
                        connection, changing = still
                        rejected = await asyncio.to_thread(moves.rejects, connection, follower.row)
                        besides = changing | {one.chunk_id for one in rejected}
                        return await compare(follower, connection, besides, self._progress)
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
            return sum(len(moves.rejects(connection, collections.view(connection, key))) for key in move.targets)

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

    async def _sides(self, move: Move) -> dict[str, Any]:
        questions = await asyncio.to_thread(self._questions, move.collection_id)
        sides = {}
        for name, view in (("source", move.source_store), ("target", move.target_store)):
            assert view is not None
            follower = await follower_of(self._owner, view)
            sides[name] = await self._side(follower, questions, seed=move.id)
        exact: dict[tuple[int | None, int], ExactSearch] = {}
        found: dict[str, Found] = {}
        for name, side in sides.items():
            same = (side.row.view.space_id, side.row.view.chunking_id)
            if same not in exact:
                exact[same] = await asyncio.to_thread(self._exact, side)
            found[name] = await ask(side.store, side.queries, exact[same])
        told: dict[str, Any] = {name: one.as_dict(len(sides[name].queries)) for name, one in found.items()}
        told["questions"] = len(questions)
        if questions:
            told["overlap"] = await asyncio.to_thread(self._overlap, sides, found, len(questions))
        return told

    def _questions(self, collection_id: int) -> list[str]:
        with self._catalog.read() as connection:
            return conversations.recent_questions(connection, collection_id, RECENT)

    async def _side(self, follower: Follower, questions: Sequence[str], seed: str) -> _Side:
        row = follower.row
        assert isinstance(follower.target, StoreTarget)
        assert row.view.space_id is not None
        sampled = await asyncio.to_thread(self._sample, row, seed)
        embedder = await asyncio.to_thread(self._asker, row.view.space_id)
        parts = [sampled] if len(sampled) else []
        if questions:
            parts.append(await embedder.embed(list(questions), EmbedKind.QUERY))
        queries = np.concatenate(parts) if parts else np.zeros((0, embedder.space.dimensions), np.float32)
        return _Side(row, follower.target.store, queries)

    def _sample(self, row: ViewRow, seed: str) -> npt.NDArray[np.float32]:
        """Vectors of record from all over the collection; the same ones each time."""
        with self._catalog.read() as connection:
            last = rows.max_chunk_key(connection, row.view.collection_id)
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
            last = rows.max_chunk_key(connection, view.collection_id)
            after = 0
            while keys := rows.next_keys(
                connection, view.collection_id, view.chunking_id, after=after, upto=last, limit=BLOCK
            ):
                after = keys[-1]
                exact.add(*rows.load_vectors(connection, keys, view.space_id))
        return exact

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
