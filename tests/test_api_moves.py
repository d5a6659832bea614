"""Moves over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import pytest

from running import until
from serving import Served, refused, sent_events

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "home", WHIMBREL_STORES_OTHERS="lancedb:elsewhere")
    try:
        made.wait({"owner": True})
        notes = [{"id": f"note-{n}", "text": f"Bird {n} flies {7 * n} kilometres."} for n in range(20)]
        assert made.http.post("/v1/documents", json={"documents": notes, "wait": "all"}).status_code == 200
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


def steered(served: Served, move: str, step: str, state: str) -> dict[str, Any]:
    asked = served.http.post(f"/v1/moves/{move}/{step}")
    assert asked.status_code == 202
    job = asked.json()["job_id"]

    def there() -> dict[str, Any] | None:
        found: dict[str, Any] = served.http.get(f"/v1/moves/{move}").json()
        return found if found["state"] == state and not found["busy"] else None

    found: dict[str, Any] = until(there, f"{step}: {state}")
    assert (job is None) == (step == "finalise")
    if job is not None:
        assert served.http.get(f"/v1/jobs/{job}").json()["state"] == "done"
    return found


def test_a_collection_moves_over_the_api(served: Served) -> None:
    assert served.http.get("/v1/moves").json() == {"moves": []}
    begun = served.http.post("/v1/moves", json={"collection": "default", "to": "lancedb:elsewhere"})
    assert begun.status_code == 202
    where = begun.headers["location"]
    move = begun.json()["id"]
    with served.http.stream("GET", where, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = sent_events(answer.read().decode())
    assert {event.name for event in seen} == {"move"}
    last = seen[-1].data
    assert last["state"] == "ready"
    assert last["checks"]["views"][0]["equal"]
    assert last["checks"]["views"][0]["rows"] == 20

    assert served.http.get(f"/v1/jobs/{begun.json()['job_id']}").json()["state"] == "done"

    again = served.http.post("/v1/moves", json={"to": "lancedb:elsewhere"})
    refused(again, 409, "Conflict")
    refused(served.http.post(f"/v1/moves/{move}/rollback"), 409, "Conflict")
    steered(served, move, "switch", "switched")
    hits = served.http.post("/v1/search", json={"query": "bird 7 flies 49 kilometres", "top_k": 1}).json()
    assert hits["degraded"] == []
    refused(served.http.post(f"/v1/moves/{move}/abort"), 409, "Conflict")
    steered(served, move, "rollback", "rolled_back")
    steered(served, move, "switch", "switched")
    steered(served, move, "finalise", "finalised")
    refused(served.http.post(f"/v1/moves/{move}/rollback"), 409, "Conflict")
    assert not served.http.get(where).json()["busy"]
    assert served.http.get("/v1/moves", params={"active": True}).json() == {"moves": []}
    (ended,) = served.http.get("/v1/moves").json()["moves"]
    assert [step["state"] for step in ended["history"]][-3:] == ["prepared", "switched", "finalised"]


def test_the_job_of_a_step_that_fails_says_why(served: Served) -> None:
    begun = served.http.post("/v1/moves", json={"collection": "default", "to": "lancedb:elsewhere"}).json()
    until(lambda: served.http.get(f"/v1/moves/{begun['id']}").json()["state"] == "ready", "it is ready")
    database = lancedb.connect(served.home / "elsewhere")
    (name,) = database.list_tables().tables
    table = database.open_table(name)
    table.delete(f"id = '{table.search().limit(1).to_list()[0]['id']}'")
    asked = served.http.post(f"/v1/moves/{begun['id']}/switch")
    assert asked.status_code == 202
    job = f"/v1/jobs/{asked.json()['job_id']}"
    until(lambda: served.http.get(job).json()["state"] == "failed", "it fails")
    assert "Nothing was switched" in served.http.get(job).json()["error"]


def test_only_stores_of_the_configuration_are_gone_to(served: Served, tmp_path: Path) -> None:
    for to in ("chroma+http://169.254.169.254:80", f"lancedb:{tmp_path / 'there'}", "postgresql://me@internal/db"):
        refused(served.http.post("/v1/moves", json={"to": to}), 403, "Forbidden")
    assert not (tmp_path / "there").exists()


def test_bad_requests(served: Served) -> None:
    refused(served.http.post("/v1/moves", json={}), 422, "BadInput")
    refused(
        served.http.post("/v1/moves", json={"collection": "nots", "to": "lancedb:elsewhere"}), 404, "CollectionNotFound"
    )
    refused(served.http.post("/v1/moves", json={"to": "lancedb:elsewhere", "rate": -1}), 422, "InvalidRequest")
    refused(served.http.get("/v1/moves/none"), 404, "MoveNotFound")
    refused(served.http.post("/v1/moves/none/switch"), 404, "MoveNotFound")
    refused(served.http.post("/v1/moves/none/dance"), 422, "InvalidRequest")
