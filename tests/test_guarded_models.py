"""Models behind their guards: through the providers' own clients, against small servers that do as they are told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_servers import EmbeddingServer, embedding_server
from providers import ModelServer, served
from reranking_servers import RerankingServer, reranking_server
from small_models import encoder
from support import opened
from whimbrel import Whimbrel
from whimbrel.answer.answerer import judge_by
from whimbrel.answer.conversation import stand_alone
from whimbrel.catalog import guarding, usage
from whimbrel.catalog.conversations import Turn
from whimbrel.catalog.engine import Catalog
from whimbrel.config.settings import Guards as Settings
from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import (
    BudgetSpent,
    ConfigError,
    ModelDown,
    ModelEndedEarly,
    ModelError,
    ModelKeyRefused,
    ModelMalformed,
    ModelPaused,
    ModelQueueFull,
    ModelSlow,
    SpaceMismatch,
    WaitTimeout,
)
from whimbrel.guards import reranker as guarded_reranker
from whimbrel.guards import stand_in
from whimbrel.guards.calls import Taken, caller, stood_in
from whimbrel.guards.chain import ChainGenerator
from whimbrel.guards.embedder import GuardedEmbedder
from whimbrel.guards.generator import GuardedGenerator
from whimbrel.guards.guard import Guards, Patience
from whimbrel.guards.stand_in import CatalogTrust, StandInEmbedder
from whimbrel.models.embedders.remote import RemoteEmbedder
from whimbrel.models.embedders.resolve import resolve_embedder
from whimbrel.models.generators.base import Prompt, Usage
from whimbrel.models.generators.providers import Timeouts
from whimbrel.models.generators.resolve import resolve_generator
from whimbrel.models.rerankers import wires
from whimbrel.models.rerankers.resolve import resolve_reranker
from whimbrel.search.variants import variants

pytestmark = pytest.mark.timeout(180)

TEXT = "The whimbrel flies for thousands of miles without a rest."
QUESTION = "How far does the whimbrel fly?"
ANSWER = "The whimbrel flies for thousands of miles. [1]"
PROMPT = Prompt("Answer.", "What colour is it?", 200)


@pytest.fixture
def catalog_here(tmp_path: Path) -> Iterator[Catalog]:
    made = opened(f"sqlite:///{tmp_path / 'guards.db'}", tmp_path)
    yield made
    made.close()


@pytest.fixture
def guards(catalog_here: Catalog) -> Iterator[Guards]:
    made = Guards(Settings(query_timeout_s=30.0), catalog_here)
    yield made
    made.close()


@pytest.fixture
def hasty(catalog_here: Catalog) -> Iterator[Guards]:
    made = Guards(Settings(query_timeout_s=0.5), catalog_here)
    yield made
    made.close()


@pytest.fixture(params=("tei", "openai", "ollama", "huggingface"))
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    with embedding_server(request.param) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[EmbeddingServer, EmbeddingServer]]:
    """The same words' vectors, from two servers; the second says that it has another revision."""
    with embedding_server("tei") as first, embedding_server("tei") as second:
        monkeypatch.setenv("TEI_API_KEY", first.environment["TEI_API_KEY"])
        second.sha = "def"
        yield first, second


@pytest.fixture(params=("openai", "anthropic"))
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with served(request.param, ANSWER) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with served("openai", ANSWER) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


def guarded(guards: Guards, spec: str) -> GuardedEmbedder:
    inner = resolve_embedder(spec)
    assert isinstance(inner, RemoteEmbedder)
    return guards.embedder(inner, inner.name)


def writing(guards: Guards, spec: str) -> GuardedGenerator:
    made = resolve_generator(spec, Timeouts(first_token_s=3.0, token_s=0.5))
    assert made is not None
    return guards.generator(made)


async def told(parts: AsyncGenerator[str | Usage]) -> tuple[str, Usage | None]:
    text, said = "", None
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Usage):
                said = part
            else:
                text += part
    return text, said


