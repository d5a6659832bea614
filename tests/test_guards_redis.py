"""Breakers and rates in Redis: against a real server that is killed, frozen, full, read-only, or wants a password."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from clocks import Hands
from commands import Shell
from redis_server import RedisServer, own_redis
from running import until
from serving import free_port
from whimbrel.catalog.guarding import BreakerRow
from whimbrel.config import explain, load_settings
from whimbrel.config.settings import Guards as Settings
from whimbrel.errors import ConfigError, MissingExtra, ModelDown, ModelPaused
from whimbrel.guards import in_redis
from whimbrel.guards.breaker import Board, Breaker, Rules
from whimbrel.guards.calls import Taken
from whimbrel.guards.guard import Guards, Patience
from whimbrel.guards.in_redis import InRedis
from whimbrel.guards.redis_address import parse_redis
from whimbrel.guards.shared import Shared

pytestmark = pytest.mark.timeout(180)

MODEL = "openai:gpt-4o-mini"
RULES = Rules(threshold=3, window_s=60.0, pause_s=30.0)
PASSWORD = "pass/word@of:redis?"


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no failure."""
    monkeypatch.setattr(in_redis, "ANSWER_S", 30.0)
    monkeypatch.setattr(in_redis, "CONNECT_S", 30.0)


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server that the test may stop."""
    with own_redis() as server:
        yield server


def at(server: RedisServer, hands: Hands) -> Shared:
    return Shared(InRedis(SecretStr(server.url)), hands.clock)


def back(shared: Shared, hands: Hands) -> None:
    """As calls find out that it answers again, however long that takes on this machine."""
    until = time.monotonic() + 60
    while shared.out:
        assert time.monotonic() < until, shared.out
        hands.pass_(2.1)
        assert shared.due()
        shared.look()


def fail(shared: Shared, hands: Hands, times: int) -> None:
    board = Board(shared, RULES, hands.clock)
    for _ in range(times):
        board.failed(MODEL, "ModelDown", tried=False)


def told(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records)


# --- out and back ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_killed_in_the_middle_and_back(own: RedisServer, hands: Hands, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = at(own, hands), at(own, hands)
    fail(ours, hands, 2)
    own.kill()
    fail(ours, hands, 1)
    fail(theirs, hands, 1)
    assert (ours.known(MODEL).is_open, theirs.known(MODEL).is_open) == (True, False), "each for itself"
    with pytest.raises(ModelPaused):
        await Breaker(MODEL, Board(ours, RULES, hands.clock))(never)
    assert ours.state()["in"] == f"Redis at 127.0.0.1:{own.port}"
    assert ours.state()["out"] == f"Redis at 127.0.0.1:{own.port} cannot be reached."
    for _ in range(5):
        hands.pass_(2.1)
        ours.look()
    assert told(caplog, "kept by this process for itself") == 2, "each says it once"

    own.start()
    for shared in (ours, theirs):
        back(shared, hands)
        assert shared.state()["out"] is None
    fail(ours, hands, 3)
    theirs.look()
    assert theirs.known(MODEL).is_open
    assert told(caplog, "shared again, in Redis at") == 2
    ours.close()
    theirs.close()


async def never() -> str:
    pytest.fail("it is not to be asked")


async def test_nobody_waits_for_a_server_that_stopped_answering(own: RedisServer, hands: Hands) -> None:
    """The first finds out; whoever comes later does not even ask, and somebody looks beside the calls."""
    shared = at(own, hands)
    board = Board(shared, RULES, hands.clock)
    await board.look_if_due()
    with own.frozen():
        hands.pass_(1.1)
        await board.look_if_due()
        assert shared.out == f"Redis at 127.0.0.1:{own.port} does not answer in time."
        assert shared.alone
        fail(shared, hands, 3)
        assert shared.known(MODEL).is_open
        assert not shared.due()
    back(shared, hands)
    shared.close()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("settings", "undone", "said"),
    [
        ({"maxmemory": "1"}, {"maxmemory": "0"}, "is full"),
        ({"replicaof": "127.0.0.1 1"}, {"replicaof": "no one"}, "is read-only"),
    ],
)
def test_a_server_that_takes_no_changes(
    settings: dict[str, str], undone: dict[str, str], said: str, own: RedisServer, hands: Hands,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It can be read, and that does not make it well."""
    shared = at(own, hands)
    shared.look()
    told_to(own, settings)
    fail(shared, hands, 1)
    for _ in range(4):
        hands.pass_(2.1)
        shared.look()
        assert shared.out.endswith(f"{said}.")
    assert told(caplog, "for itself") == 1
    told_to(own, undone)
    back(shared, hands)
    shared.close()


