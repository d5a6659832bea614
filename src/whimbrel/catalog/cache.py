"""What models have computed, kept for every process of a home: vectors of queries, scores of rerankers, whole answers.

Bounded in bytes (what was not used for longest goes first) and in age. Keys are hashes; a cache that is out, full or
damaged costs time and nothing else: it is counted, said once in the log, and what was asked for is computed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from whimbrel.catalog.cache_rows import ROW_BYTES, Entry, Rows, is_damage
from whimbrel.catalog.engine import Catalog
from whimbrel.errors import CatalogUnavailable, WhimbrelError

logger = logging.getLogger("whimbrel.cache")

T = TypeVar("T")

MEMORY_BYTES = 16 << 20
"""Of this process's own copy of what it has seen, which saves a read: numbers only, no text."""
WRITE_S = 0.2
"""Between two writes: what was computed last is lost when a process is killed."""
MOST_PENDING = 5_000
"""Entries that wait to be written; more are not kept."""
LOOK_EVERY = 20
"""Writes after which the size is looked at."""
TOUCH_S = 60.0
"""How exactly it is known when an entry was used."""


class Kind(StrEnum):
    QUERY_VECTORS = "query_vectors"
    RERANK_SCORES = "rerank_scores"
    VARIANTS = "variants"
    ANSWERS = "answers"


_TEXT = frozenset({Kind.ANSWERS})
"""Kinds that hold text of documents."""
_OF_DOCUMENTS = frozenset({Kind.ANSWERS, Kind.RERANK_SCORES})
"""Kinds that were made from documents: of a score, only the hash of what was judged is there."""


