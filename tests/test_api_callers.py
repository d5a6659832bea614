"""Who is let in: keys, names of this machine, other sites' pages. What no socket is needed for is asked of the app."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from languages import ABOUT_TERNS
from serving import Served, refused
from whimbrel import Whimbrel
from whimbrel.config import load_settings
from whimbrel.errors import ConfigError
from whimbrel.home import host_name
from whimbrel.server.app import create_app
from whimbrel.server.hosts import OwnNames, is_loopback_name

SITE = "https://app.example"


@asynccontextmanager
async def calling(home: Path, server: str, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app of a home, as if it had connected to `server`."""
    with Whimbrel(
        settings=load_settings(home=home, env={f"WHIMBREL_{name}": v for name, v in settings.items()})
    ) as whimbrel:
        app = create_app(whimbrel)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{server}:8000") as http:
            yield http
        await app.state.served.close()


async def test_beyond_loopback_without_keys_nothing_is_written(tmp_path: Path) -> None:
    async with calling(tmp_path, "192.0.2.7") as http:
        assert (await http.get("/v1/collections")).status_code == 200
        refused(await http.post("/v1/collections", json={"name": "a"}), 403, "Forbidden")
        refused(await http.patch("/v1/collections/a", json={"name": "b"}), 403, "Forbidden")
        refused(await http.get("/v1/conversations"), 403, "Forbidden")
        refused(await http.get("/v1/conversations/abc"), 403, "Forbidden")
        refused(await http.post("/v1/search", json={"query": "x"}), 404, "CollectionNotFound")
        for site in ({"Origin": SITE}, {"Sec-Fetch-Site": "cross-site"}):
            refused(await http.post("/v1/search", json={"query": "x"}, headers=site), 403, "Forbidden")
        assert (await http.get("/v1/collections")).json() == {"collections": []}


async def test_with_keys_an_address_beyond_loopback_takes_everything(tmp_path: Path) -> None:
    async with calling(tmp_path, "192.0.2.7", API_KEYS="anna:s3cret") as http:
        refused(await http.post("/v1/collections", json={"name": "a"}), 401, "Unauthorized")
        known = {"Authorization": "bearer s3cret", "Host": "anything.example"}
        assert (await http.post("/v1/collections", json={"name": "a"}, headers=known)).status_code == 201
        for path in ("/health", "/ready", "/docs", "/docs/page.js", "/docs/page.css"):
            assert (await http.get(path)).status_code in (200, 503), path
        for path in ("/openapi.json", "/metrics", "/v1/status", "/v1/documents"):
            refused(await http.get(path), 401, "Unauthorized")


async def test_the_name_of_a_key_is_logged_and_never_the_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with calling(tmp_path, "localhost", API_KEYS="anna:s3cret") as http:
        await http.get("/v1/collections", headers={"Authorization": "Bearer s3cret"})
        await http.get("/v1/collections", headers={"Authorization": "Bearer s3cretx"})
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert [(one.get("caller"), one["status"], one["route"]) for one in fields] == [
        ("anna", 200, "/v1/collections"),
        (None, 401, "(no route)"),
    ]
    assert "s3cret" not in caplog.text


async def test_names_that_were_allowed_are_answered(tmp_path: Path) -> None:
    async with calling(tmp_path, "192.0.2.7", SERVER_ALLOWED_HOSTS="wiki.lan, Other.lan") as http:
        for host in ("192.0.2.7", "[2001:db8::1]:80", "wiki.lan:8000", "other.LAN", host_name(), "localhost"):
            assert (await http.get("/v1/collections", headers={"Host": host})).status_code == 200, host
        for host in ("evil.example", "wiki.lan.evil.example", "192.0.2.7.evil.example", "[", "a b"):
            refused(await http.get("/v1/collections", headers={"Host": host}), 403, "Forbidden")


def test_over_loopback_an_address_of_elsewhere_is_no_name_of_this_machine() -> None:
    names = OwnNames(None)
    assert names.has("127.0.0.1:80", loopback=True)
    assert not names.has("192.0.2.7", loopback=True)
    assert names.has("192.0.2.7", loopback=False)
    assert is_loopback_name("LOCALHOST.")
    assert not is_loopback_name("localhost.evil.example")


async def test_what_nobody_expected_is_a_problem_too_and_tells_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a document's text"

    def broken(_whimbrel: Whimbrel) -> list[object]:
        raise RuntimeError(secret)

    monkeypatch.setattr(Whimbrel, "collections", broken)
    async with calling(tmp_path, "localhost") as http:
        answer = await http.get("/v1/collections", headers={"X-Request-ID": "mine-7"})
    told = refused(answer, 500, "InternalError")
    assert "mine-7" in told["hint"]
    assert secret not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text


# --- other sites' pages ---------------------------------------------------------------------------------------------

