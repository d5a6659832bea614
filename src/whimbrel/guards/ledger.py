"""The ledger's writing side: calls are summed here, and written once a second by a thread of its own.

A process that is killed loses what it has not written: at most a second, or as long as the catalog was out. One that
ends as it should loses nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from whimbrel.catalog import usage
from whimbrel.catalog.engine import Catalog, now
from whimbrel.catalog.usage import CallKey, Calls
from whimbrel.errors import WhimbrelError

logger = logging.getLogger("whimbrel.guards")

EACH_S = 1.0


class Ledger:
    """Thread-safe. Its thread begins with the first call that is added."""

    def __init__(self, catalog: Catalog, *, before: Callable[[], None] = lambda: None) -> None:
        """`before` is called each time before calls are written, in the same thread."""
        self._catalog = catalog
        self._before = before
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: dict[CallKey, Calls] = {}
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._forgot = False

    def add(self, key: CallKey, calls: Calls) -> None:
        with self._lock:
            known = self._waiting.get(key)
            if known is None:
                self._waiting[key] = calls
            else:
                known.add(calls)
            if self._thread is None and not self._end.is_set():
                self._thread = threading.Thread(target=self._run, name="whimbrel-ledger", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Write what waits. Raises what the catalog raises, and keeps it then."""
        with self._writing:
            self._before()
            with self._lock:
                taken, self._waiting = self._waiting, {}
            if not taken:
                return
            try:
                with self._catalog.write() as connection:
                    usage.add(connection, taken)
                    if not self._forgot:
                        usage.forget_old(connection, now())
                self._forgot = True
            except BaseException:
                with self._lock:
                    for key, calls in taken.items():
                        if key in self._waiting:
                            self._waiting[key].add(calls)
                        else:
                            self._waiting[key] = calls
                raise

    def close(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        except WhimbrelError as error:
            lost = sum(calls.calls for calls in self._waiting.values())
            logger.warning("%d calls of models are not in the ledger: %s", lost, error.message)

    def _run(self) -> None:
        said = ""
        while not self._end.wait(EACH_S):
            try:
                self.flush()
                said = ""
            except WhimbrelError as error:
                if error.message != said:
                    logger.warning("the ledger of models' calls waits for the catalog: %s", error.message)
                said = error.message
