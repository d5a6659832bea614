"""Texts of several callers in one call of an embedder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from running import Toy
from whimbrel.domain import EmbedKind
from whimbrel.errors import ModelBusy, ModelError, TextRefused
from whimbrel.models.batching import Batching
from whimbrel.models.embedders.minilm import MiniLM

DOCUMENT, QUERY = EmbedKind.DOCUMENT, EmbedKind.QUERY


class Gated(Toy):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.batches: list[list[str]] = []

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        self.batches.append(list(texts))
        await self.open.wait()
        return await super().embed(texts, kind)


async def test_who_comes_while_calls_are_under_way_goes_together() -> None:
    toy = Gated()
    batching = Batching(toy.embed, at_once=2)
    calls = [asyncio.create_task(batching.embed([f"bird {number}"], QUERY)) for number in range(2)]
    await asyncio.sleep(0.01)
    calls += [asyncio.create_task(batching.embed([f"bird {number}"], QUERY)) for number in range(2, 12)]
    await asyncio.sleep(0.01)
    assert batching.waiting == 10
    toy.open.set()
    found = await asyncio.gather(*calls)
    assert len(toy.batches) < 8
    for number, vectors in enumerate(found):
        assert np.array_equal(vectors, await Toy().embed([f"bird {number}"], QUERY))


async def test_a_refused_text_stops_nobody_else() -> None:
    for says_which in (True, False):
        toy = Toy()
        toy.says_which = says_which
        batching = Batching(toy.embed, at_once=1)
        texts = [["a bird"], ["a nest", "no text has this"], ["a marsh"], ["no text has this", "b", "c"]]
        found = await asyncio.gather(*(batching.embed(one, DOCUMENT) for one in texts), return_exceptions=True)
        for number in (0, 2):
            assert np.array_equal(found[number], await Toy().embed(texts[number], DOCUMENT))
        for number, place in ((1, 1), (3, 0)):
            error = found[number]
            assert isinstance(error, TextRefused)
            assert error.positions == ((place,) if says_which else ())


async def test_a_failing_model_is_told_to_all_and_tried_anew_by_the_next() -> None:
    toy = Toy()
    toy.out = "It is out."
    batching = Batching(toy.embed)
    found = await asyncio.gather(*(batching.embed([f"{n}"], QUERY) for n in range(5)), return_exceptions=True)
    assert [str(one) for one in found] == ["It is out."] * 5
    assert all(isinstance(one, ModelError) for one in found)
    toy.out = ""
    assert (await batching.embed(["a bird"], QUERY)).shape == (1, 32)


async def test_a_full_queue_refuses_at_once_and_says_how_long_to_wait() -> None:
    toy = Gated()
    batching = Batching(toy.embed, at_once=1, most_waiting=3)
    calls = [asyncio.create_task(batching.embed(["bird"], DOCUMENT))]
    await asyncio.sleep(0.01)
    calls += [asyncio.create_task(batching.embed(["bird"], DOCUMENT)) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(ModelBusy) as raised:
        await batching.embed(["one too many"], DOCUMENT)
    assert raised.value.retry_after_s is not None
    assert 1 <= raised.value.retry_after_s <= 30
    question = asyncio.create_task(batching.embed(["a question"], QUERY))  # waits in a lane of its own
    await asyncio.sleep(0.01)
    assert toy.batches[-1] == ["a question"]
    toy.open.set()
    await asyncio.gather(*calls, question)
    assert (await batching.embed(["bird"] * 50, DOCUMENT)).shape == (50, 32)  # more than may wait, where nobody does


async def test_who_goes_away_is_not_computed_for() -> None:
    toy = Gated()
    batching = Batching(toy.embed, at_once=1)
    first = asyncio.create_task(batching.embed(["first"], QUERY))
    await asyncio.sleep(0.01)
    gone = asyncio.create_task(batching.embed(["gone"], QUERY))
    last = asyncio.create_task(batching.embed(["last"], QUERY))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.sleep(0.01)
    assert batching.waiting == 1
    toy.open.set()
    await asyncio.gather(first, last)
    assert toy.batches == [["first"], ["last"]]
    assert gone.cancelled()


async def test_closing_leaves_nobody_waiting() -> None:
    toy = Gated()
    batching = Batching(toy.embed, at_once=1)
    calls = [asyncio.create_task(batching.embed([f"{n}"], QUERY)) for n in range(3)]
    await asyncio.sleep(0.01)
    await batching.close()
    await asyncio.wait(calls, timeout=5)
    assert all(call.cancelled() for call in calls)


MINILM = MiniLM(threads=2)
WORDS = st.lists(st.sampled_from("whimbrel curlew godwit flies over the cold sea to nest".split()), min_size=1)  # noqa: SIM905


@settings(max_examples=10)
@given(st.lists(st.lists(WORDS.map(" ".join), min_size=1, max_size=4), min_size=1, max_size=6))
def test_no_batch_changes_a_vector(callers: list[list[str]]) -> None:
    async def together() -> list[npt.NDArray[np.float32]]:
        batching = Batching(MINILM.embed, at_once=1)
        return await asyncio.gather(*(batching.embed(texts, DOCUMENT) for texts in callers))

    for texts, vectors in zip(callers, asyncio.run(together()), strict=True):
        for text, vector in zip(texts, vectors, strict=True):
            assert np.array_equal(vector, MINILM.embed_sync([text], DOCUMENT)[0])