@pytest.mark.usefixtures("patient")
def test_it_is_looked_for_anew_where_its_name_leads(own: RedisServer, hands: Hands) -> None:
    """After a failover the same name is another server's; who keeps the old connection would never come back."""
    shared = at(own, hands)
    fail(shared, hands, 1)
    with own.client() as client:
        before = {one["id"] for one in client.client_list()} - {str(client.client_id())}
        assert len(before) == 1
        told_to(own, {"replicaof": "127.0.0.1 1"})
        fail(shared, hands, 1)
        assert shared.out.endswith("is read-only.")
        until(lambda: not before & {one["id"] for one in client.client_list()}, "the old connection is let go")
    shared.close()


def told_to(server: RedisServer, settings: dict[str, str]) -> None:
    with server.client() as client:
        for name, value in settings.items():
            if name == "replicaof":
                client.execute_command("REPLICAOF", *value.split())
            else:
                client.config_set(name, value)


@pytest.mark.usefixtures("patient")
def test_a_user_who_may_not_write(own: RedisServer, hands: Hands) -> None:
    with own.client() as client:
        client.execute_command("ACL", "SETUSER", "guest", "on", ">guest", "~*", "+get", "+mget", "+zrange")
    shared = Shared(InRedis(SecretStr(own.url.replace("redis://", "redis://guest:guest@"))), hands.clock)
    fail(shared, hands, 1)
    assert shared.out.endswith("does not let this user do what is needed.")
    shared.close()


@pytest.mark.usefixtures("patient")
def test_the_rights_that_are_documented_are_enough(own: RedisServer, hands: Hands) -> None:
    rights = re.findall(r"\+[a-z|]+", Path(__file__).parents[1].joinpath("docs/guards.md").read_text(encoding="utf-8"))
    assert "+evalsha" in rights
    with own.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">app", "~whimbrel:*", *rights)
    shared = Shared(InRedis(SecretStr(own.url.replace("redis://", "redis://app:app@") + "/1")), hands.clock)
    fail(shared, hands, 3)
    assert shared.take("requests", hands.clock.wall(), 9.0, burst_s=5.0, longest_s=30.0) == 0
    shared.look()
    assert (shared.out, shared.known(MODEL).is_open) == ("", True)
    InRedis(SecretStr(own.url.replace("redis://", "redis://app:app@"))).check()
    shared.close()


