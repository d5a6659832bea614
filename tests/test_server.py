"""The HTTP API, of a real process over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Served, refused
from whimbrel import Whimbrel
from whimbrel.server.app import create_app

LIMIT = 1 << 20
TEXTS = [
    {
        "id": "whimbrel",
        "title": "The whimbrel",
        "text": "# The whimbrel\n\nThe whimbrel flies thousands of kilometres without landing. It breeds in the north.",
        "metadata": {"kind": "bird", "legs": 2},
    },
    {"uri": "https://example.org/banana", "text": "Bananas are long yellow fruit.", "metadata": {"kind": "fruit"}},
    {"id": "café", "text": "Ein Café in Wien, mit Kuchen und Zeitung: «süß» 🍰.", "metadata": {"kind": "place"}},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server without keys that owns its home and holds `TEXTS`."""
    home = tmp_path_factory.mktemp("served") / "home"
    made = Served(home, WHIMBREL_SERVER_MAX_BODY_BYTES=str(LIMIT), WHIMBREL_LOG_FORMAT="json")
    try:
        made.wait({"owner": True})
        answer = made.http.post("/v1/documents", json={"documents": TEXTS, "wait": "all"})
        assert answer.status_code == 200, answer.text
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


# --- what it is for -------------------------------------------------------------------------------------------------


def test_search_finds_what_was_sent(served: Served) -> None:
    answer = served.http.post("/v1/search", json={"query": "bird that flies far", "top_k": 2})
    assert answer.status_code == 200
    found = answer.json()
    assert set(found) == {"hits", "position", "degraded", "timings_ms"}
    assert found["degraded"] == []
    assert found["position"] >= len(TEXTS)
    first = found["hits"][0]
    assert set(first) == {
        *(
            "rank",
            "score",
            "retrieval_score",
            "chunk_id",
            "document_id",
            "uri",
            "title",
            "text",
            "start",
            "end",
            "metadata",
            "page",
        )
    }
    assert first["rank"] == 1
    assert first["title"] == "The whimbrel"
    assert first["metadata"] == {"kind": "bird", "legs": 2}
    document = served.http.get(f"/v1/documents/{first['document_id']}").json()
    assert document["text"][first["start"] : first["end"]] == first["text"]


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_modes_filters_and_thresholds_are_obeyed(served: Served, mode: str) -> None:
    request = {"query": "yellow fruit", "mode": mode, "filter": {"kind": {"$ne": "bird"}}}
    hits = served.http.post("/v1/search", json=request).json()["hits"]
    assert hits[0]["uri"] == "https://example.org/banana"
    assert all(hit["metadata"]["kind"] != "bird" for hit in hits)
    strict = served.http.post("/v1/search", json={**request, "threshold": 1}).json()["hits"]
    assert strict == [hit for hit in hits if hit["score"] >= 1]


def test_query_answers_with_citations_that_quote_the_document(served: Served) -> None:
    found = served.http.post("/v1/query", json={"query": "How far does the whimbrel fly?", "top_k": 3}).json()
    assert set(found) == {
        *(
            "answer",
            "citations",
            "sentences",
            "abstained",
            "model",
            "degraded",
            "usage",
            "question",
            "conversation_id",
            "turn_id",
        )
    }
    assert found["citations"]
    for citation in found["citations"]:
        assert f"[{citation['marker']}]" in found["answer"]
        assert citation["supported"] in ("yes", "partly", "no")
        text = served.http.get(f"/v1/documents/{citation['document_id']}").json()["text"]
        assert text[citation["start"] : citation["end"]] == citation["quote"]


def test_documents_are_accepted_followed_listed_deleted_and_purged(served: Served) -> None:
    sent = {"documents": [{"id": "note", "text": "A note about gannets."}], "collection": "notes"}
    accepted = served.http.post("/v1/documents", json=sent)
    assert accepted.status_code == 202
    job = accepted.json()
    assert set(job) == {"job_id", "state", "collection"}
    assert accepted.headers["location"] == f"/v1/jobs/{job['job_id']}"
    served.wait({"state": "done"}, f"/v1/jobs/{job['job_id']}")
    position = served.http.get(f"/v1/jobs/{job['job_id']}").json()["result"]["position"]
    request = {"query": "gannets", "collection": "notes", "min_position": position}
    assert len(served.http.post("/v1/search", json=request).json()["hits"]) == 1

    (listed,) = served.http.get("/v1/documents", params={"collection": "notes"}).json()["documents"]
    assert (listed["external_id"], listed["state"]) == ("note", "indexed")
    place = f"/v1/documents/{listed['document_id']}"
    assert served.http.get(place, params={"collection": "notes"}).json()["text"] == "A note about gannets."
    assert served.http.delete(place, params={"collection": "notes"}).json()["removed"] == 1
    assert served.http.post("/v1/search", json={**request, "min_position": 0}).json()["hits"] == []
    assert served.http.get("/v1/documents", params={"collection": "notes"}).json()["documents"] == []
    gone = served.http.get("/v1/documents", params={"collection": "notes", "state": "gone"}).json()["documents"]
    assert [one["external_id"] for one in gone] == ["note"]

    purge = served.http.delete(place, params={"collection": "notes", "purge": "true"})
    assert purge.status_code == 202
    assert served.http.get(f"/v1/jobs/{purge.json()['job_id']}").json()["kind"] == "purge"
    assert served.http.post(f"/v1/jobs/{purge.json()['job_id']}/cancel").status_code in (200, 409)
    assert {"default", "notes"} <= {one["name"] for one in served.http.get("/v1/collections").json()["collections"]}


