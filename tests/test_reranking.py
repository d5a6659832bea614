"""What a reranker does to a search: its order and its scores, within its bounds; and that no outage of it is hidden."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reranking_servers import KEY, RerankingServer, reranking_server, score
from small_models import cross_encoder
from whimbrel import Whimbrel
from whimbrel.domain import SearchResult
from whimbrel.errors import ConfigError

pytestmark = pytest.mark.timeout(120)

NOTES = [
    "The curlew probes the mud of estuaries with its bent bill.",
    "The gannet dives into the sea from thirty metres to catch fish.",
    "The osprey catches trout with its feet.",
    "Small waders fly over the shore of the sea in dense flocks.",
    "The siskin hangs head down from alder cones.",
    "A gannet nests on cliffs beside the sea with thousands of others.",
]
QUESTION = "which bird dives into the sea"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    with Whimbrel(home=folder) as whimbrel:
        whimbrel.add([{"id": f"n{number}", "text": text} for number, text in enumerate(NOTES)])
    return folder


@pytest.fixture
def tei(monkeypatch: pytest.MonkeyPatch) -> Iterator[RerankingServer]:
    with reranking_server("tei") as server:
        monkeypatch.setenv("TEI_API_KEY", KEY)
        yield server


def opened(home: Path, reranker: str, **more: Any) -> Whimbrel:
    return Whimbrel(home=home, **{"reranker": reranker, "rerank.budget_ms": 20_000, "embed.threads": 2, **more})


def order(found: SearchResult) -> list[str]:
    return [hit.uri for hit in found.hits]


def test_hits_are_in_the_rerankers_order_with_its_scores(home: Path, tei: RerankingServer) -> None:
    with Whimbrel(home=home) as whimbrel:
        before = whimbrel.search(QUESTION, top_k=6)
    with opened(home, tei.spec) as whimbrel:
        found = whimbrel.search(QUESTION, top_k=6)
    assert all(hit.retrieval_score is None for hit in before.hits)
    assert found.degraded == []
    assert [hit.rank for hit in found.hits] == [1, 2, 3, 4, 5, 6]
    assert [hit.score for hit in found.hits] == pytest.approx(
        [score(QUESTION, hit.text) for hit in found.hits], abs=1e-6
    )
    assert sorted((hit.score for hit in found.hits), reverse=True) == [hit.score for hit in found.hits]
    assert {hit.uri: hit.retrieval_score for hit in found.hits} == {hit.uri: hit.score for hit in before.hits}
    assert "rerank" in found.timings_ms
    assert "rerank" not in before.timings_ms


def test_more_hits_are_judged_than_are_wanted(home: Path, tei: RerankingServer) -> None:
    with opened(home, tei.spec) as whimbrel:
        best = whimbrel.search(QUESTION, top_k=6).hits[:2]
        assert [hit.uri for hit in whimbrel.search(QUESTION, top_k=2).hits] == [hit.uri for hit in best]


def test_candidates_are_bounded_by_number(home: Path, tei: RerankingServer) -> None:
    with Whimbrel(home=home) as whimbrel:
        before = order(whimbrel.search(QUESTION, top_k=6))
    with opened(home, tei.spec, **{"rerank.candidates": 3}) as whimbrel:
        found = whimbrel.search(QUESTION, top_k=6)
    assert len(set(tei.texts)) == 3
    assert set(order(found)[:3]) == set(before[:3])
    assert order(found)[3:] == before[3:]
    assert [hit.retrieval_score is None for hit in found.hits] == [False] * 3 + [True] * 3
    assert found.degraded == []


def test_candidates_are_bounded_by_time_and_the_rest_keeps_its_order(
    home: Path, tmp_path: Path, tei: RerankingServer
) -> None:
    with Whimbrel(home=home) as whimbrel:
        before = order(whimbrel.search(QUESTION, top_k=6))
    tei.delay_s = 5.0
    with opened(home, tei.spec, **{"rerank.budget_ms": 200}) as whimbrel:
        found = whimbrel.search(QUESTION, top_k=6)
        assert order(found) == before
        assert found.degraded == ["rerank: 0 of 6 in time"]


async def test_what_was_judged_in_time_comes_first() -> None:
    import asyncio

    import numpy as np

    from whimbrel.domain import Hit
    from whimbrel.models.rerankers.base import Reranker
    from whimbrel.search.reranking import Reranking

    class Slowing(Reranker):
        """Answers two calls, and then no more."""

        name = "test:slowing"
        batch = 2
        calls = 0

        async def rerank(self, query: str, texts: Any) -> Any:
            self.calls += 1
            if self.calls > 2:
                await asyncio.sleep(60)
            return np.array([int(text) / 10 for text in texts], np.float32)

    hits = [Hit(n + 1, 0.9 - n / 10, f"c{n}", "d", "u", "", str(n), 0, 1, {}) for n in range(7)]
    found, note = await Reranking(Slowing, candidates=50, budget_s=0.3)("q", hits)
    assert [hit.text for hit in found] == ["3", "2", "1", "0", "4", "5", "6"]
    assert [hit.rank for hit in found] == [1, 2, 3, 4, 5, 6, 7]
    assert found[0].retrieval_score == pytest.approx(0.6)
    assert note == "rerank: 4 of 7 in time"


@pytest.mark.parametrize("behaviour", ["busy", "loading", "broken", "half", "malformed", "odd", "fewer", "outside"])
def test_a_reranker_that_is_out_leaves_the_hits_and_is_named(home: Path, tei: RerankingServer, behaviour: str) -> None:
    with Whimbrel(home=home) as whimbrel:
        before = whimbrel.search(QUESTION, top_k=6)
    with opened(home, tei.spec, **{"rerank.budget_ms": 5_000}) as whimbrel:
        tei.behaviour = behaviour
        found = whimbrel.search(QUESTION, top_k=6)
        assert found.hits == before.hits
        assert len(found.degraded) == 1
        assert found.degraded[0].startswith("rerank: ")
        assert "gannet" not in found.degraded[0]
        tei.behaviour = "answer"
        assert whimbrel.search(QUESTION, top_k=6).degraded == []


def test_a_model_in_this_process_reranks(home: Path, tmp_path: Path) -> None:
    with opened(home, f"onnx:{cross_encoder(tmp_path / 'm', max_tokens=512)}") as whimbrel:
        found = whimbrel.search("the sea", top_k=6)
    assert found.degraded == []
    assert all(hit.retrieval_score is not None for hit in found.hits)
    assert {hit.uri for hit in found.hits[:3]} == {"text:n1", "text:n3", "text:n5"}


def test_a_folder_that_is_gone_degrades_and_an_unknown_provider_is_refused_at_once(home: Path, tmp_path: Path) -> None:
    with opened(home, f"onnx:{tmp_path / 'gone'}") as whimbrel:
        found = whimbrel.search(QUESTION)
        assert found.hits
        assert "is not a model" in found.degraded[0]
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        opened(home, "onx:m")
    with opened(home, "none") as whimbrel:
        assert whimbrel.search(QUESTION).degraded == []


def test_a_threshold_is_of_what_was_found(home: Path, tei: RerankingServer) -> None:
    with Whimbrel(home=home) as whimbrel:
        every = whimbrel.search(QUESTION, top_k=6).hits
        cut = (every[2].score + every[3].score) / 2
    with opened(home, tei.spec) as whimbrel:
        found = whimbrel.search(QUESTION, top_k=6, threshold=cut)
    assert {hit.uri for hit in found.hits} == {hit.uri for hit in every[:3]}


def test_an_answer_is_made_from_the_reranked_passages(home: Path, tei: RerankingServer) -> None:
    with opened(home, tei.spec) as whimbrel:
        answer = whimbrel.ask("Which bird dives into the sea to catch fish?")
    assert "gannet dives" in answer.answer
    assert not answer.abstained
