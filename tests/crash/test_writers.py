"""Several writers at once, in threads and in processes: no view skips a change, on SQLite and on Postgres."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from crash.harness import SETTINGS, Process, opened, processes, settle, verified
from crash.model import Model, contents, strays
from whimbrel.app import Whimbrel

WRITERS = 3
EACH = 8


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of a home on either catalog."""
    return {} if request.param == "sqlite" else {"catalog": request.getfixturevalue("fresh_postgres")}


def script(writer: int, model: Model, count: int) -> list[dict[str, Any]]:
    """What one writer does to documents that are its own: the end of it is known, whatever the others do."""
    dice = model.dice
    tasks: list[dict[str, Any]] = []
    for number in range(count):
        chance = dice.random()
        here = sorted(model.documents)
        if chance < 0.7 or not here:
            name = f"w{writer}-{dice.randint(1, 5)}"
            texts = [{"id": name, "text": model.page(), "metadata": {"writer": writer, "n": number}}]
            tasks.append({"task": "add", "texts": texts, "key": f"{writer}-{number}"})
        else:
            tasks.append({"task": "delete", "documents": dice.sample(here, 1)})
        model.apply(tasks[-1])
    return tasks


def test_writers_in_threads_and_processes_skip_nothing(where: dict[str, Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    models = [Model(tmp_path, random.Random(writer)) for writer in range(WRITERS)]
    scripts = [script(writer, model, EACH) for writer, model in enumerate(models)]
    failures: list[BaseException] = []

    with processes() as pool, opened(home, **where) as whimbrel:
        whimbrel.create_collection("default")
        whimbrel.own()
        beside = [begin(pool.take(ahead=False), home, where, tasks) for tasks in scripts[:1]]
        threads = [threading.Thread(target=write, args=(whimbrel, tasks, failures)) for tasks in scripts[1:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for process in beside:
            said = process.wait_for("[", 60)
            assert "error" not in said, said
        assert not failures, failures
        settle(whimbrel)
        verified(whimbrel)
        expected = {uri: document for model in models for uri, document in model.documents.items()}
        found = contents(whimbrel)
        assert set(found) == set(expected)
        for uri, document in expected.items():
            assert found[uri]["metadata"] == document.metadata
            assert found[uri]["text"].strip() == document.text.strip()
        assert not strays(whimbrel)


def begin(process: Process, home: Path, where: dict[str, Any], tasks: list[dict[str, Any]]) -> Process:
    process.tell(do="work", home=str(home), settings={**SETTINGS, **where}, tasks=tasks)
    process.wait_for("go")
    return process


def write(whimbrel: Whimbrel, tasks: list[dict[str, Any]], failures: list[BaseException]) -> None:
    from crash import driver

    try:
        for task in tasks:
            driver.perform(whimbrel, task)
    except BaseException as error:
        failures.append(error)


def test_views_can_be_verified_while_others_write(where: dict[str, Any], tmp_path: Path) -> None:
    """Verifying needs the view and the catalog at one position; writers do not stop for it."""
    stop = threading.Event()
    with opened(tmp_path / "home", **where) as whimbrel:
        whimbrel.add([{"id": f"n{number}", "text": f"Number {number}."} for number in range(30)])
        settle(whimbrel)

        def churn() -> None:
            number = 0
            while not stop.wait(0.03):
                number += 1
                with whimbrel.catalog.write() as connection:
                    relabel_all(connection, number)

        writer = threading.Thread(target=churn)
        writer.start()
        try:
            time.sleep(0.3)
            verified(whimbrel)
        finally:
            stop.set()
            writer.join()


def relabel_all(connection: Any, number: int) -> None:
    from sqlalchemy import select

    from whimbrel.catalog import sources
    from whimbrel.catalog import tables as t

    rows = connection.execute(select(t.documents.c.id, t.documents.c.public_id).limit(3)).all()
    sources.relabel(connection, 1, [(row.id, row.public_id.hex(), {"n": number}) for row in rows])


def test_collections_that_come_and_go_disturb_no_other(where: dict[str, Any], tmp_path: Path) -> None:
    with opened(tmp_path / "home", **where) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A text that stays."}], "stays")
        owner = whimbrel.owner
        for number in range(8):
            name = f"passing-{number}"
            whimbrel.start_add([{"id": "one", "text": "A text that passes."}], name)
            time.sleep(random.Random(number).uniform(0, 0.15))
            whimbrel.delete_collection(name)
        whimbrel.add([{"id": "two", "text": "Another that stays."}], "stays")
        assert whimbrel.owner is owner, "the owner had stopped"
        assert owner is not None
        assert owner.running
        settle(whimbrel)
        verified(whimbrel, "stays")
        assert not strays(whimbrel)
