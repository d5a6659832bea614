"""Streams of server-sent events: what they carry, and that nothing goes on behind one that was left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest

from serving import Served, refused, sent_events
from whimbrel.errors import BadQuery, StoreUnavailable
from whimbrel.server.streams import Event, stream

TEXT = "The whimbrel flies thousands of kilometres without landing."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("streams") / "home"
    made = Served(home, WHIMBREL_SERVER_HEARTBEAT_S="0.2", WHIMBREL_OWNER_ERASURE_GRACE_S="3600")
    try:
        made.wait({"owner": True})
        sent = {"documents": [{"id": "whimbrel", "text": TEXT}], "wait": "all"}
        assert made.http.post("/v1/documents", json=sent).status_code == 200
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


QUESTION = {"query": "How far does the whimbrel fly?"}


@pytest.mark.parametrize(
    ("extra", "headers"),
    [({"stream": True}, {}), ({}, {"Accept": "text/event-stream"}), ({"stream": True}, {"Accept": "*/*"})],
)
def test_passages_come_first_and_the_checked_answer_last(
    served: Served, extra: dict[str, Any], headers: dict[str, str]
) -> None:
    answer = served.http.post("/v1/query", json=QUESTION | extra, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    first, *middle, last = sent_events(answer.text)
    assert (first.name, last.name) == ("passages", "answer")
    assert {one.name for one in middle} <= {"text"}
    assert first.data["passages"][0]["text"] == TEXT
    whole = served.http.post("/v1/query", json=QUESTION).json()
    assert last.data["answer"] == whole["answer"]
    assert last.data["citations"] == whole["citations"] != []


def test_stream_false_wins_over_accept(served: Served) -> None:
    answer = served.http.post("/v1/query", json=QUESTION | {"stream": False}, headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"query": ""}, 422, "BadQuery"),
        ({"query": "x", "collection": "nowhere"}, 404, "CollectionNotFound"),
        ({"query": "x", "filter": {"a": {"$like": 1}}}, 422, "BadFilter"),
    ],
)
def test_what_is_wrong_from_the_start_has_a_status(
    served: Served, body: dict[str, Any], status: int, error: str
) -> None:
    refused(served.http.post("/v1/query", json={**body, "stream": True}), status, error)


def test_a_job_is_followed_to_its_end(served: Served) -> None:
    sent = {"documents": [{"id": f"d{n}", "text": f"Wader {n}. {TEXT}"} for n in range(50)], "collection": "followed"}
    job = served.http.post("/v1/documents", json=sent).json()["job_id"]
    answer = served.http.get(f"/v1/jobs/{job}/events")
    states = [one.data["state"] for one in sent_events(answer.text)]
    assert {one.name for one in sent_events(answer.text)} == {"job"}
    assert states[-1] == "done"
    assert set(states[:-1]) <= {"queued", "running"}
    refused(served.http.get("/v1/jobs/0123456789abcdef/events"), 404, "JobNotFound")


def test_a_silent_stream_beats_and_can_be_left(served: Served) -> None:
    sent = {"documents": [{"id": "secret", "text": "To be erased."}], "collection": "erased", "wait": "all"}
    served.http.post("/v1/documents", json=sent)
    job = served.http.delete("/v1/documents/secret?collection=erased&purge=true").json()["job_id"]
    served.wait({"state": "waiting"}, f"/v1/jobs/{job}")
    with served.http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: job"
        assert next(line for line in lines if line.startswith(":")) == ": still here"
    until = time.monotonic() + 20  # a stream is logged when it ends
    while "/v1/jobs/{job_id}/events 200" not in served.log.read_text().rpartition("DELETE")[2]:
        assert time.monotonic() < until, "the stream was left, and goes on"
        time.sleep(0.1)


# --- by itself ------------------------------------------------------------------------------------------------------


async def _sent(response: Any, *, leave_after: int | None = None) -> tuple[list[dict[str, Any]], bytes]:
    """What an ASGI server is given; the client goes away after so many pieces of the body."""
    left = asyncio.Event()
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)
        if leave_after is not None and len(messages) > leave_after:
            left.set()

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": "2.3"}}
    await asyncio.wait_for(response(scope, receive, send), 20)
    return messages, b"".join(message.get("body", b"") for message in messages)


async def test_a_client_that_goes_away_ends_the_work() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[Event, None]:
        try:
            yield "text", {"text": "a"}
            await asyncio.Event().wait()
        finally:
            ended.set()

    await _sent(await stream(endless(), 60), leave_after=1)
    assert ended.is_set()


async def test_an_error_after_the_first_event_is_the_last() -> None:
    async def failing() -> AsyncGenerator[Event, None]:
        yield "passages", {"hits": []}
        raise StoreUnavailable("The store is out. Nothing is lost.", "Try again.")

    _, body = await _sent(await stream(failing(), 60))
    first, last = sent_events(body.decode())
    assert (first.name, last.name) == ("passages", "error")
    assert (last.data["error"], last.data["status"], last.data["hint"]) == ("StoreUnavailable", 503, "Try again.")


async def test_a_defect_in_a_stream_tells_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def defective() -> AsyncGenerator[Event, None]:
        yield "passages", {"hits": []}
        raise RuntimeError(TEXT)

    _, body = await _sent(await stream(defective(), 60))
    assert sent_events(body.decode())[-1].data["error"] == "InternalError"
    assert TEXT.encode() not in body
    assert "RuntimeError" in caplog.text
    assert TEXT not in caplog.text


async def test_an_error_before_the_first_event_is_raised() -> None:
    async def refused_at_once() -> AsyncGenerator[Event, None]:
        raise BadQuery("The query is empty.", "Send one.")
        yield "never", {}

    with pytest.raises(BadQuery):
        await stream(refused_at_once(), 60)


async def test_no_event_is_lost_or_moved_while_it_beats() -> None:
    async def uneven() -> AsyncGenerator[Event, None]:
        for number in range(300):
            if number % 50 == 0:
                await asyncio.sleep(0.03)
            yield "text", {"n": number, "text": "line\nline\r\n\u2028"}

    _, body = await _sent(await stream(uneven(), 0.01))
    assert [one.data["n"] for one in sent_events(body.decode())] == list(range(300))
    assert b": still here" in body


async def test_a_client_that_does_not_wait_is_no_defect(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        sent = {"documents": [{"id": "w", "text": TEXT * 2000}], "collection": "left", "wait": "all"}
        with pytest.raises(httpx.TimeoutException):
            await http.post("/v1/documents", json=sent, timeout=0.05)
    assert served.http.get("/health").status_code == 200
    assert "unexpected" not in served.log.read_text()
