"""What is kept of models' work: found again by every process, bounded, erased; and never an answer from before."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_servers import embedding_server
from providers import ModelServer, served
from reranking_servers import KEY, reranking_server
from running import until
from whimbrel import Whimbrel
from whimbrel.catalog import cache as caching
from whimbrel.catalog.cache import Cache, Kind, key_of
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import Answer, Passages, TextDelta

pytestmark = pytest.mark.timeout(180)

VECTORS = Kind.QUERY_VECTORS


def made(catalog: Catalog, folder: Path, **more: Any) -> Cache:
    return Cache(catalog, folder / "cache.db", **{"max_bytes": 1 << 20, "ttl_s": 60.0, "answers_s": 60.0, **more})


def found(cache: Cache, keys: list[bytes], kind: Kind = VECTORS) -> dict[bytes, bytes]:
    return asyncio.run(cache.find(kind, keys))


def keys(count: int) -> list[bytes]:
    return [key_of("key", str(number)) for number in range(count)]


# --- by itself -------------------------------------------------------------------------------------------------------


def test_what_one_process_keeps_another_finds(catalog: Catalog, tmp_path: Path) -> None:
    one, other = made(catalog, tmp_path), made(catalog, tmp_path)
    some = keys(700)
    one.keep(VECTORS, {key: key * 3 for key in some})
    assert found(one, some) == {key: key * 3 for key in some}  # before it is written
    one.flush()
    assert found(other, some) == {key: key * 3 for key in some}
    assert found(other, some, Kind.RERANK_SCORES) == {}
    assert other.lookups() == {(VECTORS, True): 700, (VECTORS, False): 0,
                               (Kind.RERANK_SCORES, True): 0, (Kind.RERANK_SCORES, False): 700}  # fmt: skip
    one.close()
    other.close()
    later = made(catalog, tmp_path)
    assert len(found(later, some)) == 700
    later.close()


def test_the_size_is_bounded_and_what_was_used_last_stays(catalog: Catalog, tmp_path: Path) -> None:
    cache = made(catalog, tmp_path, max_bytes=100_000)
    first, *rest = keys(600)
    cache.keep(VECTORS, {first: b"x" * 1000})
    cache.flush()
    for start in range(0, len(rest), 30):
        cache.keep(VECTORS, dict.fromkeys(rest[start : start + 30], b"x" * 1000))
        cache.flush()
        cache._used.clear()  # as if a minute had passed
        cache._memory.clear()
        cache._memory_bytes = 0
        assert found(cache, [first])
        cache.flush()
    (count, size) = cache.sizes()[VECTORS]
    assert size <= 100_000 + 30 * 1_150
    assert 20 < count < 120
    assert found(cache, [rest[-1]])
    cache._memory.clear()
    assert not found(cache, rest[:100])
    cache.close()


def test_what_is_too_old_is_not_found(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = made(catalog, tmp_path, ttl_s=100.0)
    (key,) = keys(1)
    cache.keep(VECTORS, {key: b"1"})
    cache.flush()
    now = time.time()
    for ahead, there in ((99, True), (101, False), (-3_600, False)):  # the last: the clock was set back
        monkeypatch.setattr(caching.time, "time", lambda ahead=ahead: now + ahead)
        assert bool(found(cache, [key])) is there
        cache._memory.clear()
        assert bool(found(cache, [key])) is there
    monkeypatch.undo()
    cache.close()


def test_nothing_is_kept_where_that_is_said(catalog: Catalog, tmp_path: Path) -> None:
    cache = made(catalog, tmp_path, max_bytes=0)
    cache.keep(VECTORS, {keys(1)[0]: b"1"})
    cache.keep_of(1, "a", Kind.ANSWERS, keys(1)[0], b"1")
    cache.close()
    assert not (tmp_path / "cache.db").exists()
    no_answers = made(catalog, tmp_path, answers_s=0)
    no_answers.keep_of(1, "a", Kind.ANSWERS, keys(1)[0], b"1")
    no_answers.keep(VECTORS, {keys(1)[0]: b"1"})
    no_answers.flush()
    assert set(no_answers.sizes()) == {VECTORS}
    no_answers.close()


def test_a_collections_answers_are_erased_from_the_files(catalog: Catalog, tmp_path: Path) -> None:
    cache = made(catalog, tmp_path)
    cache.erase(1)  # of nothing
    mine, yours, score = keys(3)
    cache.keep_of(1, "a", Kind.ANSWERS, mine, b"zyxosecretq" * 50)
    cache.keep_of(2, "a", Kind.ANSWERS, yours, b"yours")
    cache.keep(Kind.RERANK_SCORES, {score: b"1234"})
    cache.flush()
    cache.erase(1)
    assert found(cache, [mine, yours], Kind.ANSWERS) == {yours: b"yours"}
    assert found(cache, [score], Kind.RERANK_SCORES) == {}
    for file in tmp_path.glob("cache.db*"):
        assert b"zyxosecretq" not in file.read_bytes()
    cache.close()


def test_what_belongs_to_an_earlier_state_goes_when_a_later_one_is_kept(catalog: Catalog, tmp_path: Path) -> None:
    one, other = made(catalog, tmp_path), made(catalog, tmp_path)
    first, second, third, fourth = keys(4)
    one.keep_of(1, "first", Kind.ANSWERS, first, b"1")
    one.keep_of(2, "first", Kind.ANSWERS, second, b"2")
    other.keep_of(1, "first", Kind.ANSWERS, third, b"3")
    assert set(found(other, [first, second, third], Kind.ANSWERS)) == {first, second, third}
    other.keep_of(1, "second", Kind.ANSWERS, fourth, b"4")
    assert set(found(one, [first, second, third, fourth], Kind.ANSWERS)) == {second, fourth}
    one.close()
    other.close()


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    file = tmp_path / "cache.db"
    file.write_bytes(b"this is no database at all" * 1_000)
    cache = made(catalog, tmp_path)
    (key,) = keys(1)
    assert found(cache, [key]) == {}
    cache.keep(VECTORS, {key: b"1"})
    cache.flush()
    cache._memory.clear()
    assert found(cache, [key]) == {key: b"1"}
    assert cache.errors == 1
    cache.close()
    catalog.close()


def test_a_place_that_cannot_be_written_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    cache = made(catalog, tmp_path / "nowhere")
    (key,) = keys(1)
    cache.keep(VECTORS, {key: b"1"})
    cache.flush()
    cache.flush()
    assert found(cache, [*keys(2)]) == {key: b"1"}
    assert cache.errors >= 2
    assert len([one for one in caplog.records if one.name == "whimbrel.cache"]) == 1
    cache.close()
    catalog.close()


def test_processes_that_begin_at_once(tmp_path: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from whimbrel.catalog.cache import Cache, Kind, key_of
from whimbrel.catalog.engine import Catalog
cache = Cache(Catalog("sqlite:///{tmp_path}/catalog.db"), Path("{tmp_path}/cache.db"), max_bytes=1 << 20, ttl_s=60,
              answers_s=60)
for number in range(200):
    cache.keep(Kind.QUERY_VECTORS, {{key_of(str(number)): b"x" * 100}})
    if number % 10 == 0:
        cache.flush()
cache.close()
assert cache.errors == 0, cache.errors
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [one.wait() for one in running] == [0, 0, 0]
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    cache = made(catalog, tmp_path)
    assert cache.sizes()[VECTORS][0] == 200
    cache.close()
    catalog.close()


# --- in a home -------------------------------------------------------------------------------------------------------

TERN = "# Arctic tern\n\nThe arctic tern flies from pole to pole each year. It covers 70,900 kilometres a year.\n"
QUESTION = "How far does the arctic tern fly each year?"
SAID = "The arctic tern covers 70,900 kilometres a year. [1]"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Whimbrel]:
    with opened(tmp_path) as whimbrel:
        whimbrel.add([{"id": "tern", "text": TERN}])
        yield whimbrel


def opened(folder: Path, **more: Any) -> Whimbrel:
    given = {"model": "extractive", "cache.answers_s": 600, "owner.erasure_grace_s": 0, **more}
    return Whimbrel(home=folder / "home", **given)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with served("openai", SAID) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_query_is_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedding_server("tei") as server:
        monkeypatch.setenv("TEI_API_KEY", server.environment["TEI_API_KEY"])
        with opened(tmp_path, embedder=server.spec) as whimbrel:
            whimbrel.add([{"id": "tern", "text": TERN}])
            first = whimbrel.search("a bird that flies far", mode="dense")
            asked = len(server.batches)
            again = whimbrel.search("a bird that flies far", mode="dense")
            assert again.hits == first.hits
            assert len(server.batches) == asked
        with opened(tmp_path, embedder=server.spec) as whimbrel:  # another process's life
            assert whimbrel.search("a bird that flies far", mode="dense").hits == first.hits
            assert [batch for batch in server.batches[asked:] if "a bird that flies far" in batch] == []
            whimbrel.search("another bird", mode="dense")
            assert ["another bird"] in server.batches


def test_a_pair_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Whimbrel) -> None:
    home.close()
    unhurried = {"rerank.budget_ms": 60_000}
    monkeypatch.setenv("TEI_API_KEY", KEY)
    with reranking_server("tei") as server:
        with opened(tmp_path, reranker=server.spec, **unhurried) as whimbrel:
            first = whimbrel.search(QUESTION)
            judged = len(server.texts)
            assert judged == len(first.hits)
            assert whimbrel.search(QUESTION).hits == first.hits
            assert len(server.texts) == judged
            whimbrel.add([{"id": "kiwi", "text": "The kiwi does not fly each year, nor ever."}])
            whimbrel.search(QUESTION)
            assert len(server.texts) == judged + 1  # the new one alone
        server.behaviour = "broken"
        with opened(tmp_path, reranker=server.spec, **unhurried) as whimbrel:
            assert whimbrel.search(QUESTION).degraded == []
        server.behaviour, server.sha = "answer", "another"
        with opened(tmp_path, reranker=server.spec, **unhurried) as whimbrel:
            whimbrel.search(QUESTION)
            assert len(server.texts) == 2 * judged + 2  # another model's scores are others


def test_an_answer_is_given_again_while_nothing_has_changed(tmp_path: Path, home: Whimbrel, model: ModelServer) -> None:
    home.close()
    with opened(tmp_path, model=model.spec) as whimbrel:
        first = whimbrel.ask(QUESTION)
        again = whimbrel.ask(QUESTION)
        assert len(model.asked) == 1
        assert again.usage == {"cached": True}
        assert (again.answer, again.citations, again.sentences, again.model) == (
            first.answer, first.citations, first.sentences, first.model,
        )  # fmt: skip
        assert first.citations
        events = list(whimbrel.ask_stream(QUESTION))
        assert [type(event) for event in events] == [Passages, Answer]
        assert whimbrel.ask(QUESTION, fresh=True).usage["output_tokens"]
        assert len(model.asked) == 2
    with opened(tmp_path, model=model.spec) as whimbrel:
        assert whimbrel.ask(QUESTION).usage == {"cached": True}
        for options in ({"top_k": 3}, {"mode": "dense"}, {"threshold": 0.01}, {"filter": {"a": {"$exists": False}}}):
            assert "cached" not in whimbrel.ask(QUESTION, **options).usage
        assert whimbrel.ask(QUESTION, model="extractive").model == "extractive"
        assert any(isinstance(event, TextDelta) for event in whimbrel.ask_stream(QUESTION + " "))
    with opened(tmp_path, model=model.spec, **{"answer.max_tokens": 777}) as whimbrel:
        assert "cached" not in whimbrel.ask(QUESTION).usage


def test_a_collection_that_has_changed_answers_anew(tmp_path: Path, home: Whimbrel) -> None:
    changes = [
        lambda: home.add([{"id": "tern", "text": TERN.replace("70,900", "80,000")}]),
        lambda: home.add([{"id": "tern", "text": TERN.replace("70,900", "80,000"), "metadata": {"a": 1}}]),
        lambda: home.add([{"id": "kiwi", "text": "The kiwi walks."}]),
        lambda: home.delete([home.search("kiwi", top_k=1).hits[0].document_id]),
    ]
    home.ask(QUESTION)
    assert "70,900" in home.ask(QUESTION).answer
    for change in changes:
        assert home.ask(QUESTION).usage == {"cached": True}
        change()
        home.wait_for_head("default")
        assert "cached" not in home.ask(QUESTION).usage
    assert "80,000" in home.ask(QUESTION).answer
    assert home.cache.sizes()[Kind.ANSWERS][0] == 1  # those of earlier states are gone


def test_an_answer_that_lacked_something_is_not_kept(tmp_path: Path, home: Whimbrel, model: ModelServer) -> None:
    home.close()
    model.behaviour = "overloaded"
    with opened(tmp_path, model=model.spec) as whimbrel:
        assert whimbrel.ask(QUESTION).degraded
        model.behaviour = "answer"
        found = whimbrel.ask(QUESTION)
        assert (found.degraded, found.model) == ([], model.spec)


def test_what_would_be_said_again_keeps_no_answer_from_being_kept(
    tmp_path: Path, home: Whimbrel, model: ModelServer
) -> None:
    home.add([{"id": f"t{n}", "text": f"# Terns {n}\n\n" + "The tern flies far each year. " * 20} for n in range(4)])
    home.close()
    with opened(tmp_path, model=model.spec, **{"answer.passage_tokens": 200}) as whimbrel:
        first = whimbrel.ask(QUESTION)
        assert "passages fit `answer.passage_tokens`" in first.degraded[0]
        again = whimbrel.ask(QUESTION)
        assert (again.usage, again.degraded) == ({"cached": True}, first.degraded)


def test_a_follow_up_is_answered_anew_and_a_conversation_may_begin_with_a_kept_answer(home: Whimbrel) -> None:
    home.ask(QUESTION)
    first = home.ask(QUESTION, conversation_id="new")
    assert first.usage == {"cached": True}
    _, turns = home.conversation(str(first.conversation_id))
    assert turns[0].answer == first.answer
    assert "cached" not in home.ask(QUESTION, conversation_id=first.conversation_id).usage


def test_a_purge_takes_what_was_made_from_the_documents(tmp_path: Path, home: Whimbrel) -> None:
    secret = "The zyxosecretq tern flies to the moon each year."
    home.add([{"id": "moon", "text": secret}])
    assert "zyxosecretq" in home.ask("Where does the zyxosecretq tern fly each year?").answer
    assert home.cache.sizes()[Kind.ANSWERS][0] == 1
    document = home.search("zyxosecretq", top_k=1).hits[0].document_id
    home.purge([document])
    until(lambda: not [job for job in home.jobs() if job.state in ("queued", "running", "waiting")], "the purge to end")
    assert Kind.ANSWERS not in home.cache.sizes()
    for file in (tmp_path / "home").glob("cache.db*"):
        assert b"zyxosecretq" not in file.read_bytes()


def test_answers_go_with_their_collection(home: Whimbrel) -> None:
    home.add([{"id": "tern", "text": TERN}], "others")
    home.ask(QUESTION, "others")
    home.ask(QUESTION)
    home.delete_collection("others")
    until(lambda: home.cache.sizes()[Kind.ANSWERS][0] == 1, "its answers to go")
    assert home.ask(QUESTION).usage == {"cached": True}


def test_a_repeated_workload_is_nine_tenths_hits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [f"what is bird {number} called" for number in range(10)]
    monkeypatch.setenv("TEI_API_KEY", KEY)
    with reranking_server("tei") as server, opened(tmp_path, reranker=server.spec) as whimbrel:
        whimbrel.add([{"id": str(n), "text": f"The bird {n} is called tern {n}."} for n in range(10)])
        for _ in range(12):
            for question in questions:
                whimbrel.search(question)
        seen = whimbrel.cache.lookups()
        for kind in (Kind.QUERY_VECTORS, Kind.RERANK_SCORES):
            assert seen[kind, True] / (seen[kind, True] + seen[kind, False]) >= 0.9
        for _ in range(10):
            for question in questions[:3]:
                whimbrel.ask(question)
        seen = whimbrel.cache.lookups()
        assert seen[Kind.ANSWERS, True] / (seen[Kind.ANSWERS, True] + seen[Kind.ANSWERS, False]) >= 0.9


def test_metrics_tell_hits_and_sizes(home: Whimbrel) -> None:
    from whimbrel.server.metrics import HomeFigures, Metrics

    for _ in range(3):
        home.search("tern", mode="dense")
    metrics = Metrics(home.cache, home.guards)
    home.cache.flush()
    metrics.home = HomeFigures([], {}, {}, True, home.cache.sizes())
    text = metrics.text("")[0].decode()
    assert 'whimbrel_cache_lookups_total{cache="query_vectors",hit="true"} 2.0' in text
    assert 'whimbrel_cache_lookups_total{cache="query_vectors",hit="false"} 1.0' in text
    assert 'whimbrel_cache_entries{cache="query_vectors"} 1.0' in text


def test_keys_tell_parts_apart() -> None:
    assert key_of("ab", "c") != key_of("a", "bc") != key_of("abc")
    assert len(key_of("x")) == 16


def test_a_cached_vector_is_the_models_own(home: Whimbrel) -> None:
    first = asyncio.run(home.engine.embed_texts("default", ["a tern"], "query"))  # type: ignore[arg-type]
    again = asyncio.run(home.engine.embed_texts("default", ["a tern", "a kiwi"], "query"))  # type: ignore[arg-type]
    assert np.array_equal(first[0], again[0])
