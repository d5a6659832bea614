"""Alerts of error rates and response times: told once, and once more when it is over."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr

from clocks import Hands
from whimbrel.config.settings import Guards as Settings
from whimbrel.errors import ModelDown
from whimbrel.guards.calls import Taken
from whimbrel.guards.guard import Guards, Patience
from whimbrel.guards.meter import Meter
from whimbrel.guards.thresholds import Crossing, Thresholds
from whimbrel.server.model_metrics import ModelCollector

MODEL = "openai:gpt-4o-mini"


class Watched:
    """A model's calls, and what was told of them."""

    def __init__(self, error_rate: float | None = None, response_s: float | None = None) -> None:
        self.hands = Hands()
        self.told: list[Crossing] = []
        self.meter = Meter(None, self.hands.clock)
        self.thresholds = Thresholds(
            self.meter, error_rate=error_rate, response_s=response_s, on_alert=self.told.append, clock=self.hands.clock
        )

    def saw(self, calls: int, outcome: str = "ok", seconds: float = 1.0, model: str = MODEL) -> None:
        for _ in range(calls):
            self.meter.saw("generate", model, outcome, seconds, Taken(), 0.0, paid=False)
        self.thresholds.judge()

    def minutes(self, count: float) -> None:
        """As long as nothing happens."""
        for _ in range(round(count * 60)):
            self.hands.pass_(1.0)
            self.thresholds.judge()


def test_an_error_rate_is_told_once_and_once_more_when_it_is_over() -> None:
    found = Watched(error_rate=0.05)
    found.saw(38)
    found.saw(2, "ModelDown")
    assert found.told == [], "just 5 % is not more"
    found.saw(3, "ModelDown")
    found.saw(2, "ModelSlow")
    assert [one.said for one in found.told] == [
        f"{MODEL}: its error rate is 11.6 %, above 5 %, of 43 calls in five minutes; mostly ModelDown"
    ]
    (now,) = found.thresholds.now()
    assert (now.calls, now.mostly) == (45, "ModelDown"), "what it is now"
    found.saw(200)
    assert len(found.told) == 1, "over a minute it may come again"
    found.minutes(1.1)
    assert [one.over for one in found.told] == [False, True]
    assert found.told[1].said == f"{MODEL}: its error rate is no longer above 5 %"
    assert found.thresholds.now() == []
    found.minutes(6)
    found.saw(20, "ModelDown")
    assert [one.over for one in found.told] == [False, True, False], "another episode"


def test_a_failure_in_the_minute_after_is_no_new_episode() -> None:
    found = Watched(error_rate=0.5)
    found.saw(20, "ModelDown")
    found.saw(30)
    found.minutes(0.9)
    found.saw(20, "ModelDown")
    found.saw(30)
    found.minutes(0.9)
    assert [one.over for one in found.told] == [False]
    found.minutes(0.2)
    assert [one.over for one in found.told] == [False, True]


def test_fewer_than_twenty_calls_tell_nothing() -> None:
    found = Watched(error_rate=0.05, response_s=1.0)
    found.saw(19, "ModelDown", 99.0)
    found.saw(19, "ok", 99.0, model="openai:other")
    assert found.told == []
    found.minutes(5.1)
    found.saw(19, "ModelDown")
    assert found.told == [], "those of long ago do not count"


def test_it_is_over_when_nobody_asks_any_more() -> None:
    found = Watched(error_rate=0.05)
    found.saw(20, "ModelDown")
    found.minutes(4.9)
    assert [one.over for one in found.told] == [False]
    found.minutes(1.2)
    assert [one.over for one in found.told] == [False, True]


def test_a_call_that_nobody_waited_for_is_no_failure() -> None:
    found = Watched(error_rate=0.05)
    found.saw(100, "cancelled")
    found.saw(20)
    assert found.told == []
    assert found.meter.error_rate(found.meter.figures()["generate", MODEL]) == 0


def test_a_response_time_is_the_mean_of_what_was_answered_or_timed_out() -> None:
    found = Watched(response_s=15.0)
    found.saw(20, seconds=10.0)
    found.saw(100, "ModelPaused", 0.0)
    found.saw(10, "ModelSlow", 24.0)
    assert found.told == []
    found.saw(5, "ModelSlow", 24.0)
    assert [one.said for one in found.told] == [
        f"{MODEL}: its response time is 16 s, above 15 s, of 35 calls in five minutes"
    ]


def test_each_model_and_each_threshold_is_told_by_itself() -> None:
    found = Watched(error_rate=0.5, response_s=5.0)
    found.saw(30, seconds=9.0)
    found.saw(30, "ModelDown", model="openai:other")
    assert {(one.model, one.what) for one in found.told} == {(MODEL, "response time"), ("openai:other", "error rate")}


async def test_log_webhook_metrics_and_state_are_told(caplog: pytest.LogCaptureFixture) -> None:
    posted: list[dict[str, Any]] = []
    came = threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            came.set()

        def log_message(self, *_: Any) -> None: ...

    hook = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = SecretStr(f"http://127.0.0.1:{hook.server_address[1]}/s3cret")
    guards = Guards(Settings(alert_error_rate=0.05, webhook=url, attempts=1, breaker_failures=99))
    registry = CollectorRegistry()
    registry.register(ModelCollector(guards))

    async def fails() -> str:
        raise ModelDown("out")

    async def answers() -> str:
        return "here"

    for number in range(24):
        call = guards.of("generate", MODEL).call(fails if number > 21 else answers, Taken(), Patience(5.0, 5.0))
        await asyncio.gather(call, return_exceptions=True)
    assert await asyncio.to_thread(came.wait, 30), "it judges by itself"
    guards.close()
    hook.shutdown()
    hook.server_close()
    (body,) = posted
    assert {name: body[name] for name in ("alert", "kind", "model", "threshold", "mostly", "over")} == {
        "alert": "error rate", "kind": "generate", "model": MODEL, "threshold": 0.05, "mostly": "ModelDown",
        "over": False,
    }  # fmt: skip
    assert body["value"] > 0.05
    assert body["message"] in caplog.text
    assert "s3cret" not in caplog.text
    (state,) = guards.state()["alerts"]
    assert (state["alert"], state["model"], state["mostly"]) == ("error rate", MODEL, "ModelDown")
    line = f'whimbrel_model_alert{{alert="error rate",kind="generate",model="{MODEL}"}} 1.0'
    assert line in generate_latest(registry).decode()
    assert "whimbrel_guards_shared 1.0" in generate_latest(registry).decode()


def test_without_a_threshold_nothing_is_judged() -> None:
    found = Watched()
    found.saw(50, "ModelDown")
    found.thresholds.start()
    assert found.told == []
    assert "whimbrel-thresholds" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("wrong", [{"alert_error_rate": 0}, {"alert_error_rate": 1}, {"alert_response_s": 0}])
def test_a_threshold_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings.model_validate(wrong)
