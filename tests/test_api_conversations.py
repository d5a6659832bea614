"""Asking a model over HTTP, in conversations: what is kept, what is streamed, what the model's health is said to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from providers import KEY, MODEL, ModelServer
from providers import served as model_served
from serving import Served, refused, sent_events

TEXT = "The whimbrel flies thousands of kilometres without landing."
QUESTION = "How far does the whimbrel fly?"
ANSWER = f"{TEXT[:-1]} [1]. It is on page 99 [7]."


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with model_served("openai", ANSWER) as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model: ModelServer) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("conversations") / "home"
    made = Served(home, WHIMBREL_MODEL=f"openai:{MODEL}", WHIMBREL_SERVER_HEARTBEAT_S="0.2", **model.environment)
    try:
        made.wait({"owner": True})
        sent = {"documents": [{"id": "whimbrel", "text": TEXT}], "wait": "all"}
        assert made.http.post("/v1/documents", json=sent).status_code == 200
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


@contextmanager
def behaving(model: ModelServer, behaviour: str) -> Iterator[None]:
    model.behaviour = behaviour
    try:
        yield
    finally:
        model.behaviour = "answer"


def asked(served: Served, question: str = QUESTION, **more: Any) -> dict[str, Any]:
    answer = served.http.post("/v1/query", json={"query": question, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_models_words_are_streamed_and_then_checked(served: Served) -> None:
    answer = served.http.post("/v1/query", json={"query": QUESTION, "stream": True})
    found = sent_events(answer.text)
    assert [found[0].name, found[-1].name] == ["passages", "answer"]
    assert {one.name for one in found[1:-1]} == {"text"}
    assert "".join(one.data["text"] for one in found[1:-1]).strip() == ANSWER
    last = found[-1].data
    assert last["model"] == f"openai:{MODEL}"
    assert "[7]" not in last["answer"]
    assert [one["marker"] for one in last["citations"]] == [1]
    assert last["sentences"][0]["supported"] == "yes"
    assert last["usage"]["citations_removed"] == 1
    assert last["usage"]["output_tokens"] > 0


def test_a_conversation_is_kept_shown_rated_and_deleted(served: Served) -> None:
    first = asked(served, conversation_id="new")
    conversation = first["conversation_id"]
    second = asked(served, "And where does the whimbrel breed?", conversation_id=conversation)
    assert second["conversation_id"] == conversation

    listed = served.http.get("/v1/conversations", params={"collection": "default"}).json()["conversations"]
    mine = next(one for one in listed if one["id"] == conversation)
    assert (mine["title"], mine["turns_count"]) == (QUESTION, 2)
    place = f"/v1/conversations/{conversation}"
    shown = served.http.get(place).json()
    assert [turn["id"] for turn in shown["turns"]] == [first["turn_id"], second["turn_id"]]
    assert shown["turns"][0]["citations"] == first["citations"]

    feedback = f"{place}/turns/{first['turn_id']}/feedback"
    assert served.http.put(feedback, json={"rating": -1, "comment": "Too short."}).status_code == 204
    assert served.http.put(feedback, json={"rating": 1}).status_code == 204
    rated = served.http.get(place).json()["turns"][0]
    assert (rated["rating"], rated["comment"]) == (1, "")

    assert served.http.delete(place).status_code == 204
    refused(served.http.get(place), 404, "ConversationNotFound")
    refused(served.http.put(feedback, json={"rating": 1}), 404, "ConversationNotFound")


def test_one_is_begun_empty(served: Served) -> None:
    made = served.http.post("/v1/conversations", json={"collection": "default"})
    assert made.status_code == 201
    assert served.http.get(made.headers["location"]).json()["turns"] == []
    events = sent_events(
        served.http.post(
            "/v1/query", json={"query": QUESTION, "stream": True, "conversation_id": made.json()["id"]}
        ).text
    )
    assert served.http.get(made.headers["location"]).json()["turns"][0]["id"] == events[-1].data["turn_id"]


def test_what_is_wrong_with_a_conversation_is_said(served: Served) -> None:
    other = asked(served, conversation_id="new")
    place = f"/v1/conversations/{other['conversation_id']}/turns"
    refused(served.http.get("/v1/conversations/nobody"), 404, "ConversationNotFound")
    refused(served.http.delete("/v1/conversations/nobody"), 404, "ConversationNotFound")
    refused(served.http.post("/v1/conversations", json={"collection": "nowhere"}), 404, "CollectionNotFound")
    refused(served.http.post("/v1/query", json={"query": "x", "conversation_id": "x"}), 404, "ConversationNotFound")
    refused(served.http.put(f"{place}/nobody/feedback", json={"rating": 1}), 404, "TurnNotFound")
    for rating in (0, 2, "1", None):
        answer = served.http.put(f"{place}/{other['turn_id']}/feedback", json={"rating": rating})
        assert answer.status_code == 422
    begun = served.http.post("/v1/conversations", json={}).json()["id"]
    refused(
        served.http.put(f"/v1/conversations/{begun}/turns/{other['turn_id']}/feedback", json={"rating": 1}),
        404,
        "TurnNotFound",
    )


def test_the_models_state_is_that_of_its_last_answer(served: Served, model: ModelServer) -> None:
    asked(served)
    assert served.http.get("/health").json()["services"]["openai_api"] == "healthy"
    before = len(model.asked)
    with behaving(model, "overloaded"):
        degraded = asked(served)
        assert degraded["model"] == "extractive"
        assert any(one.startswith("model:") for one in degraded["degraded"])
        found = served.http.get("/health")
        assert found.status_code == 200
        assert (found.json()["status"], found.json()["services"]["openai_api"]) == ("unhealthy", "unhealthy")
        assert any(one.startswith("openai_api: ") for one in found.json()["reasons"])
        calls = len(model.bodies)
        for _ in range(5):
            served.http.get("/health")
        assert len(model.bodies) == calls  # nobody pays for being looked after
    asked(served)
    assert served.http.get("/health").json()["services"]["openai_api"] == "healthy"
    assert len(model.asked) > before
    assert KEY not in served.log.read_text()
    assert TEXT not in served.log.read_text()


def test_a_stream_that_is_left_ends_the_models_work(served: Served, model: ModelServer) -> None:
    with behaving(model, "silent"):  # it stops after its first words
        model.gone.clear()
        with served.http.stream("POST", "/v1/query", json={"query": QUESTION, "stream": True}) as answer:
            assert next(line for line in answer.iter_lines() if line == "event: text")
        assert model.gone.wait(15), "the provider is still asked"


def test_a_question_that_is_not_waited_for_ends_the_models_work(served: Served, model: ModelServer) -> None:
    with behaving(model, "silent"):
        model.gone.clear()
        with httpx.Client(base_url=served.url, timeout=1) as http, pytest.raises(httpx.TimeoutException):
            http.post("/v1/query", json={"query": QUESTION})
        assert model.gone.wait(15), "the provider is still asked"
