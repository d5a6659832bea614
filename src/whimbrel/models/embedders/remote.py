"""An embedder that a server serves: batches by tokens, some at a time, in order; what a server refuses is told by text.

A model far away can be exchanged without a word. So what it says of itself and the length of its vectors are held
against the space that the catalog has, at the first answer and at every other.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import ConfigError, ModelDown, ModelMalformed, ModelRefused, SpaceMismatch, TextRefused
from whimbrel.models.background import Background
from whimbrel.models.batching import Batching
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.minilm import folder
from whimbrel.models.embedders.network import Vectors
from whimbrel.models.embedders.tokens import TextTokenizer

Look = Callable[[], Coroutine[Any, Any, None]]
"""Asks a server what it serves. It may be called again."""

FEW = 8
"""Texts of a call that may go with those of other calls."""

LOOK_AGAIN_S = 60.0
"""A server that tells which model it has is asked again after so long, and after each outage."""

PROBE = "How far is it from here to the sea?"
"""Embedded once, where nobody says how long the vectors of a model are."""


@dataclass(frozen=True, slots=True)
class About:
    """What a server says of its model, or what is known of it."""

    model: str
    revision: str
    pooling: str = "served"
    numeric: str = "served"
    max_tokens: int = 512
    batch_texts: int = 64
    batch_tokens: int = 16_384
    space: Space | None = None
    """What `whimbrel models` says, which puts prefixes and makes the length itself: nothing is done to its vectors."""
    tokenizer: str = ""
    """SHA-256 of its `tokenizer.json`, by the same."""


class Wire(ABC):
    """How one provider is asked. All calls come on one loop; no second attempts, which are not its business."""

    name: str
    """`provider:model`, for messages."""
    tells = False
    """The server itself says which model it has, and may say another one after a restart."""

    @abstractmethod
    async def about(self) -> About:
        """Raises `ModelError`."""

    @abstractmethod
    async def vectors(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        """float32[n, d]. Raises `ModelRefused` for texts that the server does not take, other `ModelError`s for what
        has nothing to do with the texts."""

    async def close(self) -> None: ...


class RemoteEmbedder(Embedder):
    """Safe to call from any thread and loop: its client lives on a loop of its own.

    Tokens are counted with the built-in model's vocabulary, as the server's is not here; a text is refused where the
    server refuses it.
    """

    def __init__(self, wire: Wire, *, query_prefix: str = "", document_prefix: str = "", at_once: int = 4) -> None:
        """`at_once`: requests under way."""
        self._wire = wire
        self._prefixes = {EmbedKind.QUERY: query_prefix, EmbedKind.DOCUMENT: document_prefix}
        self._background = Background("whimbrel-embedder")
        self._turns = asyncio.Semaphore(at_once)
        self._space: Space | None = None
        self._about: About | None = None
        self._looking = asyncio.Lock()
        self._looked = float("-inf")
        self._tokens: TextTokenizer | None = None
        self._batchings: WeakKeyDictionary[asyncio.AbstractEventLoop, Batching] = WeakKeyDictionary()
        self._batchings_lock = threading.Lock()

    @property
    def name(self) -> str:
        """`provider:model`, without credentials."""
        return self._wire.name

    @property
    def space(self) -> Space:
        """Asks the server where nobody has said. Raises `ModelError`."""
        return self.learn(lambda look: look())

    def learn(self, ask: Callable[[Look], Coroutine[Any, Any, None]]) -> Space:
        """The space. Where nobody has said it, `ask` makes the call that finds it out, behind guards for example."""
        if self._space is None:
            self._background.run_sync(ask(self._look))
        assert self._space is not None
        return self._space

    def expect(self, space: Space) -> None:
        """Its vectors are said to be of `space`: the server is held to that when it answers, and need not be there."""
        if self._space is None:
            self._space = space

    @property
    def tokenizer(self) -> Path:
        return folder() / "tokenizer.json"

    def count_tokens(self, text: str) -> int:
        return self._words().count(text)

    def reads(self, text: str) -> float:
        """1 where the server does not say that its vocabulary is the one that is here."""
        about = self._about
        same = about is not None and about.tokenizer == own_vocabulary()
        return self._words().familiar(text) if same else 1.0

    def _words(self) -> TextTokenizer:
        if self._tokens is None:
            self._tokens = TextTokenizer(self.tokenizer)
        return self._tokens

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        """float32[len(texts), d], in their order. Raises `TextRefused` for those that the server does not take, naming
        them; `SpaceMismatch` where the server's model is not the one that it was."""
        if self._is_to_look():
            await self._background.run(self._look())
        if self._about is None or self._about.space is None or len(texts) > FEW:
            return await self._background.run(self._embed(texts, kind))
        return await self._batching().embed(texts, kind)

    def _batching(self) -> Batching:
        """Questions of several callers in one request, of a server that promises that this changes no vector: the way
        there costs more than a short text. One for each loop, so that the threads are changed once for them all."""
        loop = asyncio.get_running_loop()
        with self._batchings_lock:
            if loop not in self._batchings:
                self._batchings[loop] = Batching(
                    lambda texts, kind: self._background.run(self._embed(texts, kind)),
                    at_once=2,
                    most_waiting=sys.maxsize,
                )
            return self._batchings[loop]

    async def close(self) -> None:
        await self._background.run(self._wire.close())
        self._background.stop()

    def _is_to_look(self) -> bool:
        """What is said with every vector need not be asked for again."""
        about = self._about
        if about is None:
            return True
        return self._wire.tells and about.space is None and time.monotonic() - self._looked > LOOK_AGAIN_S

    # --- on its own loop ---------------------------------------------------------------------------------------------

    async def _embed(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        space = self._space
        assert space is not None
        prefixed = [self._prefixes[kind] + text for text in texts]
        refused: dict[int, str] = {}
        batches = list(self._batches(prefixed))
        found = await asyncio.gather(*(self._some(prefixed, batch, kind, refused) for batch in batches))
        if refused:
            if len(refused) == len(texts):
                await self._check_that_it_reads(kind)
            first = min(refused)
            raise TextRefused(
                f"{self._wire.name} does not take {len(refused)} of {len(texts)} texts as they are. Text {first}: "
                f"{refused[first]}",
                "Make smaller chunks of long texts.",
                positions=sorted(refused),
            )
        made = np.concatenate(found) if found else np.zeros((0, space.dimensions), np.float32)
        return self._checked(made, len(texts), space)

    async def _check_that_it_reads(self, kind: EmbedKind) -> None:
        """Not the texts may be at fault where all are refused. Raises `ModelRefused` where a short one of ours is."""
        try:
            await self._asked([self._prefixes[kind] + PROBE], kind)
        except ModelRefused as error:
            raise ModelRefused(
                f"{self._wire.name} refuses every text, a short one of ours too. No text was set aside.",
                "Check the model's name and options; its own log says more.",
            ) from error

    async def _look(self) -> None:
        """Whoever comes meanwhile waits for what the first finds."""
        async with self._looking:
            if self._is_to_look():
                await self._learn()

    async def _learn(self) -> None:
        about = await self._wire.about()
        if about.space is not None and any(self._prefixes.values()):
            raise ConfigError(
                f"{self._wire.name} is `whimbrel models`, which puts the model's own prefixes before texts.",
                "Leave `query_prefix` and `document_prefix` out.",
            )
        if self._space is None and about.space is not None:
            self._space = about.space
        elif self._space is None:
            (probe,) = await self._asked([self._prefixes[EmbedKind.QUERY] + PROBE], EmbedKind.QUERY)
            self._space = self._space_of(about, len(probe))
        elif (found := self._space_of(about, self._space.dimensions)).key != self._space.key:
            ours = self._space
            raise SpaceMismatch(
                f"{self._wire.name} serves {found.model} ({found.revision[:12]}, {found.numeric}) now, and the "
                f"collection's vectors are of {ours.model} ({ours.revision[:12]}, {ours.numeric}). They were "
                "not compared, and nothing was written.",
                "Have the server serve the model that made them. If it is the same model in another form: "
                "`whimbrel move start --embedder MODEL --compatible` measures that.",
            )
        self._space = replace(self._space, max_tokens=about.max_tokens)
        self._about = about
        self._looked = time.monotonic()

    def _space_of(self, about: About, dimensions: int) -> Space:
        if about.space is not None:
            return about.space
        return Space(
            model=about.model,
            revision=about.revision,
            dimensions=dimensions,
            pooling=about.pooling,
            normalised=True,
            query_prefix=self._prefixes[EmbedKind.QUERY],
            document_prefix=self._prefixes[EmbedKind.DOCUMENT],
            numeric=about.numeric,
            max_tokens=about.max_tokens,
        )

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Indexes, in order: as many texts, and about as many tokens, as the server takes at once."""
        assert self._about is not None
        few = len(texts) <= self._about.batch_texts
        if texts and few and sum(map(len, texts)) < self._about.batch_tokens // 2:
            yield list(range(len(texts)))  # without counting tokens, of which a text has no more than characters
            return
        batch: list[int] = []
        tokens = 0
        for index, text in enumerate(texts):
            size = self.count_tokens(text)
            if batch and (len(batch) >= self._about.batch_texts or tokens + size > self._about.batch_tokens):
                yield batch
                batch, tokens = [], 0
            batch.append(index)
            tokens += size
        if batch:
            yield batch

    async def _some(
        self, texts: Sequence[str], batch: Sequence[int], kind: EmbedKind, refused: dict[int, str]
    ) -> Vectors:
        """Of a batch; of one that the server does not take its halves, until the texts that it means are found."""
        try:
            async with self._turns:
                return await self._asked([texts[index] for index in batch], kind)
        except ModelRefused as error:
            if len(batch) == 1:
                refused[batch[0]] = error.message
                assert self._space is not None
                return np.zeros((1, self._space.dimensions), np.float32)
        middle = len(batch) // 2
        halves = [await self._some(texts, half, kind, refused) for half in (batch[:middle], batch[middle:])]
        return np.concatenate(halves)

    async def _asked(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        try:
            found = await self._wire.vectors(texts, kind)
        except ModelDown:
            self._looked = float("-inf")  # when it is back, it may be another
            raise
        if found.ndim != 2 or len(found) != len(texts) or not found.shape[1] or not np.isfinite(found).all():
            raise ModelMalformed(
                f"{self._wire.name} gave {' x '.join(map(str, found.shape))} numbers for {len(texts)} texts, or some "
                "that are none. Nothing was kept of it.",
                "Check that it is a model of embeddings which gives one vector for each text.",
            )
        if self._about is not None and self._about.space is not None:
            return found
        length = np.linalg.norm(found, axis=1, keepdims=True)
        if not (length > 0).all():
            raise ModelMalformed(f"{self._wire.name} gave a vector of zeros.", "Ask again, or another model.")
        vectors: Vectors = (found / length).astype(np.float32)
        return vectors

    def _checked(self, found: Vectors, count: int, space: Space) -> Vectors:
        if found.shape[1:] != (space.dimensions,):
            raise SpaceMismatch(
                f"{self._wire.name} made vectors of {found.shape[1]} dimensions, and the space has {space.dimensions}. "
                "They were not compared, and nothing was written.",
                "Have the server serve the model that made the collection's vectors.",
            )
        assert len(found) == count
        return found


@cache
def own_vocabulary() -> str:
    """SHA-256 of the built-in model's `tokenizer.json`."""
    with (folder() / "tokenizer.json").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
