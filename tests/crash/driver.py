"""A process that works on a home and may be killed: `python driver.py` reads one order as JSON from its input.

It says `ready` when everything is imported, `go` when it begins, and its result as JSON. It ends with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import whimbrel.catalog.engine
import whimbrel.owner.owner
import whimbrel.owner.tasks
import whimbrel.owner.views
import whimbrel.stores.lancedb.store
from crash import diary, points
from whimbrel import memory
from whimbrel.app import Whimbrel
from whimbrel.catalog import vectors
from whimbrel.domain import EmbedKind
from whimbrel.errors import CatalogUnavailable, WhimbrelError
from whimbrel.models.embedders.onnx import OnnxEmbedder
from whimbrel.stores.lancedb.library import import_lancedb


def main() -> None:
    signal.signal(signal.SIGUSR1, _tell_where)
    memory.own_process = True
    import_lancedb()
    say("ready")
    line = sys.stdin.readline()
    if not line:
        return
    order = json.loads(line)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.ExitStack() as stack:
        stack.enter_context(quickened())
        if order.get("journal"):
            stack.enter_context(journalled(Path(order["journal"])))
        if order.get("crash"):
            points.arm(*order["crash"])
        if order.get("host"):
            _pretend_host(order["host"])
        if order.get("pause_s"):
            whimbrel.catalog.engine.PAUSE_S = order["pause_s"]
        say("go")
        try:
            result = DEEDS[order["do"]](order)
        except WhimbrelError as error:
            result = error.as_dict()
        say(json.dumps(result))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    for line in sys.stdin:  # what it is told after its order is where to crash
        points.arm(*json.loads(line)["crash"])
    os._exit(0)


def _tell_where(_number: int, _frame: Any) -> None:
    """What each thread and task is at, for a test that waits in vain."""
    faulthandler.dump_traceback()
    for loop in gc.get_objects():
        if isinstance(loop, asyncio.AbstractEventLoop) and loop.is_running():
            for task in asyncio.all_tasks(loop):
                task.print_stack(file=sys.stderr)
    sys.stderr.flush()


@contextlib.contextmanager
def quickened() -> Iterator[None]:
    """What takes a minute in earnest takes a moment here."""
    before = whimbrel.owner.tasks.DROP_GRACE_S, whimbrel.owner.views.AT_REST_S
    whimbrel.owner.tasks.DROP_GRACE_S, whimbrel.owner.views.AT_REST_S = 0.3, 0.5  # type: ignore[attr-defined]
    try:
        yield
    finally:
        whimbrel.owner.tasks.DROP_GRACE_S, whimbrel.owner.views.AT_REST_S = before  # type: ignore[attr-defined]


def _pretend_host(name: str) -> None:
    import whimbrel.app
    import whimbrel.home
    import whimbrel.owner.lock
    import whimbrel.service.intake

    for module in (whimbrel.home, whimbrel.owner.lock, whimbrel.owner.owner, whimbrel.service.intake, whimbrel.app):
        if hasattr(module, "host_name"):
            module.host_name = lambda: name  # type: ignore[attr-defined]


@contextlib.contextmanager
def journalled(path: Path) -> Iterator[None]:
    """Write down each text that is paid for, in each space, and each sweep, which makes texts forgotten."""
    out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    embed, sweep = OnnxEmbedder.embed, vectors.sweep

    async def embed_and_note(self: OnnxEmbedder, texts: Sequence[str], kind: EmbedKind) -> Any:
        if kind is EmbedKind.DOCUMENT:
            paid = [f"{self.space.key}\n{text}" for text in texts]
            hashes = [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in paid]
            os.write(out, (" ".join(hashes) + "\n").encode())
        return await embed(self, texts, kind)

    def sweep_and_note(connection: Any) -> int:
        os.write(out, b"sweep\n")
        return sweep(connection)

    OnnxEmbedder.embed = embed_and_note  # type: ignore[method-assign]
    vectors.sweep = sweep_and_note  # type: ignore[assignment]
    try:
        yield
    finally:
        OnnxEmbedder.embed = embed  # type: ignore[method-assign]
        vectors.sweep = sweep  # type: ignore[assignment]
        os.close(out)


# --- what it can be told to do ---------------------------------------------------------------------------------------


def perform(whimbrel: Whimbrel, task: dict[str, Any]) -> Any:
    """One operation, to its end. Also called in the test's own process."""
    match task["task"]:
        case "ingest":
            return whimbrel.ingest(
                task["paths"],
                metadata=task.get("metadata"),
                allow_gone=True,
                idempotency_key=task["key"],
                wait=task.get("wait", "all"),
            )
        case "add":
            return whimbrel.add(task["texts"], idempotency_key=task["key"])
        case "delete":
            return whimbrel.delete(task["documents"])
        case "purge":
            return whimbrel.finish(whimbrel.purge(task["documents"]), wait="end")
        case "rebuild":
            rows = [row for row in whimbrel.views("default") if row.view.state == "live"]
            live = next(row for row in rows if row.view.kind == task["kind"])
            return whimbrel.finish(whimbrel.start_view_job("rebuild_view", live.id))
        case "verify":
            rows = [row for row in whimbrel.views("default") if row.view.state == "live"]
            return [whimbrel.finish(whimbrel.start_view_job("verify_view", row.id)) for row in rows]
        case "rest":
            while whimbrel.jobs(active=True):
                whimbrel.own()
                time.sleep(0.05)
            return 0
        case "maintain":
            whimbrel.own()
            return maintain(whimbrel)
        case "backup":
            return whimbrel.backup(task["to"], overwrite=True).collections
    raise ValueError(task["task"])


