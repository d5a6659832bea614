"""Worker processes that turn files into text and chunks. A file can hang, crash or swell one of them, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whimbrel.domain import ChunkSpan
from whimbrel.errors import Busy, CorruptFile, ExtractionTimeout
from whimbrel.ingest.chunk import Chunking
from whimbrel.ingest.extract import Limits
from whimbrel.ingest.reader import NO_OPTIONS, Options
from whimbrel.ingest.wire import HEADER, frame, unpack_error, unpack_spans


@dataclass(frozen=True, slots=True)
class Measured:
    """A chunking, and what counts its tokens."""

    chunking: Chunking
    tokenizer: Path
    """The `tokenizer.json` of an embedder."""


@dataclass(frozen=True, slots=True)
class Request:
    """One file to read and to cut."""

    source: Path | bytes | str
    """A path, the content of a file, or a text that was extracted before and is only to be cut again."""
    name: str
    """The file's name, which says the format where the content does not; with a text, its `cut_title`."""
    tokenizer: Path
    """The `tokenizer.json` of the embedder that counts the tokens."""
    chunking: Chunking = field(default_factory=Chunking)
    limits: Limits = field(default_factory=Limits)
    options: Options = NO_OPTIONS
    known_hash: str = ""
    """If the content has this SHA-256, it is not read any further: see `Processed.unchanged`."""
    also: Sequence[Measured] = ()
    """It is cut in these ways too."""
    pages: Sequence[tuple[int, int]] = ()
    """With a text, its pages."""


@dataclass(frozen=True, slots=True)
class Processed:
    """A file as text and chunks."""

    content_hash: str
    """SHA-256 of the file's bytes, 64 hex characters."""
    size: int
    """Bytes."""
    unchanged: bool = False
    """The content has the `known_hash` of the request; all that follows is left empty."""
    text: str = field(default="", repr=False)
    title: str = ""
    media_type: str = ""
    pages: Sequence[tuple[int, int]] = ()
    warnings: Sequence[str] = ()
    spans: Sequence[ChunkSpan] = field(default=(), repr=False)
    also: Sequence[Sequence[ChunkSpan]] = field(default=(), repr=False)
    """Its chunks in each of the request's other ways."""
    cut_title: str = ""
    """What stands over the contexts of its chunks: the title, unless that is but the file's name."""


