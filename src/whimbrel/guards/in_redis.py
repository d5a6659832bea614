"""Breakers and rates in Redis: shared by hosts that have homes of their own.

| key | holds | gone |
|---|---|---|
| `whimbrel:{guards}:breaker:MODEL` | a breaker, as JSON | a day after its last change |
| `whimbrel:{guards}:breakers` | the models of those, by when they will be gone | a day after the last change of any |
| `whimbrel:{guards}:rate:MODEL WHAT` | when what was taken is due, seconds of the wall clock | after ten minutes |
| `whimbrel:{guards}:check` | nothing; written to see whether one can write again | after a minute |

A value is changed by comparing and setting it: it is read, the change is made here, and one script puts it there if the
value is still the one that was read. The braces keep all keys in one slot of a cluster that one address serves.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from whimbrel.catalog import guarding
from whimbrel.catalog.guarding import BreakerRow
from whimbrel.errors import MissingExtra
from whimbrel.guards.redis_address import parse_redis
from whimbrel.guards.shared import Change, Place, PlaceOut

if TYPE_CHECKING:
    from pydantic import SecretStr
    from redis import Redis
    from redis.commands.core import Script

T = TypeVar("T")

PREFIX = "whimbrel:{guards}:"
_BREAKERS = f"{PREFIX}breakers".encode()
CONNECT_S = 0.5
ANSWER_S = 0.5
"""So long one may have to wait, once, for a Redis that went out."""
BREAKER_S = 86_400
RATE_S = 600
CHECK_S = 60
TRIES = 100
"""Of a change that others are always quicker with: each time, one of them was done."""

_COMPARE_AND_SET = """
local is = redis.call('GET', KEYS[1]) or ''
if is ~= ARGV[1] then return is end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
if KEYS[2] then
  local now = tonumber(redis.call('TIME')[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[4])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return false
"""
"""Nil where it was set, else the value that is there; empty for none."""


class InRedis(Place):
    def __init__(self, url: SecretStr) -> None:
        """Asks nobody yet. Raises `ConfigError`, which shows no part of the password, and `MissingExtra`."""
        self._address = parse_redis(url)
        self.said = f"Redis at {self._address.shown}"
        self._lock = threading.Lock()
        self._client: Redis | None = None
        self._compare_and_set: Script | None = None
        if find_spec("redis") is None:
            raise MissingExtra("`guards.redis` needs the client of Redis.", "pip install 'whimbrel[redis]'")

    def breakers(self) -> dict[str, BreakerRow]:
        def read(client: Redis) -> dict[str, BreakerRow]:
            names = [_bytes(one).decode(errors="replace") for one in client.zrange(_BREAKERS, 0, -1)]
            values = client.mget([_key(f"breaker:{name}") for name in names]) if names else []
            return {name: _row(name, _bytes(value)) for name, value in zip(names, values, strict=True) if value}

        return self._asked(read)

    def change(self, name: str, change: Change) -> tuple[BreakerRow, bool]:
        def changed(is_: bytes) -> bytes | None:
            row = change(_row(name, is_))
            return None if row is None else _written(row)

        value, done = self._asked(
            lambda client: self._exchange(client, [_key(f"breaker:{name}"), _BREAKERS], changed, BREAKER_S, name)
        )
        return _row(name, value), done

    def take(self, name: str, now: float, seconds: float, *, burst_s: float, longest_s: float) -> float:
        wait = 0.0

        def taken(is_: bytes) -> bytes | None:
            nonlocal wait
            ready_at, wait = guarding.due(_number(is_), now, seconds, burst_s)
            return repr(ready_at).encode() if wait <= longest_s else None

        self._asked(lambda client: self._exchange(client, [_key(f"rate:{name}")], taken, RATE_S))
        return wait

    def check(self) -> None:
        self._asked(lambda client: client.set(_key("check"), b"", ex=CHECK_S))

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def _exchange(
        self, client: Redis, keys: list[bytes], change: Callable[[bytes], bytes | None], keep_s: int, name: str = ""
    ) -> tuple[bytes, bool]:
        """The value of the first key after `change`, and whether it was changed."""
        assert self._compare_and_set is not None
        found: Any = client.get(keys[0]) or b""
        for _ in range(TRIES):
            will = change(found)
            if will is None:
                return found, False
            args = [found, will, keep_s, name.encode(errors="replace")]
            now_there = self._compare_and_set(keys=keys, args=args, client=client)
            if now_there is None:
                return will, True
            found = now_there
        raise PlaceOut(f"{self.said} is changed by too many at once.")

    def _asked(self, ask: Callable[[Redis], T]) -> T:
        """Raises `PlaceOut`, which repeats nothing that the server said: it quotes what it does not understand, and
        that may be a password."""
        from redis.exceptions import RedisError

        try:
            return ask(self._connected())
        except RedisError as error:
            why = _why(error)
        except OSError:
            why = "cannot be reached"
        if self._client is not None:  # its name may lead to another server by now, as after a failover
            self._client.connection_pool.disconnect(inuse_connections=False)
        raise PlaceOut(f"{self.said} {why}.")

    def _connected(self) -> Redis:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        with self._lock:
            if self._client is None:
                at = self._address
                self._client = Redis(
                    host=at.host,
                    port=at.port,
                    db=at.database,
                    username=at.user or None,
                    password=at.password or None,
                    ssl=at.tls,
                    socket_connect_timeout=CONNECT_S,
                    socket_timeout=ANSWER_S,
                    retry=Retry(NoBackoff(), 0),  # a change that was made unheard must not be made twice
                    protocol=2,
                    driver_info=None,
                )
                self._compare_and_set = self._client.register_script(_COMPARE_AND_SET)
            return self._client


def _why(error: Exception) -> str:
    from redis import exceptions

    said = str(error)  # a script's error carries the code of the command that failed in it
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthenticationWrongNumberOfArgsError):
        return "refuses the user or the password"
    if isinstance(error, exceptions.NoPermissionError) or "NOPERM" in said:
        return "does not let this user do what is needed"
    if isinstance(error, exceptions.ReadOnlyError) or "READONLY" in said:
        return "is read-only"
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM" in said:
        return "is full"
    if isinstance(error, exceptions.BusyLoadingError):
        return "is starting"
    if isinstance(error, exceptions.MovedError | exceptions.ClusterDownError):
        return "is a node of a cluster, and not the one that is needed"
    if isinstance(error, exceptions.TimeoutError):
        return "does not answer in time"
    if isinstance(error, exceptions.ConnectionError):
        return "cannot be reached"
    return "refuses what it is asked"


# --- values ----------------------------------------------------------------------------------------------------------


def _key(name: str) -> bytes:
    """Also of a name that no text in UTF-8 can have: who asks for a model may write anything."""
    return f"{PREFIX}{name}".encode(errors="replace")


def _bytes(answer: object) -> bytes:
    """The client's types allow for one that decodes."""
    assert isinstance(answer, bytes)
    return answer


def _written(row: BreakerRow) -> bytes:
    return json.dumps(asdict(row)).encode()


def _row(name: str, value: bytes) -> BreakerRow:
    """What is not of this form, such as that of another version, counts for nothing."""
    row = asdict(BreakerRow(name))
    try:
        said = json.loads(value or b"{}")
        row |= {field: type(known)(said[field]) for field, known in row.items() if field in said and field != "name"}
    except (ValueError, TypeError, OverflowError, RecursionError):
        return BreakerRow(name)
    return BreakerRow(**row)


def _number(value: bytes) -> float:
    try:
        found = float(value or b"0")
    except ValueError:
        return 0.0
    return found if math.isfinite(found) else 0.0
