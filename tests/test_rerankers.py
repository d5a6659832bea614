"""What a reranker promises: scores of 0..1 in order, by a written rule; errors that name the cure."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reranking_servers import PROTOCOLS, RerankingServer, reranking_server, score
from small_models import cross_encoder, encoder
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
    TextRefused,
)
from whimbrel.models.rerankers import wires
from whimbrel.models.rerankers.resolve import resolve_reranker

QUERY = "the sea bird"
TEXTS = ["the sea bird flies", "a nest in the marsh", "sky", "the bird of the sea sleeps in a nest"]


def expected(query: str, text: str) -> float:
    """Of `small_models.cross_encoder`."""
    shared = sum(query.split().count(word) * text.split().count(word) for word in set(query.split()))
    return 1 / (1 + math.exp(-(2 * shared - 3)))


# --- in this process -------------------------------------------------------------------------------------------------


async def test_a_cross_encoder_scores_by_the_sigmoid_of_its_logit(tmp_path: Path) -> None:
    reranker = resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'm')}", threads=2)
    found = await reranker.rerank(QUERY, TEXTS)
    assert found.dtype == np.float32
    assert np.allclose(found, [expected(QUERY, text) for text in TEXTS], atol=1e-6)
    assert (await reranker.rerank(QUERY, [])).shape == (0,)
    assert np.array_equal(await reranker.rerank(QUERY, TEXTS[::-1]), found[::-1])
    assert reranker.name == f"onnx:{tmp_path / 'm'}"
    await reranker.close()
    with pytest.raises(ModelError, match="closed"):
        await reranker.rerank(QUERY, TEXTS)


async def test_two_labels_are_taken_where_one_is_named_as_the_relevance(tmp_path: Path) -> None:
    named = resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'a', labels=('no', 'Yes'), positive=1)}")
    assert np.allclose(await named.rerank(QUERY, TEXTS), [expected(QUERY, text) for text in TEXTS], atol=1e-6)
    await named.close()
    unnamed = resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'b', labels=('LABEL_0', 'LABEL_1'))}")
    with pytest.raises(ConfigError, match="does not say which"):
        await unnamed.rerank(QUERY, TEXTS)
    await unnamed.close()
    with pytest.raises(ConfigError, match="does not judge relevance"):
        resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'c', labels=('contradiction', 'entailment', 'neutral'))}")


async def test_a_config_without_labels_is_believed_where_there_is_one_logit(tmp_path: Path) -> None:
    reranker = resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'm', labels=None)}")
    assert np.allclose(await reranker.rerank(QUERY, TEXTS[:1]), [expected(QUERY, TEXTS[0])], atol=1e-6)
    await reranker.close()


async def test_a_long_text_is_as_good_as_its_best_window(tmp_path: Path) -> None:
    reranker = resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'm', max_tokens=32)}")
    room = 32 - 3 - 3
    last = "the sea bird flies"
    text = " ".join(["nest"] * (3 * room - 4)) + " " + last
    assert (await reranker.rerank(QUERY, [text]))[0] == pytest.approx(expected(QUERY, last), abs=1e-6)
    with pytest.raises(TextRefused, match="question has 31 tokens"):
        await reranker.rerank("sea " * 31, ["a bird " * 20])
    await reranker.close()


async def test_a_cancelled_call_leaves_the_reranker_working(tmp_path: Path) -> None:
    reranker = resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'm')}", threads=1)
    work = asyncio.ensure_future(reranker.rerank(QUERY, TEXTS * 50))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (await reranker.rerank(QUERY, TEXTS[:1]))[0] == pytest.approx(expected(QUERY, TEXTS[0]), abs=1e-6)
    await reranker.close()


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "onnx/model.onnx"])
def test_a_folder_without_a_file_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    (cross_encoder(tmp_path / "m") / missing).unlink()
    with pytest.raises(ConfigError) as raised:
        resolve_reranker(f"onnx:{tmp_path / 'm'}")
    assert missing.rpartition("/")[2].replace("model.onnx", "ONNX") in raised.value.message
    assert raised.value.hint


async def test_an_encoder_is_no_reranker(tmp_path: Path) -> None:
    reranker = resolve_reranker(f"onnx:{encoder(tmp_path / 'm')}")
    with pytest.raises(ConfigError, match="which of them is the relevance"):
        await reranker.rerank(QUERY, TEXTS)
    await reranker.close()
    with pytest.raises(ConfigError, match="no pooling"):
        resolve_reranker(f"onnx:{tmp_path / 'm'}?pooling=mean")


async def test_the_scores_of_another_network_are_told_apart(tmp_path: Path) -> None:
    first = resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'a' / 'm')}")
    other = resolve_reranker(f"onnx:{cross_encoder(tmp_path / 'b' / 'm', labels=('no', 'yes'), positive=1)}")
    assert await first.identity() != await other.identity()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("coher:x", "Did you mean 'cohere'"), ("cohere:", "needs a model"), ("tei:nowhere", "no address"),
        ("cohere:http://h:1", "needs a model"), ("cohere:m?top=1", "no option 'top'"),
        ("cohere:m?scores=big", "no scores 'big'"), ("jina", "needs a model"),
    ],
)  # fmt: skip
def test_a_specification_that_is_wrong_says_how_it_would_be_right(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        resolve_reranker(spec)
    assert raised.value.hint


# --- over sockets ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=PROTOCOLS)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RerankingServer]:
    with reranking_server(request.param) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


async def test_scores_come_in_the_order_of_the_texts(server: RerankingServer) -> None:
    reranker = resolve_reranker(server.spec)
    texts = [f"bird {number} of the sea" if number % 3 else f"nest {number}" for number in range(70)]
    found = await reranker.rerank(QUERY, texts)
    assert np.allclose(found, [score(QUERY, text) for text in texts])
    assert sorted(server.texts) == sorted(texts)
    if server.protocol == "tei":
        assert max(len(body["texts"]) for body in server.bodies) == 4  # the server's limit
    assert (await reranker.rerank(QUERY, [])).shape == (0,)
    await reranker.close()


def test_each_provider_is_asked_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for protocol in ("cohere", "jina", "voyage", "own"):
        with reranking_server(protocol) as server:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            reranker = resolve_reranker(server.spec)
            asyncio.run(reranker.rerank(QUERY, TEXTS[:2]))
            asyncio.run(reranker.close())
            found[protocol] = (server.paths, server.bodies[0])
    common = {"model": "small", "query": QUERY, "documents": TEXTS[:2]}
    assert found["cohere"] == (["/v2/rerank"], {**common, "top_n": 2})
    assert found["jina"] == (["/v1/rerank"], {**common, "top_n": 2, "return_documents": False})
    assert found["voyage"] == (["/v1/rerank"], {**common, "top_k": 2, "return_documents": False, "truncation": False})
    assert found["own"] == (["/v1/rerank"], {**common, "top_n": 2, "return_documents": False})


def test_a_key_goes_to_its_own_provider_only() -> None:
    named = {
        "https://api.cohere.com": "COHERE_API_KEY",
        "https://api.jina.ai/": "JINA_API_KEY",
        "https://api.voyageai.com": "VOYAGE_API_KEY",
        "https://vllm.example:8000": "RERANK_API_KEY",
        "https://api.cohere.com.example": "RERANK_API_KEY",
    }
    assert {url: wires._dialect("cohere", url).key for url in named} == named


async def test_raw_scores_are_normalised_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with reranking_server("own") as server:
        monkeypatch.setenv("RERANK_API_KEY", server.environment["RERANK_API_KEY"])
        server.behaviour = "outside"
        with pytest.raises(ModelMalformed, match="outside of 0 to 1") as raised:
            await resolve_reranker(server.spec).rerank(QUERY, TEXTS)
        assert "scores=raw" in raised.value.hint
        raw = resolve_reranker(f"{server.spec}&scores=raw")
        assert np.allclose(await raw.rerank(QUERY, TEXTS), 1 / (1 + math.exp(-7.5)))
        await raw.close()


async def test_a_text_that_the_server_refuses_is_judged_in_parts(server: RerankingServer) -> None:
    server.longest = 8
    long = "nest marsh wader sky nest marsh wader the sea bird flies here now too"
    reranker = resolve_reranker(server.spec)
    found = await reranker.rerank(QUERY, [TEXTS[0], long, TEXTS[2]])
    assert found[[0, 2]].tolist() == pytest.approx([score(QUERY, TEXTS[0]), score(QUERY, TEXTS[2])])
    assert found[1] == pytest.approx(1.0)  # its second half has all of the question
    with pytest.raises(ModelRefused):
        await reranker.rerank(QUERY, ["word " * 200])
    await reranker.close()


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("busy", ModelBusy), ("loading", ModelDown), ("broken", ModelDown), ("half", ModelError),
        ("malformed", ModelMalformed), ("odd", ModelMalformed), ("fewer", ModelMalformed), ("twice", ModelMalformed),
        ("numberless", ModelMalformed), ("outside", ModelMalformed), ("never", ModelSlow),
        ("placeless", ModelMalformed),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_named(
    server: RerankingServer, behaviour: str, error: type[ModelError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "TIMEOUT_S", 0.5 if behaviour == "never" else 20.0)
    server.behaviour = behaviour
    reranker = resolve_reranker(server.spec)
    with pytest.raises(error) as raised:
        await reranker.rerank("the secret question", ["the secret text"])
    assert raised.value.hint
    assert "secret" not in f"{raised.value} {raised.value.hint}"
    if isinstance(raised.value, ModelBusy):
        assert raised.value.retry_after_s == 7.0
    assert len(server.bodies) <= 1  # one attempt: trying again is somebody else's
    await reranker.close()


async def test_nobody_is_sent_elsewhere(server: RerankingServer) -> None:
    """What answers with a redirect could lead texts to any address that is reached from here."""
    with reranking_server(server.protocol) as other:
        server.behaviour, server.elsewhere = "moved", other.url
        reranker = resolve_reranker(server.spec)
        with pytest.raises(ModelMalformed, match=r"a redirect \(307\)"):
            await reranker.rerank(QUERY, ["the secret text"])
        assert other.bodies == []
        await reranker.close()


async def test_a_wrong_key_names_its_variable(server: RerankingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    key = next(name for name in server.environment if name.endswith(("_KEY", "_TOKEN")))
    monkeypatch.setenv(key, "rr_wrong")
    reranker = resolve_reranker(server.spec)
    with pytest.raises(ModelKeyRefused) as raised:
        await reranker.rerank(QUERY, TEXTS)
    assert key in raised.value.hint
    assert "rr_wrong" not in f"{raised.value} {raised.value.hint}"
    await reranker.close()


@pytest.mark.parametrize(
    ("spec", "variable"),
    [("cohere:m", "COHERE_API_KEY"), ("jina:m", "JINA_API_KEY"), ("voyage:m", "VOYAGE_API_KEY"),
     ("huggingface:m", "HF_TOKEN"), ("cohere:https://api.jina.ai?model=m", "JINA_API_KEY")],
)  # fmt: skip
async def test_a_missing_key_is_said_before_anything_is_sent(
    spec: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COHERE_API_KEY", "JINA_API_KEY", "VOYAGE_API_KEY", "HF_TOKEN", "HF_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelKeyMissing, match=variable):
        await resolve_reranker(spec).rerank(QUERY, TEXTS)


async def test_nobody_at_the_address() -> None:
    with pytest.raises(ModelDown, match="Nobody answers"):
        await resolve_reranker("tei:http://127.0.0.1:9").rerank(QUERY, TEXTS)


async def test_a_server_of_embeddings_is_no_reranker(monkeypatch: pytest.MonkeyPatch) -> None:
    from embedding_servers import embedding_server

    with embedding_server("tei") as server:
        monkeypatch.setenv("TEI_API_KEY", server.environment["TEI_API_KEY"])
        with pytest.raises(ConfigError, match="no reranker"):
            await resolve_reranker(server.spec).rerank(QUERY, TEXTS)


async def test_the_model_behind_an_address_is_part_of_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    with reranking_server("tei") as server:
        monkeypatch.setenv("TEI_API_KEY", server.environment["TEI_API_KEY"])
        first = await resolve_reranker(server.spec).identity()
        server.sha = "def"
        assert await resolve_reranker(server.spec).identity() != first


def test_labels_are_read_by_their_number(tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path / "m", labels=("no", "yes"), positive=1)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"1": "yes", "0": "no"}
    (folder / "config.json").write_text(json.dumps(config))
    found = asyncio.run(resolve_reranker(f"onnx:{folder}").rerank(QUERY, TEXTS[:1]))
    assert found[0] == pytest.approx(expected(QUERY, TEXTS[0]), abs=1e-6)
