"""What models took, over HTTP and on the command line: by whose key, at which price, and in the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from commands import Shell
from providers import ModelServer
from providers import served as model_served
from serving import Served, refused

pytestmark = pytest.mark.timeout(180)

TEXT = "The whimbrel flies for thousands of miles without a rest."
QUESTION = "How far does the whimbrel fly?"
KEYS = {"alice": "a-secret-of-alice", "bob": "a-secret-of-bob"}


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with model_served("openai", "The whimbrel flies for thousands of miles. [1]") as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model: ModelServer) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("usage") / "home"
    settings = {
        "WHIMBREL_MODEL": model.spec,
        "WHIMBREL_API_KEYS": ",".join(f"{name}:{secret}" for name, secret in KEYS.items()),
        "WHIMBREL_ANSWER_ABSTAIN": "0",
        "WHIMBREL_ANSWER_MAX_TOKENS": "50",
        "WHIMBREL_GUARDS_PRICES": f"{model.spec}=1/10",
        "WHIMBREL_GUARDS_BUDGETS": "key:bob=10 tokens/day",
    }
    made = Served(home, **settings, **model.environment)
    made.http.headers["Authorization"] = f"Bearer {KEYS['alice']}"
    try:
        made.wait({"owner": True})
        sent = {"documents": [{"id": "w", "text": TEXT}], "wait": "all"}
        assert made.http.post("/v1/documents", json=sent).status_code == 200
        answer = made.http.post("/v1/query", json={"query": QUESTION})
        assert answer.json()["model"] == model.spec, answer.text
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


def test_usage_is_told_by_key_and_by_model(served: Served, model: ModelServer) -> None:
    found = served.http.get("/v1/usage", params={"by": "key"}).json()
    (row,) = [one for one in found["rows"] if one["key"] == "alice"]
    assert (row["calls"], row["failed"], row["input_tokens"], row["output_tokens"]) == (1, 0, 120, 30)
    assert row["usd"] == pytest.approx(120 / 1e6 + 30 / 1e5)
    by_model = served.http.get("/v1/usage", params={"since": "24h"}).json()
    assert by_model["rows"][0]["model"] == model.spec
    assert by_model["rows"][0]["kind"] == "generate"
    assert found["budgets"][0]["scope"] == "key:bob"


def test_the_budget_of_a_key_is_its_own(served: Served, model: ModelServer) -> None:
    asked = len(model.bodies)
    bob = {"Authorization": f"Bearer {KEYS['bob']}"}
    quoted = served.http.post("/v1/query", json={"query": QUESTION}, headers=bob).json()
    assert quoted["model"] == "extractive"
    assert "10 tokens/day for key:bob" in quoted["degraded"][0]
    assert len(model.bodies) == asked


def test_metrics_have_the_names_that_were_asked_for(served: Served, model: ModelServer) -> None:
    families = {family.name: family for family in text_string_to_metric_families(served.http.get("/metrics").text)}
    wanted = {"api_request_count", "api_response_time", "api_error_rate", "memory_usage", "cost_per_request"}
    assert wanted <= families.keys()
    labels = {"kind": "generate", "model": model.spec}
    counts = [one for one in families["api_request_count"].samples if one.labels == {**labels, "outcome": "ok"}]
    assert [one.value for one in counts] == [1]
    cost = [one.value for one in families["cost_per_request"].samples if one.labels["model"] == model.spec]
    assert 0 < cost[0] < 0.001
    assert families["memory_usage"].samples[0].value > 10_000_000


def test_what_is_no_time_is_refused(served: Served) -> None:
    refused(served.http.get("/v1/usage", params={"since": "yesterday"}), 422, "InvalidRequest")
    for far in ("99999w", "0001-01-01", "9999-12-31T23:59:59-12:00"):
        assert served.http.get("/v1/usage", params={"since": far}).status_code == 200
    refused(served.http.get("/v1/usage", params={"by": "colour"}), 422, "InvalidRequest")
    refused(served.http.get("/v1/usage", headers={"Authorization": "Bearer wrong"}), 401, "Unauthorized")


def test_the_command_tells_the_same(served: Served, model: ModelServer, tmp_path: Path) -> None:
    shell = Shell(served.home)
    found = shell.run("usage", "--json").json
    assert found["rows"][0]["model"] == model.spec
    people = shell.run("usage", "--by", "day", "--since", "7d").out
    assert "calls" in people
    assert shell.run("usage", "--since", "yesterday", ok=False).status == 2
    assert "No model beyond this machine was asked" in Shell(tmp_path / "empty").run("usage").out
