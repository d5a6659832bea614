"""What an ingest would do: a walk over the files and a look at the catalog. Writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from whimbrel.catalog import sources
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import batched
from whimbrel.catalog.sources import Known
from whimbrel.domain import DocumentState, document_id
from whimbrel.ingest.discover import Found, discover
from whimbrel.ingest.pipeline import EXTRACTOR, Guard, Walked, folder_uri, shown

LISTED = 200
"""URIs that are named, of each kind."""
_BATCH = 512


@dataclass(slots=True)
class Preview:
    """Counts as an ingest would report them, and the first URIs of each kind."""

    documents: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: int = 0
    """Files that cannot be read; those that cannot be understood show only when they are extracted."""
    skipped: int = 0
    guarded: bool = False
    """So many documents have vanished that the ingest would stop before it removed them."""
    uris: dict[str, list[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"dry_run": True, **asdict(self)}

    def count(self, kind: str, uri: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        named = self.uris.setdefault(kind, [])
        if len(named) < LISTED:
            named.append(uri)


@dataclass(frozen=True, slots=True)
class Intent:
    """An ingest that has not been started."""

    paths: Sequence[str]
    """Absolute."""
    external_id: str | None = None
    metadata: Mapping[str, Any] | None = None


def preview(connection: Connection, collection_id: int | None, guard: Guard, intent: Intent) -> Preview:
    """`collection_id` is None where the collection would be made."""
    found = Preview()
    walked = Walked(intent.paths)
    walk = discover([Path(path) for path in intent.paths])
    while batch := list(islice(walk, _BATCH)):
        ids = [document_id(external_id=intent.external_id, uri=file.uri) for file in batch]
        known = sources.known(connection, collection_id, ids) if collection_id is not None else {}
        for public_id, file in zip(ids, batch, strict=True):
            if file.skipped:
                found.count("skipped", file.uri)
                continue
            found.documents += 1
            walked.seen.add(public_id)
            if file.error is not None:
                walked.note_unreadable(file)
                found.count("failed", file.uri)
            else:
                found.count(_fate(file, known.get(public_id), intent.metadata), file.uri)
    if collection_id is not None:
        _count_gone(connection, collection_id, walked, guard, found)
    return found


def _fate(file: Found, known: Known | None, metadata: Mapping[str, Any] | None) -> str:
    if known is None or known.state == DocumentState.GONE:
        return "added"
    if metadata is not None and dict(known.metadata) != dict(metadata):
        return "changed"
    if known.unchanged(file.uri, file.size, file.mtime_ns, EXTRACTOR):
        return "unchanged"
    same = known.state == DocumentState.EXTRACTED and (known.recipe, known.uri) == (EXTRACTOR, file.uri)
    return "unchanged" if same and _hash(file.path) == known.content_hash else "changed"


def _hash(path: Path) -> str:
    """As extraction hashes the content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # it went between the walk and now: the ingest will say so
        return ""


def _count_gone(connection: Connection, collection_id: int, walked: Walked, guard: Guard, found: Preview) -> None:
    gone: dict[int, None] = {}
    for root in walked.roots:
        if walked.is_broken(root):
            continue
        there = sources.under(connection, collection_id, shown(root), folder_uri(root))
        missing = [held.key for held in there if walked.is_gone(held, shown(root))]
        if len(missing) >= guard.least and len(missing) > guard.share * len(there):
            found.guarded = True
        gone.update(dict.fromkeys(missing))
    for keys in batched(list(gone), _BATCH):
        query = select(t.documents.c.uri).where(t.documents.c.id.in_(keys)).order_by(t.documents.c.uri)
        for uri in connection.execute(query).scalars():
            found.count("removed", uri)
