"""Extraction in processes that may hang, crash or swell."""

from __future__ import annotations

import asyncio
import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

import whimbrel.models.embedders
from whimbrel.errors import CorruptFile, EmptyFile, ExtractionFailed, ExtractionTimeout, FileTooLarge, UnreadableFile
from whimbrel.ingest.chunk import Chunking, chunk
from whimbrel.ingest.extract import Limits
from whimbrel.ingest.tokens import load_token_spans
from whimbrel.ingest.workers import ExtractionPool, Measured, Processed, Request

TOKENIZER = Path(whimbrel.models.embedders.__path__[0]) / "assets" / "minilm" / "tokenizer.json"
PROSE = "# Title\n\n" + "A sentence of some words that stands here. " * 200
SLOW = ("A sentence of some words that stands here. " * 30 + "\n\n") * 20_000
"""26 MB: a worker has ten seconds of work with it."""


def request(source: Path | bytes | str, name: str = "a.md", **more: object) -> Request:
    return Request(source, name, TOKENIZER, **more)  # type: ignore[arg-type]


@pytest.fixture
async def pool() -> AsyncIterator[ExtractionPool]:
    pool = ExtractionPool(workers=2, timeout_s=30)
    yield pool
    await pool.close()


async def busy_pid(pool: ExtractionPool) -> int:
    """The worker that is in the middle of a file."""
    for _ in range(500):
        for pid in pool.pids:
            with suppress(psutil.Error):
                if psutil.Process(pid).memory_info().rss > 70 << 20:
                    return pid
        await asyncio.sleep(0.02)
    raise AssertionError("no worker became busy")


