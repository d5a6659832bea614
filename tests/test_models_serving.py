"""`whimbrel models` over sockets: through our own client, OpenAI's and Hugging Face's."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import numpy.typing as npt
import openai
import pytest

from models_server import ModelsServer, models_server
from running import Toy, files
from small_models import cross_encoder, encoder
from whimbrel import Whimbrel
from whimbrel.config import Settings, load_settings
from whimbrel.domain import EmbedKind
from whimbrel.errors import ConfigError, MissingExtra, ModelBusy, ModelDown, ModelKeyRefused, SpaceMismatch, TextRefused
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.configured import ConfiguredSpace
from whimbrel.models.embedders.minilm import MiniLM
from whimbrel.models.embedders.remote import RemoteEmbedder
from whimbrel.models.embedders.resolve import resolve_embedder
from whimbrel.models.rerankers.base import Reranker
from whimbrel.models.rerankers.resolve import resolve_reranker
from whimbrel.server.models.app import create_app
from whimbrel.server.models.models import Models
from whimbrel.server.models.run import serve_models

DOCUMENT, QUERY = EmbedKind.DOCUMENT, EmbedKind.QUERY
TEXTS = ["The whimbrel flies far.", "A nest in the marsh.", "Ein Vogel singt über der See.", "x"]
LONG = "How far does the whimbrel fly over the cold sea? " * 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelsServer]:
    with models_server(tmp_path_factory.mktemp("models") / "log", "--embedder", "minilm") as found:
        yield found


@pytest.fixture(scope="module")
def here() -> MiniLM:
    return MiniLM()


def made(embedder: MiniLM, texts: Sequence[str], kind: EmbedKind = DOCUMENT) -> npt.NDArray[np.float32]:
    return embedder.embed_sync(texts, kind)


# --- our own client --------------------------------------------------------------------------------------------------


async def test_our_client_gets_the_very_vectors_of_the_model_in_the_very_space(
    server: ModelsServer, here: MiniLM
) -> None:
    embedder = resolve_embedder(server.spec)
    assert embedder.space == here.space
    assert np.array_equal(await embedder.embed(TEXTS, DOCUMENT), made(here, TEXTS))
    assert np.array_equal(await embedder.embed([LONG], QUERY), made(here, [LONG], QUERY))
    assert (await embedder.embed([], DOCUMENT)).shape == (0, 384)
    questions = [f"How far does bird {number} fly?" for number in range(60)]
    found = await asyncio.gather(*(embedder.embed([question], QUERY) for question in questions))
    assert np.array_equal(np.concatenate(found), made(here, questions, QUERY))
    many = [f"Bird {number} sings." for number in range(700)]
    assert np.array_equal(await embedder.embed(many, DOCUMENT), made(here, many))
    for text in TEXTS:
        assert embedder.reads(text) == here.reads(text)
        assert embedder.count_tokens(text) == here.count_tokens(text)
    await embedder.close()


async def test_a_document_that_is_too_long_is_refused_and_named(server: ModelsServer) -> None:
    embedder = resolve_embedder(server.spec)
    with pytest.raises(TextRefused) as raised:
        await embedder.embed(["a bird", LONG, "a nest"], DOCUMENT)
    assert raised.value.positions == (1,)
    await embedder.close()


async def test_a_model_with_prefixes_gets_them_once(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "words", prompts={"query": "query: ", "passage": "passage: "}, max_tokens=16)
    here = resolve_embedder(f"onnx:{folder}")
    with models_server(tmp_path / "log", "--embedder", f"onnx:{folder}") as server:
        served = resolve_embedder(server.spec)
        assert served.space == here.space
        for kind in EmbedKind:
            texts = ["the sea", "a nest in the marsh"]
            assert np.array_equal(await served.embed(texts, kind), await here.embed(texts, kind))
        with pytest.raises(ConfigError, match="prefixes"):
            await resolve_embedder(f"{server.spec}?query_prefix=query:").embed(["sea"], QUERY)
        asked = {"inputs": "the sea", "prompt_name": "query"}
        found = np.array(httpx.post(f"{server.url}/embed", json=asked).json(), np.float32)
        assert np.array_equal(found, await here.embed(["the sea"], QUERY))
        await served.close()


async def test_another_model_at_the_same_address_is_noticed(tmp_path: Path) -> None:
    one, other = encoder(tmp_path / "one"), encoder(tmp_path / "other", seed=8)
    with models_server(tmp_path / "log", "--embedder", f"onnx:{one}") as server:
        embedder = resolve_embedder(server.spec)
        await embedder.embed(["the sea"], QUERY)
        port = server.port
    with pytest.raises(ModelDown):
        await embedder.embed(["the sea"], QUERY)
    later = ModelsServer(tmp_path / "log2", "--embedder", f"onnx:{other}", "--port", str(port))
    try:
        later.url = server.url
        later.wait()
        with pytest.raises(SpaceMismatch, match="another model"):
            await embedder.embed(["the sea"], QUERY)
        with pytest.raises(SpaceMismatch, match="another model"):
            await asyncio.gather(*(embedder.embed(["the sea"], QUERY) for _ in range(5)))
    finally:
        later.stop()
        await embedder.close()


# --- a collection that changes its host ------------------------------------------------------------------------------


def test_a_collection_goes_on_when_its_model_is_served_elsewhere_and_back(tmp_path: Path, server: ModelsServer) -> None:
    home, notes = tmp_path / "home", tmp_path / "notes"
    files(notes, 8)
    question = "notes on birds, written in town 21"
    with Whimbrel(home) as whimbrel:
        whimbrel.ingest([notes])
        before = whimbrel.search(question, mode="dense")
    for round_ in range(2):  # the second start reads in the catalog what the first has found
        with Whimbrel(home, embedder=server.spec) as whimbrel:
            after = whimbrel.search(question, mode="dense")
            assert after.hits == before.hits
            assert not after.degraded
            assert isinstance(whimbrel.embedder().inner, RemoteEmbedder)
            assert whimbrel.models.embedders.opened == [server.spec], "the model in this process was not loaded"
            assert len(_spaces(whimbrel)) == 1
            assert _spaces(whimbrel)[0][1] == server.spec
            files(notes, 9 + round_)
            whimbrel.ingest([notes])
            assert len(_spaces(whimbrel)) == 1
            before = whimbrel.search(question, mode="dense")
    with Whimbrel(home) as whimbrel:
        assert whimbrel.search(question, mode="dense").hits == before.hits
        assert _spaces(whimbrel)[0][1] == "minilm"


def test_whoever_asks_while_the_first_answer_is_on_its_way_waits_for_it_too() -> None:
    """A search beside the owner was told that the server has another model, and loaded that of this process."""
    asked, answer = threading.Event(), threading.Event()

    def slow() -> Embedder:
        asked.set()
        assert answer.wait(30)
        return resolve_embedder("minilm")

    space = ConfiguredSpace("tei:http://nowhere", slow)
    key = resolve_embedder("minilm").space.key
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(space.is_of, key)
        assert asked.wait(30)
        second = threads.submit(space.is_of, key)
        time.sleep(0.2)  # it must not have given up by then
        answer.set()
        assert first.result()
        assert second.result()


def test_while_the_server_is_out_a_collection_that_it_serves_says_so(tmp_path: Path) -> None:
    home, notes = tmp_path / "home", tmp_path / "notes"
    files(notes, 3)
    with models_server(tmp_path / "log", "--embedder", "minilm") as server, Whimbrel(home, embedder=server.spec) as one:
        one.ingest([notes])
    with Whimbrel(home, embedder=server.spec) as whimbrel:
        found = whimbrel.search("birds")
        assert found.hits, "by words"
        assert any(server.url in said for said in found.degraded), found.degraded
        assert server.spec in whimbrel.models.embedders.opened
        assert "minilm" not in whimbrel.models.embedders.opened


def test_a_server_that_cannot_say_what_it_serves_takes_no_collection_away(tmp_path: Path) -> None:
    home, notes = tmp_path / "home", tmp_path / "notes"
    files(notes, 3)
    with Whimbrel(home) as whimbrel:
        whimbrel.ingest([notes])
    with Whimbrel(home, embedder="tei:http://127.0.0.1:9") as whimbrel:
        found = whimbrel.search("birds", mode="dense")
        assert found.hits
        assert not found.degraded


def _spaces(whimbrel: Whimbrel) -> list[tuple[int, str]]:
    from sqlalchemy import select

    from whimbrel.catalog import tables as t

    with whimbrel.catalog.read() as connection:
        return [tuple(row) for row in connection.execute(select(t.spaces.c.id, t.spaces.c.embedder))]


# --- the official clients --------------------------------------------------------------------------------------------


def test_openais_client(server: ModelsServer, here: MiniLM) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == ["all-MiniLM-L6-v2"]
    found = client.embeddings.create(model="minilm", input=TEXTS)  # the client asks for base64
    assert np.array_equal(np.array([one.embedding for one in found.data], np.float32), made(here, TEXTS))
    assert found.usage.prompt_tokens == sum(map(here.count_tokens, TEXTS))
    floats = client.embeddings.create(model="all-MiniLM-L6-v2", input=TEXTS[0], encoding_format="float")
    assert np.array_equal(np.array(floats.data[0].embedding, np.float32), made(here, TEXTS[:1])[0])
    asked = {"model": "minilm", "input": [LONG], "encoding_format": "base64", "input_type": "query"}
    packed = httpx.post(f"{server.url}/v1/embeddings", json=asked).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), made(here, [LONG], QUERY)[0])
    with pytest.raises(openai.NotFoundError, match="all-MiniLM-L6-v2"):
        client.embeddings.create(model="text-embedding-3-small", input="a bird")
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="minilm", input=[LONG])
    with pytest.raises(openai.UnprocessableEntityError, match="384"):
        client.embeddings.create(model="minilm", input="a bird", dimensions=100)
    with pytest.raises(openai.UnprocessableEntityError, match="not tokens"):
        client.embeddings.create(model="minilm", input=[[1, 2, 3]])
    client.close()


def test_hugging_faces_client(server: ModelsServer, here: MiniLM) -> None:
    client = huggingface_hub.InferenceClient(model=server.url, token="none")
    assert np.array_equal(client.feature_extraction("a bird", normalize=True, truncate=False), made(here, ["a bird"]))
    found = client.feature_extraction(LONG, prompt_name="query")
    assert np.array_equal(found, made(here, [LONG], QUERY))
    cut = client.feature_extraction(LONG, truncate=True)
    assert cut.shape == (1, 384)
    assert (cut @ made(here, [LONG[: len(LONG) // 4]]).T).item() > 0.9


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_answered_is_refused_without_a_word_of_it(server: ModelsServer) -> None:
    with httpx.Client(base_url=server.url) as http:
        for body, status in (
            (b"{", 400),
            (b'{"inputs": "secret \xff"}', 400),
            (b'{"inputs": ""}', 422),
            (b'{"inputs": []}', 422),
            (b'{"inputs": ["secret", ""]}', 422),
            (b'{"inputs": [1, 2]}', 422),
            (b'{"inputs": "secret", "normalize": false}', 422),
            (b'{"inputs": "secret", "prompt_name": "secret"}', 422),
            (b'["secret"]', 422),
        ):
            answer = http.post("/embed", content=body)
            assert answer.status_code == status, (body, answer.text)
            assert set(answer.json()) == {"error", "error_type", "code"}
            assert "secret" not in answer.text
        assert http.post("/embed", json={"inputs": ["a"] * 2_049}).status_code == 422
        assert http.post("/embed", json={"inputs": "a " * 5_000}).status_code == 413
        assert http.post("/rerank", json={"query": "a", "texts": ["b"]}).status_code == 404
        assert http.get("/embed").status_code == 405
        assert http.get("/nothing").status_code == 404
        assert http.post("/embed", content=b" " * (65 << 20)).status_code == 413
        figures = http.get("/metrics").text
    assert re.search(r'whimbrel_requests_total\{method="POST",route="/embed",status="422"\} [1-9]', figures)
    assert "whimbrel_models_batch_texts_bucket" in figures
    assert "secret" not in server.log.read_text()


async def test_keys_are_asked_for_where_they_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"WHIMBREL_API_KEYS": "worker:open-sesame"}
    with models_server(tmp_path / "log", "--embedder", "minilm", **keys) as server:
        assert httpx.post(f"{server.url}/embed", json={"inputs": "a"}).status_code == 401
        assert httpx.get(f"{server.url}/info").status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200
        monkeypatch.setenv("TEI_API_KEY", "wrong")
        with pytest.raises(ModelKeyRefused, match="401"):
            await resolve_embedder(server.spec).embed(["a bird"], QUERY)
        monkeypatch.setenv("TEI_API_KEY", "open-sesame")
        embedder = resolve_embedder(server.spec)
        assert (await embedder.embed(["a bird"], QUERY)).shape == (1, 384)
        await embedder.close()
    assert "sesame" not in server.log.read_text()


def test_strangers_are_not_served_without_keys(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    with pytest.raises(ConfigError, match="this machine only"):
        serve_models(settings, embedder="minilm", reranker="none", host="0.0.0.0", port=0)
    with pytest.raises(ConfigError, match="Neither"):
        serve_models(settings, embedder="none", reranker="none", host="127.0.0.1", port=0)
    with pytest.raises(ConfigError, match="address that is to be served"):
        serve_models(settings, embedder="tei:http://127.0.0.1:8080", reranker="none", host="127.0.0.1", port=8080)


def test_a_page_of_another_site_gets_nothing(server: ModelsServer) -> None:
    asked = {"inputs": "a bird"}
    elsewhere = {"origin": "https://elsewhere.example"}
    assert httpx.post(f"{server.url}/embed", json=asked, headers=elsewhere).status_code == 403
    assert httpx.get(f"{server.url}/info", headers={"host": "rebound.example"}).status_code == 403


def test_a_model_that_is_not_there_ends_the_process_with_its_error(tmp_path: Path) -> None:
    server = ModelsServer(tmp_path / "log", "--embedder", f"onnx:{tmp_path}/nothing")
    assert server.process.wait(40) == 2
    assert "is not a model" in server.log.read_text()


async def test_what_is_under_way_is_answered_before_it_stops(tmp_path: Path) -> None:
    server = ModelsServer(tmp_path / "log", "--embedder", "minilm")
    server.wait()
    async with httpx.AsyncClient(timeout=30) as http:
        await http.post(f"{server.url}/embed", json={"inputs": ["a bird"]})  # the connection is made, and stays
        asked = asyncio.create_task(http.post(f"{server.url}/embed", json={"inputs": ["a bird in the marsh"] * 200}))
        await asyncio.sleep(0.15)
        stopped = asyncio.create_task(asyncio.to_thread(server.stop))
        answer = await asked
        assert answer.status_code == 200
        assert len(answer.json()) == 200
        assert await stopped == 0


async def test_scores_are_kept_as_those_of_the_very_model_wherever_it_is_served(tmp_path: Path) -> None:
    folders = [cross_encoder(tmp_path / str(reads) / "judge", max_tokens=reads) for reads in (32, 16)]
    here = resolve_reranker(f"onnx:{folders[0]}")
    texts = ["a nest in the marsh", "the sea"]
    for folder, same in zip(folders, (True, False), strict=True):
        with models_server(tmp_path / "log", "--embedder", "minilm", "--reranker", f"onnx:{folder}") as server:
            there = resolve_reranker(server.spec)
            assert (await there.identity() == await here.identity()) is same
            if same:
                found, expected = await there.rerank("a bird", texts), await here.rerank("a bird", texts)
                assert found.tobytes() == expected.tobytes()
            await there.close()
    await here.close()


# --- in this process -------------------------------------------------------------------------------------------------


class Longest(Reranker):
    """Longer texts are better."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    @property
    def name(self) -> str:
        return "test:longest"

    async def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        await self.open.wait()
        return np.array([len(text) / 100 for text in texts], np.float32)


