"""Which field of a row is what: told by the user, or by the names that LangChain, LlamaIndex, Haystack and plain
clients use. A field is a key of a row's metadata, or a path of keys with dots: `metadata.source`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from whimbrel.errors import BadInput
from whimbrel.stores.foreign.base import Rows

OWN = "(the database's text)"
OWN_ID = "(the row's id)"
NODE = "_node_content"
"""LlamaIndex: the whole node as JSON."""
TEXTS = (
    *("page_content", "text", "document", "content", "chunk_text", "chunk", "passage", "body", "answer"),
    *("doc.page_content", "metadata.text", "payload.text"),
)
URIS = (
    *("source", "url", "uri", "source_url", "source_uri", "link", "href", "permalink", "page_url", "chroma:uri"),
    *("file_path", "filepath", "path", "filename", "file_name", "file", "source_file", "doc_path"),
    *("metadata.source", "metadata.url", "metadata.file_path", "meta.url", "meta.file_path", "meta.source"),
)
TITLES = (
    *("title", "document_title", "doc_title", "page_title", "name", "headline", "subject"),
    *("metadata.title", "meta.title", "meta.name", "file_name", "filename"),
)
DOCUMENTS = (
    *("ref_doc_id", "document_id", "doc_id", "source_id", "parent_id", "file_id", "article_id"),
    *("metadata.doc_id", "metadata.document_id", "meta.source_id"),
)
ORDERS = (
    *("chunk_index", "chunk_number", "chunk_no", "chunk_id", "chunk", "split_id", "split_idx_start", "start_index"),
    *("start_char_idx", "seq", "seq_num", "sequence", "position", "index", "idx", "part", "_split_id"),
)
_WORDS = ("seq", "sequence", "position", "index", "idx", "part")
"""Of these, names that other things have too."""
_OVERLAP = "_split_overlap"
"""Of Haystack's splitters: which rows a row has text in common with, and where."""
PAGES = ("page", "page_number", "page_label", "page_no", "page_num")
OBJECTS = ("metadata", "meta")
"""Of LangChain and Haystack, where a database can hold objects."""
_HAYSTACK = (
    *("content", "blob", "blob_data", "blob_meta", "blob_mime_type", "score", "embedding", "sparse_embedding"),
    *("dataframe", "content_type", "id_hash_keys"),
)
"""What Haystack writes of a document beside its `meta` and its id."""
_BLOBS = ("blob", "blob_data", "id_hash_keys")
"""Of these, those that no other program writes beside a `meta`."""
_SHARE = 0.5
"""Of the rows of a sample that must have a field for it to be taken."""
_PLACES_SHARE = 0.1
"""Of those that must say their place: PDF files and web pages may be in one collection."""
_LONG = 40
"""Characters that a field of texts has in the mean, where no name tells it."""
_NODE_KEYS = ("_node_type", "doc_id", "document_id", "ref_doc_id")
_SOURCE_OF_NODE = "1"
"""LlamaIndex's number of the relationship from a node to its document."""


@dataclass(frozen=True, slots=True)
class Wished:
    """What a user says; empty for what is to be guessed."""

    text: str = ""
    title: str = ""
    uri: str = ""
    document: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """What the fields of a collection are taken for; empty for none."""

    text: str = OWN
    title: str = ""
    uri: str = ""
    document: str = ""
    order: str = ""
    page: str = ""
    guessed: Sequence[str] = ()
    """Which of them nobody has told."""
    pages_from: int = 1
    """The number of a first page: LangChain's loaders count from 0, and citations from 1."""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "guessed": list(self.guessed)}

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Fields:
        return cls(**{**said, "guessed": tuple(said.get("guessed", ()))})

    def said(self) -> list[str]:
        """For people: `text: page_content (guessed)`."""
        named = {
            "text": self.text,
            "title": self.title,
            "uri": self.uri,
            "document": self.document,
            "order": self.order,
            "page": self.page,
        }
        said = [
            f"{what}: {field}{' (guessed)' if what in self.guessed else ''}" for what, field in named.items() if field
        ]
        return [*said[:-1], f"{said[-1]}, from 0: shown from 1"] if self.page and not self.pages_from else said

    def is_place(self, key: str, value: Any) -> bool:
        """Whether this only says where a row stands in its document. `position: "goalkeeper"` does not."""
        if key in (self.order, self.page) or key in _WORDS or (self.page and key in PAGES):
            return number(value) is not None
        return key in ORDERS or key == _OVERLAP


def guess(rows: Rows, wished: Wished, where: str, id_column: str = "id") -> Fields:
    """Of a sample of rows, whose ids are called `id`, or as their column is. Raises `BadInput` where no text is found,
    or a field that was named is in no row."""
    metadata = [dict(unfolded(one)) for one in rows.metadata]
    counts = _present(metadata)
    need = max(1, int(_SHARE * len(metadata)))
    guessed: list[str] = []

    def found(what: str, named: str, names: Sequence[str]) -> str:
        if named:
            if any(_has(one, named) for one in (*metadata, *rows.metadata)):
                return named
            if named in ("id", id_column):
                return OWN_ID
            raise BadInput(
                f"{where}: no row of a sample of {len(metadata):,} has the field {named!r}. Nothing was adopted.",
                f"There are: {', '.join(sorted(counts)[:30]) or 'none'}; and `id`, the row's own.",
            )
        first = next((name for name in names if counts[name] >= need), "")
        if first:
            guessed.append(what)
        return first

    text = _text(rows, metadata, wished.text, where, counts, guessed)
    uri = found("uri", wished.uri, URIS)
    page = _numbered(metadata, PAGES, guessed, "page")
    title = found("title", wished.title, [name for name in TITLES if name not in (uri, text)])
    return Fields(
        text,
        title,
        uri,
        found("document", wished.document, DOCUMENTS),
        _numbered(metadata, ORDERS, guessed, "order"),
        page,
        tuple(guessed),
        pages_from=0 if page and any(number(at(one, page)) == 0 for one in metadata) else 1,
    )