def key_of(*parts: str | bytes) -> bytes:
    """16 bytes: blake2b-128 over the parts, each after its length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class Cache:
    """Thread-safe. Opens nothing before its first use."""

    def __init__(self, catalog: Catalog, file: Path, *, max_bytes: int, ttl_s: float, answers_s: float) -> None:
        """`file`: where it lies beside an SQLite catalog. With no bytes nothing is kept, and with no seconds nothing of
        that kind."""
        self._rows = Rows(catalog, file)
        self._max_bytes = max_bytes
        self._ttl_s = {kind: answers_s if kind is Kind.ANSWERS else ttl_s for kind in Kind}
        self._memory: OrderedDict[tuple[str, bytes], Entry] = OrderedDict()
        self._memory_bytes = 0
        self._lock = threading.Lock()
        self._pending: SimpleQueue[Entry | tuple[str, bytes]] = SimpleQueue()
        self._used: dict[tuple[str, bytes], float] = {}
        self._writer: threading.Thread | None = None
        self._stopping = threading.Event()
        self._writing = threading.Lock()
        self._writes = 0
        self._states: dict[int, bytes] = {}
        self._seen: Counter[tuple[str, bool]] = Counter()
        self._warned = False
        self.errors = 0
        """Reads and writes that failed."""

    def keeps(self, kind: Kind) -> bool:
        return self._max_bytes > 0 and self._ttl_s[kind] > 0

    # --- reading -----------------------------------------------------------------------------------------------------

    async def find(self, kind: Kind, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """What there is of `keys`, young enough."""
        if not self.keeps(kind):
            return {}
        found = self._remembered(kind, keys)
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            read = await asyncio.to_thread(self._read, kind, missing)
            found |= {key: entry.data for key, entry in read.items()}
        self._count(kind, keys, found)
        return found

    def _remembered(self, kind: Kind, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        found = {}
        with self._lock:
            for key in keys:
                entry = self._memory.get((kind, key))
                if entry is not None and self._is_young(entry):
                    self._memory.move_to_end((kind, key))
                    found[key] = entry.data
        return found

    def _read(self, kind: Kind, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        read: dict[bytes, Entry] = self._tried(lambda: self._rows.read(kind, keys), {})
        young = {key: entry for key, entry in read.items() if self._is_young(entry)}
        for entry in young.values():
            self._remember(entry)
            self._touch(entry)
        return young

    def _is_young(self, entry: Entry) -> bool:
        age = time.time() - entry.made_at
        return -60.0 <= age < self._ttl_s[Kind(entry.kind)]  # made in the future: the clock was set back since

    def _count(self, kind: Kind, keys: Sequence[bytes], found: Mapping[bytes, bytes]) -> None:
        hits = sum(key in found for key in keys)
        with self._lock:
            self._seen[kind, True] += hits
            self._seen[kind, False] += len(keys) - hits

    def _remember(self, entry: Entry) -> None:
        if entry.kind in _TEXT:
            return
        with self._lock:
            old = self._memory.pop((entry.kind, entry.key), None)
            self._memory[entry.kind, entry.key] = entry
            self._memory_bytes += len(entry.data) - (len(old.data) if old is not None else -ROW_BYTES)
            while self._memory_bytes > min(MEMORY_BYTES, self._max_bytes):
                _, gone = self._memory.popitem(last=False)
                self._memory_bytes -= len(gone.data) + ROW_BYTES

    # --- writing -----------------------------------------------------------------------------------------------------

    def keep(self, kind: Kind, new: Mapping[bytes, bytes]) -> None:
        """Soon: nobody waits for it."""
        if not self.keeps(kind) or not new:
            return
        now = time.time()
        for key, data in new.items():
            entry = Entry(kind, key, data, now)
            self._remember(entry)
            self._enqueue(entry)

    def keep_of(self, collection_id: int, state: str, kind: Kind, key: bytes, data: bytes) -> None:
        """At once, as something of a collection in this state. What was kept of it in others goes."""
        if not self.keeps(kind) or len(data) > self._max_bytes // 10:
            return
        hashed = key_of(state)
        self._write([Entry(kind, key, data, time.time(), collection_id, hashed)], [])
        if self._states.get(collection_id) != hashed:
            self._tried(lambda: self._rows.forget(kind, collection_id, other_than=hashed), None)
            self._states[collection_id] = hashed

    def _touch(self, entry: Entry) -> None:
        now = time.monotonic()
        place = (entry.kind, entry.key)
        with self._lock:
            if now - self._used.get(place, -TOUCH_S) < TOUCH_S:
                return
            if len(self._used) > 10_000:
                self._used.clear()
            self._used[place] = now
        self._enqueue(place)

    def _enqueue(self, item: Entry | tuple[str, bytes]) -> None:
        if self._pending.qsize() >= MOST_PENDING or self._stopping.is_set():
            return
        self._pending.put(item)
        with self._lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_on, name="whimbrel-cache", daemon=True)
                self._writer.start()

    def _write_on(self) -> None:
        while not self._stopping.wait(WRITE_S):
            self.flush()

    def flush(self) -> None:
        """Write what waits to be."""
        new: list[Entry] = []
        used: list[tuple[str, bytes]] = []
        try:
            while True:
                item = self._pending.get_nowait()
                if isinstance(item, Entry):
                    new.append(item)
                else:
                    used.append(item)
        except Empty:
            pass
        if new or used:
            self._write(new, used)

    def _write(self, new: Sequence[Entry], used: Sequence[tuple[str, bytes]]) -> None:
        with self._writing:
            self._tried(lambda: self._rows.write(new, used), None)
            self._writes += 1
            if self._writes % LOOK_EVERY == 1 or sum(len(one.data) for one in new) > self._max_bytes // 20:
                self._tried(self._tidy, None)

    def _tidy(self) -> None:
        for kind in Kind:
            self._rows.forget(kind, made_before=time.time() - self._ttl_s[kind])
        if self._rows.bytes() > self._max_bytes:
            self._rows.shrink(self._max_bytes * 9 // 10)

    # --- forgetting --------------------------------------------------------------------------------------------------

    def erase(self, collection_id: int) -> None:
        """Nothing that was made from a collection's documents is left, in no file either. Of rerankers' scores it is
        not known whose they were: all go. Raises `CatalogUnavailable`: an erasure must not fail unnoticed."""
        with self._writing:
            with self._lock:
                self._memory.clear()
                self._memory_bytes = 0
            try:
                if self._rows.exists():
                    for kind in _OF_DOCUMENTS:
                        self._rows.forget(kind, collection_id if kind is Kind.ANSWERS else None)
                    self._rows.scrub()
            except (SQLAlchemyError, OSError) as error:
                if not is_damage(error):
                    raise CatalogUnavailable(
                        f"What was cached cannot be erased now ({type(error).__name__}).", "It is tried again."
                    ) from error
                self._rows.begin_anew()

    def forget_answers(self, collection_id: int) -> None:
        self._tried(lambda: self._rows.forget(Kind.ANSWERS, collection_id), None)

    def close(self) -> None:
        self._stopping.set()
        if self._writer is not None:
            self._writer.join()
        self.flush()
        self._rows.close()

    # --- figures -----------------------------------------------------------------------------------------------------

    def lookups(self) -> Mapping[tuple[str, bool], int]:
        """By kind, and whether it was there: of this process, since it began."""
        with self._lock:
            return dict(self._seen)

    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Entries and bytes by kind, of all processes."""
        if self._max_bytes <= 0:
            return {}
        return self._tried(lambda: self._rows.figures() if self._rows.exists() else {}, {})

    def _tried(self, work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except (SQLAlchemyError, WhimbrelError, OSError) as error:
            self.errors += 1
            if is_damage(error):
                logger.warning("the cache is damaged and begun anew: %s", type(error).__name__)
                self._rows.begin_anew()
            elif not self._warned:
                self._warned = True
                logger.warning("the cache cannot be used, and what it would save is computed: %s", _said(error))
            return otherwise


def _said(error: Exception) -> str:
    """Never the statement's parameters."""
    return error.message if isinstance(error, WhimbrelError) else type(error).__name__
