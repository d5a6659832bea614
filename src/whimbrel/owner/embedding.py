"""The embedding stage: fills the vectors of record of one collection in one space.

It goes ahead of the appliers along the log, in a stream of batches. The model is given the next batches while one is
being computed, and what a batch gave is committed meanwhile, so that the model never waits. A text that the model
refuses gets a reason and blocks nothing; a model that is out stops the stage, which says so and tries again, while the
lexicon goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from whimbrel.catalog import log, rows, vectors
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import TextRefused
from whimbrel.models.embedders.base import Embedder
from whimbrel.owner.under_way import Made, UnderWay

WINDOW = 512
"""Changes that are looked at together."""
STRIDE = 8_000
"""Changes after which others that want to fill have their turn."""
AHEAD = 2
"""Batches that the embedder is given beside the one that is waited for."""

Computed = tuple[npt.NDArray[np.float32], dict[int, str]]
"""Vectors of the accepted texts, in order; and the reasons of the refused ones, by index."""
_Work = asyncio.Task[dict[int, Made]]
"""What was made of a batch, by text; nothing of what has been stored meanwhile."""


@dataclass(frozen=True, slots=True)
class _Batch:
    text_ids: Sequence[int]
    texts: Sequence[str]
    end: int
    """The position of the log that is reached with it; 0 where there is none."""
    claimed: set[int] = field(default_factory=set)
    """Texts that this stage has under way."""


class EmbeddingStage:
    def __init__(
        self,
        catalog: Catalog,
        embedder: Embedder,
        *,
        collection_id: int,
        chunking_id: int,
        space_id: int,
        after: int,
        fence: int,
        batch: int = 128,
        under_way: UnderWay | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`under_way`: shared by the stages of the space. `on_progress` is called each time `upto` has grown."""
        self._catalog = catalog
        self._embedder = embedder
        self._collection_id = collection_id
        self._chunking_id = chunking_id
        self._space_id = space_id
        self._fence = fence
        self._batch = batch
        self._under_way = under_way or UnderWay()
        self._on_progress = on_progress
        self.upto = after
        """Every change at or below this position has its vector of record, or a refusal."""
        self.embedded = 0
        """Texts embedded since the start."""
        self.error = ""
        """Why the stage stands still; empty when it does not."""
        self._turn = asyncio.Lock()

    @property
    def space(self) -> Space:
        return self._embedder.space

    async def step(self) -> bool:
        """Fill the log from `upto` on, up to some thousand changes; False when there was none."""
        async with self._turn:
            return await self._stream(self._along_the_log())

    async def fill(self, keys: Sequence[int]) -> None:
        """Make sure that each of these chunks has a vector of record or a refusal.

        Raises what the embedder raises when it is out; what was computed until then is kept.
        """
        async with self._turn:
            await self._stream(self._of_chunks(keys))

    async def _along_the_log(self) -> AsyncGenerator[_Batch, None]:
        seen, last = self.upto, self.upto + STRIDE
        given: set[int] = set()  # texts that are on their way, or stored meanwhile
        while seen < last:
            found = await asyncio.to_thread(self._next_window, seen)
            if found is None:
                return
            seen, missing = found
            missing = missing.without(given)
            given.update(missing.text_ids)
            for batch in self._batches(missing, seen):
                yield batch

    async def _of_chunks(self, keys: Sequence[int]) -> AsyncGenerator[_Batch, None]:
        for batch in self._batches(await asyncio.to_thread(self._missing, keys), 0):
            yield batch

    def _batches(self, missing: vectors.Missing, end: int) -> Iterator[_Batch]:
        """At least one, the last of which reaches `end`."""
        for start in range(0, max(len(missing.texts), 1), self._batch):
            stop = start + self._batch
            reached = end if stop >= len(missing.texts) else 0
            yield _Batch(missing.text_ids[start:stop], missing.texts[start:stop], reached)

    def _next_window(self, after: int) -> tuple[int, vectors.Missing] | None:
        with self._catalog.read() as connection:
            end = log.commit_end(connection, self._collection_id, after, WINDOW)
            if end is None:
                return None
            entries, _, _ = rows.read_log(connection, self._collection_id, self._chunking_id, after, end[0])
            keys = [entry.chunk_id for entry in entries]
            return end[0], vectors.missing(connection, self._space_id, keys)

    def _missing(self, keys: Sequence[int]) -> vectors.Missing:
        with self._catalog.read() as connection:
            return vectors.missing(connection, self._space_id, keys)

    async def _stream(self, batches: AsyncGenerator[_Batch, None]) -> bool:
        """Embed batches, several at a time, and store them in order. False when there was none."""
        waiting: deque[tuple[_Batch, _Work]] = deque()
        any_came = False
        try:
            async with aclosing(batches):
                async for batch in batches:
                    any_came = True
                    waiting.append((batch, asyncio.create_task(self._make(batch))))
                    if len(waiting) > AHEAD:
                        await self._finish(*waiting.popleft())
                while waiting:
                    await self._finish(*waiting.popleft())
        finally:
            for _, work in waiting:
                work.cancel()
            try:
                await asyncio.gather(*(work for _, work in waiting), return_exceptions=True)
            finally:
                for batch, _ in waiting:
                    self._release(batch, batch.claimed)
        return any_came

    async def _finish(self, batch: _Batch, work: _Work) -> None:
        try:
            made = await work
            kept = {text: one for text, one in made.items() if not isinstance(one, str)}
            if made:
                refused = {text: one for text, one in made.items() if isinstance(one, str)}
                computed = np.stack(list(kept.values())) if kept else self._none()
                await asyncio.to_thread(self._put, list(kept), computed, refused)
        finally:
            work.cancel()  # where this was cancelled
            own = set(batch.claimed)
            try:
                await asyncio.gather(work, return_exceptions=True)
            finally:
                self._release(batch, batch.claimed)
        self.embedded += len(kept.keys() & own)
        if batch.end > self.upto:
            self.upto = batch.end
            self._on_progress()

    def _put(self, ids: Sequence[int], computed: npt.NDArray[np.float32], refused: Mapping[int, str]) -> None:
        with self._catalog.write(fence=self._fence) as connection:
            vectors.put(connection, self._space_id, ids, computed, refused)

    async def _make(self, batch: _Batch) -> dict[int, Made]:
        """Give the model what nobody has given it, and wait for the rest.

        What is claimed is told or released as soon as the model has answered, before anything is waited for: so no two
        wait for each other.
        """
        made: dict[int, Made] = {}
        left = dict(zip(batch.text_ids, batch.texts, strict=True))
        while left:
            mine, theirs = self._under_way.claim(left)
            batch.claimed.update(mine)
            try:
                made |= await self._made(batch, {text: left[text] for text in mine})
            except BaseException:
                self._release(batch, batch.claimed.intersection(mine))
                raise
            for text, future in theirs.items():
                if (one := await asyncio.shield(future)) is not None:  # it is not ours to cancel
                    made[text] = one
            left = {text: left[text] for text in theirs if text not in made}
        return made

    def _release(self, batch: _Batch, texts: Iterable[int]) -> None:
        gone = list(texts)
        self._under_way.release(gone)
        batch.claimed.difference_update(gone)

    def _lacking(self, text_ids: Sequence[int]) -> set[int]:
        with self._catalog.read() as connection:
            return vectors.without_vector(connection, self._space_id, text_ids)

    async def _made(self, batch: _Batch, texts: Mapping[int, str]) -> dict[int, Made]:
        """Of claimed texts."""
        if not texts:
            return {}
        # Whoever had claimed one before may have stored it since the catalog was asked.
        still = await asyncio.to_thread(self._lacking, list(texts))
        self._release(batch, texts.keys() - still)
        ids = [text for text in texts if text in still]
        computed, refused = await self._embed([texts[text] for text in ids])
        accepted = iter(computed)
        made = {text: refused[index] if index in refused else next(accepted) for index, text in enumerate(ids)}
        self._under_way.tell(made)
        return made

    async def _embed(self, texts: Sequence[str]) -> Computed:
        if not texts:
            return self._none(), {}
        try:
            return await self._embedder.embed(texts, EmbedKind.DOCUMENT), {}
        except TextRefused as error:
            if len(texts) == 1:
                return self._none(), {0: error.message}
            if not error.positions:  # a provider that does not say which: find them by halves
                return await self._embed_by_halves(texts)
            refused = set(error.positions)
        good = [text for index, text in enumerate(texts) if index not in refused]
        computed, more = await self._embed(good) if good else (self._none(), {})
        kept = [index for index in range(len(texts)) if index not in refused]
        reasons = {kept[index]: reason for index, reason in more.items()}
        for index in refused:
            reasons[index] = (await self._embed([texts[index]]))[1].get(0, "refused beside other texts")
        return computed, reasons

    async def _embed_by_halves(self, texts: Sequence[str]) -> Computed:
        middle = len(texts) // 2
        left, refused = await self._embed(texts[:middle])
        right, refused_right = await self._embed(texts[middle:])
        refused = refused | {middle + index: reason for index, reason in refused_right.items()}
        return np.concatenate([left, right]), refused

    def _none(self) -> npt.NDArray[np.float32]:
        return np.empty((0, self.space.dimensions), dtype=np.float32)
