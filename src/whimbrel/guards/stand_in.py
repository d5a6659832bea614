"""An embedder with others that stand in for it: the same model, served elsewhere.

Vectors of another model would be compared with those of record and mean nothing. So one that stands in must be of the
same space, by its key; or its vectors of probe texts must be those of the first, to a cosine of 0.999 at the lowest;
or a person has declared it compatible (`whimbrel move start --embedder ... --compatible`). What was measured is kept in
the catalog, so that it holds on the day that the first does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.catalog import compatible, guarding
from whimbrel.catalog.engine import Catalog, now
from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import ConfigError, ModelError, SpaceMismatch, TextRefused, WhimbrelError
from whimbrel.guards.calls import tell
from whimbrel.guards.embedder import GuardedEmbedder
from whimbrel.models.embedders.base import Embedder

logger = logging.getLogger("whimbrel.guards")

LEAST = 0.999
AGAIN_S = 60.0
"""One that could not be compared is tried again after so long."""
FIRST_S = 1.0
"""The first call waits for so long until those that may stand in are compared."""
PROBES = (
    "How far is it from here to the sea?",
    "What does the warranty cover, and for how long?",
    "who wrote the report of 2019",
    "error 0x80070057",
    "The whimbrel breeds on subarctic moors and winters on the coasts of Africa, South America and Australasia.",
    "To restore a backup, stop the service, copy the archive into an empty folder, and start it again.",
    "Revenue rose by 4.2 % to 1,310 million, mainly because of higher prices in the second half of the year.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)",
    "Die Sitzung wurde um 17:45 Uhr geschlossen.",
    "The tenant shall give three months' notice in writing; notice by e-mail is not sufficient.",
    "A mixture of 30 g of sodium chloride in a litre of water at 20 °C.",
    "No.",
)
QUERIES = 4
"""The first of them are embedded as queries."""


class Trust(ABC):
    """What is known of embedders that may stand in."""

    @abstractmethod
    def known(self, space: Space, other: Space | None, embedder: str) -> float | None:
        """The lowest cosine that was measured, 1 for one that was declared compatible; None where nothing is known.
        Without `other`, of whatever space `embedder` had when it was compared last."""

    @abstractmethod
    def put(self, space: Space, other: Space, embedder: str, cosine: float) -> None: ...


class CatalogTrust(Trust):
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def known(self, space: Space, other: Space | None, embedder: str) -> float | None:
        with self._catalog.read() as connection:
            if other is not None and compatible.is_declared(connection, space.key, other.key):
                return 1.0
            return guarding.stand_in(connection, space.key, other.key if other else "", embedder)

    def put(self, space: Space, other: Space, embedder: str, cosine: float) -> None:
        with self._catalog.write() as connection:
            guarding.put_stand_in(connection, space.key, other.key, embedder, cosine, now())


class StandInEmbedder(Embedder):
    def __init__(self, first: GuardedEmbedder, others: Sequence[GuardedEmbedder], trust: Trust) -> None:
        """Raises `ConfigError` where one is of another space, as far as that can be told without asking a server."""
        self.first = first
        self._others = list(others)
        self._trust = trust
        self._trusted: dict[str, bool] = {}
        self._tried: dict[str, float] = {}
        self._refused: ConfigError | None = None
        self._checking: set[asyncio.Task[None]] = set()
        if first.guard.in_process:
            for other in self._others:
                if other.guard.in_process:
                    self._check_form(other)

    @property
    def inner(self) -> Embedder:
        return self.first.inner

    @property
    def space(self) -> Space:
        return self.first.space

    @property
    def tokenizer(self) -> Path:
        return self.first.tokenizer

    def count_tokens(self, text: str) -> int:
        return self.first.count_tokens(text)

    def reads(self, text: str) -> float:
        return self.first.reads(text)

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        """By the first, or by one that may stand in for it; who did is told (`calls.tell`), logged and in the ledger.

        Raises as the first does where none could; `ConfigError` for one of another space.
        """
        if self._refused is not None:
            raise self._refused
        try:
            found = await self.first.embed(texts, kind)
        except TextRefused:
            raise
        except ModelError as error:
            return await self._by_another(texts, kind, error)
        await self._look()
        return found

    async def close(self) -> None:
        for task in self._checking:
            task.cancel()
        for one in (self.first, *self._others):
            await one.close()

    async def _by_another(self, texts: Sequence[str], kind: EmbedKind, error: ModelError) -> npt.NDArray[np.float32]:
        said = [error.message]
        for other in self._others:
            try:
                if not self._trusted.get(other.name) and not await self._is_known(other):
                    said.append(f"{other.name} was never compared with it, and does not stand in.")
                    continue
                found = await other.embed(texts, kind, instead_of=self.first.name)
            except TextRefused:
                raise
            except (ModelError, SpaceMismatch) as another:
                said.append(another.message)
                continue
            tell(f"embedder: {error.message} {other.name} stood in.")
            return found
        error.message = " ".join(said)
        error.args = (error.message,)
        raise error

    # --- who may stand in --------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Compare those that were not yet: at the first call at once, so that one that never can is refused then (one
        that is slow keeps nobody waiting for long); later beside the calls. One that was compared by another process
        is looked at when it is needed. Raises `ConfigError`."""
        now = time.monotonic()
        first: set[asyncio.Task[None]] = set()
        for other in self._others:
            tried = self._tried.get(other.name)
            if other.name in self._trusted or (tried is not None and now - tried < AGAIN_S):
                continue
            self._tried[other.name] = now
            task = asyncio.create_task(self._compare_first(other) if tried is None else self._compare_later(other))
            self._checking.add(task)
            task.add_done_callback(self._checking.discard)
            if tried is None:
                first.add(task)
        if first:
            await asyncio.wait(first, timeout=FIRST_S)
        if self._refused is not None:
            raise self._refused

    async def _compare_first(self, other: GuardedEmbedder) -> None:
        known = await asyncio.to_thread(self._trust.known, self.first.space, None, other.name)
        if known is not None and known >= LEAST:
            return
        try:
            await self._compare(other)
        except ConfigError as error:
            logger.warning("%s", error.message)
            self._refused = error  # from now on too: nothing is embedded until it is corrected
        except WhimbrelError as error:
            logger.warning("%s", error.message)

    async def _compare_later(self, other: GuardedEmbedder) -> None:
        try:
            await self._compare(other)
        except WhimbrelError as error:
            logger.warning("%s", error.message)

    async def _compare(self, other: GuardedEmbedder) -> None:
        """Raises `ConfigError` for another space. One that does not answer is left for later."""
        try:
            theirs = await self._probed(other)
            if await self._is_known(other):
                return
            self._check_form(other)
            ours = await self._probed(self.first)
        except (ModelError, SpaceMismatch) as error:
            logger.warning("%s was not compared, and does not stand in yet: %s", other.name, error.message)
            return
        cosine = float((ours * theirs).sum(axis=1).min())
        await asyncio.to_thread(self._trust.put, self.first.space, other.space, other.name, cosine)
        self._judge(other, cosine)

    async def _is_known(self, other: GuardedEmbedder) -> bool:
        """Raises what its server raises where it must say what it serves; `ConfigError`."""
        theirs = await asyncio.to_thread(lambda: other.space)
        ours = self.first.space
        if theirs.key == ours.key:
            if other.name not in self._trusted:
                await asyncio.to_thread(self._trust.put, ours, theirs, other.name, 1.0)
            self._trusted[other.name] = True
            return True
        cosine = await asyncio.to_thread(self._trust.known, ours, theirs, other.name)
        if cosine is None:
            return False
        self._judge(other, cosine)
        return True

    def _judge(self, other: GuardedEmbedder, cosine: float) -> None:
        if cosine < LEAST:
            raise ConfigError(
                f"`embedder_fallback`: {other.name} is of another space than {self.first.name}: its vectors of probe "
                f"texts have a cosine of {cosine:.4f} at the lowest, and {LEAST} is wanted. Nothing was compared or "
                "written.",
                "Name the same model served elsewhere; or declare it compatible, by what is measured: `whimbrel move "
                "start --embedder MODEL --compatible`.",
            )
        self._trusted[other.name] = True

    def _check_form(self, other: GuardedEmbedder) -> None:
        ours, theirs = self.first.space, other.space
        if (ours.dimensions, ours.normalised) != (theirs.dimensions, theirs.normalised):
            raise ConfigError(
                f"`embedder_fallback`: {other.name} makes vectors of {theirs.dimensions:,} dimensions, and "
                f"{self.first.name} of {ours.dimensions:,}: they can never be compared. Nothing was written.",
                "Name the same model served elsewhere.",
            )

    async def _probed(self, embedder: GuardedEmbedder) -> npt.NDArray[np.float32]:
        queries = await embedder.embed(PROBES[:QUERIES], EmbedKind.QUERY)
        documents = await embedder.embed(PROBES[QUERIES:], EmbedKind.DOCUMENT)
        return np.concatenate([queries, documents])