def _text(
    rows: Rows,
    metadata: Sequence[Mapping[str, Any]],
    named: str,
    where: str,
    counts: Counter[str],
    guessed: list[str],
) -> str:
    if named and any(isinstance(at(one, named), str) and at(one, named).strip() for one in metadata):
        return named
    own = sum(bool(text and text.strip()) for text in rows.texts)
    if named and (named not in ("text", "document") or not own):
        raise BadInput(
            f"{where}: no row of a sample of {len(metadata):,} has a text under {named!r}. Nothing was adopted.",
            f"Fields that there are: {', '.join(sorted(counts)[:30]) or 'none'}.",
        )
    candidates = {
        name: sum(isinstance(at(one, name), str) and bool(at(one, name).strip()) for one in metadata) for name in TEXTS
    }
    best = max(candidates, key=lambda name: candidates[name]) if candidates else ""
    if own and own >= candidates.get(best, 0):
        return OWN
    if candidates.get(best):
        guessed.append("text")
        return best
    if long := long_fields(metadata):
        guessed.append("text")
        return long[0]
    raise BadInput(
        f"{where}: no row of a sample of {len(metadata):,} has a text where it is looked for. Nothing was adopted.",
        f"Name its field with `--text-field`; there are: {', '.join(sorted(counts)[:30]) or 'none'}. Vectors alone can "
        "be taken to another database by `whimbrel copy`.",
    )


def long_fields(metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields whose values are long texts, the longest first."""
    lengths: Counter[str] = Counter()
    for one in metadata:
        lengths.update({key: len(value) for key, value in one.items() if isinstance(value, str)})
    return [name for name, total in lengths.most_common() if total >= _LONG * max(len(metadata), 1)]


def _numbered(metadata: Sequence[Mapping[str, Any]], names: Sequence[str], guessed: list[str], what: str) -> str:
    need = max(1, int(_PLACES_SHARE * len(metadata)))
    for name in names:
        if sum(number(at(one, name)) is not None for one in metadata) >= need:
            guessed.append(what)
            return name
    return ""


def number(value: Any) -> float | None:
    """What a place in a document is given as: a number, or the text of one."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        return float(value)
    return None


def at(metadata: Mapping[str, Any], field: str) -> Any:
    """The value under a field; None where there is none. A key that has dots itself comes before a path."""
    if field in metadata:
        return metadata[field]
    value: Any = metadata
    for key in field.split("."):
        if not isinstance(value, Mapping) or key not in value:
            outer, _, inner = field.partition(".")
            return metadata.get(inner) if outer in OBJECTS and outer not in metadata else None  # it was unfolded
        value = value[key]
    return value


def told(field: str, unfolded: Mapping[str, Any], given: Mapping[str, Any], source_id: str) -> Any:
    """What a row says under a field, also where that is left out when the row is unfolded; None for no field."""
    if field in ("", OWN_ID):
        return source_id if field else None
    value = at(unfolded, field)
    return at(given, field) if value is None else value


def unfolded(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metadata without the objects that programs put around it: LlamaIndex a node as JSON, with its text, its
    metadata and its document; LangChain and Haystack an object `metadata` or `meta`, whose keys become the row's unless
    the row has one of them already. Of what Haystack writes beside it, what says something stays, but for the id of
    the row: it would make each row a document of its own."""
    found = dict(_without_node(metadata))
    if isinstance(found.get("meta"), Mapping) and any(key in found for key in _BLOBS):
        empty = {key for key in _HAYSTACK if found.get(key) is None}
        found = {key: value for key, value in found.items() if key != "id" and key not in empty}
    for name in OBJECTS:
        inner = found.get(name)
        if isinstance(inner, Mapping) and not set(inner) & (set(found) - {name}):
            found = {**{key: value for key, value in found.items() if key != name}, **inner}
    return found


def _without_node(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    node = metadata.get(NODE)
    if isinstance(node, str):
        try:
            node = json.loads(node)
        except ValueError:
            return metadata
    if not isinstance(node, Mapping):
        return metadata
    rest = {key: value for key, value in metadata.items() if key != NODE and key != "_node_type"}
    inner = node.get("metadata") or node.get("extra_info") or {}
    found: dict[str, Any] = {**(inner if isinstance(inner, Mapping) else {}), **rest}
    if isinstance(node.get("text"), str) and node["text"] and not isinstance(found.get("text"), str):
        found["text"] = node["text"]
    relationships = node.get("relationships")
    source = relationships.get(_SOURCE_OF_NODE) if isinstance(relationships, Mapping) else None
    if isinstance(source, Mapping) and source.get("node_id"):
        found.setdefault("ref_doc_id", source["node_id"])
    if isinstance(node.get("start_char_idx"), int):
        found.setdefault("start_char_idx", node["start_char_idx"])
    return found


def _has(metadata: Mapping[str, Any], field: str) -> bool:
    return at(metadata, field) is not None


def _present(metadata: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many rows have each field, those inside objects by their paths; a value of nothing but blanks is none."""
    counts: Counter[str] = Counter()
    for one in metadata:
        names = {key for key, value in one.items() if _says(value)}
        for key, value in one.items():
            if isinstance(value, Mapping):
                names |= {f"{key}.{inner}" for inner, held in value.items() if _says(held)}
        counts.update(names)
    return counts


def _says(value: Any) -> bool:
    return value is not None and (not isinstance(value, str) or bool(value.strip())) and not isinstance(value, Mapping)