async def _app(settings: Settings, models: Models, toy: Toy, reranker: Reranker) -> httpx.AsyncClient:
    await models.load(lambda _: toy, lambda _: reranker)
    return _client(settings, models)


def _client(settings: Settings, models: Models) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(models, settings))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def test_reranking(tmp_path: Path) -> None:
    settings, models = load_settings(home=tmp_path), Models(embedder="toy", reranker="test:longest")
    async with await _app(settings, models, Toy(), Longest()) as http:
        asked = {"query": "birds", "texts": ["a", "a nest in the marsh", "a nest"], "return_text": True}
        found = (await http.post("/rerank", json=asked)).json()
        assert [one["index"] for one in found] == [1, 2, 0]
        assert [one["text"] for one in found] == ["a nest in the marsh", "a nest", "a"]
        assert found[0]["score"] == pytest.approx(0.19)
        assert (await http.post("/", json=asked)).json() == found
        assert np.shape((await http.post("/", json={"inputs": "a bird"})).json()) == (1, 32)
        for inputs in ('what is a "query"?', "query", ["query", "texts"]):
            asked_for = {"inputs": inputs, "prompt_name": "query"}
            assert (await http.post("/", json=asked_for)).status_code == 200
        assert (await http.post("/", content=b'{"query" no JSON')).status_code == 400
        assert (await http.post("/rerank", json=asked | {"raw_scores": True})).status_code == 422
        assert (await http.post("/rerank", json=asked | {"texts": []})).status_code == 422
        info = (await http.get("/info")).json()
        assert info["whimbrel_reranker"] == "test:longest"
        assert set(info["model_type"]) == {"embedding", "reranker"}
    await models.close()