@pytest.mark.usefixtures("patient")
async def test_with_tls_only_a_server_that_is_who_it_says(
    redis_server: RedisServer, hands: Hands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost "
        "-keyout key.pem -out cert.pem"
    )
    if not shutil.which("openssl") or subprocess.run(command.split(), cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("openssl is not here")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back_ = await asyncio.open_connection("127.0.0.1", redis_server.port)
        await asyncio.gather(pass_on(reader, back_), pass_on(there, writer))

    server = await asyncio.start_server(taken, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    stranger = Shared(InRedis(SecretStr(f"rediss://localhost:{port}")), hands.clock)
    await asyncio.to_thread(stranger.look)
    assert stranger.out.endswith("cannot be reached."), "nobody vouches for it"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    other = Shared(InRedis(SecretStr(f"rediss://127.0.0.1:{port}")), hands.clock)
    await asyncio.to_thread(other.look)
    assert other.out.endswith("cannot be reached."), "it is another"
    trusted = Shared(InRedis(SecretStr(f"rediss://localhost:{port}")), hands.clock)
    await asyncio.to_thread(fail, trusted, hands, 3)
    assert (trusted.out, trusted.known(MODEL).is_open) == ("", True)
    for shared in (stranger, other, trusted):
        shared.close()
    server.close()


# --- passwords -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_a_password_is_sent_and_a_wrong_one_is_told_and_never_shown(
    hands: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with own_redis(PASSWORD) as server:
        right = at(server, hands)
        fail(right, hands, 3)
        assert not right.out
        wrong = "wr0ng-s3cret"
        for url in (f"redis://:{wrong}@127.0.0.1:{server.port}", f"redis://127.0.0.1:{server.port}"):
            guards = Guards(Settings(redis=SecretStr(url)))
            assert guards.state()["paused"] == []
            state = guards.state()["shared"]
            assert state["out"] == f"Redis at 127.0.0.1:{server.port} refuses the user or the password."
            everything = caplog.text + repr(guards.state()) + repr(guards.settings) + repr(vars(guards.shared))
            assert wrong not in everything
            assert PASSWORD not in everything
            guards.close()
        right.close()


def test_what_a_server_says_that_is_no_redis_is_not_repeated(hands: Hands, caplog: pytest.LogCaptureFixture) -> None:
    """Some quote the command that they do not understand, and that one is AUTH."""

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sent = await reader.read(1_000)
            writer.write(b"-ERR unknown command, with args beginning with: " + sent.replace(b"\r\n", b" ") + b"\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        shared = Shared(InRedis(SecretStr(f"redis://:s3cret@127.0.0.1:{port}")), hands.clock)
        await asyncio.to_thread(shared.look)
        server.close()
        assert shared.out
        assert "s3cret" not in caplog.text + shared.out

    asyncio.run(main())


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379", "http://:s3cret@host", "redis://", "redis://:s3cret@", "redis://:s3cret/x@host:6379",
        "redis://:s3cret@host:99999", "redis://:s3cret@host:0", "redis://:s3cret@host/db0", "redis://:s3cret@a..b/0",
        "redis://:s3cret#@host", "rediss://:s3cret@host?ssl_cert_reqs=none", "redis://[::1:s3cret", "s3cret",
    ],
)  # fmt: skip
def test_a_wrong_address_is_refused_at_the_start_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=r"guards\.redis") as raised:
        Guards(Settings(redis=SecretStr(url)))
    error = raised.value
    assert "s3cret" not in f"{error!r} {error.message} {error.hint} {error.__context__!r} {error.__cause__!r}"


def test_an_address_is_read_in_its_parts() -> None:
    found = parse_redis(SecretStr("rediss://me:a%2Fb%40c@cache.example.org:6380/2"))
    assert (found.host, found.port, found.database, found.tls) == ("cache.example.org", 6380, 2, True)
    assert (found.user, found.password) == ("me", "a/b@c")
    assert found.shown == "cache.example.org:6380/2"
    assert "a/b@c" not in repr(found)
    assert parse_redis(SecretStr("redis://[::1]")).shown == "[::1]:6379"


def test_only_who_names_it_gets_it(tmp_path: Path) -> None:
    """`REDIS_URL` is there for other programs too."""
    url = "redis://:s3cret@cache:6379/1"
    assert load_settings(home=tmp_path, env={"REDIS_URL": url}).guards.redis is None
    file = tmp_path / "named.yaml"
    file.write_text("guards:\n  redis: ${REDIS_URL}\n")
    for found in (
        load_settings(home=tmp_path, config_file=file, env={"REDIS_URL": url}),
        load_settings(home=tmp_path, env={"WHIMBREL_GUARDS_REDIS": url}),
    ):
        assert found.guards.redis is not None
        assert found.guards.redis.get_secret_value() == url
        assert "s3cret" not in repr(found) + repr(explain(found))


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_redis, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as raised:
        Guards(Settings(redis=SecretStr("redis://localhost")))
    assert "whimbrel[redis]" in raised.value.hint


