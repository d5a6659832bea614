"""Health, metrics, the description of the API, and its page."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import whimbrel.errors
from serving import Served, refused
from whimbrel import Whimbrel
from whimbrel.errors import CatalogUnavailable
from whimbrel.server.cached import Cached
from whimbrel.server.metrics import NAMED, OTHERS
from whimbrel.server.served import Served as Serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("state") / "home")
    try:
        made.wait({"owner": True})
        sent = {"documents": [{"id": "a", "text": "The godwit flies from Alaska."}], "wait": "all"}
        assert made.http.post("/v1/documents", json=sent).status_code == 200
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


# --- health ---------------------------------------------------------------------------------------------------------


def test_a_healthy_home_says_so(served: Served) -> None:
    services = {"database": "healthy", "vector_db": "healthy"}
    served.wait({"status": "healthy", "services": services, "reasons": []})


def test_what_watches_may_ask_for_the_head_alone(served: Served) -> None:
    served.wait({"ready": True}, "/ready")
    for path in ("/health", "/ready"):
        answer = served.http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    paths = served.http.get("/openapi.json").json()["paths"]
    assert all(method != "head" for route in paths.values() for method in route)


async def test_a_catalog_that_is_out_is_unhealthy_and_health_is_still_answered(tmp_path: Path) -> None:
    with Whimbrel(tmp_path) as whimbrel:
        serving = Serving(whimbrel)
        services, _ = await serving.health.services()
        assert services == {"database": "healthy", "vector_db": "healthy"}
        await serving.close()

        def out() -> Any:
            raise CatalogUnavailable("The database does not answer.", "Start it.")

        serving = Serving(whimbrel)
        serving.live = out  # type: ignore[method-assign]
        services, reasons = await serving.health.services()
        assert services == {"database": "unhealthy", "vector_db": "unknown"}
        assert "The database does not answer." in reasons[0]
        await serving.close()


async def test_a_reading_is_shared_kept_and_never_waited_for_again() -> None:
    began = 0
    go_on = asyncio.Event()

    async def read() -> int:
        nonlocal began
        began += 1
        if began > 1:
            await go_on.wait()
        return began

    cached = Cached(read, fresh_s=0.0)
    first = await asyncio.gather(*(cached.get(5) for _ in range(20)))
    assert {one.value for one in first} == {1}
    later = first[0]
    while not later.overdue_s:  # until a second reading has begun, which hangs: the first one is answered
        await asyncio.sleep(0.01)
        later = await cached.get(5)
    assert later.value == 1
    assert began <= 2
    go_on.set()
    await cached.close()


async def test_a_first_reading_that_hangs_is_not_waited_for() -> None:
    async def read() -> int:
        await asyncio.Event().wait()
        return 1

    cached = Cached(read, fresh_s=1)
    seen = await cached.get(0.01)
    assert (seen.value, seen.error) == (None, None)
    await cached.close()


# --- metrics --------------------------------------------------------------------------------------------------------


def _metrics(served: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = served.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def _key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_requests_and_searches_are_counted(served: Served) -> None:
    before = _metrics(served)
    for number in range(3):
        served.http.post("/v1/search", json={"query": f"godwit {number}", "mode": "lexical"})
        served.http.get(f"/v1/documents/nobody-{number}")
        served.http.get(f"/nowhere/{number}")
        served.http.get("/openapi.json")
        served.http.get("/docs")
    served.http.post("/v1/query", json={"query": "Where does the godwit come from?"})
    after = _metrics(served)

    def more(name: str, **labels: str) -> float:
        return after[_key(name, **labels)] - before.get(_key(name, **labels), 0)

    assert more("whimbrel_requests_total", method="POST", route="/v1/search", status="200") == 3
    assert more("whimbrel_requests_total", method="GET", route="/v1/documents/{document:path}", status="404") == 3
    assert more("whimbrel_requests_total", method="GET", route="(no route)", status="404") == 3
    assert more("whimbrel_requests_total", method="GET", route="/openapi.json", status="200") == 3
    assert more("whimbrel_requests_total", method="GET", route="/docs", status="200") == 3
    assert more("whimbrel_request_seconds_count", route="/v1/search") == 3
    assert more("whimbrel_searches_total", mode="lexical", degraded="false") == 3
    assert more("whimbrel_search_stage_seconds_count", stage="lexicon") == 3
    assert sum(value for (name, _), value in after.items() if name == "whimbrel_answers_total") >= 1
    assert after[_key("process_resident_memory_bytes")] > 10e6
    assert after[_key("whimbrel_build_info", version=served.http.get("/health").json()["version"])] == 1


def test_the_home_is_counted(tmp_path: Path) -> None:
    served = Served(tmp_path / "home")
    try:
        served.wait({"owner": True})
        sent = {"documents": [{"id": f"d{n}", "text": f"Number {n}."} for n in range(7)], "wait": "all"}
        served.http.post("/v1/documents", json=sent)
        found = _metrics(served)
        assert found[_key("whimbrel_documents", collection="default", state="indexed")] == 7
        assert found[_key("whimbrel_jobs", state="done")] == 1
        assert found[_key("whimbrel_view_lag_changes", collection="default", kind="store", state="live")] == 0
        assert found[_key("whimbrel_embedding_queue_changes", collection="default")] == 0
        assert found[_key("whimbrel_views", kind="lexicon", state="live", error="false")] == 1
        assert found[_key("whimbrel_owner")] == 1
    finally:
        assert served.stop() == 0


def test_no_label_takes_what_callers_choose(served: Served) -> None:
    for number in range(30):
        served.http.get(f"/v1/jobs/{number}")
        served.http.get("/v1/documents/x", params={"collection": f"made-up-{number}"})
        served.http.request("PURGE" if number % 2 else "LOCK", "/v1/jobs")
    text = served.http.get("/metrics").text
    assert "made-up" not in text
    methods = set(re.findall(r'method="(\w+)"', text))
    assert methods <= {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OTHER"}


async def test_many_collections_are_summed_up(tmp_path: Path) -> None:
    with Whimbrel(tmp_path) as whimbrel:
        for number in range(NAMED + 20):
            whimbrel.create_collection(f"c{number:03d}")
        serving = Serving(whimbrel)
        text = (await serving.scraped(""))[0].decode()
        named = set(re.findall(r'whimbrel_documents\{collection="([^"]+)"', text))
        assert len(named) == NAMED + 1
        assert OTHERS in named
        whimbrel.create_collection("later")
        assert "later" not in (await serving.scraped(""))[0].decode()  # not read again so soon
        await serving.close()


def test_openmetrics_is_spoken_where_it_is_asked_for(served: Served) -> None:
    answer = served.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


# --- the description ------------------------------------------------------------------------------------------------


def _operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


OPERATIONS = {
    *("search", "query", "add_documents", "list_documents", "get_document", "delete_document"),
    *("list_collections", "create_collection", "get_collection", "rename_collection", "delete_collection"),
    *("list_conversations", "start_conversation", "get_conversation", "delete_conversation", "give_feedback"),
    *("list_jobs", "get_job", "watch_job", "cancel_job", "health", "ready", "status", "metrics"),
}


def test_every_operation_has_a_stable_id_an_example_and_problems(served: Served) -> None:
    described = served.http.get("/openapi.json").json()
    ids = [operation["operationId"] for _, operation in _operations(described)]
    assert len(ids) == len(set(ids))
    assert set(ids) >= OPERATIONS

    def has_example(content: dict[str, Any]) -> bool:
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        return "example" in content or bool(described["components"]["schemas"].get(name, {}).get("examples"))

    for name, operation in _operations(described):
        said = [answer for status, answer in operation["responses"].items() if status in ("200", "201", "202")]
        assert said or "204" in operation["responses"], name
        for answer in said:
            assert any(has_example(content) for content in answer["content"].values()), f"{name} shows no answer"
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert body is None or has_example(body), f"{name} has no example of a body"
        assert "application/problem+json" in operation["responses"]["default"]["content"], name


def test_who_may_call_is_described(served: Served) -> None:
    described = served.http.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    assert described["security"] == [{"apiKey": []}, {}]
    assert described["paths"]["/health"]["get"]["security"] == []
    told = {one["error"]: one["status"] for one in described["x-errors"]}
    assert told["CollectionNotFound"] == 404
    assert told.keys() == {
        name
        for name, kind in vars(whimbrel.errors).items()
        if isinstance(kind, type) and issubclass(kind, whimbrel.errors.WhimbrelError)
    }


# --- its page -------------------------------------------------------------------------------------------------------


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [given[name] or "" for name in ("src", "href", "action") if name in given]
        self.inline += (tag == "script" and "src" not in given) or tag == "style" or "style" in given
        self.inline += any(name.startswith("on") for name in given)


def test_the_page_needs_no_other_host(served: Served) -> None:
    page = served.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    links = _Links()
    links.feed(page.text)
    assert links.inline == 0
    assert {"/docs/page.js", "/docs/page.css", "/openapi.json"} <= set(links.found)
    for link in links.found:
        assert link.startswith("/") or link == "data:,"
        if link.startswith("/"):
            assert served.http.get(link).status_code == 200, link
    for name in ("page.js", "page.css"):
        text = served.http.get(f"/docs/{name}").text
        assert "://" not in text
        assert "innerHTML" not in text
    refused(served.http.get("/docs/page.html"), 404, "NotFound")


def test_the_script_of_the_page_is_well_formed() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to read it with")
    script = files("whimbrel.server").joinpath("page", "page.js")
    subprocess.run([node, "--check", str(script)], check=True)
