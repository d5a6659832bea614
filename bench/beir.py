"""Collections of `$WHIMBREL_TEST_DATA/ir`, and homes that hold them."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from whimbrel import Whimbrel


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    documents: dict[str, tuple[str, str]]
    """(title, text) by id."""
    questions: dict[str, str]
    answers: dict[str, list[str]]
    """As people wrote them, by question; empty where there is none."""
    right: dict[str, set[str]]
    """Ids of the documents that answer, by question."""


def read(name: str) -> Collection | None:
    """None where the data is not there."""
    folder = Path(os.environ.get("WHIMBREL_TEST_DATA", "")) / "ir" / name
    if not (folder / "corpus.jsonl").exists():
        return None
    right = defaultdict(set)
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        question, document, grade, *_ = line.split("\t")
        if float(grade) > 0:
            right[question].add(document)
    questions = _lines(folder / "queries.jsonl")
    return Collection(
        name,
        {row["_id"]: (row["title"], row["text"]) for row in _lines(folder / "corpus.jsonl")},
        {row["_id"]: row["text"] for row in questions},
        {row["_id"]: row.get("metadata", {}).get("answers", []) for row in questions},
        dict(right),
    )


def ingest(collection: Collection, folder: Path, whimbrel: Whimbrel) -> dict[str, str]:
    """Each document as a Markdown file with its title as heading. Returns the documents' ids by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for number, (key, (title, text)) in enumerate(collection.documents.items()):
        names[f"{number}.md"] = key
        (folder / f"{number}.md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
    whimbrel.ingest([folder])
    return names


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
