"""Embedders behind a server: each protocol over a socket, through the provider's own client where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    ModelRefused,
    ModelSlow,
    SpaceMismatch,
    TextRefused,
)
from whimbrel.models import http
from whimbrel.models.embedders import remote, wires
from whimbrel.models.embedders.remote import PROBE, RemoteEmbedder
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


@pytest.mark.parametrize("behaviour", ["busy", "overloaded"])
async def test_when_to_come_back_may_be_a_date(server: EmbeddingServer, behaviour: str) -> None:
    embedder = resolve_embedder(server.spec)
    await embedder.embed(["a bird"], EmbedKind.QUERY)
    server.behaviour = behaviour
    for said, least, most in (
        (format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True), 30, 61),
        (format_datetime(datetime.now(UTC) - timedelta(days=2), usegmt=True), 0, 0),
        ("12.5", 12.5, 12.5),
    ):
        server.retry_after = said
        with pytest.raises((ModelBusy, ModelDown)) as raised:
            await embedder.embed(["a bird"], EmbedKind.QUERY)
        assert isinstance(raised.value, ModelBusy | ModelDown)
        assert raised.value.retry_after_s is not None
        assert least <= raised.value.retry_after_s <= most
    await embedder.close()


@given(said=st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,5} \d{2}:\d{2}:\d{2} \w+"))
def test_whatever_stands_in_retry_after(said: str) -> None:
    found = wires.seconds_to_wait(said)
    assert found is None or 0 <= found < float("inf")


@pytest.mark.parametrize("protocol", ["openai", "ollama"])
async def test_vectors_are_told_apart_by_their_index(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedding_server(protocol) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        embedder = resolve_embedder(server.spec)
        server.behaviour = "shuffled"
        texts = ["a bird", "the marsh", "a nest by the sea"]
        assert np.allclose(await embedder.embed(texts, EmbedKind.DOCUMENT), [unit(text) for text in texts], atol=1e-6)
        server.behaviour = "twice"
        with pytest.raises(ModelMalformed):
            await embedder.embed(texts, EmbedKind.DOCUMENT)
        await embedder.close()


async def test_nobody_is_sent_elsewhere(server: EmbeddingServer) -> None:
    """What answers with a redirect could lead texts to any address that is reached from here."""
    if server.protocol == "huggingface":
        pytest.skip("Hugging Face's own client follows redirects, and has no setting for it but a global one")
    with embedding_server(server.protocol) as other:
        server.behaviour, server.elsewhere = "moved", other.url
        embedder = resolve_embedder(server.spec)
        with pytest.raises(ModelMalformed, match=r"a redirect \(307\)"):
            await embedder.embed(["the secret text"], EmbedKind.DOCUMENT)
        assert other.batches == []
        await embedder.close()


async def test_an_answer_without_end_is_not_read_to_its_end(
    tei: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MOST_BYTES", 4 << 20)
    embedder = resolve_embedder(tei.spec)
    await embedder.embed(["a bird"], EmbedKind.DOCUMENT)
    tei.behaviour = "endless"
    with pytest.raises(ModelMalformed, match="larger than 4 MiB"):
        await embedder.embed(["a bird"], EmbedKind.DOCUMENT)
    tei.behaviour = "answer"
    assert np.allclose(await embedder.embed(["a bird"], EmbedKind.DOCUMENT), [unit("a bird")], atol=1e-6)
    await embedder.close()


async def test_a_server_that_refuses_every_text_sets_none_aside(server: EmbeddingServer) -> None:
    embedder = resolve_embedder(server.spec)
    await embedder.embed(["a bird"], EmbedKind.DOCUMENT)
    server.behaviour = "refusing"
    with pytest.raises(ModelRefused, match="refuses every text"):
        await embedder.embed(["a bird", "a nest", "a marsh"], EmbedKind.DOCUMENT)
    server.behaviour = "answer"
    with pytest.raises(TextRefused):
        await embedder.embed(["a text too long"], EmbedKind.DOCUMENT)
    await embedder.close()


async def test_calls_that_begin_together_look_once(server: EmbeddingServer) -> None:
    embedder = resolve_embedder(server.spec)
    texts = [f"bird {number}" for number in range(6)]
    await asyncio.gather(*(embedder.embed([text], EmbedKind.QUERY) for text in texts))
    assert sorted(batch[0] for batch in server.batches) == sorted([PROBE, *texts])
    assert server.looks <= 1
    await embedder.close()


@pytest.mark.parametrize(
    "said",
    [
        {"whimbrel_space": {"model": "m", "revision": "r", "dimensions": "16"}},
        {"whimbrel_space": {"model": "m", "revision": "r", "dimensions": 0}},
        {"whimbrel_space": {"model": "m", "revision": "r", "dimensions": 16, "colour": "red"}},
        {"whimbrel_space": "minilm"},
        {"max_input_length": None},
        {"max_batch_tokens": "many"},
        {"model_type": {"embedding": {"pooling": None}}, "model_id": None, "max_input_length": []},
    ],
)  # fmt: skip
async def test_a_server_that_says_nonsense_of_itself_is_refused(tei: EmbeddingServer, said: dict[str, object]) -> None:
    tei.info = said
    embedder = resolve_embedder(tei.spec)
    with pytest.raises(ModelMalformed):
        await embedder.embed(["a bird"], EmbedKind.QUERY)
    await embedder.close()


async def test_a_server_that_comes_back_with_another_model_is_refused(
    tei: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = resolve_embedder(tei.spec)
    await embedder.embed(["a bird"], EmbedKind.QUERY)
    tei.next = ["broken"]
    with pytest.raises(ModelDown):
        await embedder.embed(["a bird"], EmbedKind.QUERY)
    tei.sha = "another"
    for _ in range(2):
        with pytest.raises(SpaceMismatch, match="another"):
            await embedder.embed(["a bird"], EmbedKind.QUERY)
    tei.sha = "abc"
    await embedder.embed(["a bird"], EmbedKind.QUERY)
    monkeypatch.setattr(remote, "LOOK_AGAIN_S", 0.0)  # or without an outage, a minute later
    tei.sha = "another"
    with pytest.raises(SpaceMismatch):
        await embedder.embed(["a bird"], EmbedKind.QUERY)
    await embedder.close()


def test_two_servers_behind_one_host_have_two_names() -> None:
    names = [resolve_embedder(f"tei:http://u:p@h:80/{path}").name for path in ("a", "b/")]  # type: ignore[attr-defined]
    assert names == ["tei:http://h:80/a", "tei:http://h:80/b"]


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