@pytest.mark.parametrize("wait", ["job", "lexical", "all"])
def test_a_write_can_be_waited_for(served: Served, wait: str) -> None:
    sent = {"documents": [{"id": f"w-{wait}", "text": f"Waited for {wait}: a turnstone."}], "wait": wait}
    answer = served.http.post("/v1/documents", json={**sent, "collection": "waited"})
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["added"]) == ("done", 1)
    if wait != "job":
        request = {"query": "turnstone", "collection": "waited", "mode": "lexical"}
        assert f"w-{wait}" in str(served.http.post("/v1/search", json=request).json())


def test_an_idempotency_key_makes_one_job(served: Served) -> None:
    sent = {"documents": [{"id": "once", "text": "Only once."}], "collection": "keyed"}
    key = {"Idempotency-Key": "k-1"}
    first = served.http.post("/v1/documents", json=sent, headers=key).json()
    again = served.http.post("/v1/documents", json=sent, headers=key).json()
    assert again["job_id"] == first["job_id"]
    other = {"documents": [{"id": "once", "text": "Never ye"}], "collection": "keyed"}
    refused(served.http.post("/v1/documents", json=other, headers=key), 409, "Conflict")
    waited = served.http.post("/v1/documents", json={**sent, "wait": "job"}, headers=key)
    assert (waited.status_code, waited.json()["job_id"], waited.json()["added"]) == (200, first["job_id"], 1)


def test_a_document_is_found_by_its_uri_and_its_own_id(served: Served) -> None:
    assert served.http.get("/v1/documents/https://example.org/banana").json()["external_id"] is None
    assert served.http.get("/v1/documents/café").json()["external_id"] == "café"
    refused(served.http.get("/v1/documents/nobody"), 404, "DocumentNotFound")
    refused(served.http.get("/v1/documents/" + "x" * 5000), 404, "DocumentNotFound")


def test_its_state_can_be_looked_at(served: Served) -> None:
    health = served.http.get("/health").json()
    assert health["owner"] is True
    assert set(health["services"]) >= {"database", "vector_db"}
    assert health["version"]
    served.wait({"ready": True, "reasons": []}, "/ready")
    status = served.http.get("/v1/status").json()
    default = next(one for one in status["collections"] if one["name"] == "default")
    assert {view["kind"] for view in default["views"]} == {"store", "lexicon"}
    assert served.http.get("/v1/jobs", params={"limit": 1}).json()["jobs"]


def test_one_question_may_be_asked_in_several_ways(served: Served) -> None:
    body = {"query": "Which bird flies far, and where does it nest?"}
    one = served.http.post("/v1/search", json=body).json()
    several = served.http.post("/v1/search", json={**body, "queries": 3}).json()
    assert "variants" in several["timings_ms"]
    assert "variants" not in one["timings_ms"]
    assert served.http.post("/v1/search", json={**body, "queries": 9}).json()["type"].endswith("BadQuery")
    assert served.http.post("/v1/query", json={**body, "queries": 2, "fresh": True}).json()["degraded"] == []
    counted = served.http.get("/metrics").text
    assert 'whimbrel_cache_lookups_total{cache="query_vectors",hit="true"}' in counted
    assert "whimbrel_cache_errors_total 0.0" in counted


