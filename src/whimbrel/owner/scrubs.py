"""One rewriting of the catalog's files for all purges that are due together: it takes as long for one as for many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from whimbrel.catalog import erase
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.erase import ScrubReport

GATHER_S = 20.0
"""How long a scrub waits for purges that are about to need one."""


class Scrubs:
    """Shared by the purges of one owner, on its loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._removing = 0
        self._begun = 0
        self._last: tuple[int, ScrubReport] | None = None

    @contextmanager
    def removing(self) -> Iterator[None]:
        """Around what a purge deletes before its scrub: others that could begin now wait for it, for some time."""
        self._removing += 1
        try:
            yield
        finally:
            self._removing -= 1

    async def next(self, catalog: Catalog) -> ScrubReport:
        """The report of a scrub that began after this call: the caller's own, or another's."""
        before = self._begun
        async with self._turn:
            if self._last is not None and self._last[0] > before:
                return self._last[1]
            await self._gather()
            self._begun += 1
            number = self._begun
            report = await asyncio.to_thread(erase.scrub, catalog)
            self._last = number, report
            return report

    async def _gather(self) -> None:
        waited = 0.0
        while self._removing and waited < GATHER_S:
            await asyncio.sleep(0.05)
            waited += 0.05