class ExtractionPool:
    """Up to `workers` processes, started when they are needed, stopped after a minute without work.

    Each has a limit of memory (address space), and each file a limit of time. A worker that passes it, or that dies, is
    replaced; the file gets an error that says so, and the others go on. When this process dies, so do its workers.
    """

    def __init__(
        self, *, workers: int = 2, timeout_s: float = 60.0, memory_bytes: int = 2 << 30, idle_s: float = 60.0
    ) -> None:
        """`timeout_s` is for a small file; each megabyte adds `SECONDS_PER_MB`."""
        self.workers = workers
        self._timeout_s = timeout_s
        self._memory = memory_bytes
        self._idle_s = idle_s
        self._slots = asyncio.Semaphore(workers)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.pid for worker in self._all]

    async def process(self, request: Request) -> Processed:
        """Raises a kind of `ExtractionFailed`: what is wrong with this file; `ModelError` for a bad tokenizer; `Busy`
        where no worker starts. Any number of calls may wait."""
        async with self._slots:
            if self._closed:
                raise Busy("The extraction workers are closed.")
            worker = self._idle.pop() if self._idle else await self._start()
            done = False
            try:
                ways = 1 + len(request.also)
                async with asyncio.timeout(self._timeout_s + ways * _size_of(request) / 1e6 * SECONDS_PER_MB):
                    head, body = await worker.ask(request)
                done = head.get("peak", 0) < self._memory // 2  # memory that a big file took is not given back
            except TimeoutError:
                message = (
                    f"Stopped: reading it took longer than {self._timeout_s:g} s and {SECONDS_PER_MB:g} s a megabyte."
                )
                raise ExtractionTimeout(message, "Raise `ingest.timeout_s`, or split the file.") from None
            except (EOFError, OSError):
                raise await worker.why_it_died() from None
            finally:
                await self._put_back(worker, alive=done)
        if "error" in head:
            raise unpack_error(head["error"])
        return _processed(head, body)

    async def warm(self) -> None:
        """Starts one worker ahead of the first file."""
        async with self._slots:
            if not self._idle and not self._closed:
                await self._put_back(await self._start(), alive=True)

    async def close(self) -> None:
        """Stops all workers at once; files in work are given up."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        await asyncio.gather(*(self._stop(worker) for worker in list(self._all)))
        self._idle.clear()

    async def _start(self) -> _Worker:
        worker = await _Worker.start(self._memory)
        self._all.add(worker)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker.read()
        except (EOFError, OSError, TimeoutError) as error:
            reason = worker.last_words() or type(error).__name__
            await self._stop(worker)
            raise Busy(f"An extraction worker did not start: {reason}", "Is there memory left? Try again.") from error
        except asyncio.CancelledError:
            await self._stop(worker)
            raise
        return worker

    async def _put_back(self, worker: _Worker, *, alive: bool) -> None:
        if alive and not self._closed:
            self._idle.append(worker)
            self._stop_idle_later()
        else:
            await self._stop(worker)

    async def _stop(self, worker: _Worker) -> None:
        self._all.discard(worker)
        await asyncio.shield(worker.kill())

    def _stop_idle_later(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._stop_idle)

    def _stop_idle(self) -> None:
        """A worker holds 60 to 150 MB."""
        while self._idle:
            worker = self._idle.pop()
            self._all.discard(worker)
            worker.end()


SECONDS_PER_MB = 4.0
"""Of text, a worker reads and cuts 1.5 to 2 MB/s on one slow core."""
START_TIMEOUT_S = 60.0


class _Worker:
    """One process, and the pipes to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._stderr = bytearray()
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, memory: int) -> _Worker:
        single = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "whimbrel.ingest.worker",
            str(os.getpid()),
            str(memory),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
            env={**os.environ, **single, "TOKENIZERS_PARALLELISM": "false"},
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, request: Request) -> tuple[dict[str, Any], bytes]:
        """Raises `EOFError` or `OSError` where the process dies."""
        source = request.source
        body = source.encode("utf-8") if isinstance(source, str) else source if isinstance(source, bytes) else b""
        head = {
            "path": str(source) if isinstance(source, Path) else None,
            "is_text": isinstance(source, str),
            "name": request.name,
            "tokenizer": str(request.tokenizer),
            "chunking": request.chunking.spec,
            "also": [(way.chunking.spec, str(way.tokenizer)) for way in request.also],
            "pages": list(request.pages),
            "limits": asdict(request.limits),
            "options": asdict(request.options),
            "known_hash": request.known_hash,
        }
        assert self._process.stdin
        self._process.stdin.writelines(frame(head, body))
        await self._process.stdin.drain()
        return await self.read()

    async def read(self) -> tuple[dict[str, Any], bytes]:
        import json

        assert self._process.stdout
        head_size, body_size = HEADER.unpack(await self._process.stdout.readexactly(HEADER.size))
        head = await self._process.stdout.readexactly(head_size)
        return json.loads(head), await self._process.stdout.readexactly(body_size)

    async def why_it_died(self) -> CorruptFile | ExtractionTimeout:
        code = await self._process.wait()
        await self._listener
        if "emory" in self.last_words():
            message = "Reading it takes more memory than a worker may use."
            return ExtractionTimeout(message, "Raise `ingest.memory_bytes`, or split the file.")
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return CorruptFile(f"Its reader crashed ({how}).", "Does the file open in its own program?")

    def last_words(self) -> str:
        return self._stderr[-2_000:].decode("utf-8", "replace").strip()

    def end(self) -> None:
        """Lets it go when it has nothing to do: its input ends."""
        assert self._process.stdin
        self._process.stdin.close()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            self._process.kill()
        await self._process.wait()
        await self._listener

    async def _listen(self) -> None:
        """What libraries write, of which only the end is kept: it may say why a process died."""
        assert self._process.stderr
        while data := await self._process.stderr.read(4_096):
            self._stderr = (self._stderr + data)[-4_096:]


def _size_of(request: Request) -> int:
    if not isinstance(request.source, Path):
        return len(request.source)
    try:
        return min(request.source.stat().st_size, request.limits.max_file_bytes)
    except OSError:
        return 0  # the worker says what is wrong with it


def _processed(head: dict[str, Any], body: bytes) -> Processed:
    if head.get("unchanged"):
        return Processed(head["content_hash"], head["size"], unchanged=True)
    packed, text_from = [], 0
    for contexts, size in head["cuts"]:
        packed.append(unpack_spans(contexts, body[text_from : text_from + size]))
        text_from += size
    return Processed(
        content_hash=head["content_hash"],
        size=head["size"],
        text=str(memoryview(body)[text_from:], "utf-8"),
        title=head["title"],
        media_type=head["media_type"],
        pages=[(offset, number) for offset, number in head["pages"]],
        warnings=head["warnings"],
        spans=packed[0],
        also=packed[1:],
        cut_title=head["cut_title"],
    )