async def test_text_and_chunks(pool: ExtractionPool, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.md")
    path.write_text(PROSE)
    chunking = Chunking(64, 8)
    by_path, by_bytes = await asyncio.gather(
        pool.process(request(path, path.name, chunking=chunking)),
        pool.process(request(PROSE.encode(), chunking=chunking)),
    )
    expected = chunk(PROSE, chunking, load_token_spans(TOKENIZER), title="Title")
    assert by_path == by_bytes
    assert by_bytes == Processed(
        content_hash=sha256(PROSE.encode()).hexdigest(),
        size=len(PROSE),
        text=PROSE,
        title="Title",
        media_type="text/markdown",
        pages=[],
        warnings=[],
        spans=expected,
        also=[],
        cut_title="Title",
    )


async def test_text_that_was_extracted_before_is_only_cut(pool: ExtractionPool) -> None:
    text = "\ufeffanything\r\n\x07 as it is: 漢字 \U0001f600"
    processed = await pool.process(request(text, "Title"))
    assert processed.text == text
    assert processed.title == processed.cut_title == "Title"
    assert len(processed.spans) == 1


async def test_a_text_is_cut_in_several_ways_at_once_with_its_pages(pool: ExtractionPool) -> None:
    ways = [Chunking(64, 8), Chunking(32, 0), Chunking(200, 40)]
    pages = [(0, 1), (3_000, 2), (6_000, 3)]
    also = [Measured(way, TOKENIZER) for way in ways[1:]]
    processed = await pool.process(request(PROSE, "Book", chunking=ways[0], also=also, pages=pages))
    counted = load_token_spans(TOKENIZER)
    expected = [chunk(PROSE, way, counted, pages=pages, title="Book") for way in ways]
    assert [processed.spans, *processed.also] == expected
    assert {span.page for span in processed.spans} == {1, 2, 3}


async def test_a_title_that_is_but_the_name_stands_over_nothing(pool: ExtractionPool) -> None:
    processed = await pool.process(request(b"Some words without a heading.", "notes.txt"))
    assert (processed.title, processed.cut_title) == ("notes", "")


async def test_a_known_file_is_not_read_further(pool: ExtractionPool) -> None:
    first = await pool.process(request(PROSE.encode()))
    again = await pool.process(request(PROSE.encode(), known_hash=first.content_hash))
    assert again == Processed(first.content_hash, first.size, unchanged=True)


async def test_errors_come_back_as_they_are(pool: ExtractionPool, tmp_path: Path) -> None:
    with pytest.raises(EmptyFile):
        await pool.process(request(b""))
    with pytest.raises(UnreadableFile) as caught:
        await pool.process(request(tmp_path / "gone.md"))
    assert caught.value.hint
    with pytest.raises(FileTooLarge):
        await pool.process(request(b"12345", limits=Limits(max_file_bytes=4)))
    assert len(pool.pids) == 1, "an error of a file costs no worker"


async def test_no_more_processes_than_workers_and_all_files_done(pool: ExtractionPool) -> None:
    texts = [f"text number {i}" for i in range(50)]
    results = await asyncio.gather(*(pool.process(request(text.encode())) for text in texts))
    assert [result.text for result in results] == texts
    assert len(pool.pids) == 2


async def test_memory_of_the_parent_is_not_counted_as_the_workers(tmp_path: Path) -> None:
    code = f"""
        import asyncio
        from pathlib import Path
        from whimbrel.ingest.workers import ExtractionPool, Request
        async def main():
            ballast = b"x" * (700 << 20)
            pool = ExtractionPool(workers=1, memory_bytes=1 << 30)
            await pool.process(Request(b"text", "a.md", Path({str(TOKENIZER)!r})))
            print(len(pool.pids), len(ballast) >> 20)
            await pool.close()
        asyncio.run(main())
    """
    ended = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["1", "700"], ended.stderr


async def test_a_worker_that_is_killed_in_the_middle_of_a_file(pool: ExtractionPool) -> None:
    victim = asyncio.create_task(pool.process(request(SLOW.encode())))
    os.kill(await busy_pid(pool), signal.SIGSEGV)
    with pytest.raises(CorruptFile, match="SIGSEGV"):
        await victim
    assert (await pool.process(request(b"next"))).text == "next"


async def test_a_worker_that_hangs_is_replaced() -> None:
    pool = ExtractionPool(workers=1, timeout_s=1.0)
    await pool.warm()
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # hangs as only a real hang does: it answers nothing, not even SIGTERM
    with pytest.raises(ExtractionTimeout, match="longer than 1 s"):
        await pool.process(request(b"text"))
    assert not psutil.pid_exists(pid)
    assert (await pool.process(request(b"next"))).text == "next"
    await pool.close()


async def test_a_file_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whimbrel.ingest.workers.SECONDS_PER_MB", 0.01)
    pool = ExtractionPool(workers=1, timeout_s=0.3)
    with pytest.raises(ExtractionTimeout):
        await pool.process(request(SLOW.encode()))
    await pool.close()


async def test_a_file_that_takes_too_much_memory() -> None:
    pool = ExtractionPool(workers=1, memory_bytes=600 << 20)
    with pytest.raises(ExtractionTimeout, match="memory"):
        await pool.process(request(b"x\xc3\xa9\xe6\xbc\xa2 " * (30 << 20)))
    assert (await pool.process(request(b"next"))).text == "next"
    await pool.close()


async def test_giving_up_on_a_file_frees_its_place(pool: ExtractionPool) -> None:
    task = asyncio.create_task(pool.process(request(SLOW.encode())))
    pid = await busy_pid(pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)
    assert (await pool.process(request(b"next"))).text == "next"


async def test_idle_workers_go() -> None:
    pool = ExtractionPool(workers=2, idle_s=0.2)
    await asyncio.gather(*(pool.process(request(b"text")) for _ in range(4)))
    pids = pool.pids
    assert pids
    for _ in range(200):
        if not pool.pids and not any(map(psutil.pid_exists, pids)):
            break
        await asyncio.sleep(0.05)
    assert not any(map(psutil.pid_exists, pids))
    assert (await pool.process(request(b"again"))).text == "again"
    await pool.close()


async def test_close_leaves_no_process() -> None:
    pool = ExtractionPool(workers=2)
    task = asyncio.create_task(pool.process(request(SLOW.encode())))
    await busy_pid(pool)
    pids = pool.pids
    await pool.close()
    with pytest.raises(ExtractionFailed):
        await task
    assert pids
    assert not any(map(psutil.pid_exists, pids))


PARENT = """
import asyncio, sys
from pathlib import Path
from whimbrel.ingest.workers import ExtractionPool, Request
async def main():
    pool = ExtractionPool(workers=2)
    await pool.warm()
    print(*pool.pids, flush=True)
    await pool.process(Request(("words of a sentence. " * 50 + "\\n\\n") .encode() * 40_000, "a.md", Path(sys.argv[1])))
asyncio.run(main())
"""


@pytest.mark.parametrize("after_s", [0.0, 1.0], ids=["at once", "busy"])
def test_no_worker_outlives_a_parent_that_is_killed(after_s: float) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(TOKENIZER)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    time.sleep(after_s)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, pids))


def running(pid: int) -> bool:
    """Not counting a zombie that the machine's first process has not buried yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


DATA = Path(os.environ.get("WHIMBREL_TEST_DATA", "")) / "files"


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "manifest.tsv").is_file(), reason="WHIMBREL_TEST_DATA is not set")
async def test_real_files_of_every_format(pool: ExtractionPool) -> None:
    """Each is read, or fails with a named error and a reason; what needs a password says so."""
    with (DATA / "manifest.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))

    async def outcome(row: dict[str, str]) -> Processed | ExtractionFailed:
        try:
            return await pool.process(request(DATA / row["path"], Path(row["path"]).name))
        except ExtractionFailed as error:
            return error

    results = await asyncio.gather(*map(outcome, rows))
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, Processed):
            assert result.text.strip(), row["path"]
            assert result.spans, row["path"]
            assert result.content_hash == row["sha256"], row["path"]
            assert result.title, row["path"]
        else:
            assert result.message, row["path"]
            assert type(result) is not ExtractionFailed, row["path"]
            assert "reader failed" not in result.message, row["path"]
        if row["encrypted"] == "True" and row["opens_without_password"] == "False":
            assert getattr(result, "code", "") == "EncryptedFile", row["path"]
    counts = Counter(type(result).__name__ for result in results)
    assert counts["Processed"] >= 0.8 * len(rows)
    assert counts["ExtractionTimeout"] == 0