def calls(catalog: Catalog, guards: Guards) -> list[tuple[str, str, int, str]]:
    """Model, outcome, calls, and instead of which."""
    assert guards.ledger is not None
    guards.ledger.flush()
    from sqlalchemy import select

    from whimbrel.catalog import tables as t

    row = t.model_calls.c
    with catalog.read() as connection:
        found = connection.execute(select(row.model, row.outcome, row.calls, row.instead_of).order_by(row.model))
        return [tuple(one) for one in found]


# --- embedders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["busy", "loading", "broken", "half", "malformed", "odd", "never"])
async def test_what_passes_is_asked_again(
    behaviour: str, vectors: EmbeddingServer, guards: Guards, hasty: Guards
) -> None:
    embedder = guarded(hasty if behaviour == "never" else guards, vectors.spec)
    expected = await embedder.inner.embed(["a bird"], EmbedKind.QUERY)  # the first call imports the client
    vectors.retry_after = "0.1"
    vectors.next = [behaviour]
    before = len(vectors.batches)
    assert np.array_equal(await embedder.embed(["a bird"], EmbedKind.QUERY), expected)
    assert len(vectors.batches) == before + 2
    await embedder.close()


async def test_a_wrong_key_is_sent_once_and_named_and_the_breaker_untouched(
    vectors: EmbeddingServer, guards: Guards, catalog_here: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = next(name for name in vectors.environment if name.endswith(("KEY", "TOKEN")))
    monkeypatch.setenv(key, "hf_wrong")
    embedder = guarded(guards, vectors.spec)
    for asked in range(1, 8):
        with pytest.raises(ModelKeyRefused) as raised:
            await embedder.embed(["a bird"], EmbedKind.QUERY)
        assert key in raised.value.hint
        assert len(vectors.batches) == asked
    with catalog_here.read() as connection:
        assert guarding.breakers(connection) == {}
    await embedder.close()


async def test_other_dimensions_are_refused_and_not_asked_for_again(vectors: EmbeddingServer, guards: Guards) -> None:
    embedder = guarded(guards, vectors.spec)
    await embedder.embed(["a bird"], EmbedKind.QUERY)
    before = len(vectors.batches)
    vectors.dimensions = 8
    with pytest.raises(SpaceMismatch):
        await embedder.embed(["a bird"], EmbedKind.QUERY)
    assert len(vectors.batches) == before + 1
    await embedder.close()


async def test_a_dead_provider_costs_so_many_timeouts_in_all_processes(
    two: tuple[EmbeddingServer, EmbeddingServer], tmp_path: Path
) -> None:
    dead, _ = two
    settings = Settings(query_timeout_s=0.5, breaker_failures=4)
    catalogs = [opened(f"sqlite:///{tmp_path / 'guards.db'}", tmp_path) for _ in range(3)]
    processes = [Guards(settings, catalog) for catalog in catalogs]
    embedders = [guarded(one, dead.spec) for one in processes]
    for embedder in embedders:
        await embedder.inner.embed(["a bird"], EmbedKind.QUERY)
    before, dead.behaviour = len(dead.batches), "never"
    for number in range(30):
        with pytest.raises((ModelSlow, ModelPaused)):
            await embedders[number % 3].embed(["a bird"], EmbedKind.QUERY)
    assert len(dead.batches) - before == 4
    for embedder, one, catalog in zip(embedders, processes, catalogs, strict=True):
        await embedder.close()
        one.close()
        catalog.close()


# --- generators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["busy", "overloaded", "slow", "hangup", "malformed"])
async def test_a_model_that_has_not_begun_is_asked_again(behaviour: str, model: ModelServer, guards: Guards) -> None:
    generator = writing(guards, model.spec)
    model.retry_after = "0.1"
    model.next = [behaviour]
    text, said = await told(generator.stream(PROMPT))
    assert text == ANSWER
    assert said is not None
    assert len(model.bodies) == 2
    await generator.close()


@pytest.mark.parametrize(
    ("behaviour", "error"), [("cut", ModelError), ("silent", ModelSlow), ("unfinished", ModelEndedEarly)]
)
async def test_half_a_stream_is_not_asked_for_again(
    behaviour: str, error: type[ModelError], model: ModelServer, guards: Guards, catalog_here: Catalog
) -> None:
    generator = writing(guards, model.spec)
    model.behaviour = behaviour
    got = ""

    async def read() -> None:
        nonlocal got
        async for part in generator.stream(PROMPT):
            got += str(part)

    with pytest.raises(error):
        await read()
    assert got == "The whimbrel"
    assert len(model.bodies) == 1
    ((_, outcome, count, _),) = calls(catalog_here, guards)
    assert (outcome, count) == (error.__name__ if error is not ModelError else outcome, 1)
    with catalog_here.read() as connection:
        (row,) = usage.summed(connection, "model", 0.0)
    assert row["output_tokens"] > 0, "what came is paid for"
    await generator.close()


async def test_a_wrong_key_of_a_generator_is_sent_once(
    model: ModelServer, guards: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = next(name for name in model.environment if name.endswith("KEY"))
    monkeypatch.setenv(key, "wrong")
    generator = writing(guards, model.spec)
    with pytest.raises(ModelKeyRefused) as raised:
        await told(generator.stream(PROMPT))
    assert key in raised.value.hint
    assert len(model.bodies) == 1
    assert guards.state()["paused"] == []
    await generator.close()


async def test_in_a_chain_the_next_one_writes_and_it_is_said(
    model: ModelServer, guards: Guards, catalog_here: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served("ollama", ANSWER) as second:
        for name, value in second.environment.items():
            monkeypatch.setenv(name, value)
        chain = ChainGenerator([writing(guards, model.spec), writing(guards, second.spec)])
        text, said = await told(chain.stream(PROMPT))
        assert (text, said and said.model, said and said.degraded) == (ANSWER, "", ())
        model.behaviour = "overloaded"
        text, said = await told(chain.stream(PROMPT))
        assert text == ANSWER
        assert said is not None
        assert said.model == second.spec
        assert said.degraded[0].startswith(f"model: {model.spec}")
        assert said.degraded[0].endswith(f"{second.spec} stood in.")
        assert (second.spec, "ok", 1, model.spec) in calls(catalog_here, guards)
        second.behaviour = "overloaded"
        with pytest.raises(ModelDown) as raised:
            await told(chain.stream(PROMPT))
        assert model.spec in raised.value.message
        assert second.spec in raised.value.message
        assert guards.ledger is not None
        guards.ledger.flush()
        with catalog_here.read() as connection:
            stood = {row["model"]: row["stood_in"] for row in usage.summed(connection, "model", 0.0)}
        assert stood[second.spec] == 1, "where it was out as well, it did not stand in"
        await chain.close()


async def test_what_stood_in_is_said_of_all_that_a_chain_writes(
    openai: ModelServer, guards: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served("ollama", "yes") as second:
        for name, value in second.environment.items():
            monkeypatch.setenv(name, value)
        chain = ChainGenerator([writing(guards, openai.spec), writing(guards, second.spec)])
        openai.behaviour = "overloaded"
        before = Turn(
            "t", "Where do whimbrels nest?", "Where do whimbrels nest?", "On moors.", (), "m", False, (), {}, 0
        )
        alone = await stand_alone("And where do they winter?", [before], chain)
        assert alone.degraded[0].endswith(f"{second.spec} stood in.")
        others = await variants("Where do whimbrels nest?", 2, "en", chain, timeout_s=30)
        assert others.degraded.endswith(f"{second.spec} stood in.")
        said: list[str] = []
        assert await judge_by(chain, said)("Whimbrels nest on moors.", "On moors nest the whimbrels.") == "yes"
        assert said[0].endswith(f"{second.spec} stood in.")
        await chain.close()


# --- others that stand in for an embedder ----------------------------------------------------------------------------


async def test_the_same_model_elsewhere_stands_in_and_it_is_said(
    two: tuple[EmbeddingServer, EmbeddingServer], guards: Guards, catalog_here: Catalog
) -> None:
    first, second = two
    embedder = StandInEmbedder(guarded(guards, first.spec), [guarded(guards, second.spec)], CatalogTrust(catalog_here))
    expected = await embedder.embed([TEXT], EmbedKind.QUERY)
    first.behaviour = "loading"
    note = stood_in.set([])
    assert np.allclose(await embedder.embed([TEXT], EmbedKind.QUERY), expected)
    said = stood_in.get()
    stood_in.reset(note)
    assert said is not None
    assert said[0].startswith(f"embedder: {first.spec} says that it cannot answer now")
    assert said[0].endswith(f"{second.spec} stood in.")
    assert (second.spec, "ok", 1, first.spec) in calls(catalog_here, guards)
    # What was measured holds for a process that has never seen the first one answer.
    space = replace(embedder.space)
    again = StandInEmbedder(guarded(guards, first.spec), [guarded(guards, second.spec)], CatalogTrust(catalog_here))
    inner = again.inner
    assert isinstance(inner, RemoteEmbedder)
    inner.expect(space)
    assert np.allclose(await again.embed([TEXT], EmbedKind.QUERY), expected)
    await embedder.close()
    await again.close()


async def test_one_that_was_never_compared_does_not_stand_in(
    two: tuple[EmbeddingServer, EmbeddingServer], guards: Guards, catalog_here: Catalog
) -> None:
    first, second = two
    embedder = StandInEmbedder(guarded(guards, first.spec), [guarded(guards, second.spec)], CatalogTrust(catalog_here))
    assert isinstance(embedder.inner, RemoteEmbedder)
    embedder.inner.expect(Space("org/words", "abc", 16, "mean", True, "", "", "float32", 512))
    first.behaviour = "loading"
    with pytest.raises(ModelDown, match="was never compared with it"):
        await embedder.embed([TEXT], EmbedKind.QUERY)
    await embedder.close()


async def test_one_that_is_slow_keeps_nobody_waiting(
    two: tuple[EmbeddingServer, EmbeddingServer], guards: Guards, catalog_here: Catalog
) -> None:
    first, second = two
    second.behaviour = "never"
    embedder = StandInEmbedder(guarded(guards, first.spec), [guarded(guards, second.spec)], CatalogTrust(catalog_here))
    async with asyncio.timeout(15):  # the other one does not answer for 30 s
        await embedder.embed([TEXT], EmbedKind.QUERY)
        await embedder.embed([TEXT], EmbedKind.QUERY)
    await embedder.close()


async def test_one_that_is_slow_and_of_another_space_is_refused_when_that_is_known(
    two: tuple[EmbeddingServer, EmbeddingServer], guards: Guards, catalog_here: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "FIRST_S", 0.0)
    first, second = two
    second.dimensions = 8
    embedder = StandInEmbedder(guarded(guards, first.spec), [guarded(guards, second.spec)], CatalogTrust(catalog_here))
    await embedder.embed([TEXT], EmbedKind.QUERY)

    async def go_on() -> None:
        while True:
            await embedder.embed([TEXT], EmbedKind.QUERY)
            await asyncio.sleep(0.02)

    with pytest.raises(ConfigError, match="vectors of 8 dimensions"):
        await asyncio.wait_for(go_on(), 20)
    await embedder.close()


async def test_another_space_is_refused_at_the_first_call(
    two: tuple[EmbeddingServer, EmbeddingServer], guards: Guards, catalog_here: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    trust = CatalogTrust(catalog_here)
    second.dimensions = 8
    embedder = StandInEmbedder(guarded(guards, first.spec), [guarded(guards, second.spec)], trust)
    with pytest.raises(ConfigError, match=r"vectors of 8 dimensions, and .* of 16"):
        await embedder.embed([TEXT], EmbedKind.QUERY)
    await embedder.close()
    second.dimensions = 16
    spec = f"{second.spec}?document_prefix=passage%20words%20before%20it"
    other = StandInEmbedder(guarded(guards, first.spec), [guarded(guards, spec)], trust)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"is of another space than .* 0\.999 is wanted"):
            await other.embed([TEXT], EmbedKind.QUERY)
    await other.close()


def test_another_space_in_this_process_is_refused_at_configuration(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "model")
    with Whimbrel(tmp_path / "home", embedder_fallback=f"onnx:{folder}") as whimbrel, pytest.raises(ConfigError):
        whimbrel.embedder()


def test_a_wrong_key_in_a_new_home_ends_the_job_and_is_not_sent_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedding_server("openai") as server:
        for name, value in (server.environment | {"OPENAI_API_KEY": "a wrong one"}).items():
            monkeypatch.setenv(name, value)
        with Whimbrel(tmp_path, embedder=server.spec, **{"ingest.workers": 1}) as whimbrel:
            for _ in range(2):
                with pytest.raises(ModelKeyRefused, match="OPENAI_API_KEY"):
                    whimbrel.add([{"id": "w", "text": TEXT}])
            time.sleep(2.0)  # the owner would like to make the view
            assert len(server.batches) <= 6
            assert whimbrel.status()["models"]["paused"] == []


def test_a_new_home_whose_provider_is_out_asks_it_no_more_often_than_the_breaker_lets_it(
    two: tuple[EmbeddingServer, EmbeddingServer], tmp_path: Path
) -> None:
    server, _ = two
    server.behaviour = "broken"
    options = {"embedder": server.spec, "guards.breaker_failures": 3, "ingest.workers": 1}
    with Whimbrel(tmp_path, **options) as whimbrel:
        with pytest.raises(WaitTimeout):
            whimbrel.finish(whimbrel.start_add([{"id": "w", "text": TEXT}]), timeout_s=4.0)
        assert len(server.batches) == 3
        (paused,) = whimbrel.status()["models"]["paused"]
        assert paused["model"] == server.spec


async def test_what_a_server_is_asked_to_learn_its_space_is_guarded(
    vectors: EmbeddingServer, catalog_here: Catalog
) -> None:
    guards = Guards(Settings(breaker_failures=3, attempts=2), catalog_here)
    vectors.behaviour = "broken"
    embedder = guarded(guards, vectors.spec)
    for error in (ModelDown, ModelPaused, ModelPaused):
        with pytest.raises(error):
            await asyncio.to_thread(lambda: embedder.space)
    assert len(vectors.batches) <= 3
    assert {outcome for _, outcome, _, _ in calls(catalog_here, guards)} == {"ModelDown", "ModelPaused"}
    await embedder.close()
    guards.close()


# --- rerankers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[RerankingServer]:
    with reranking_server("tei") as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.mark.parametrize(("behaviour", "budget_ms"), [("never", 300), ("broken", 60_000)])
def test_a_reranker_that_is_out_is_not_waited_for_in_every_search(
    behaviour: str, budget_ms: float, judge: RerankingServer, tmp_path: Path
) -> None:
    options = {
        "reranker": judge.spec,
        "rerank.budget_ms": budget_ms,
        "guards.breaker_failures": 3,
        "cache.max_bytes": 0,
    }
    with Whimbrel(tmp_path, **options, **{"ingest.workers": 1}) as whimbrel:
        whimbrel.add([{"id": "w", "text": TEXT}])
        assert whimbrel.search(QUESTION).degraded == []
        judge.behaviour = behaviour
        asked = len(judge.bodies)
        said = [whimbrel.search(QUESTION).degraded for _ in range(6)]
        assert all(one[0].startswith("rerank: ") for one in said)
        assert "breaker open until" in said[-1][0]
        assert len(judge.bodies) - asked == 3
        (paused,) = whimbrel.status()["models"]["paused"]
        assert paused["model"] == f"{judge.spec} (rerank)"
        rows = {row["kind"]: row for row in whimbrel.usage()["rows"]}
        assert rows["rerank"]["calls"] == rows["rerank"]["failed"] + 1
        figures = whimbrel.guards.meter.figures()["rerank", judge.spec]
        assert figures.outcomes["ok"] == 1
        assert figures.outcomes["ModelPaused"] >= 3


async def test_a_reranker_that_is_out_leaves_the_embedder_of_its_server_alone(
    judge: RerankingServer, catalog_here: Catalog
) -> None:
    guards = Guards(Settings(breaker_failures=1, attempts=1), catalog_here)
    judge.behaviour = "broken"
    reranker = guards.reranker(resolve_reranker(judge.spec))
    for error in (ModelDown, ModelPaused):
        with pytest.raises(error):
            await reranker.rerank(QUESTION, [TEXT])
    embedder = guards.of("embed", judge.spec)
    assert await embedder.call(lambda: asyncio.sleep(0, "a vector"), Taken(), Patience(5.0, 5.0)) == "a vector"
    await reranker.close()
    guards.close()


async def test_what_a_server_reranks_with_is_asked_behind_the_guards(
    judge: RerankingServer, catalog_here: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = Guards(Settings(breaker_failures=1, attempts=1), catalog_here)
    gone = guards.reranker(resolve_reranker("tei:http://127.0.0.1:9"))
    for error in (ModelDown, ModelPaused):
        with pytest.raises(error):
            await gone.identity()
    reranker = guards.reranker(resolve_reranker(judge.spec))
    known = await reranker.identity()
    assert f"org/judge {judge.sha}" in known
    monkeypatch.setattr(wires, "LOOK_AGAIN_S", -1.0)
    monkeypatch.setattr(guarded_reranker, "LOOK_AGAIN_S", -1.0)
    judge.sha = "def"
    assert "org/judge def" in await reranker.identity(), "another model, some time later"
    judge.close()
    assert "org/judge def" in await reranker.identity(), "what is cached is found while it is out"
    await reranker.close()
    await gone.close()
    guards.close()


# --- in a home -------------------------------------------------------------------------------------------------------


def test_a_search_says_what_stood_in(two: tuple[EmbeddingServer, EmbeddingServer], tmp_path: Path) -> None:
    first, second = two
    options = {"embedder": first.spec, "embedder_fallback": second.spec, "guards.query_timeout_s": 0.5}
    with Whimbrel(tmp_path, **options, **{"ingest.workers": 1}) as whimbrel:
        whimbrel.add([{"id": "w", "text": TEXT}])
        assert whimbrel.search(QUESTION).degraded == []
        first.behaviour = "never"
        found = whimbrel.search(f"{QUESTION} Or not?", mode="dense")  # the vector of the first is kept
        assert [hit.text for hit in found.hits] == [TEXT]
        (said,) = found.degraded
        assert said.endswith(f"{second.spec} stood in.")
        rows = whimbrel.usage()["rows"]
        assert {row["model"]: row["stood_in"] for row in rows} == {first.spec: 0, second.spec: 1}


def test_what_models_take_is_counted_and_a_budget_ends_it(openai: ModelServer, tmp_path: Path) -> None:
    prices = {"guards.prices": f"{openai.spec}=1/10", "guards.budgets": "all=0.0016 USD/day"}
    options = {"model": openai.spec, "answer.max_tokens": 50, "answer.abstain": 0, "ingest.workers": 1}
    with Whimbrel(tmp_path, **options, **prices) as whimbrel:
        whimbrel.add([{"id": "w", "text": TEXT}])
        token = caller.set("alice")
        answer = asyncio.run(whimbrel.aask(QUESTION))
        caller.reset(token)
        assert answer.model == openai.spec
        (row,) = whimbrel.usage(by="key")["rows"]
        assert (row["key"], row["calls"], row["input_tokens"], row["output_tokens"]) == ("alice", 1, 120, 30)
        assert row["usd"] == pytest.approx(120 / 1e6 + 30 / 1e5)
        whimbrel.ask(QUESTION)
        found = whimbrel.ask(QUESTION)
        assert found.model == "extractive", "quotes stand in"
        assert "the budget of 0.0016 USD/day for all is spent" in found.degraded[0]
        asked = len(openai.bodies)
        with pytest.raises(BudgetSpent) as raised:
            whimbrel.ask(QUESTION, model=openai.spec)
        assert raised.value.status == 402
        assert len(openai.bodies) == asked == 2
        assert whimbrel.status()["models"]["budgets"][0]["spent"] == pytest.approx(0.00084)
        (day,) = whimbrel.usage(by="day", since="24h")["rows"]
        assert (day["calls"], day["failed"]) == (4, 2)
    with Whimbrel(tmp_path) as again:
        assert again.usage()["total"]["calls"] == 4


def test_an_unknown_price_is_said_to_be_unknown(openai: ModelServer, tmp_path: Path) -> None:
    with Whimbrel(tmp_path, model=openai.spec, **{"answer.abstain": 0, "ingest.workers": 1}) as whimbrel:
        whimbrel.add([{"id": "w", "text": TEXT}])
        whimbrel.ask(QUESTION)
        total = whimbrel.usage()["total"]
        assert (total["usd"], total["unpriced"]) == (0, 1)


async def test_past_the_line_a_question_is_refused_at_once(openai: ModelServer, tmp_path: Path) -> None:
    limits = {"guards.max_concurrent_generations": 1, "guards.max_waiting": 0, "models.token_timeout_s": 20.0}
    options = {"model": openai.spec, "answer.abstain": 0, "ingest.workers": 1}
    with Whimbrel(tmp_path, **options, **limits) as whimbrel:
        await asyncio.to_thread(whimbrel.add, [{"id": "w", "text": TEXT}])
        openai.behaviour = "silent"
        first = whimbrel.aask_stream(QUESTION)
        await anext(first)
        await anext(first)  # it has begun to write
        with pytest.raises(ModelQueueFull):
            await whimbrel.aask(QUESTION)
        await first.aclose()
        openai.behaviour = "answer"
        assert (await whimbrel.aask(QUESTION)).model == openai.spec
        await whimbrel.engine.close()


def test_a_chain_is_written_as_a_list(openai: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served("ollama", ANSWER) as second:
        for name, value in second.environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "whimbrel.yaml").write_text(f"model: [{openai.spec}, '{second.spec}']\n")
        with Whimbrel(tmp_path, **{"answer.abstain": 0, "ingest.workers": 1}) as whimbrel:
            whimbrel.add([{"id": "w", "text": TEXT}])
            openai.behaviour = "overloaded"
            answer = whimbrel.ask(QUESTION)
            assert answer.model == second.spec
            (said,) = answer.degraded
            assert said.endswith(f"{second.spec} stood in.")


def test_an_alert_is_posted_once(tmp_path: Path) -> None:
    posted: list[Any] = []
    came = threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            came.set()

        def do_GET(self) -> None:
            posted.append("followed")

        def log_message(self, *_: Any) -> None: ...

    hook = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"http://127.0.0.1:{hook.server_address[1]}/hook"
    settings = Settings.model_validate({"budgets": "all=100 tokens/day", "alert_at": "0.5", "webhook": url})
    guards = Guards(settings, None)

    async def spend() -> None:
        for _ in range(4):
            held = await guards.budgets.promise("openai:a", "", (None, 20))
            guards.budgets.settle(held, (None, 20))
            guards.budgets.told()

    asyncio.run(spend())
    assert came.wait(20)
    guards.close()
    hook.shutdown()
    hook.server_close()
    (body,) = posted
    assert (body["scope"], body["share"], body["spent"]) == ("all", 0.5, 60)


async def test_a_broken_answer_is_malformed_in_the_end(vectors: EmbeddingServer, guards: Guards) -> None:
    embedder = guarded(guards, vectors.spec)
    await embedder.embed(["a bird"], EmbedKind.QUERY)
    before, vectors.behaviour = len(vectors.batches), "odd"
    with pytest.raises(ModelMalformed):
        await embedder.embed(["a bird"], EmbedKind.QUERY)
    assert len(vectors.batches) == before + 2
    await embedder.close()
