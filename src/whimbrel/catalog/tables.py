"""The catalog's tables: the record of everything. One schema for SQLite and Postgres.

Rows are keyed by integers (random hash keys cost SQLite seven eighths of its write rate at a million rows); the public
ids, which are hashes, stand beside them as 16 bytes. Times are seconds since the Unix epoch. A change of this file goes
with a migration in `migrations/versions`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Key = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits on both; SQLite's rowid wants to be called INTEGER."""

SEGMENT_CHARS = 32_768
"""Documents' texts are kept in pieces of this many characters: `substr` into a long text costs its whole length."""

home = Table(
    "home",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""The last integer key given out, by table. Keys are never given out twice."""

spaces = Table(
    "spaces",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("key", Text, nullable=False, unique=True),
    Column("embedder", Text, nullable=False),
    Column("definition", Json, nullable=False),
)

compatible = Table(
    "compatible",
    metadata,
    Column("id", Text, primary_key=True),
    Column("space_id", Key, ForeignKey("spaces.id"), nullable=False),
    Column("collection", Text, nullable=False),
    Column("embedder", Text, nullable=False),
    Column("definition", Json, nullable=False),
    Column("checks", Json, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index("ix_compatible_space_id", "space_id"),
)
"""Embedders that were declared to serve a space which another made, with what was measured."""

chunkings = Table(
    "chunkings",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("spec", Text, nullable=False, unique=True),
)

collections = Table(
    "collections",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, unique=True),
    Column("language", Text, nullable=False),
    Column("epoch", Text, nullable=False),
    Column("head", BigInteger, nullable=False),
    Column("stamp", Text, nullable=False),
    Column("floor", BigInteger, nullable=False),
    Column("store_view_id", Key),
    Column("lexicon_view_id", Key),
    Column("deleting", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
)
"""`head`: position of the last change. `floor`: changes at or below it have been cut from the log."""

documents = Table(
    "documents",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("collection_id", Key, ForeignKey("collections.id"), nullable=False),
    Column("public_id", LargeBinary(16), nullable=False),
    Column("external_id", Text),
    Column("uri", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("cut_title", Text),
    Column("media_type", Text, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("facts", Json, nullable=False),
    Column("pages", Json, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("text_length", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    UniqueConstraint("collection_id", "public_id"),
    Index("ix_documents_collection_id_state", "collection_id", "state"),
    Index("ix_documents_collection_id_root", "collection_id", "root"),
)
"""`facts` is the flattened metadata that filters read. `recipe` names what extracted the text: when it changes, an
unchanged file is read again. `root` is the path that the document was found under. `cut_title` stands over the contexts
of its chunks: the title, unless it was given by hand or is but the file's name; null where it was not kept."""

segments = Table(
    "segments",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("document_id", Key, ForeignKey("documents.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Index("ix_segments_document_id", "document_id"),
)

texts = Table(
    "texts",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(16), nullable=False, unique=True),
)
"""The exact texts given to embedders, by hash: gives each an integer that chunks and vectors meet on."""

chunks = Table(
    "chunks",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("collection_id", Key, ForeignKey("collections.id"), nullable=False),
    Column("document_id", Key, ForeignKey("documents.id"), nullable=False),
    Column("chunking_id", Key, ForeignKey("chunkings.id"), nullable=False),
    Column("public_id", LargeBinary(16), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("segment_id", Key, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("context", Text, nullable=False),
    Column("page", Integer),
    Column("text_id", Key, nullable=False),
    Column("source_id", Text),
    UniqueConstraint("collection_id", "public_id", "chunking_id"),
    Index("ix_chunks_document_id", "document_id"),
    Index("ix_chunks_text_id", "text_id"),
)
"""A span of its document's text. `segment_id` is the segment that holds `start`; the next ones follow in number.
`source_id`: of a chunk that was adopted, the id of its row in the database that it comes from."""

vectors = Table(
    "vectors",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("space_id", Key, ForeignKey("spaces.id"), nullable=False),
    Column("text_id", Key, nullable=False),
    Column("data", LargeBinary),
    Column("reason", Text, nullable=False),
    UniqueConstraint("text_id", "space_id"),
)
_refused = vectors.c.data.is_(None)
Index("ix_vectors_refused", vectors.c.space_id, sqlite_where=_refused, postgresql_where=_refused)
"""The vectors of record, float32 little-endian. `data` is null where the model refused the text, for `reason`."""

commits = Table(
    "commits",
    metadata,
    Column("collection_id", Key, ForeignKey("collections.id"), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("stamp", Text, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("collection_id", "position"),
)
"""One row for each transaction that wrote changes: where it ended, and its random mark."""

changes = Table(
    "changes",
    metadata,
    Column("collection_id", Key, ForeignKey("collections.id"), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("op", Integer, nullable=False),
    Column("chunk_id", Key, nullable=False),
    Column("chunking_id", Key, nullable=False),
    Column("public_id", LargeBinary(16)),
    PrimaryKeyConstraint("collection_id", "position"),
    sqlite_with_rowid=False,
)
"""The change log. `public_id` is set for deletions, whose chunk is gone."""

views = Table(
    "views",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("collection_id", Key, ForeignKey("collections.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("uri", Text, nullable=False),
    Column("name", Text, nullable=False, unique=True),
    Column("space_id", Key, ForeignKey("spaces.id")),
    Column("chunking_id", Key, ForeignKey("chunkings.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("epoch", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("build_after", BigInteger, nullable=False),
    Column("build_upto", BigInteger, nullable=False),
    Column("replaces", Key),
    Column("suspect", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ix_views_collection_id", "collection_id"),
)
"""`build_after`..`build_upto`: the chunk keys that a building view has still to copy from its snapshot. `replaces`: the
view that this one is to take the place of. `suspect`: why a process that read it thinks it damaged."""

adoptions = Table(
    "adoptions",
    metadata,
    Column("view_id", Key, primary_key=True, autoincrement=False),
    Column("collection_id", Key, ForeignKey("collections.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("source", Json, nullable=False),
    Column("fields", Json, nullable=False),
    Column("checks", Json, nullable=False),
    Column("counts", Json, nullable=False),
    Column("drift", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index("ix_adoptions_collection_id", "collection_id"),
)
"""Of each frozen view: the database that it serves from, what its fields were taken for, and how the two compare."""

moves = Table(
    "moves",
    metadata,
    Column("id", Text, primary_key=True),
    Column("collection_id", Key, ForeignKey("collections.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("request", Json, nullable=False),
    Column("source_store", Key),
    Column("source_lexicon", Key),
    Column("target_store", Key),
    Column("target_lexicon", Key),
    Column("recut_after", BigInteger, nullable=False),
    Column("recut_upto", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("plan", Json, nullable=False),
    Column("checks", Json, nullable=False),
    Column("samples", Json, nullable=False),
    Column("history", Json, nullable=False),
    Column("error", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index("ix_moves_collection_id", "collection_id"),
)
"""`target_lexicon` is set where the chunking changes. `recut_after`..`recut_upto`: the document keys that have still to
be cut for it. `position`: where the log stood when every row was verified. `samples`: how far it was, over time."""

rejects = Table(
    "rejects",
    metadata,
    Column("view_id", Key, nullable=False),
    Column("public_id", LargeBinary(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("view_id", "public_id"),
)
"""Chunks that a view's database refuses to hold, and why."""

processes = Table(
    "processes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("info", Json, nullable=False),
    Column("prepared", Json, nullable=False),
    Column("error", Text, nullable=False),
    Column("seen_at", Double, nullable=False),
)
"""The processes that search, while a move is under way. `prepared`: the views that each has open and warm."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("collection_id", Key),
    Column("collection", Text),
    Column("args", Json, nullable=False),
    Column("state", Text, nullable=False),
    Column("cursor", Json, nullable=False),
    Column("progress", Json, nullable=False),
    Column("result", Json, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("error_code", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("cancel_requested", Boolean, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index("ix_jobs_state_not_before", "state", "not_before"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=False),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("description", Json, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index("ix_uploads_job_id", "job_id"),
)
"""Texts that came over the API and wait for their job; removed when it has taken them in."""

conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("collection_id", Key, ForeignKey("collections.id"), nullable=False),
    Column("erased", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index("ix_conversations_collection_id_updated_at", "collection_id", "updated_at"),
)
"""`erased`: how many of its turns were removed because a document that they were made from was purged."""

turns = Table(
    "turns",
    metadata,
    Column("id", Text, primary_key=True),
    Column("conversation_id", Text, ForeignKey("conversations.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("asked", Text, nullable=False),
    Column("question", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("citations", Json, nullable=False),
    Column("model", Text, nullable=False),
    Column("abstained", Boolean, nullable=False),
    Column("degraded", Json, nullable=False),
    Column("usage", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("conversation_id", "ordinal"),
)
"""Questions and their answers. `asked` is what the user wrote, `question` what was searched for."""

turn_documents = Table(
    "turn_documents",
    metadata,
    Column("turn_id", Text, ForeignKey("turns.id"), nullable=False),
    Column("document", LargeBinary(16), nullable=False),
    PrimaryKeyConstraint("turn_id", "document"),
    Index("ix_turn_documents_document", "document"),
)
"""The documents, by public id, whose passages an answer was made from, cited or not: a purge follows them here."""

feedback = Table(
    "feedback",
    metadata,
    Column("turn_id", Text, ForeignKey("turns.id"), primary_key=True),
    Column("rating", Integer, nullable=False),
    Column("comment", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)
"""What a user thinks of an answer: `rating` is 1 or -1."""

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("info", Json, nullable=False),
)
"""The owner's lease. `token` grows by one with each owner: a write under an older token is fenced off."""

breakers = Table(
    "breakers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("failed_at", Double, nullable=False),
    Column("opened", Integer, nullable=False),
    Column("open_until", Double, nullable=False),
    Column("probe_until", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Column("trying", Integer, nullable=False),
    Column("trying_at", Double, nullable=False),
)
"""Models that fail: `failures` in a row; while `open_until` is not 0, nobody asks, but for one probe at a time.
`opened` grows by one each time that a breaker opens. `trying`: calls under way that began after a failure, the last of
them at `trying_at`."""

rates = Table(
    "rates",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ready_at", Double, nullable=False),
)
"""When all that was taken of a rate by now is due."""

spending = Table(
    "spending",
    metadata,
    Column("budget", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("spent", Double, nullable=False),
    Column("held", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    PrimaryKeyConstraint("budget", "holder"),
)
"""What of a budget's period each process has spent, and what it holds to spend, until `expires_at`. The row without a
holder sums up processes that are gone."""

model_calls = Table(
    "model_calls",
    metadata,
    Column("minute", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("api_key", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("instead_of", Text, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("usd", Double, nullable=False),
    Column("unpriced", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("slowest_s", Double, nullable=False),
    PrimaryKeyConstraint("minute", "kind", "model", "api_key", "outcome", "instead_of"),
)
"""The ledger of calls of models, summed by minute. `unpriced`: calls whose price is not known, in `usd` with 0."""

stand_ins = Table(
    "stand_ins",
    metadata,
    Column("space", Text, nullable=False),
    Column("other", Text, nullable=False),
    Column("embedder", Text, nullable=False),
    Column("cosine", Double, nullable=False),
    Column("checked_at", Double, nullable=False),
    PrimaryKeyConstraint("space", "other", "embedder"),
)
"""Embedders whose vectors of probe texts were compared with those of a space: keys of both, and the lowest cosine."""
