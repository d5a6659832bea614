"""LanceDB on object storage: what its refusals say, and the suite that every store passes over a server of S3."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest
from tests.s3_server import environment, s3_server

from whimbrel.errors import StoreRefused, StoreUnavailable, ViewError
from whimbrel.stores.base import Store
from whimbrel.testing import Place, StoreConformance, rows_of
from whimbrel.testing.base import NewPlace, StoreSuite
from whimbrel.testing.surviving import Surviving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL; it and keys for it are in the environment, for other processes too."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as url, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(url).items():
            patch.setenv(name, value)
        yield url


@pytest.fixture(scope="module")
def bucket(server: str) -> str:
    """A new one, `s3://NAME`."""
    name = f"birds-{uuid.uuid4().hex[:8]}"  # LanceDB keeps its client of a bucket
    httpx.put(f"{server}/{name}", trust_env=False, timeout=60).raise_for_status()
    return f"s3://{name}"


class OnS3(StoreSuite):
    name = "LanceDB on S3"
    selective_rows = 10_000

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
        folder = tmp_path_factory.mktemp("base")
        return lambda: Place(f"lancedb:{bucket}/{uuid.uuid4().hex}", folder)


@pytest.mark.slow
class TestLanceDBOnS3Surviving(OnS3, Surviving):
    """What files may do otherwise than objects. How rows are kept, searched and filtered is the same code over either:
    all of the suite is in the soak."""


@pytest.mark.slow
@pytest.mark.soak
class TestLanceDBOnS3(OnS3, StoreConformance):
    """All of it."""


# --- a bucket that is not there, keys that are not accepted, nobody who answers ---------------------------------------


async def test_keys_that_are_refused_for_a_while_damage_no_view(server: str, bucket: str, tmp_path: Path) -> None:
    async with Place(f"lancedb:{bucket}/refused", tmp_path).table() as store:
        await store.upsert(rows_of([{}] * 20))
        try:
            _accept(server, "0")
            for work in (store.count(), store.exists(), store.upsert(rows_of([{}])), store.maintain(full=True)):
                with pytest.raises(StoreRefused, match="does not accept the keys") as refused:
                    await work
                assert "AWS_ACCESS_KEY_ID" in refused.value.hint
                assert "Nothing is lost" in refused.value.hint
                assert environment(server)["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)
        finally:
            _accept(server, "inf")
        assert await store.count() == 20


async def test_a_bucket_that_is_not_there_is_said(server: str, tmp_path: Path) -> None:
    store = Place(f"lancedb:s3://no-such-bucket-{uuid.uuid4().hex[:8]}/views", tmp_path).store()
    with pytest.raises(StoreRefused, match="no such bucket"):
        await store.create()


async def test_storage_that_went_away_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path / "log") as url:
        for name, value in environment(url).items():
            monkeypatch.setenv(name, value)
        name = f"away-{uuid.uuid4().hex[:8]}"
        httpx.put(f"{url}/{name}", trust_env=False, timeout=60).raise_for_status()
        store = Place(f"lancedb:s3://{name}/views", tmp_path).store()
        await store.create()
        await store.upsert(rows_of([{}] * 20))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.search(np.ones(16, np.float32), 3)
    await store.close()


def _accept(server: str, requests: str) -> None:
    """How many more requests moto takes from whoever asks; afterwards it knows no key."""
    httpx.post(f"{server}/moto-api/reset-auth", content=requests, trust_env=False, timeout=60).raise_for_status()


# --- refusals that moto does not make: another server says them by the bucket's name ----------------------------------

ANSWERS = {
    "elsewhere": (301, "PermanentRedirect"),
    "region": (400, "AuthorizationHeaderMalformed"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "odd": (405, "MethodNotAllowed"),
    "busy": (503, "SlowDown"),
}


class _Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, code = ANSWERS[self.path.split("/")[1].partition("?")[0]]
        body = f"<Error><Code>{code}</Code><AWSAccessKeyId>quoted</AWSAccessKeyId></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    yield url
    server.shutdown()
    server.server_close()


async def _error(store: Store) -> ViewError:
    with pytest.raises(ViewError) as raised:
        await store.exists()
    await store.close()
    return raised.value


async def test_each_refusal_says_what_to_do(refusing: str, tmp_path: Path) -> None:
    stores = [Place(f"lancedb:s3://{name}/views", tmp_path).store() for name in ANSWERS]
    errors = dict(zip(ANSWERS, await asyncio.gather(*map(_error, stores)), strict=True))
    hints = {name: (error.code, error.hint) for name, error in errors.items()}
    assert {name: code for name, (code, _) in hints.items()} == {
        **dict.fromkeys(ANSWERS, "StoreRefused"),
        "busy": "StoreUnavailable",
    }
    assert "AWS_REGION" in hints["elsewhere"][1]
    assert "AWS_REGION" in hints["region"][1]
    assert "AWS_SESSION_TOKEN" in hints["expired"][1]
    assert "list, read, write and delete" in hints["denied"][1]
    assert "405 (MethodNotAllowed)" in str(errors["odd"])
    assert all("Nothing is lost" in hint for _, hint in hints.values())
    assert not any("quoted" in str(error) for error in errors.values())


@pytest.mark.parametrize(
    ("scheme", "allowed", "said"), [("http", "false", "without TLS"), ("https", "true", "does not speak TLS")]
)
async def test_tls_against_plain_is_said(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, allowed: str, said: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", refusing.replace("http", scheme))
    monkeypatch.setenv("AWS_ALLOW_HTTP", allowed)
    error = await _error(Place(f"lancedb:s3://plain-{scheme}/views", tmp_path).store())
    assert error.code == "StoreRefused"
    assert said in str(error)
    assert "AWS_ALLOW_HTTP" in error.hint