PREFLIGHT = {"Origin": SITE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


async def test_no_other_site_is_let_in_unless_it_is_named(tmp_path: Path) -> None:
    async with calling(tmp_path, "localhost") as http:
        refused(await http.options("/v1/search", headers=PREFLIGHT), 405, "MethodNotAllowed")
        answer = await http.get("/v1/collections", headers={"Origin": SITE})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        refused(await http.post("/v1/collections", json={"name": "a"}, headers={"Origin": SITE}), 403, "Forbidden")


async def test_a_named_site_may_call(tmp_path: Path) -> None:
    async with calling(tmp_path, "localhost", SERVER_CORS_ORIGINS=f"https://other.example, {SITE}") as http:
        told = await http.options("/v1/search", headers=PREFLIGHT)
        assert (told.status_code, told.headers["access-control-allow-origin"]) == (204, SITE)
        assert "POST" in told.headers["access-control-allow-methods"]
        assert "content-type" in told.headers["access-control-allow-headers"].lower()
        made = await http.post(
            "/v1/collections", json={"name": "a"}, headers={"Origin": SITE, "Sec-Fetch-Site": "cross-site"}
        )
        assert (made.status_code, made.headers["access-control-allow-origin"]) == (201, SITE)
        wrong = await http.post("/v1/collections", json={"name": "a"}, headers={"Origin": SITE})
        refused(wrong, 409, "Conflict")
        assert wrong.headers["access-control-allow-origin"] == SITE  # or a page could not read what is wrong
        assert "access-control-allow-credentials" not in wrong.headers
        assert wrong.headers["vary"] == "Origin"
        evil = {"Origin": "https://evil.example"}
        refused(await http.post("/v1/collections", json={"name": "b"}, headers=evil), 403, "Forbidden")
        refused(await http.options("/v1/search", headers=PREFLIGHT | evil), 405, "MethodNotAllowed")


async def test_a_named_site_may_use_every_method_that_there_is(tmp_path: Path) -> None:
    async with calling(tmp_path, "localhost", SERVER_CORS_ORIGINS=SITE) as http:
        told = await http.options("/v1/search", headers=PREFLIGHT)
        routes = (await http.get("/openapi.json")).json()["paths"].values()
        used = {method.upper() for route in routes for method in route}
        assert used == set(told.headers["access-control-allow-methods"].split(", "))


async def test_a_preflight_needs_no_key_and_what_follows_does(tmp_path: Path) -> None:
    async with calling(tmp_path, "192.0.2.7", API_KEYS="anna:s3cret", SERVER_CORS_ORIGINS="*") as http:
        told = await http.options("/v1/search", headers=PREFLIGHT)
        assert (told.status_code, told.headers["access-control-allow-origin"]) == (204, SITE)
        answer = await http.get("/v1/collections", headers={"Origin": SITE})
        refused(answer, 401, "Unauthorized")
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/path", "https://", "ftp://a", "https://u@a"])
def test_what_is_no_origin_is_refused_at_the_start(tmp_path: Path, origin: str) -> None:
    with pytest.raises(ConfigError) as told:
        load_settings(home=tmp_path, env={"WHIMBREL_SERVER_CORS_ORIGINS": origin})
    assert "cors_origins" in told.value.message


# --- collections ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("collections") / "home")
    try:
        made.wait({"owner": True})
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


def test_a_collection_says_what_language_was_found_out(served: Served) -> None:
    sent = {"documents": [{"id": "a", "text": ABOUT_TERNS["fr"]}], "collection": "sternes", "wait": "all"}
    assert served.http.post("/v1/documents", json=sent).status_code == 200
    there = {one["name"]: one for one in served.http.get("/v1/collections").json()["collections"]}
    status = {one["name"]: one for one in served.http.get("/v1/status").json()["collections"]}
    for found in (there["sternes"], status["sternes"], served.http.get("/v1/collections/sternes").json()):
        assert (found["language"], found["analysed_as"]) == ("auto", "fr")


def test_collections_are_made_renamed_and_deleted(served: Served) -> None:
    made = served.http.post("/v1/collections", json={"name": "birds", "language": "de"})
    assert made.status_code == 201
    assert served.http.get(made.headers["location"]).json() == made.json()
    assert (made.json()["language"], made.json()["analysed_as"]) == ("de", "de")
    refused(served.http.post("/v1/collections", json={"name": "birds"}), 409, "Conflict")
    refused(served.http.post("/v1/collections", json={"name": "no spaces"}), 422, "BadInput")
    refused(served.http.post("/v1/collections", json={"name": "x", "language": "!"}), 422, "InvalidRequest")
    sent = {"documents": [{"id": "a", "text": "Der Regenbrachvogel fliegt."}], "collection": "birds", "wait": "all"}
    assert served.http.post("/v1/documents", json=sent).status_code == 200

    renamed = served.http.patch("/v1/collections/birds", json={"name": "voegel"})
    assert (renamed.status_code, renamed.json()["name"]) == (200, "voegel")
    refused(served.http.get("/v1/collections/birds"), 404, "CollectionNotFound")
    assert served.http.post("/v1/search", json={"query": "Regenbrachvogel", "collection": "voegel"}).json()["hits"]
    refused(served.http.patch("/v1/collections/voegel", json={"name": "voegel"}), 409, "Conflict")
    refused(served.http.patch("/v1/collections/nobody", json={"name": "x"}), 404, "CollectionNotFound")

    deleted = served.http.delete("/v1/collections/voegel")
    assert deleted.status_code == 202
    refused(served.http.get("/v1/collections/voegel"), 404, "CollectionNotFound")
    served.wait({"state": "done"}, deleted.headers["location"])
    refused(served.http.delete("/v1/collections/voegel"), 404, "CollectionNotFound")
