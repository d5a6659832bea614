"""An embedder that runs an ONNX network in this process, from a folder that describes itself: see
`whimbrel.models.embedders.layout`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import ModelError, TextRefused
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.layout import Layout, Options, read_layout
from whimbrel.models.embedders.network import Network, Tokens, Vectors
from whimbrel.models.embedders.tokens import TextTokenizer


class OnnxEmbedder(Embedder):
    """Embeds one text per run, in parallel threads with one intra-op thread each.

    A batch would be as fast, but dynamic quantisation takes its scale from the whole batch: each text's vector would
    depend on its neighbours (cosine down to 0.98). This way the same text gives the same bits, always.

    Files are opened at first use; `warm` does it ahead. Safe to call from any thread and event loop.
    """

    def __init__(self, folder: Path | Layout, *, threads: int | None = None) -> None:
        """`threads`: runs at a time, by default the cores that this process may use. Raises `ConfigError`."""
        self._layout = folder if isinstance(folder, Layout) else read_layout(folder, Options())
        self._space = self._layout.space
        self._threads = threads or usable_cores()
        self._load_lock = threading.Lock()
        self._network: Network | None = None
        self._tokenizer: TextTokenizer | None = None
        self._closed = False
        # Two pools, so that a query never waits behind a batch of documents; the cores are shared by the scheduler.
        self._pools = {
            kind: ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix=f"embed-{kind}")
            for kind in EmbedKind
        }
        # A batch of documents is tokenised while the one before it runs, so that no core is idle between the two.
        self._batches = ThreadPoolExecutor(max_workers=2, thread_name_prefix="embed-batch")

    @property
    def space(self) -> Space:
        return self._space

    @property
    def tokenizer(self) -> Path:
        return self._layout.tokenizer

    @property
    def threads(self) -> int:
        """Texts that are embedded at the same time."""
        return self._threads

    def warm(self) -> None:
        """Load everything and run once, so that the first query takes no longer than the others."""
        self.embed_sync(["warm"], EmbedKind.QUERY)

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        """float32[len(texts), dimensions], in the order of `texts`.

        A document over `space.max_tokens` raises `TextRefused`, which says which texts, before anything is computed. A
        query over it is read in the fewest windows that fit, of nearly equal length; its vector is the mean of theirs
        (of unit length where the space is normalised).
        """
        batch = Batch(texts, kind)
        try:
            return await asyncio.wrap_future(self._submit(batch))
        except asyncio.CancelledError:
            batch.stop()
            raise

    def embed_sync(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        """As `embed`, for callers without an event loop."""
        batch = Batch(texts, kind)
        try:
            return self._submit(batch).result()
        finally:
            batch.stop()

    def count_tokens(self, text: str) -> int:
        return self._tokens().count(self._space.document_prefix + text)

    def reads(self, text: str) -> float:
        return self._tokens().familiar(text)

    def token_spans(self, text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """(starts, ends) of the tokens of `text`, int32[n] each, in characters; prefix and special tokens left out.

        Long texts are read in pieces cut at white space, in memory that does not grow with the text.
        """
        return self._tokens().spans(text)

    async def close(self) -> None:
        """Stop at the next text and free the network. A call in progress raises `ModelError`."""
        self._closed = True
        for pool in (self._batches, *self._pools.values()):
            await asyncio.to_thread(pool.shutdown, wait=True)
        self._network = self._tokenizer = None

    def _submit(self, batch: Batch) -> Future[Vectors]:
        self._refuse_if_closed()
        pool = self._batches if batch.kind is EmbedKind.DOCUMENT else self._pools[batch.kind]
        return pool.submit(self._embed, batch)

    def _embed(self, batch: Batch) -> Vectors:
        """Share the batch among the threads of its pool. A query's begins in one of them, which takes part itself.

        A helper that has not started when the batch is done is cancelled, so a full pool cannot block itself.
        """
        self._refuse_if_closed()
        vectors = np.empty((len(batch.texts), self._space.dimensions), np.float32)
        batch.tokenise(self._tokens(), self._space)
        network = self._loaded_network()
        self._refuse_if_closed()
        takes_part = batch.kind is EmbedKind.QUERY
        helpers = min(self._threads, len(batch.texts)) - takes_part
        futures = [self._pools[batch.kind].submit(self._drain, batch, network, vectors) for _ in range(helpers)]
        try:
            if takes_part:
                self._drain(batch, network, vectors)
            else:
                wait(futures, return_when=FIRST_COMPLETED)  # which found no text left, or failed
        finally:
            batch.stop()
            unfinished = [future for future in futures if not future.cancel()]
        for future in unfinished:
            future.result()
        return vectors

    def _drain(self, batch: Batch, network: Network, vectors: Vectors) -> None:
        while (index := batch.take()) is not None:
            self._refuse_if_closed()
            windows = [network.run(window) for window in batch.windows[index]]
            vectors[index] = windows[0] if len(windows) == 1 else mean(windows, self._space)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ModelError(f"The embedder of {self._space.model} has been closed.")

    def _tokens(self) -> TextTokenizer:
        with self._load_lock:
            if self._tokenizer is None:
                self._tokenizer = TextTokenizer(self._checked(self._layout.tokenizer))
            return self._tokenizer

    def _loaded_network(self) -> Network:
        with self._load_lock:
            if self._network is None:
                self._network = Network(self._checked(self._layout.network), self._space, pooled=self._layout.pooled)
            return self._network

    def _checked(self, path: Path) -> Path:
        """The file, when it is what `model.json` says: a damaged network would give wrong vectors in silence."""
        expected = self._layout.checksums.get(path.name)
        if expected is not None:
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error}") from error
            if found != expected:
                raise ModelError(
                    f"{path} is damaged: its SHA-256 is {found[:16]}..., model.json says {expected[:16]}....",
                    hint="Install whimbrel again, or copy the model's folder again.",
                )
        return path


class Batch:
    """The texts of one call, and which of them are still to be embedded."""

    def __init__(self, texts: Sequence[str], kind: EmbedKind) -> None:
        self.texts = texts
        self.kind = kind
        self.windows: list[list[Tokens]] = []
        self._waiting: deque[int] = deque()
        self._stopped = False

    def tokenise(self, tokenizer: TextTokenizer, space: Space) -> None:
        """Fill `windows`, and queue the longest first: a long text that starts last would leave other threads idle."""
        prefix = space.query_prefix if self.kind is EmbedKind.QUERY else space.document_prefix
        refused: dict[int, str] = {}
        for index, text in enumerate(self.texts):
            if self._stopped:
                return
            try:
                self.windows.append(tokenizer.windows(prefix + text, space.max_tokens))
            except TextRefused as error:
                refused[index] = error.message
                continue
            tokens = tokenizer.total(self.windows[-1])
            if self.kind is EmbedKind.DOCUMENT and tokens > space.max_tokens:
                refused[index] = f"It has {tokens} tokens, and the model reads {space.max_tokens}."
        if refused:
            raise refusal(refused, len(self.texts), space)
        sizes = [sum(window.size for window in windows) for windows in self.windows]
        self._waiting.extend(sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True))
        if self._stopped:
            self._waiting.clear()

    def take(self) -> int | None:
        """The index of a text that nobody has taken yet."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def stop(self) -> None:
        """Let no further text be taken."""
        self._stopped = True
        self._waiting.clear()


def refusal(reasons: dict[int, str], count: int, space: Space) -> TextRefused:
    index, reason = next(iter(reasons.items()))
    return TextRefused(
        f"{space.model} cannot read {len(reasons)} of {count} texts as they are. Text {index}: {reason} Nothing was"
        " cut, and nothing was computed.",
        hint="Make smaller chunks of a long text; decode bytes as UTF-8 with errors='replace'.",
        positions=tuple(reasons),
    )


def mean(windows: Sequence[Vectors], space: Space) -> Vectors:
    vector: Vectors = np.mean(windows, axis=0, dtype=np.float32)
    return vector / np.linalg.norm(vector) if space.normalised else vector


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
