"""The worker process: `python -m whimbrel.ingest.worker PARENT_PID MEMORY_BYTES`. Reads requests from its standard
input until that ends, and answers each on its standard output.

It imports little (0.2 s to the first answer); Kreuzberg comes with the first file that needs it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import signal
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from whimbrel.domain import Extracted
from whimbrel.errors import CorruptFile, ExtractionTimeout, WhimbrelError
from whimbrel.ingest.chunk import Chunking, chunk
from whimbrel.ingest.extract import Limits, extract, read_file
from whimbrel.ingest.reader import Options
from whimbrel.ingest.tokens import TokenSpans, load_token_spans
from whimbrel.ingest.wire import frame, pack_error, pack_spans, read_frame


def main() -> None:
    parent, memory = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests, answers = sys.stdin.buffer, _private_stdout()
    _send(answers, {"ready": os.getpid()})
    while (request := read_frame(requests)) is not None:
        head, body = _answer(*request)
        _send(answers, {**head, "peak": _peak_memory()}, body)


def _answer(request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        return _process(request, body)
    except WhimbrelError as error:
        return {"error": pack_error(error)}, b""
    except MemoryError:
        swollen = ExtractionTimeout(
            "Reading it takes more memory than a worker may use.", "Raise `ingest.memory_bytes`."
        )
        return {"error": pack_error(swollen)}, b""
    except Exception as error:
        # A defect of ours or of a library that one file brings out: named on that file, and the others go on.
        place = _innermost(error)
        message = f"Its reader failed: {type(error).__name__} in {place}."
        failed = CorruptFile(message, "This is a bug: please report it.")
        return {"error": pack_error(failed)}, b""


def _process(request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    limits = Limits(**request["limits"])
    data = body if request["path"] is None else read_file(Path(request["path"]), limits)
    content_hash = hashlib.sha256(data).hexdigest()
    head: dict[str, Any] = {"content_hash": content_hash, "size": len(data)}
    if content_hash == request["known_hash"]:
        return {**head, "unchanged": True}, b""
    if request["is_text"]:
        extracted, title = Extracted(data.decode("utf-8"), pages=request["pages"]), request["name"]
    else:
        extracted = extract(data, name=request["name"], limits=limits, options=Options(**request["options"]))
        title = "" if extracted.title == PurePath(request["name"]).stem else extracted.title
    del data, body
    packed = [
        pack_spans(chunk(extracted.text, Chunking.parse(spec), _tokenizer(path), pages=extracted.pages, title=title))
        for spec, path in ((request["chunking"], request["tokenizer"]), *request["also"])
    ]
    head |= {
        "title": extracted.title or title,
        "media_type": extracted.media_type,
        "pages": list(extracted.pages),
        "warnings": list(extracted.warnings),
        "cut_title": title,
        "cuts": [(contexts, len(columns)) for contexts, columns in packed],
    }
    return head, b"".join([*(columns for _, columns in packed), extracted.text.encode("utf-8")])


@lru_cache(maxsize=4)
def _tokenizer(path: str) -> TokenSpans:
    return load_token_spans(Path(path))


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "unknown place"


def _send(file: BinaryIO, head: dict[str, Any], body: bytes = b"") -> None:
    for part in frame(head, body):
        file.write(part)
    file.flush()


def _private_stdout() -> BinaryIO:
    """The pipe to the parent, out of reach of libraries that print."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _peak_memory() -> int:
    """Bytes, of this process alone: on Linux, `ru_maxrss` begins with what its parent had at the fork."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _die_with(parent: int) -> None:
    """No worker outlives a parent that was killed, busy or not."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """Where the kernel does not do it; also where the parent died before `_die_with`."""
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


if __name__ == "__main__":
    main()
