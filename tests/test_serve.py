"""`whimbrel serve`: its keys, its start, its end, and two of it at once."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from serving import Served, own_address, refused
from whimbrel.config import load_settings
from whimbrel.errors import ConfigError, PortInUse
from whimbrel.server.serve import serve_home


def test_keys_are_asked_for_except_on_the_home_socket(tmp_path: Path) -> None:
    served = Served(tmp_path / "home", WHIMBREL_API_KEYS="anna:s3cret, ben:other")
    try:
        served.wait({"owner": True})
        assert served.http.get("/ready").status_code == 200
        search = {"query": "x"}
        told = served.http.post("/v1/search", json=search)
        refused(told, 401, "Unauthorized")
        assert told.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer wrong", "Bearer", "Basic s3cret", "s3cret", "Bearer anna:s3cret"):
            refused(served.http.post("/v1/search", json=search, headers={"Authorization": given}), 401, "Unauthorized")
        refused(served.http.get("/openapi.json"), 401, "Unauthorized")
        for key in ("s3cret", "other"):
            known = {"Authorization": f"Bearer {key}", "Host": "my.server.example"}
            refused(served.http.post("/v1/search", json=search, headers=known), 404, "CollectionNotFound")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(served.home / "serve.sock"))) as http:
            refused(http.post("http://x/v1/search", json=search), 404, "CollectionNotFound")
        assert "s3cret" not in served.log.read_text()
    finally:
        assert served.stop() == 0


def test_without_keys_an_address_beyond_this_machine_allows_only_reading(tmp_path: Path) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    served = Served(tmp_path / "home", "--host", "0.0.0.0")
    try:
        served.wait({"owner": True})
        assert "WHIMBREL_API_KEYS" in served.log.read_text()
        sent = {"documents": [{"id": "a", "text": "The godwit flies from Alaska."}], "wait": "all"}
        assert served.http.post("/v1/documents", json=sent).status_code == 200
        with httpx.Client(base_url=f"http://{address}:{served.port}", timeout=60) as http:
            assert http.post("/v1/search", json={"query": "godwit"}).json()["hits"]
            assert http.post("/v1/query", json={"query": "Where does the godwit come from?"}).json()["citations"]
            for path in ("/health", "/v1/documents", "/v1/documents/a", "/v1/collections", "/metrics"):
                assert http.get(path).status_code == 200, path
            for method, path in (
                ("POST", "/v1/documents"),
                ("DELETE", "/v1/documents/a"),
                ("POST", "/v1/collections"),
                ("DELETE", "/v1/collections/default"),
                ("POST", "/v1/jobs/0123456789abcdef/cancel"),
            ):
                told = refused(http.request(method, path, json=sent), 403, "Forbidden")
                assert "WHIMBREL_API_KEYS" in told["hint"]
            asked = {"query": "godwit", "conversation_id": "new"}
            refused(http.post("/v1/query", json=asked), 403, "Forbidden")
            refused(http.get("/v1/conversations"), 403, "Forbidden")
            refused(http.get("/v1/documents", headers={"Host": "rebound.example"}), 403, "Forbidden")
        assert served.http.get("/v1/documents").json()["documents"][0]["external_id"] == "a"
    finally:
        assert served.stop() == 0


def test_every_site_may_not_be_let_in_without_keys(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home", env={"WHIMBREL_SERVER_CORS_ORIGINS": "*"})
    with pytest.raises(ConfigError) as told:
        serve_home(settings, port=0)
    assert "WHIMBREL_API_KEYS" in told.value.hint


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home", env={})
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortInUse) as told:
            serve_home(settings, port=other.getsockname()[1])
    assert "--port" in told.value.hint


def test_a_home_that_cannot_be_opened_is_said_and_ends_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "catalog.db").write_bytes(b"this is no database" * 1000)
    served = Served(home)
    assert served.process.wait(30) not in (0, None)
    assert "is damaged" in served.log.read_text()
    assert "Traceback" not in served.log.read_text()


def test_a_second_serve_works_beside_the_first_and_takes_over(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, second = Served(home), None
    try:
        first.wait({"owner": True})
        second = Served(home)
        second.wait({"owner": "elsewhere"})
        sent = {"documents": [{"id": "a", "text": "The godwit flies from Alaska."}], "wait": "all"}
        assert second.http.post("/v1/documents", json=sent).status_code == 200
        for one in (first, second):
            hits = one.http.post("/v1/search", json={"query": "godwit"}).json()["hits"]
            assert [hit["text"] for hit in hits] == ["The godwit flies from Alaska."]

        first.kill()
        assert second.http.post("/v1/search", json={"query": "godwit"}).json()["hits"]  # before anybody owns it
        second.wait({"owner": True}, seconds=15)
        sent = {"documents": [{"id": "b", "text": "The knot flies to Mauretania."}], "wait": "all"}
        assert second.http.post("/v1/documents", json=sent).status_code == 200
        until = time.monotonic() + 10
        while time.monotonic() < until:  # the dead one's socket is taken over too
            try:
                with httpx.Client(transport=httpx.HTTPTransport(uds=str(home / "serve.sock"))) as http:
                    assert len(http.post("http://x/v1/search", json={"query": "flies"}).json()["hits"]) == 2
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        else:
            pytest.fail("nobody listens on the home's socket")
    finally:
        first.kill()
        if second is not None:
            assert second.stop() == 0
    assert not (home / "serve.sock").exists()


def test_a_signal_ends_it_in_time_and_leaves_nothing_undone(tmp_path: Path) -> None:
    served = Served(tmp_path / "home")
    try:
        served.wait({"owner": True})
        many = [{"id": f"d{n}", "text": f"Document {n} is about wader number {n}. " * 20} for n in range(200)]
        job = served.http.post("/v1/documents", json={"documents": many}).json()["job_id"]
        time.sleep(0.3)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0, served.log.read_text()
        again = Served(tmp_path / "home")
        try:
            again.wait({"state": "done"}, f"/v1/jobs/{job}")
            assert again.http.get(f"/v1/jobs/{job}").json()["result"]["documents"] == 200
        finally:
            assert again.stop() == 0
    finally:
        served.kill()
