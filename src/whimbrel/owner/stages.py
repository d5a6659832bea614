"""The embedding stages that run: one for each collection, chunking and space, whatever number of views it serves."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from whimbrel.catalog import collections
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.domain import ViewKind
from whimbrel.errors import Fenced
from whimbrel.owner.embedding import EmbeddingStage
from whimbrel.owner.events import comes
from whimbrel.owner.parts import Parts, logged, said
from whimbrel.owner.under_way import UnderWay

logger = logging.getLogger("whimbrel.owner")


@dataclass(frozen=True, slots=True)
class _Running:
    stage: EmbeddingStage
    wake: asyncio.Event
    task: asyncio.Task[None]


class Stages:
    def __init__(
        self,
        parts: Parts,
        fence: int,
        *,
        on_progress: Callable[[int], None],
        on_error: Callable[[EmbeddingStage, str], Awaitable[None]],
        on_fenced: Callable[[Fenced], None],
    ) -> None:
        """`on_progress(collection_id)`: a stage has come further. `on_error(stage, what is wrong)`: it stands still."""
        self._parts = parts
        self._catalog = parts.catalog
        self._fence = fence
        self._on_progress = on_progress
        self._on_error = on_error
        self._on_fenced = on_fenced
        self._running: dict[tuple[int, int, int], _Running] = {}
        """By collection, chunking and space."""
        self._under_way: defaultdict[int, UnderWay] = defaultdict(UnderWay)
        """By space."""
        self._staging = asyncio.Lock()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [running.task for running in self._running.values()]

    @property
    def embedded(self) -> int:
        """Texts that were embedded since this owner began."""
        return sum(running.stage.embedded for running in list(self._running.values()))

    def upto(self) -> dict[int, int]:
        """By collection: the position up to which every change has its vector of record, in every space."""
        reached: dict[int, int] = {}
        for (collection_id, _, _), running in list(self._running.items()):
            upto = running.stage.upto
            reached[collection_id] = min(upto, reached.get(collection_id, upto))
        return reached

    def nudge(self, heads: Mapping[int, int]) -> None:
        """Wake those that are behind the heads of their collections."""
        for (collection_id, _, _), running in self._running.items():
            if heads.get(collection_id, 0) > running.stage.upto:
                running.wake.set()

    async def of(self, collection: Collection, row: ViewRow) -> EmbeddingStage | None:
        """The stage that fills the vectors of a view, begun if it is not; None for a lexicon."""
        space = row.view.space_id
        if row.view.kind is not ViewKind.STORE or space is None:
            return None
        key = (collection.id, row.view.chunking_id, space)
        async with self._staging:  # or two views that begin at once would each pay for the same texts
            known = self._running.get(key)
            if known is not None and not known.task.done():
                return known.stage
            embedder = await asyncio.to_thread(self._parts.embedder_for, space)
            stage = EmbeddingStage(
                self._catalog,
                embedder,
                collection_id=collection.id,
                chunking_id=row.view.chunking_id,
                space_id=space,
                after=await asyncio.to_thread(self._lowest, collection.id, row),
                fence=self._fence,
                batch=self._parts.batch,
                under_way=self._under_way[space],
                on_progress=lambda: self._on_progress(collection.id),
            )
            wake = asyncio.Event()
            task = asyncio.create_task(self._embed(stage, wake, collection.id), name=f"embed-{key}")
            self._running[key] = _Running(stage, wake, task)
            return stage

    def _lowest(self, collection_id: int, row: ViewRow) -> int:
        """The position of the slowest view that holds the same vectors: a stage that began further on would leave out
        what that one has still to get."""
        same = (row.view.space_id, row.view.chunking_id)
        with self._catalog.read() as connection:
            fed = collections.fed(collections.views(connection, collection_id))
        found = [other.view.position for other in fed if (other.view.space_id, other.view.chunking_id) == same]
        return min([row.view.position, *found])

    async def _embed(self, stage: EmbeddingStage, wake: asyncio.Event, collection_id: int) -> None:
        patience = 1.0
        while True:
            wake.clear()
            try:
                if await stage.step():
                    stage.error = ""
                    patience = 1.0
                    self._on_progress(collection_id)
                    continue
            except Fenced as error:
                self._on_fenced(error)
                raise
            except Exception as error:  # also a defect, of ours or of a library: the views say so, and it tries again
                stage.error = said(error)
                logger.warning("embedding stands still: %s", logged(error))
                await self._on_error(stage, f"embedding stands still: {stage.error}")
                await asyncio.sleep(patience)
                patience = min(patience * 2, 60.0)
                continue
            await comes(wake, 30.0)