# --- sharing ---------------------------------------------------------------------------------------------------------

_OTHER = """
import asyncio, json, sys
from pydantic import SecretStr
from whimbrel.config.settings import Guards as Settings
from whimbrel.errors import ModelDown
from whimbrel.guards import in_redis
from whimbrel.guards.calls import Taken
from whimbrel.guards.guard import Guards, Patience
in_redis.ANSWER_S = in_redis.CONNECT_S = 30.0
async def fails():
    raise ModelDown("out")
async def main():
    guards = Guards(Settings(redis=SecretStr(sys.argv[1]), attempts=1, breaker_failures=3))
    for _ in range(int(sys.argv[2])):
        try:
            await guards.of("embed", sys.argv[3]).call(fails, Taken(), Patience(5.0, 60.0))
        except ModelDown as error:
            print(type(error).__name__)
    print(json.dumps(guards.state()["shared"]))
    guards.close()
asyncio.run(main())
"""


@pytest.mark.usefixtures("patient")
async def test_hosts_with_homes_of_their_own_share_a_breaker(fresh_redis: str) -> None:
    """Two processes that share nothing but the address."""
    command = [sys.executable, "-c", _OTHER, fresh_redis, "2", MODEL]
    other = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True)
    assert other.stdout.splitlines()[:2] == ["ModelDown", "ModelDown"]
    guards = Guards(Settings(redis=SecretStr(fresh_redis), attempts=1, breaker_failures=3))
    guard = guards.of("embed", MODEL)

    async def fails() -> str:
        raise ModelDown("out")

    with pytest.raises(ModelDown):
        await guard.call(fails, Taken(), Patience(5.0, 60.0))
    with pytest.raises(ModelPaused):
        await guard.call(never, Taken(), Patience(5.0, 60.0))
    assert guards.state()["paused"] == [{"model": MODEL, "reason": "ModelDown", "failures": 3}]
    third = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True)
    assert third.stdout.splitlines()[:2] == ["ModelPaused", "ModelPaused"]
    guards.close()


@pytest.mark.usefixtures("patient")
def test_no_change_is_lost_however_many_make_one(fresh_redis: str) -> None:
    places = [InRedis(SecretStr(fresh_redis)) for _ in range(4)]

    def count(number: int) -> None:
        places[number % 4].change(MODEL, lambda row: replace(row, failures=row.failures + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(200)))
    assert places[0].breakers()[MODEL].failures == 200
    claims = [place.change(MODEL, lambda row: replace(row, open_until=1.0, opened=1)) for place in places]
    assert all(changed for _, changed in claims)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: places[n % 4].change(MODEL, lambda row: row.claimed(1, 50.0, 9.0))[1], range(20)))
    assert won.count(True) == 1
    for place in places:
        place.close()


@pytest.mark.usefixtures("patient")
def test_every_key_has_its_prefix_and_an_end(fresh_redis: str, redis_server: RedisServer, hands: Hands) -> None:
    shared = at(redis_server, hands)
    fail(shared, hands, 3)
    shared.take(f"{MODEL} requests", hands.clock.wall(), 1.0, burst_s=5.0, longest_s=30.0)
    InRedis(SecretStr(fresh_redis)).check()
    with redis_server.client() as client:
        found = {key.decode(): client.ttl(key) for key in client.scan_iter()}
        names = {"breakers", f"breaker:{MODEL}", f"rate:{MODEL} requests", "check"}
        assert found.keys() == {f"whimbrel:{{guards}}:{name}" for name in names}
        assert all(0 < seconds <= 86_400 for seconds in found.values()), found
        # One that is gone is not listed, and its name goes with the next change of another.
        client.delete(f"whimbrel:{{guards}}:breaker:{MODEL}")
        client.zadd("whimbrel:{guards}:breakers", {MODEL: 1})
        shared.look()
        assert shared.breakers() == []
        Board(shared, RULES, hands.clock).failed("openai:other", "ModelDown", tried=False)
        assert client.zrange("whimbrel:{guards}:breakers", 0, -1) == [b"openai:other"]
    shared.close()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("junk", [b"{", b"[1]", b"7", b'{"failures": "many"}', b"\xff\xfe", b'{"failed_at": null}'])
