"""A writer that never ceases, and what it has written down: by it, what a collection must hold is known after any kill.

Each task is written down before it is begun and after it is done. One that was begun and not done is done again, with
the same key, by whoever writes next.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.model import WORDS
from whimbrel.app import Whimbrel
from whimbrel.errors import DocumentNotFound

FEW, MANY = 100, 200
"""Between so many texts the collection is held."""


@dataclass(slots=True)
class Written:
    """What the collection must hold."""

    texts: dict[str, str] = field(default_factory=dict)
    """By URI."""
    gone: dict[str, float] = field(default_factory=dict)
    """URIs of deleted texts, and when they certainly were; an id is never given twice."""
    tasks: int = 0
    unfinished: dict[str, Any] | None = None

    @classmethod
    def read(cls, diary: Path) -> Written:
        written = cls()
        for line in _lines(diary):
            if "task" in line:
                written.unfinished = line["task"]
            else:
                written.done(line["at"])
        return written

    def done(self, at: float) -> None:
        task, self.unfinished = self.unfinished, None
        assert task is not None
        self.tasks = task["number"]
        for one in task.get("texts", ()):
            self.texts[f"text:{one['id']}"] = one["text"]
        for uri in task.get("documents", ()):
            self.texts.pop(uri, None)
            self.gone[uri] = at

    def next(self) -> dict[str, Any]:
        """What is to be done: the unfinished task, or the next one, which its number decides."""
        if self.unfinished is not None:
            return self.unfinished
        number = self.tasks + 1
        dice = random.Random(number)
        here = sorted(self.texts)
        chance = dice.random() if len(here) < MANY else 1.0
        if len(here) < FEW or chance < 0.4:
            ids = [f"n{number}-{which}" for which in range(dice.randint(1, 3))]
        elif chance < 0.65:
            ids = [uri.removeprefix("text:") for uri in dice.sample(here, 2)]
        else:
            do = "purge" if dice.random() < 0.1 else "delete"
            return {"number": number, "do": do, "documents": dice.sample(here, dice.randint(1, 3))}
        return {"number": number, "do": "add", "texts": [_text(one, number, dice) for one in ids]}


def _text(id_: str, number: int, dice: random.Random) -> dict[str, Any]:
    words = " ".join(dice.choices(WORDS, k=dice.randint(8, 20)))
    return {"id": id_, "text": f"{words.capitalize()}, {id_} at {number}.", "metadata": {"number": number}}


def fill(whimbrel: Whimbrel, diary: Path) -> None:
    """The first texts, all at once."""
    dice = random.Random(0)
    texts = [_text(f"n0-{which}", 0, dice) for which in range(FEW)]
    written = Written(unfinished={"number": 0, "do": "add", "texts": texts})
    _note(diary, task=written.unfinished)
    _write_next(whimbrel, diary, written)


def keep_writing(whimbrel: Whimbrel, diary: Path, stop: Path, pause: float) -> int:
    """Until the file `stop` is there, and nothing is left unfinished. Returns how many tasks there were."""
    written = Written.read(diary)
    while written.unfinished is not None or not stop.exists():
        _write_next(whimbrel, diary, written)
        time.sleep(pause)
    return written.tasks


def _write_next(whimbrel: Whimbrel, diary: Path, written: Written) -> None:
    task = written.next()
    if written.unfinished is None:
        _note(diary, task=task)
        written.unfinished = task
    match task["do"]:
        case "add":
            whimbrel.add(task["texts"], idempotency_key=f"task-{task['number']}", wait="job")
        case "delete" | "purge":
            with suppress(DocumentNotFound):  # it was done before the kill
                (whimbrel.delete if task["do"] == "delete" else whimbrel.purge)(task["documents"])
    at = time.time()
    _note(diary, done=task["number"], at=at)
    written.done(at)


def _note(diary: Path, **note: Any) -> None:
    with diary.open("a") as out:
        out.write(f"\n{json.dumps(note)}\n")  # a kill may have cut the last line short


def _lines(diary: Path) -> Iterator[Mapping[str, Any]]:
    for line in diary.read_text().splitlines() if diary.exists() else []:
        if line.endswith("}"):
            with suppress(ValueError):
                yield json.loads(line)
