"""Reading a retrieval collection in BEIR's layout: `corpus.jsonl`, `queries.jsonl` and `qrels.tsv`.

What is wrong in it is refused with its file and line: a judgement that is left out in silence moves every figure.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whimbrel.errors import BadInput, PathNotFound

QRELS = ("qrels.tsv", "qrels/test.tsv")
"""Where judgements lie; the first of them that is there is read."""

SEED = 0


@dataclass(frozen=True, slots=True)
class JudgedDocument:
    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Documents, and queries with what was judged for them."""

    name: str
    documents: Sequence[JudgedDocument]
    """Those with a title or a text."""
    empty: Sequence[str]
    """The ids of those without. They can be found by nothing, and count as not found."""
    queries: Mapping[str, str]
    """Those with a relevant document, in the order of their file."""
    grades: Mapping[str, Mapping[str, int]]
    """Of each of these queries: its judged documents with their grades; 0 is not relevant."""


def read_judged(folder: str | Path, *, queries: int | None = None, min_grade: int = 1) -> Judged:
    """Read a collection.

    A query is left out if no document of `min_grade` or more is judged for it. `queries`: only so many, drawn always
    alike. Raises `PathNotFound`, and `BadInput` with the file and the line.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise PathNotFound(f"There is no folder {place}.", _LAYOUT)
    if queries is not None and queries < 1:
        raise BadInput(f"{queries} queries cannot be evaluated.", "Give a number from 1 on, or leave it out for all.")
    if min_grade < 1:
        raise BadInput(f"{min_grade} is no lowest relevant grade.", "Give a number from 1 on: 0 says not relevant.")
    documents, empty = _documents(place / "corpus.jsonl")
    texts = _queries(place / "queries.jsonl")
    grades = _grades(_qrels(place), texts, {*(document.id for document in documents), *empty})
    judged = [key for key in texts if any(grade >= min_grade for grade in grades.get(key, {}).values())]
    if not judged:
        raise BadInput(
            f"No query of {place.name!r} has a document of grade {min_grade} or more.",
            "Without a relevant document there is nothing to be found. Are these the judgements of these queries?",
        )
    blank = next((key for key in judged if not texts[key].strip()), None)
    if blank is not None:
        raise BadInput(f"queries.jsonl: the judged query {blank!r} has no text.", "Give it one, or leave it out.")
    if queries is not None:
        chosen = set(random.Random(SEED).sample(judged, len(judged))[:queries])  # fewer are a part of more
        judged = [key for key in judged if key in chosen]
    return Judged(
        place.resolve().name,
        documents,
        empty,
        {key: texts[key] for key in judged},
        {key: grades[key] for key in judged},
    )


_LAYOUT = "BEIR's layout is wanted: corpus.jsonl, queries.jsonl, and qrels.tsv or qrels/test.tsv."


def _documents(path: Path) -> tuple[list[JudgedDocument], list[str]]:
    documents: list[JudgedDocument] = []
    empty: list[str] = []
    for line, key, entry in _entries(path):
        title, text = _string(path, line, entry, "title", default=""), _string(path, line, entry, "text")
        if title.strip() or text.strip():
            documents.append(JudgedDocument(key, title, text))
        else:
            empty.append(key)
    if not documents:
        raise BadInput(f"{path.name} holds no document with a text.", _LAYOUT)
    return documents, empty


def _queries(path: Path) -> dict[str, str]:
    return {key: _string(path, line, entry, "text") for line, key, entry in _entries(path)}


def _qrels(place: Path) -> Path:
    for name in QRELS:
        if (place / name).is_file():
            return place / name
    raise PathNotFound(f"There are no judgements in {place}: neither {QRELS[0]} nor {QRELS[1]}.", _LAYOUT)


def _grades(path: Path, queries: Mapping[str, str], documents: set[str]) -> dict[str, dict[str, int]]:
    """From lines of query, document and grade, with a tab between; a first line without a number is a header."""
    grades: dict[str, dict[str, int]] = {}
    for line, text in _lines(path):
        fields = [field.strip() for field in text.split("\t")]
        if len(fields) != 3:
            raise _wrong(path, line, f"{len(fields)} columns; wanted are query, document and grade, with tabs between")
        query, document, said = fields
        grade = _whole(said)
        if grade is None and line == 1:
            continue
        if grade is None:
            raise _wrong(path, line, "the grade is not a whole number")
        if query not in queries:
            raise _wrong(path, line, f"queries.jsonl has no query {query[:100]!r}")
        if document not in documents:
            raise _wrong(path, line, f"corpus.jsonl has no document {document[:100]!r}")
        of_query = grades.setdefault(query, {})
        if of_query.get(document, grade) != grade:
            raise _wrong(path, line, "another line gives the same document another grade for this query")
        of_query[document] = max(grade, 0)  # some give -1 to what is worse than not relevant
    return grades


def _whole(said: str) -> int | None:
    return int(said) if said.removeprefix("-").isdecimal() else None


# --- lines -----------------------------------------------------------------------------------------------------------


def _entries(path: Path) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """(line, id, object) of each line of JSON. Raises `BadInput` also where an id comes twice."""
    seen: set[str] = set()
    for line, text in _lines(path):
        try:
            entry = json.loads(text)
        except ValueError as error:
            raise _wrong(path, line, "no JSON object") from error
        if not isinstance(entry, dict):
            raise _wrong(path, line, "no JSON object")
        key = entry.get("_id")
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str) or not key:
            raise _wrong(path, line, "`_id` is missing, or no string")
        if key in seen:
            raise _wrong(path, line, f"the id {key[:100]!r} was given before")
        seen.add(key)
        yield line, key, entry


def _string(path: Path, line: int, entry: Mapping[str, Any], name: str, *, default: str | None = None) -> str:
    value = entry.get(name, default)
    if not isinstance(value, str):
        raise _wrong(path, line, f"`{name}` is missing, or no string")
    return value


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _wrong(path, number, "not in UTF-8") from error
                if text.strip():
                    yield number, text.rstrip("\r\n")
    except FileNotFoundError:
        raise PathNotFound(f"There is no {path.name} in {path.parent}.", _LAYOUT) from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error


def _wrong(path: Path, line: int, what: str) -> BadInput:
    return BadInput(f"{path.name}, line {line}: {what}.", "Nothing was evaluated. Mend the line, and try again.")
