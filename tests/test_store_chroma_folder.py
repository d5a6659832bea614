"""Who may use an open Chroma folder when: those that want to be alone come first, and a closed one opens nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from running import until
from whimbrel.domain import Space
from whimbrel.errors import StoreUnavailable
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.chroma import ChromaStore, folder
from whimbrel.stores.chroma.folder import Folder

pytest.importorskip("chromadb")

SPACE = Space("test", "1", 4)
ROWS = Records(["a"], {DENSE: np.eye(1, 4, dtype=np.float32)}, ["text"], [{}])


class Watched(threading.Condition):
    """Tells whether those that came had to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.let_in: list[bool] = []

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        self.let_in.append(bool(predicate()))
        return super().wait_for(predicate, timeout)


class Client:
    """In place of chromadb's."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """Those that were opened."""
    made: list[Client] = []

    def open_client(_path: Path) -> Client:
        made.append(Client())
        return made[-1]

    monkeypatch.setattr(folder, "_open_client", open_client)
    return made


@pytest.fixture
def shared(tmp_path: Path, watched: Watched, clients: list[Client]) -> Iterator[Folder]:
    """As one store has it open, with a client that is none."""
    made = Folder(tmp_path, (tmp_path / "lock").open("a+"), changed=watched, stores=1)
    yield made
    made.lock.close()


def begun(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("many", [1, 3])
def test_newcomers_hold_back_while_somebody_wants_to_be_alone(shared: Folder, watched: Watched, many: int) -> None:
    """Else searches that come one after another would keep a write from going on for ever."""
    order: list[str] = []

    def alone() -> None:
        with shared._alone():
            order.append("alone")

    def use() -> None:
        with shared.use():
            order.append("used")

    with ExitStack() as stack:
        for _ in range(many):
            stack.enter_context(shared.use())
        threads = [begun(alone), begun(alone)]
        until(lambda: shared.wanted == 2, "two wait to be alone")
        threads += [begun(use) for _ in range(many)]
        until(lambda: len(watched.let_in) == 2 * many + 2, "all have come")
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["alone", "alone", *["used"] * many]
    assert watched.let_in == [*[True] * many, *[False] * (2 + many)]
    assert (shared.users, shared.wanted) == (0, 0)


def test_who_comes_to_a_folder_that_is_being_closed_opens_nothing(
    shared: Folder, watched: Watched, clients: list[Client]
) -> None:
    """Another process may have it the moment after."""
    said: list[StoreUnavailable] = []

    def late(work: Callable[[], None]) -> None:
        try:
            work()
        except StoreUnavailable as error:
            said.append(error)

    def use() -> None:
        with shared.use():
            pass

    def write() -> None:
        with shared.write():
            pass

    with shared.use():
        closing = begun(shared.release)
        until(lambda: shared.wanted, "it waits for who reads")
        threads = [begun(partial(late, work)) for work in (use, write)]
        until(lambda: len(watched.let_in) == 4, "both have come")
        assert not clients[0].closed
    for thread in (closing, *threads):
        thread.join()
    late(use)
    late(write)
    late(shared.vacuum)
    assert [error.status for error in said] == [503] * 5
    assert all("is being closed" in error.message and error.hint for error in said)
    assert [client.closed for client in clients] == [True]
    assert shared.lock.closed


async def test_a_search_of_a_store_that_is_closed_meanwhile_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next one opens it again."""
    store = ChromaStore(f"chroma:{tmp_path}/chroma", "view", SPACE, base=tmp_path)
    await store.create()
    await store.upsert(ROWS, new=True)
    come, use = threading.Event(), Folder.use

    def late(self: Folder) -> Any:
        come.set()
        until(lambda: self.closed, "it has been closed")
        return use(self)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "use", late)
        searching = asyncio.create_task(store.search(ROWS.vectors[DENSE][0], 1))
        await asyncio.to_thread(come.wait)
        await store.close()
        with pytest.raises(StoreUnavailable, match="is being closed"):
            await searching
    assert (await store.search(ROWS.vectors[DENSE][0], 1)).ids == ["a"]
    await store.close()
