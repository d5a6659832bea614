"""What a folder holds, and what its collection must hold: a model of both, changed by the same random operations."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from whimbrel.app import Whimbrel
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import read_text
from whimbrel.domain import DocumentState

WORDS = [
    *("tide", "marsh", "curlew", "heather", "storm", "compass", "feather", "estuary", "moult", "beacon", "lichen"),
    *("harbour", "plover", "drift", "ember", "quarry", "sorrel", "tundra", "vessel", "willow", "anchor", "basalt"),
]


@dataclass(frozen=True, slots=True)
class Document:
    """A document as the collection must have it."""

    text: str
    metadata: Mapping[str, Any]


@dataclass(slots=True)
class Model:
    """A real folder of small Markdown files, and texts that came over the API; and what must come of them."""

    root: Path
    dice: random.Random
    documents: dict[str, Document] = field(default_factory=dict)
    """By URI."""
    labels: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """The metadata that a document has or had; a deleted one that comes back gets its own again."""
    number: int = 0

    # --- the folder --------------------------------------------------------------------------------------------------

    def grow(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            folder = self.root / self.dice.choice(["", "a", "a/b", "c"])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"n{self.number:04d}.md").write_text(self.page())

    def page(self) -> str:
        title = " ".join(self.dice.sample(WORDS, 2)).title()
        paragraphs = [self.paragraph() for _ in range(self.dice.randint(1, 5))]
        if self.dice.random() < 0.2:  # repeated paragraphs are real
            paragraphs += paragraphs[:2]
        return f"# {title}\n\n" + "\n\n".join(paragraphs) + "\n"

    def paragraph(self) -> str:
        self.number += 1
        return " ".join([*self.dice.choices(WORDS, k=self.dice.randint(6, 14)), f"p{self.number}."]).capitalize()

    def files(self) -> list[Path]:
        return sorted(self.root.rglob("*.md"))

    def stir(self) -> None:
        """Add, change, delete, move and touch some files."""
        self.grow(self.dice.randint(0, 3))
        for path in self.dice.sample(self.files(), min(6, len(self.files()))):
            chance = self.dice.random()
            text = path.read_text()
            if chance < 0.25:
                path.write_text(f"{text}\n{self.paragraph()}\n")
            elif chance < 0.4:
                parts = text.split("\n\n")
                del parts[self.dice.randrange(1, len(parts))]
                path.write_text("\n\n".join([*parts, self.paragraph()]) + "\n")
            elif chance < 0.5:
                parts = text.strip().split("\n\n")
                path.write_text("\n\n".join([parts[0], *reversed(parts[1:])]) + "\n")
            elif chance < 0.6:
                path.write_text(self.page())
            elif chance < 0.7:
                path.unlink()
            elif chance < 0.8:
                path.rename(path.with_name(f"moved-{self.number}-{path.name}"))
            else:
                path.touch()

    # --- operations, as tasks for the driver -------------------------------------------------------------------------

    def task(self) -> dict[str, Any]:
        """A random operation on the collection."""
        self.number += 1
        key = f"op-{self.number}"
        here = [uri for uri in self.documents if not uri.startswith("text:")]
        kind = self.dice.choices(
            ["ingest", "label", "one", "delete", "purge", "add", "rebuild", "maintain", "backup"],
            [10, 2, 2, 3, 2, 3, 2, 1, 1],
        )[0]
        match kind:
            case "ingest" | "label":
                self.stir()
                metadata = {"year": self.dice.randint(1990, 2030), "tag": key} if kind == "label" else None
                return {"task": "ingest", "paths": [str(self.root)], "metadata": metadata, "key": key}
            case "one" if here:
                uri = self.dice.choice(here)
                path = next((path for path in self.files() if path.as_uri() == uri), None)
                if path is not None:
                    return {"task": "ingest", "paths": [str(path)], "metadata": {"one": self.number}, "key": key}
            case "delete" | "purge" if len(here) > 4:
                chosen = self.dice.sample(sorted(self.documents), self.dice.randint(1, 3))
                if kind == "purge":
                    for path in self.files():
                        if path.as_uri() in chosen:
                            path.unlink()
                return {"task": kind, "documents": chosen}
            case "add":
                texts = [
                    {"id": f"note-{self.dice.randint(1, 12)}", "text": self.page(), "metadata": {"n": self.number}}
                    for _ in range(self.dice.randint(1, 3))
                ]
                texts = list({text["id"]: text for text in texts}.values())
                return {"task": "add", "texts": texts, "key": key}
            case "rebuild":
                return {"task": "rebuild", "kind": self.dice.choice(["store", "lexicon"])}
            case "maintain" | "backup":
                return {"task": kind, "to": str(self.root.parent / "saved.whimbrel")}
        return {"task": "ingest", "paths": [str(self.root)], "key": key}

    def apply(self, task: Mapping[str, Any]) -> None:
        """What the operation does, once it is done."""
        match task["task"]:
            case "ingest":
                for path in task["paths"]:
                    self._ingest(Path(path), task.get("metadata"))
            case "add":
                for text in task["texts"]:
                    uri = f"text:{text['id']}"
                    self.labels[uri] = text["metadata"]
                    self.documents[uri] = Document(text["text"], text["metadata"])
            case "delete" | "purge":
                for uri in task["documents"]:
                    self.documents.pop(uri, None)
                    if task["task"] == "purge":
                        self.labels.pop(uri, None)

    def _ingest(self, path: Path, metadata: Mapping[str, Any] | None) -> None:
        files = {file.as_uri(): file for file in ([path] if path.is_file() else self.files())}
        if path.is_dir():
            for uri in [uri for uri in self.documents if uri.startswith("file:") and uri not in files]:
                del self.documents[uri]
        for uri, file in files.items():
            kept = metadata if metadata is not None else self.labels.get(uri, {})
            self.labels[uri] = kept
            self.documents[uri] = Document(file.read_text(), kept)


# --- what is there ---------------------------------------------------------------------------------------------------


def contents(whimbrel: Whimbrel, collection: str = "default") -> dict[str, Any]:
    """The logical content of a collection: no keys, no times, no history."""
    found: dict[str, Any] = {}
    with whimbrel.catalog.read() as connection:
        key = connection.execute(select(t.collections.c.id).where(t.collections.c.name == collection)).scalar_one()
        documents = t.documents.c
        for row in connection.execute(
            select(t.documents).where(documents.collection_id == key, documents.state != DocumentState.GONE)
        ):
            chunks = connection.execute(
                select(t.chunks).where(t.chunks.c.document_id == row.id).order_by(t.chunks.c.ordinal)
            )
            found[row.uri] = {
                "id": row.public_id.hex(),
                "state": row.state,
                "title": row.title,
                "metadata": row.metadata,
                "facts": row.facts,
                "hash": row.content_hash,
                "text": read_text(connection, row.id),
                "length": row.text_length,
                "chunks": [
                    (chunk.public_id.hex(), chunk.ordinal, chunk.start, chunk.end, chunk.tokens, chunk.context)
                    for chunk in chunks
                ],
            }
    return found


def strays(whimbrel: Whimbrel) -> list[str]:
    """What the catalog must not have: rows that hang on nothing, and anything twice."""
    queries = {
        "segments without a document": select(t.segments.c.id).where(
            t.segments.c.document_id.not_in(select(t.documents.c.id))
        ),
        "chunks without a document": select(t.chunks.c.id).where(
            t.chunks.c.document_id.not_in(select(t.documents.c.id))
        ),
        "chunks of documents that are gone": select(t.chunks.c.id).where(
            t.chunks.c.document_id.in_(select(t.documents.c.id).where(t.documents.c.state == DocumentState.GONE))
        ),
        "chunks without a segment": select(t.chunks.c.id).where(t.chunks.c.segment_id.not_in(select(t.segments.c.id))),
        "chunks without a text": select(t.chunks.c.id).where(t.chunks.c.text_id.not_in(select(t.texts.c.id))),
        "vectors without a text": select(t.vectors.c.id).where(t.vectors.c.text_id.not_in(select(t.texts.c.id))),
        "chunks without a vector": select(t.chunks.c.id).where(t.chunks.c.text_id.not_in(select(t.vectors.c.text_id))),
        "uploads of jobs that are done": select(t.uploads.c.id).where(
            t.uploads.c.job_id.in_(select(t.jobs.c.id).where(t.jobs.c.state == "done"))
        ),
        "retired views": select(t.views.c.id).where(t.views.c.state == "retired"),
    }
    with whimbrel.catalog.read() as connection:
        counts = {what: len(connection.execute(query).all()) for what, query in queries.items()}
    said = [f"{count} {what}" for what, count in counts.items() if count]
    names = {row.view.name for row in whimbrel.views()}
    for folder in (whimbrel.home.views, whimbrel.home.lexicons):
        said += [f"data of no view: {path.name}" for path in folder.iterdir() if path.name.split(".")[0] not in names]
    return said