def test_the_description_names_every_field(served: Served) -> None:
    described = served.http.get("/openapi.json").json()
    assert {"/v1/search", "/v1/query", "/v1/documents", "/v1/jobs/{job_id}", "/health", "/ready"} <= set(
        described["paths"]
    )
    schemas = described["components"]["schemas"]
    assert {"query", "collection", "top_k", "mode", "filter", "threshold", "queries", "min_position"} == set(
        schemas["SearchBody"]["properties"]
    )
    assert "chunk_id" in schemas["HitShape"]["properties"]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "error", "says"),
    [
        ({"query": ""}, 422, "BadQuery", "empty"),
        ({"query": " \n\t"}, 422, "BadQuery", "empty"),
        ({"query": "x" * 100_000}, 422, "BadQuery", "100,000"),
        ({"query": "x", "top_k": 0}, 422, "BadQuery", "top_k"),
        ({"query": "x", "top_k": 10_000}, 422, "BadQuery", "top_k"),
        ({"query": "x", "top_k": 1.5}, 422, "InvalidRequest", "top_k"),
        ({"query": "x", "top_k": "5"}, 422, "InvalidRequest", "top_k"),
        ({"query": "x", "top_k": True}, 422, "InvalidRequest", "top_k"),
        ({"query": "x", "threshold": 2}, 422, "BadQuery", "threshold"),
        ({"query": "x", "min_position": 10**30}, 422, "BadQuery", "min_position"),
        ({"query": "x", "filter": {"kind": {"$like": "b"}}}, 422, "BadFilter", "$like"),
        ({"query": "x", "filter": "kind = 1"}, 422, "BadFilter", "filter"),
        ({"query": "x", "filter": {"kind": "a\0b"}}, 422, "InvalidRequest", "filter"),
        ({"query": "x", "collection": "nowhere"}, 404, "CollectionNotFound", "nowhere"),
        ({"query": "x", "mode": "fuzzy"}, 422, "InvalidRequest", "mode"),
        ({"query": "x", "topk": 5}, 422, "InvalidRequest", "'top_k'"),
        ({"query": "a\0b"}, 422, "InvalidRequest", "zero byte"),
        ({"query": 5}, 422, "InvalidRequest", "query"),
        ({}, 422, "InvalidRequest", "query"),
        ([], 422, "InvalidRequest", "object"),
    ],
)
def test_a_bad_search_is_told_what_is_wrong(served: Served, body: Any, status: int, error: str, says: str) -> None:
    told = refused(served.http.post("/v1/search", json=body), status, error)
    assert says in told["message"]


@pytest.mark.parametrize(
    ("raw", "status", "error"),
    [
        (b'{"query": "x"', 400, "MalformedJSON"),
        (b"", 422, "InvalidRequest"),
        (b"nonsense", 400, "MalformedJSON"),
        (b'{"query": "\xff\xfe"}', 400, "MalformedJSON"),
        (b"[" * 100_000, 400, "MalformedJSON"),
        (b'{"query": "x", "filter": ' + b'{"$not":' * 900 + b"1" + b"}" * 901, 422, "BadFilter"),
        (b'{"query": "x", "top_k": ' + b"9" * 5_000 + b"}", 400, "MalformedJSON"),
        (b'{"query": "half \\ud83d"}', 422, "InvalidRequest"),
        (b'{"query": "x", "filter": {"kind": "half \\ud83d"}}', 422, "InvalidRequest"),
        (b'{"query": "x", "filter": {"legs": NaN}}', 422, "BadFilter"),
        (b'{"query": "x", "threshold": NaN}', 422, "BadQuery"),
    ],
)
def test_a_body_that_is_no_request_is_refused(served: Served, raw: bytes, status: int, error: str) -> None:
    answer = served.http.post("/v1/search", content=raw, headers={"Content-Type": "application/json"})
    refused(answer, status, error)


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([], "No document"),
        ([{"id": "a"}], "documents.0.text"),
        ([{"id": "a", "text": "  "}], "no text"),
        ([{"text": "without identity"}], "neither id nor uri"),
        ([{"id": "a", "text": "x", "metadta": {}}], "'metadata'"),
        ([{"id": "a", "text": "x", "metadata": {"_source": "y" * 3, "k": "\0"}}], "zero byte"),
        ([{"id": "a", "text": "x", "metadata": ["no", "object"]}], "etadata"),
        ([{"id": "a", "text": "x\0y"}], "zero byte"),
    ],
)
def test_bad_documents_are_refused_whole(served: Served, documents: list[Any], says: str) -> None:
    good = {"id": "good", "text": "This one is good."}
    sent = {"documents": [good, *documents] if documents else [], "collection": "refused"}
    answer = served.http.post("/v1/documents", json=sent)
    assert answer.status_code == 422
    assert says in answer.json()["message"].replace("documents.1.", "documents.0.")
    assert "refused" not in {one["name"] for one in served.http.get("/v1/collections").json()["collections"]}