def test_what_is_not_ours_counts_for_nothing(junk: bytes, fresh_redis: str, redis_server: RedisServer) -> None:
    place = InRedis(SecretStr(fresh_redis))
    place.change(MODEL, lambda row: replace(row, failures=9))
    with redis_server.client() as client:
        client.set(f"whimbrel:{{guards}}:breaker:{MODEL}", junk)
        client.set(f"whimbrel:{{guards}}:rate:{MODEL}", junk)
    assert place.breakers() == {MODEL: BreakerRow(MODEL)}
    assert place.change(MODEL, lambda row: replace(row, failures=row.failures + 1))[0].failures == 1
    assert place.take(MODEL, 1_000.0, 2.0, burst_s=1.0, longest_s=30.0) == 0
    assert place.take(MODEL, 1_000.0, 2.0, burst_s=1.0, longest_s=30.0) == 1.0
    place.close()


said = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda below: st.dictionaries(st.sampled_from(["failures", "name", "reason", "x"]), below) | st.lists(below),
    max_leaves=8,
)


@given(st.binary(max_size=60) | st.builds(lambda value: json.dumps(value).encode(), said))
def test_whatever_is_there_is_a_breaker_or_none(value: bytes) -> None:
    assert in_redis._row(MODEL, value).name == MODEL
    assert in_redis._number(value) < float("inf")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", ["ollama:\ud800", "ollama:élan vital\n", "ollama:" + "x" * 100_000, ""])
def test_a_model_may_have_any_name(name: str, fresh_redis: str) -> None:
    place = InRedis(SecretStr(fresh_redis))
    for _ in range(2):
        row, _ = place.change(name, lambda row: replace(row, failures=row.failures + 1))
    assert (row.name, row.failures) == (name, 2)
    assert [one.failures for one in place.breakers().values()] == [2]
    place.close()


rows = st.builds(
    BreakerRow,
    name=st.just(MODEL),
    failures=st.integers(0, 10**9),
    failed_at=st.floats(0, 1e10),
    opened=st.integers(0, 10**9),
    open_until=st.floats(0, 1e10),
    probe_until=st.floats(0, 1e10),
    reason=st.text(max_size=40),
    trying=st.integers(0, 10**6),
    trying_at=st.floats(0, 1e10),
)


@given(rows)
def test_a_breaker_is_read_as_it_was_written(row: BreakerRow) -> None:
    assert in_redis._row(MODEL, in_redis._written(row)) == row


# --- what people see -------------------------------------------------------------------------------------------------


def test_the_commands_say_that_it_is_out(tmp_path: Path) -> None:
    port = free_port()
    shell = Shell(tmp_path / "home", WHIMBREL_GUARDS_REDIS=f"redis://:s3cret@127.0.0.1:{port}")
    found = shell.run("status")
    assert "breakers and rates: kept by each process for itself" in found.out
    assert f"Redis at 127.0.0.1:{port} cannot be reached." in found.out
    state: dict[str, Any] = shell.run("status", "--json").json["models"]["shared"]
    assert state["in"] == f"Redis at 127.0.0.1:{port}"
    assert "s3cret" not in found.out + found.err + json.dumps(state)
    wrong = Shell(tmp_path / "home", WHIMBREL_GUARDS_REDIS="cache:s3cret").run("status", ok=False)
    assert wrong.status == 2
    assert "guards.redis" in wrong.err
    assert "s3cret" not in wrong.err
