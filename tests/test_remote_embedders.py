"""Embedders behind a server: each protocol over a socket, through the provider's own client where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedding_servers import DIMENSIONS, EmbeddingServer, embedding_server, vector
from whimbrel import Whimbrel
from whimbrel.domain import EmbedKind
from whimbrel.errors import (
    ConfigError,
    ModelBusy,
    ModelDown,
    ModelError,
    ModelKeyMissing,
    ModelKeyRefused,
    ModelMalformed,
    ModelSlow,
    SpaceMismatch,
    TextRefused,
)
from whimbrel.models.embedders import wires
from whimbrel.models.embedders.remote import RemoteEmbedder
from whimbrel.models.embedders.resolve import resolve_embedder

PROTOCOLS = ("tei", "openai", "ollama", "huggingface")


@pytest.fixture(params=PROTOCOLS)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    with embedding_server(request.param) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def tei(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    with embedding_server("tei") as found:
        monkeypatch.setenv("TEI_API_KEY", found.environment["TEI_API_KEY"])
        yield found


def unit(text: str) -> np.ndarray:
    found = np.array(vector(text), np.float32)
    return found / np.linalg.norm(found)


async def test_vectors_come_in_order_and_of_unit_length(server: EmbeddingServer) -> None:
    embedder = resolve_embedder(server.spec)
    texts = [f"bird {number} of the marsh" for number in range(150)]
    found = await embedder.embed(texts, EmbedKind.DOCUMENT)
    assert found.dtype == np.float32
    assert np.allclose(found, [unit(text) for text in texts], atol=1e-6)
    assert len(server.batches) >= 2
    assert embedder.space.dimensions == DIMENSIONS
    assert (await embedder.embed([], EmbedKind.DOCUMENT)).shape == (0, DIMENSIONS)
    await embedder.close()


async def test_some_requests_at_a_time_and_no_more(tei: EmbeddingServer) -> None:
    tei.delay_s = 0.05
    embedder = resolve_embedder(tei.spec)
    await embedder.embed([f"bird {number}" for number in range(200)], EmbedKind.DOCUMENT)
    assert 1 < tei.most_at_once <= 4
    assert max(len(batch) for batch in tei.batches) == 4  # the server's limit
    await embedder.close()


async def test_a_text_that_the_server_refuses_is_found_among_the_others(server: EmbeddingServer) -> None:
    embedder = resolve_embedder(server.spec)
    texts = ["a bird", "a text too long", "a nest", "another too long", *["a marsh"] * 20]
    with pytest.raises(TextRefused) as raised:
        await embedder.embed(texts, EmbedKind.DOCUMENT)
    assert raised.value.positions == (1, 3)
    assert "nest" not in str(raised.value)
    await embedder.close()


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("busy", ModelBusy), ("loading", ModelDown), ("broken", ModelDown), ("spent", ModelDown),
        ("half", ModelError), ("malformed", ModelMalformed), ("odd", ModelMalformed), ("fewer", ModelMalformed),
        ("numberless", ModelMalformed), ("zeros", ModelMalformed), ("never", ModelSlow),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_named(
    server: EmbeddingServer, behaviour: str, error: type[ModelError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "TIMEOUT_S", 0.5 if behaviour == "never" else 20.0)
    server.behaviour = behaviour
    embedder = resolve_embedder(server.spec)
    with pytest.raises(error) as raised:
        await embedder.embed(["the secret text"], EmbedKind.DOCUMENT)
    assert not isinstance(raised.value, TextRefused)
    assert raised.value.hint
    assert "secret" not in f"{raised.value} {raised.value.hint}"
    if isinstance(raised.value, ModelBusy):
        assert raised.value.retry_after_s == 7.0
    posts = len(server.batches)
    assert posts <= 1  # one attempt: trying again is somebody else's
    await embedder.close()


async def test_a_wrong_key_names_its_variable(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    key = next(name for name in server.environment if name.endswith(("_KEY", "_TOKEN")))
    monkeypatch.setenv(key, "hf_wrong")
    embedder = resolve_embedder(server.spec)
    with pytest.raises(ModelKeyRefused) as raised:
        await embedder.embed(["text"], EmbedKind.QUERY)
    assert key in raised.value.hint
    assert "hf_wrong" not in f"{raised.value} {raised.value.hint}"
    await embedder.close()


@pytest.mark.parametrize(("spec", "variable"), [("openai:m", "OPENAI_API_KEY"), ("huggingface:m", "HF_TOKEN")])
async def test_a_missing_key_is_said_before_anything_is_sent(
    spec: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "HF_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelKeyMissing, match=variable):
        await resolve_embedder(spec).embed(["text"], EmbedKind.QUERY)


async def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelDown, match="Nobody answers"):
        await resolve_embedder("tei:http://127.0.0.1:9").embed(["text"], EmbedKind.QUERY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ModelDown, match="Nobody answers"):
        await resolve_embedder("openai:m").embed(["text"], EmbedKind.QUERY)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tei:", "no address"), ("tei:localhost:8080", "no address"), ("ollama:", "needs a model"),
        ("huggingface:", "needs a model"), ("openai:m?dimension=5", "takes no option"),
        ("openai:m?dimensions=x", "no number"), ("ollama:m?dimensions=5", "takes no `dimensions`"),
    ],
)  # fmt: skip
def test_a_wrong_specification_says_what_would_be_right(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        resolve_embedder(spec)
    assert raised.value.hint


async def test_prefixes_and_fewer_dimensions_are_other_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    with embedding_server("openai") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        whole, cut, prefixed = (
            resolve_embedder(f"openai:m{said}") for said in ("", "?dimensions=8", "?query_prefix=q:%20")
        )
        assert cut.space.dimensions == 8
        assert len({one.space.key for one in (whole, cut, prefixed)}) == 3
        server.batches.clear()
        await prefixed.embed(["bird"], EmbedKind.QUERY)
        await prefixed.embed(["bird"], EmbedKind.DOCUMENT)
        assert server.batches == [["q: bird"], ["bird"]]


async def test_a_model_that_changes_its_dimensions_or_is_another_is_refused(tei: EmbeddingServer) -> None:
    embedder = resolve_embedder(tei.spec)
    space = embedder.space
    tei.dimensions = 8
    with pytest.raises(SpaceMismatch, match="8 dimensions, and the space has 16"):
        await embedder.embed(["bird"], EmbedKind.QUERY)
    tei.dimensions, tei.sha = DIMENSIONS, "def"
    again = resolve_embedder(tei.spec)
    assert isinstance(again, RemoteEmbedder)
    again.expect(space)
    with pytest.raises(SpaceMismatch, match="They were not compared"):
        await again.embed(["bird"], EmbedKind.QUERY)


def test_called_from_several_loops_at_once(tei: EmbeddingServer) -> None:
    embedder = resolve_embedder(tei.spec)

    async def some(word: str) -> np.ndarray:
        found = await asyncio.gather(*(embedder.embed([f"{word} {n}"], EmbedKind.QUERY) for n in range(5)))
        return np.concatenate(found)

    async def all_of_them() -> list[np.ndarray]:
        return await asyncio.gather(
            *(asyncio.to_thread(lambda w=word: asyncio.run(some(w))) for word in ("a", "b", "c"))
        )

    for word, found in zip(("a", "b", "c"), asyncio.run(all_of_them()), strict=True):
        assert np.allclose(found, [unit(f"{word} {n}") for n in range(5)], atol=1e-6)


def test_a_collection_outlives_an_outage_of_its_embedder(tei: EmbeddingServer, tmp_path: Path) -> None:
    with Whimbrel(tmp_path, embedder=tei.spec) as whimbrel:
        whimbrel.add([{"id": "a", "text": "the sandpiper sings"}, {"id": "b", "text": "the sea sleeps"}])
        whimbrel.wait_for_head("default")
        assert whimbrel.search("the sandpiper sings", mode="dense").hits[0].text == "the sandpiper sings"
    tei.behaviour = "loading"
    with Whimbrel(tmp_path, embedder=tei.spec) as whimbrel:
        assert whimbrel.search("the sandpiper sings").degraded == []  # the vector of that query is kept
        found = whimbrel.search("a sandpiper sings")
        assert found.hits[0].text == "the sandpiper sings"
        assert any("cannot answer now (503)" in said for said in found.degraded)
        whimbrel.add([{"id": "c", "text": "a wader flies"}], wait="job")
        tei.behaviour = "answer"
        whimbrel.wait_for_head("default")
        assert not whimbrel.search("a wader flies").degraded
        assert whimbrel.search("a wader flies", mode="dense").hits[0].text == "a wader flies"
