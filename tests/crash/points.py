"""Places in the code where a test may kill the process: at the n-th time that it comes there.

Killing at a random time hits the places where most time is spent, which are seldom those where a crash could harm. So
these are named: just before and just after each thing that becomes durable.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CALLS = {
    "store.create": "whimbrel.stores.lancedb.store:LanceStore.create",
    "store.upsert": "whimbrel.stores.lancedb.store:LanceStore.upsert",
    "store.delete": "whimbrel.stores.lancedb.store:LanceStore.delete",
    "store.position": "whimbrel.stores.lancedb.store:LanceStore.set_position",
    "store.maintain": "whimbrel.stores.lancedb.store:LanceStore.maintain",
    "store.erase": "whimbrel.stores.lancedb.store:LanceStore.erase",
    "store.drop": "whimbrel.stores.lancedb.store:LanceStore.drop",
    "lexicon.create": "whimbrel.owner.targets:LexiconTarget.create",
    "lexicon.apply": "whimbrel.lexicon.tantivy:TantivyLexicon.apply",
    "lexicon.maintain": "whimbrel.lexicon.tantivy:TantivyLexicon.maintain",
    "lexicon.rewrite": "whimbrel.lexicon.tantivy:TantivyLexicon._rewrite",
    "lexicon.erase": "whimbrel.lexicon.tantivy:TantivyLexicon.erase",
    "lexicon.drop": "whimbrel.owner.targets:LexiconTarget.drop",
    "view.open": "whimbrel.owner.follower:Follower.open",
    "view.save": "whimbrel.owner.follower:Follower._save",
    "view.built": "whimbrel.owner.follower:Follower._end_building",
    "view.promote": "whimbrel.owner.views:Views._promote",
    "view.rebuild": "whimbrel.owner.views:Views._beside",
    "embed.put": "whimbrel.owner.embedding:EmbeddingStage._put",
    "scrub": "whimbrel.catalog.erase:scrub",
    "sweep": "whimbrel.catalog.vectors:sweep",
    "backup.write": "whimbrel.catalog.archive:_write_table",
    "restore.fill": "whimbrel.catalog.backup:_load",
}
"""Functions and methods, by short names: `NAME:before` and `NAME:after` are places."""

MOVING = {
    "move.create": "whimbrel.catalog.moves:create",
    "move.change": "whimbrel.catalog.moves:change",
    "move.check": "whimbrel.move.checks:Checker.check",
    "move.prepared": "whimbrel.move.switching:Switcher._prepared",
    "move.try": "whimbrel.move.switching:Switcher._try",
    "move.switch": "whimbrel.catalog.moves:switch",
    "target.create": "whimbrel.owner.targets:StoreTarget.create",
    "target.apply": "whimbrel.owner.targets:StoreTarget.apply",
    "target.bulk": "whimbrel.owner.targets:StoreTarget.end_bulk",
    "target.drop": "whimbrel.owner.targets:StoreTarget.drop",
}
"""The same, of moves: `move.switch` is inside the transaction of the switch, `move.try:after` just after it."""

WRITES = ("write:before", "write:after")
"""Any transaction of the catalog: before and after its commit."""

PLACES = (*WRITES, *(f"{name}:{when}" for name in CALLS for when in ("before", "after")))


def arm(place: str, nth: int) -> None:
    """Kill this process with SIGKILL when it comes to `place` for the `nth` time."""
    name, _, when = place.partition(":")
    left = nth

    def here(now: str) -> None:
        nonlocal left
        if now == when:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if name == "write":
        _arm_writes(here)
    else:
        _replace({**CALLS, **MOVING}[name], lambda function: _around(function, here))


def _arm_writes(here: Callable[[str], None]) -> None:
    from whimbrel.catalog.engine import Catalog

    plain = Catalog.write

    @contextmanager
    def write(self: Catalog, *, fence: int | None = None) -> Iterator[Any]:
        with plain(self, fence=fence) as connection:
            yield connection
            here("before")
        here("after")

    Catalog.write = write  # type: ignore[method-assign]


def _replace(path: str, wrap: Callable[[Any], Any]) -> None:
    module, _, name = path.partition(":")
    place = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        place = getattr(place, part)
    setattr(place, last, wrap(getattr(place, last)))


def _around(function: Any, here: Callable[[str], None]) -> Any:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def later(*args: Any, **kwargs: Any) -> Any:
            here("before")
            result = await function(*args, **kwargs)
            here("after")
            return result

        return later

    @functools.wraps(function)
    def at_once(*args: Any, **kwargs: Any) -> Any:
        here("before")
        result = function(*args, **kwargs)
        here("after")
        return result

    return at_once