async def test_too_many_at_once_are_sent_away_at_once_and_told_when_to_come_back(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    models = Models(embedder="toy", reranker="test:longest", most_waiting=3)
    reranker = Longest()
    async with await _app(settings, models, Toy(), reranker) as http:
        reranker.open.clear()
        rank = {"query": "birds", "texts": ["a"]}
        waiting = [asyncio.create_task(http.post("/rerank", json=rank)) for _ in range(66)]
        await asyncio.sleep(0.1)
        refused = await http.post("/rerank", json=rank)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error_type"] == "Overloaded"
        reranker.open.set()
        assert {one.status_code for one in await asyncio.gather(*waiting)} == {200}
    await models.close()


class Gated(Toy):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        await self.open.wait()
        return await super().embed(texts, kind)


async def test_who_has_gone_takes_the_texts_out_of_the_queue(tmp_path: Path) -> None:
    settings, models, toy = load_settings(home=tmp_path), Models(embedder="toy"), Gated()
    async with await _app(settings, models, toy, Longest()) as http:
        toy.open.clear()
        asked = [asyncio.create_task(http.post("/embed", json={"inputs": f"bird {n}"})) for n in range(2)]
        await asyncio.sleep(0.1)
        asked.append(asyncio.create_task(http.post("/embed", json={"inputs": "bird 2"})))
        gone = asyncio.create_task(_ask_and_go(create_app(models, settings)))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(gone, 30)
        assert "whimbrel_models_waiting_texts 1.0" in (await http.get("/metrics")).text
        toy.open.set()
        assert {one.status_code for one in await asyncio.gather(*asked)} == {200}
        assert "secret" not in toy.given
    await models.close()


async def _ask_and_go(app: Any) -> None:
    """A request whose client goes away as soon as it is sent."""
    messages = [{"type": "http.request", "body": b'{"inputs": "secret"}'}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/embed", "raw_path": b"/embed", "query_string": b"",
        "headers": [(b"host", b"localhost")], "server": ("127.0.0.1", 8080), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    assert not sent


async def test_until_the_model_is_loaded_it_says_so(tmp_path: Path) -> None:
    models = Models(embedder="toy")
    async with _client(load_settings(home=tmp_path), models) as http:
        for answer in (await http.get("/health"), await http.post("/embed", json={"inputs": "a"})):
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
        await models.load(lambda _: Toy(), resolve_reranker)
        assert (await http.get("/health")).status_code == 200
    await models.close()


async def test_a_full_queue_is_what_our_client_calls_busy(tmp_path: Path) -> None:
    from embedding_servers import KEY, embedding_server

    with pytest.MonkeyPatch.context() as patch, embedding_server("tei") as server:
        patch.setenv("TEI_API_KEY", KEY)
        server.behaviour = "busy"
        with pytest.raises(ModelBusy) as raised:
            await resolve_embedder(server.spec).embed(["a bird"], QUERY)
        assert raised.value.retry_after_s == 7


def test_without_torch_the_extra_is_named() -> None:
    from importlib.util import find_spec

    if find_spec("sentence_transformers"):
        pytest.skip("it is installed here")
    for resolve in (resolve_embedder, resolve_reranker):
        with pytest.raises(MissingExtra) as raised:
            resolve("sentence-transformers:some/model")
        assert "whimbrel[sentence-transformers]" in raised.value.hint