def test_wrong_addresses_and_methods(served: Served) -> None:
    refused(served.http.get("/v1/nothing"), 404, "NotFound")
    refused(served.http.put("/v1/search"), 405, "MethodNotAllowed")
    refused(served.http.get("/v1/jobs/0123456789abcdef"), 404, "JobNotFound")
    refused(served.http.post("/v1/jobs/0123456789abcdef/cancel"), 404, "JobNotFound")
    refused(served.http.get("/v1/documents", params={"limit": 0}), 422, "InvalidRequest")
    refused(served.http.get("/v1/documents", params={"state": "lost"}), 422, "InvalidRequest")
    refused(served.http.get("/v1/documents", params={"collection": "nowhere"}), 404, "CollectionNotFound")
    refused(
        served.http.get("/v1/documents/nobody", headers={"X-Request-ID": "no spaces, please"}), 404, "DocumentNotFound"
    )
    refused(served.http.get("/v1/documents/a%00b"), 422, "InvalidRequest")
    refused(served.http.get("/v1/documents?collection=a%00b"), 422, "InvalidRequest")


def test_a_body_over_the_limit_is_refused(served: Served) -> None:
    large = json.dumps({"documents": [{"id": "large", "text": "x" * 2 * LIMIT}]}).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    kind = {"Content-Type": "application/json"}
    refused(served.http.post("/v1/documents", content=large, headers=kind), 413, "TooLarge")
    refused(served.http.post("/v1/documents", content=pieces(), headers=kind), 413, "TooLarge")
    small = {"documents": [{"id": "near", "text": "x " * (LIMIT // 2 - 100)}], "collection": "near"}
    assert served.http.post("/v1/documents", json=small).status_code == 202


def test_a_body_that_says_it_is_endless_is_not_waited_for(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        raw.settimeout(10)
        raw.sendall(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


# --- many at once, and what it writes to its log --------------------------------------------------------------------


async def test_many_clients_at_once_are_all_answered(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        requests = [http.post("/v1/search", json={"query": f"bird {number}", "top_k": 3}) for number in range(64)]
        answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {200}


def logged(served: Served, request_id: str) -> list[dict[str, Any]]:
    """The lines of a request, the last of which is written after its answer has been sent."""
    deadline = time.monotonic() + 20
    while True:
        lines = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith("{")]
        found = [line for line in lines if line.get("request_id") == request_id]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_the_log_has_no_text_query_or_id(served: Served) -> None:
    secret = "zugzwang"
    sent = {"documents": [{"id": f"{secret}-id", "text": f"Of {secret}."}], "collection": "private", "wait": "all"}
    served.http.post("/v1/documents", json=sent)
    served.http.post("/v1/search", json={"query": secret, "collection": "private"})
    served.http.get(f"/v1/documents/{secret}-id", params={"collection": "private"})
    given = served.http.post("/v1/search", json={"query": ""}, headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    (mine,) = logged(served, "mine-1")
    assert mine["message"].startswith("POST /v1/search 422")
    assert (mine["method"], mine["route"], mine["status"]) == ("POST", "/v1/search", 422)
    assert mine["ms"] > 0
    assert secret not in served.log.read_text()


# --- who may call ---------------------------------------------------------------------------------------------------


def test_without_keys_only_this_machine_by_its_own_name_is_answered(served: Served) -> None:
    for host in ("localhost", "127.0.0.1:99", "[::1]:8000"):
        assert served.http.get("/health", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        refused(served.http.get("/v1/status", headers={"Host": host}), 403, "Forbidden")


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_page_of_another_site_may_not_write(served: Served, headers: dict[str, str]) -> None:
    sent = {"documents": [{"id": "a", "text": "x"}]}
    refused(served.http.post("/v1/documents", json=sent, headers=headers), 403, "Forbidden")
    refused(served.http.delete("/v1/documents/whimbrel", headers=headers), 403, "Forbidden")
    own = {"Origin": served.url, "Sec-Fetch-Site": "same-origin"}
    assert served.http.post("/v1/search", json={"query": "bird"}, headers=own).status_code == 200


def test_the_home_socket_answers_its_user(served: Served) -> None:
    path = served.home / "serve.sock"
    served.wait({"ready": True}, "/ready")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://whimbrel") as http:
        assert http.post("/v1/search", json={"query": "bird"}).json()["hits"]


async def test_what_answers_is_imported_before_the_first_question(tmp_path: Path) -> None:
    with Whimbrel(tmp_path / "home") as whimbrel:
        assert "asking" not in vars(whimbrel)
        served = create_app(whimbrel).state.served
        await served.warm()
        assert "asking" in vars(whimbrel)
        await served.close()