def maintain(whimbrel: Whimbrel) -> int:
    """Tidy up every view, on the owner's loop, as it does by itself now and then."""
    owner = whimbrel.owner
    if owner is None or owner._loop is None:
        return 0
    done = 0
    for follower in list(owner.views.followers.values()):
        with contextlib.suppress(WhimbrelError):
            asyncio.run_coroutine_threadsafe(follower.maintain(full=True), owner._loop).result(60)
            done += 1
    return done


def work(order: dict[str, Any]) -> Any:
    """Do some tasks, one after another."""
    with Whimbrel(order["home"], **order["settings"]) as whimbrel:
        return [perform(whimbrel, task) for task in order["tasks"]]


def own(order: dict[str, Any]) -> Any:
    """Be the owner whenever nobody is, and tidy up now and then."""
    dice = random.Random(order.get("seed"))
    with Whimbrel(order["home"], **order["settings"]) as whimbrel:
        owned = False
        written = 0
        failed = None
        since = time.time()
        while True:
            try:
                now_owned = whimbrel.own()
            except CatalogUnavailable:
                now_owned = False
            if now_owned != owned:
                owned = now_owned
                say(json.dumps({"owner": owned, "at": time.time(), "after": time.time() - since}))
            if whimbrel.owner is not None and whimbrel.owner.failed and whimbrel.owner is not failed:
                failed = whimbrel.owner
                say(json.dumps({"failed": failed.failed.code, "at": time.time()}))
            if owned and order.get("seed") is not None and dice.random() < 0.2:
                maintain(whimbrel)
            if order.get("write") and now_owned and written < 30:
                written += 1
                text = {"id": f"{order['write']}-{written}", "text": f"A curlew, number {written} of {order['write']}."}
                with contextlib.suppress(CatalogUnavailable):  # a connection that was ended while this was paused
                    whimbrel.start_add([text])
            if owned and order.get("hold"):
                assert whimbrel.owner is not None
                with whimbrel.catalog.write(fence=whimbrel.owner.fence):
                    say("holding")
                    time.sleep(order["hold"])
            time.sleep(0.05)


def search(order: dict[str, Any]) -> Any:
    """Search without a pause, and write down what was found or what went wrong."""
    dice = random.Random(order["seed"])
    with (
        Whimbrel(order["home"], **order["settings"]) as whimbrel,
        Path(order["log"]).open("a", buffering=1, encoding="utf-8") as out,
    ):
        while True:
            mode = dice.choice(["hybrid", "hybrid", "dense", "lexical"])
            query = " ".join(dice.sample(order["words"], 2))
            note: dict[str, Any] = {"mode": mode, "from": time.time()}
            try:
                found = whimbrel.search(query, top_k=20, mode=mode)
                note["uris"] = sorted({hit.uri for hit in found.hits})
                note["degraded"] = list(found.degraded)
                note["position"] = found.position
            except WhimbrelError as error:
                note["error"] = f"{error.code}: {error.message}"
            except Exception as error:  # what a user must never see
                note["error"] = f"UNNAMED {type(error).__name__}: {error}"
            note["to"] = time.time()
            out.write(json.dumps(note) + "\n")
            time.sleep(order.get("pause", 0.02))


def command(order: dict[str, Any]) -> Any:
    """Do a task by the command line, as far as it has words for it."""
    for key, value in {"home": order["home"], **order["settings"]}.items():
        os.environ[f"WHIMBREL_{key.upper().replace('.', '_')}"] = str(value)
    from whimbrel.cli.run import run

    for task in order["tasks"]:
        status = run(words_for(task))
        if status:
            return {"error": status, "task": task}
    return []


def words_for(task: dict[str, Any]) -> list[str]:
    match task["task"]:
        case "ingest":
            meta = ["--meta", json.dumps(task["metadata"])] if task.get("metadata") is not None else []
            return ["ingest", *task["paths"], *meta, "--allow-gone", "--json"]
        case "delete":
            return ["documents", "delete", *task["documents"], "--json"]
        case "purge":
            return ["documents", "purge", *task["documents"], "--wait", "--json"]
        case "backup":
            return ["backup", task["to"], "--overwrite", "--json"]
        case "move":
            return ["move", task["do"], "default", *task.get("options", ()), "--json"]
    raise ValueError(task["task"])


BY_COMMAND = ("ingest", "delete", "purge", "backup")


def serve(order: dict[str, Any]) -> Any:
    """The API, which is the owner when nobody is."""
    from whimbrel.config import load_settings
    from whimbrel.server.serve import serve_home

    settings = load_settings(home=Path(order["home"]), overrides=order["settings"])
    serve_home(settings, port=0, on_ready=lambda url: say(json.dumps({"url": url})))


def restore(order: dict[str, Any]) -> Any:
    """Into an empty home."""
    with Whimbrel(order["home"], **order["settings"]) as whimbrel:
        return list(whimbrel.restore(order["archive"]).collections)


def write(order: dict[str, Any]) -> Any:
    """Add, change and delete texts until told to stop."""
    with Whimbrel(order["home"], **order["settings"]) as whimbrel:
        return diary.keep_writing(whimbrel, Path(order["diary"]), Path(order["stop"]), order["pause"])


DEEDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "work": work,
    "own": own,
    "serve": serve,
    "command": command,
    "search": search,
    "write": write,
    "restore": restore,
}

if __name__ == "__main__":
    main()
