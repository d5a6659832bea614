"""What the API does not wait for, and does not read."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from serving import Served, refused

SLOW = {
    "WHIMBREL_SERVER_HEAD_TIMEOUT_S": "0.5",
    "WHIMBREL_SERVER_BODY_TIMEOUT_S": "0.5",
    "WHIMBREL_SERVER_REQUEST_TIMEOUT_S": "1",
    "WHIMBREL_SERVER_MAX_HEADER_BYTES": "8KiB",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("limits") / "home", **SLOW)
    try:
        made.wait({"owner": True})
        yield made
    finally:
        assert made.stop() == 0, made.log.read_text()


def _answered(served: Served, *pieces: bytes, pause: float = 0.0) -> tuple[int, dict[str, object]]:
    """Status and JSON of what comes back before the connection is closed; 0 where nothing does."""
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        raw.settimeout(20)
        received = b""
        try:
            for piece in pieces:
                raw.sendall(piece)
                time.sleep(pause)
            while part := raw.recv(65536):
                received += part
        except ConnectionError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    if not head:
        return 0, {}
    if b"transfer-encoding: chunked" in head.lower():
        body = body[body.index(b"{") : body.rindex(b"}") + 1]
    return int(head.split()[1]), json.loads(body)


def test_a_head_that_does_not_come_is_not_waited_for(served: Served) -> None:
    status, told = _answered(served, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    assert (status, told["error"]) == (408, "SlowRequest")


def test_a_connection_that_asks_nothing_is_closed(served: Served) -> None:
    assert _answered(served) == (0, {})
    assert _answered(served, b"\r\n\r\n") == (0, {})


def test_a_header_without_an_end_is_not_kept(served: Served) -> None:
    endless = [b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ", *[b"x" * 4096] * 4]
    status, told = _answered(served, *endless, pause=0.02)
    assert (status, told["error"]) == (431, "HeadersTooLarge")


def test_large_headers_and_addresses_are_refused(served: Served) -> None:
    refused(served.http.get("/health", headers={"X-Long": "x" * 9_000}), 431, "HeadersTooLarge")
    refused(served.http.get("/v1/documents", params={"collection": "x" * 9_000}), 431, "HeadersTooLarge")
    assert served.http.get("/health", headers={"X-Long": "x" * 7_000}).status_code == 200


def test_a_body_that_drips_is_given_up(served: Served) -> None:
    head = (
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    )
    status, told = _answered(served, head + b'{"query": "')
    assert (status, told["error"]) == (408, "SlowRequest")
    form = b"POST /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    status, told = _answered(served, form + b"Content-Length: 5000\r\n\r\n" + part)
    assert (status, told["error"]) == (408, "SlowRequest")


def test_a_body_that_comes_at_its_rate_is_waited_for(served: Served) -> None:
    body = json.dumps({"documents": [{"id": "a", "text": "x " * 40_000}], "collection": "slow"}).encode()
    pieces = [body[start : start + 8_192] for start in range(0, len(body), 8_192)]

    def slowly() -> Iterator[bytes]:
        for piece in pieces:
            time.sleep(0.1)  # longer in all than the grace
            yield piece

    answer = served.http.post("/v1/documents", content=slowly(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 202


def test_an_answer_that_does_not_begin_is_given_up(served: Served) -> None:
    many = [{"id": f"d{n}", "text": f"Number {n} of very many words. " * 200} for n in range(400)]
    told = refused(served.http.post("/v1/documents", json={"documents": many, "wait": "all"}), 504, "SlowAnswer")
    assert "committed stays" in told["message"]
    assert served.http.get("/v1/jobs", params={"active": True}).json()["jobs"]  # it goes on


def test_idle_connections_do_not_keep_others_out(served: Served) -> None:
    idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(200)]
    try:
        for one in idle[::2]:
            one.sendall(b"POST /v1/search HTTP/1.1\r\nHost: ")
        assert served.http.get("/health").status_code == 200
    finally:
        for one in idle:
            one.close()


def test_requests_on_one_connection_are_each_bounded_anew(served: Served) -> None:
    with httpx.Client(base_url=served.url) as http:
        for number in range(40):
            assert http.get("/health", headers={"X-Number": f"{number}" * 500}).status_code == 200
        time.sleep(0.8)  # idle for longer than a head may take
        assert http.get("/health").status_code == 200
    pipelined = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        raw.settimeout(20)
        raw.sendall(pipelined)
        received = b""
        while received.count(b"HTTP/1.1 200") < 300:
            part = raw.recv(1 << 20)
            assert part, received[-500:]
            received += part
