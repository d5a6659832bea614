"""LlamaIndex's own store, as `StorageContext.persist` writes it: a folder of JSON files. Read only.

    NAMESPACE__vector_store.json   embedding_dict, text_id_to_ref_doc_id, metadata_dict: one collection each
    vector_store.json              the same, before there were namespaces: the collection `vector_store`
    docstore.json                  docstore/data: the nodes, with their texts

A row is a node that has a vector. Its metadata is the user's own, and what LlamaIndex's stores for databases write
beside it (`_node_content`, `_node_type`, `ref_doc_id` and its other names): what is copied from here serves LlamaIndex
there. Vectors are compared by cosine, as `SimpleVectorStore` does.

In memory is where each node lies in the files, some 200 bytes a row; nodes and vectors are read from there.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from whimbrel.errors import NotFound, StoreUnsupported, ViewDamaged
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.base import Chosen, Database, Fetched, Id, IdKind, Rows, Sink, Source, Table
from whimbrel.stores.foreign.json_members import Member, Span, members, read_value
from whimbrel.stores.foreign.layout import not_chosen
from whimbrel.stores.metrics import Metric

_SUFFIX = "vector_store.json"
_NAMESPACED = f"__{_SUFFIX}"
_NODES = "docstore.json"
_LISTED = 5_000


class LlamaIndexFolder(Database):
    describes_quickly = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shown = f"the LlamaIndex folder {folder}"

    async def collections(self) -> Sequence[str]:
        return await asyncio.to_thread(self._collections)

    def source(self, name: str, chosen: Chosen) -> Source:
        not_chosen(chosen, self.shown, "id", "vector", "metric")
        return LlamaIndexSource(self._folder, name)

    def sink(self, name: str) -> Sink:
        raise StoreUnsupported(
            "LlamaIndex's JSON store is only read, not written. Nothing was changed.",
            "Name a database for the target: LlamaIndex has a store for each of them.",
        )

    def _collections(self) -> list[str]:
        if not self._folder.is_dir():
            raise NotFound(f"There is no folder {self._folder}.", "Check the path after `llamaindex:`.")
        return [name for name in _names(self._folder) if _has_vectors(_file(self._folder, name))]


@dataclass(slots=True)
class _Layout:
    """Where everything of a collection lies."""

    version: str
    dimensions: int = 0
    ids: list[str] = field(default_factory=list)
    """One for each vector in the file, in its order."""
    vectors: dict[str, Span] = field(default_factory=dict)
    said: dict[str, Span] = field(default_factory=dict)
    """What the vector store says of a row."""
    documents: dict[str, str] = field(default_factory=dict)
    """The id of the document that a row was cut from."""
    nodes: dict[str, Span] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class LlamaIndexSource(Source):
    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._file = _file(folder, name)
        self._nodes = folder / _NODES
        self._layout: _Layout | None = None
        self._turn = asyncio.Lock()

    async def describe(self) -> Table:
        layout = await self._known()
        return Table(
            self._name,
            layout.dimensions,
            Metric.COSINE,
            IdKind.STR,
            notes=layout.notes,
            identity=str(self._file.resolve()),
            version=layout.version,
        )

    async def version(self) -> str | None:
        return await asyncio.to_thread(self._version)

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        layout = await self._known()
        for start in range(0, len(layout.ids), _LISTED):
            yield list(layout.ids[start : start + _LISTED])

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        layout = await self._known()
        return await asyncio.to_thread(self._fetch, layout, [str(id_) for id_ in ids if id_ in layout.vectors])

    async def close(self) -> None:
        self._layout = None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _version(self) -> str:
        found = [(path.name, path.stat()) for path in (self._file, self._nodes) if path.is_file()]
        return str([(name, stat.st_size, stat.st_mtime_ns) for name, stat in found])

    async def _known(self) -> _Layout:
        """Looks anew where the files were written anew."""
        async with self._turn:
            if self._layout is None or self._layout.version != await self.version():
                self._layout = await asyncio.to_thread(self._look)
            return self._layout

    def _look(self) -> _Layout:
        if not self._file.is_file():
            raise absent("collection", self._name, f"the LlamaIndex folder {self._folder}", _names(self._folder))
        layout = _Layout(self._version())
        lengths: Counter[int] = Counter()
        for member in members(self._file):
            _note(layout, member, lengths)
        layout.dimensions = lengths.most_common(1)[0][0] if lengths else 0
        left = 0
        if self._nodes.is_file():
            for member in members(self._nodes):
                if member.section.endswith("/data"):
                    layout.nodes[member.name] = member.span
            left = len(layout.nodes.keys() - layout.vectors.keys())
        without = len(layout.vectors.keys() - layout.nodes.keys())
        if without:
            layout.notes.append(f"{without:,} vectors have no node in {_NODES}: these rows have no text")
        if left:
            layout.notes.append(f"{left:,} nodes of {_NODES} have no vector here and are left out")
        if layout.version != self._version():
            raise self._changed()
        return layout

    def _fetch(self, layout: _Layout, ids: Sequence[str]) -> Fetched:
        vectors = np.zeros((len(ids), layout.dimensions), np.float32)
        texts: list[str | None] = []
        metadata: list[Mapping[str, Any]] = []
        unfit: dict[Id, str] = {}
        with ExitStack() as stack:
            file = stack.enter_context(self._file.open("rb"))
            nodes = stack.enter_context(self._nodes.open("rb")) if layout.nodes else file
            try:
                for row, id_ in enumerate(ids):
                    why = _fill(vectors[row], read_value(file, layout.vectors[id_]))
                    if why:
                        unfit[id_] = why
                    text, said = _row(layout, id_, file, nodes)
                    texts.append(text)
                    metadata.append(said)
            except ValueError as error:
                raise self._changed() from error
        if layout.version != self._version():
            raise self._changed()
        rows = Rows(list(ids), vectors, texts, metadata)
        if not unfit:
            return Fetched(rows)
        return Fetched(rows.taken([row for row, id_ in enumerate(ids) if id_ not in unfit]), unfit)

    def _changed(self) -> ViewDamaged:
        return ViewDamaged(f"{self._folder} was written to while it was read.", "Run it again: it looks anew.")


def _names(folder: Path) -> list[str]:
    spaced = [path.name.removesuffix(_NAMESPACED) for path in folder.glob(f"*{_NAMESPACED}")]
    return sorted([*spaced, *(["vector_store"] if (folder / _SUFFIX).is_file() else [])])


def _file(folder: Path, name: str) -> Path:
    spaced = folder / f"{name}{_NAMESPACED}"
    return folder / _SUFFIX if name == "vector_store" and not spaced.is_file() else spaced


def _has_vectors(file: Path) -> bool:
    return any(member.section == "embedding_dict" for member in members(file))


def _note(layout: _Layout, member: Member, lengths: Counter[int]) -> None:
    match member.section:
        case "embedding_dict":
            layout.ids.append(member.name)
            layout.vectors[member.name] = member.span
            if isinstance(member.value, list) and member.value:
                lengths[len(member.value)] += 1
        case "text_id_to_ref_doc_id" | "text_id_to_doc_id" if isinstance(member.value, str):
            layout.documents[member.name] = member.value
        case "metadata_dict":
            layout.said[member.name] = member.span


def _fill(vector: Any, value: Any) -> str:
    """Why it is none of these dimensions; empty where it is."""
    if not isinstance(value, list):
        return "it has no vector"
    if len(value) != len(vector):
        return f"its vector has {len(value)} dimensions"
    if not all(type(one) in (float, int) for one in value):
        return "its vector is no list of numbers"
    vector[:] = value
    return ""


def _row(layout: _Layout, id_: str, file: IO[bytes], nodes: IO[bytes]) -> tuple[str | None, dict[str, Any]]:
    """(text, metadata)"""
    said = read_value(file, layout.said[id_]) if id_ in layout.said else {}
    said = said if isinstance(said, dict) else {}
    node, kind = None, None
    if id_ in layout.nodes:
        node, kind = _node(read_value(nodes, layout.nodes[id_]))
    if node is None and isinstance(said.get("_node_content"), str):
        node = _object(said["_node_content"])
    if node is None:
        return None, said
    own = node.get("metadata", node.get("extra_info"))
    about = dict(own) if isinstance(own, dict) else {}
    text = _text(node)
    content = {**node, "embedding": None, **({"text": ""} if "text" in node else {})}
    if isinstance(content.get("text_resource"), dict):
        content["text_resource"] = {**content["text_resource"], "text": ""}
    beside: dict[str, Any] = {"_node_content": json.dumps(content)}
    if kind := said.get("_node_type") or node.get("class_name") or kind:
        beside["_node_type"] = kind
    if document := layout.documents.get(id_) or _document(node):
        beside |= dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), document)
    return text, {**said, **about, **beside}


def _node(written: Any) -> tuple[dict[str, Any] | None, str | None]:
    """(the node, the name of its class), in the forms of several years."""
    if not isinstance(written, dict):
        return None, None
    inner = written.get("__data__", written)
    inner = _object(inner) if isinstance(inner, str) else inner
    kinds = {"1": "TextNode", "2": "ImageNode", "3": "IndexNode", "4": "Document"}
    return (inner if isinstance(inner, dict) else None), kinds.get(str(written.get("__type__")))


def _object(written: str) -> dict[str, Any] | None:
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(node: Mapping[str, Any]) -> str | None:
    resource = node.get("text_resource")
    for found in (node.get("text"), resource.get("text") if isinstance(resource, dict) else None):
        if isinstance(found, str):
            return found
    return None


def _document(node: Mapping[str, Any]) -> str | None:
    """The id of what the node was cut from: its relationship 1, an object, or before 0.6 the id alone."""
    related = node.get("relationships")
    source = related.get("1") if isinstance(related, dict) else None
    found = source.get("node_id") if isinstance(source, dict) else source
    return found if isinstance(found, str) else None


def opener(rest: str, base: Path) -> LlamaIndexFolder:
    return LlamaIndexFolder(base / Path(rest).expanduser())
