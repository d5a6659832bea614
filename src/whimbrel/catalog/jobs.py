"""Jobs: durable work, as rows with a cursor."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import AnyRow, now, take_keys
from whimbrel.domain import Job, JobState
from whimbrel.errors import Conflict, JobNotFound

MAX_ATTEMPTS = 5
UPLOAD_BYTES = 32 << 20
"""How much of a job's contents is in memory at once, unless a single one is larger."""
ACTIVE = (JobState.QUEUED, JobState.RUNNING, JobState.WAITING)
READING = ("ingest", "add", "import")
"""Kinds that bring documents in."""
PERSISTENT = ("purge", "drop_view", "delete_collection")
"""Kinds that are tried until they succeed, and cannot be cancelled: what they are about is out of sight already, and
cannot be asked for again."""


def enqueue(
    connection: Connection,
    kind: str,
    *,
    collection_id: int | None,
    collection: str | None,
    args: Mapping[str, Any],
    host: str = "",
    idempotency_key: str | None = None,
    uploads: Iterable[tuple[Mapping[str, Any], bytes]] = (),
) -> tuple[Job, bool]:
    """A new job; or, under an idempotency key that was used before, the job that it made then (and False).

    A job that failed or was cancelled gives its key free.

    `host`: only an owner on that machine may run it (it reads files there). `uploads`: contents that came with it; they
    are taken one after another, a few MB at a time.
    """
    if idempotency_key is not None:
        if connection.dialect.name == "postgresql":  # the same request twice at once: the second waits for the first
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"whimbrel-job-{idempotency_key}"))))
        known = connection.execute(select(t.jobs).where(t.jobs.c.idempotency_key == idempotency_key)).first()
        if known is not None and known.state in (JobState.FAILED, JobState.CANCELLED):
            # The request is sent again because it came to nothing: it gets another job, and the key goes with that one.
            connection.execute(update(t.jobs).where(t.jobs.c.id == known.id).values(idempotency_key=None))
        elif known is not None:
            if known.kind != kind or _fingerprint(known.args) != _fingerprint(args):
                raise Conflict(
                    "This idempotency key was used for another request.",
                    "Use a new key for each new request; nothing was written.",
                )
            return _job(known), False
    job_id = secrets.token_hex(8)
    connection.execute(
        t.jobs.insert(),
        {
            "id": job_id,
            "kind": kind,
            "collection_id": collection_id,
            "collection": collection,
            "args": dict(args),
            "state": JobState.QUEUED,
            "cursor": {},
            "progress": {},
            "result": {},
            "attempts": 0,
            "error": "",
            "hint": "",
            "error_code": "",
            "host": host,
            "idempotency_key": idempotency_key,
            "cancel_requested": False,
            "not_before": 0.0,
            "created_at": now(),
            "updated_at": now(),
        },
    )
    _put_uploads(connection, job_id, uploads)
    return get(connection, job_id), True


def _put_uploads(connection: Connection, job_id: str, uploads: Iterable[tuple[Mapping[str, Any], bytes]]) -> None:
    rows: list[dict[str, Any]] = []
    held = 0

    def put() -> None:
        for key, row in enumerate(rows, take_keys(connection, "uploads", len(rows))):
            row["id"] = key
        connection.execute(t.uploads.insert(), rows)
        rows.clear()

    for ordinal, (about, data) in enumerate(uploads):
        rows.append({"job_id": job_id, "ordinal": ordinal, "description": dict(about), "data": data})
        held += len(data)
        if held >= UPLOAD_BYTES:
            put()
            held = 0
    if rows:
        put()


_BY_ID = select(t.jobs).where(t.jobs.c.id == bindparam("wanted"))  # made once: who waits for a job reads it often


def get(connection: Connection, job_id: str) -> Job:
    row = connection.execute(_BY_ID, {"wanted": job_id}).first()
    if row is None:
        raise JobNotFound(f"There is no job {job_id!r}.", "`whimbrel jobs list` shows those that there are.")
    return _job(row)


def listing(connection: Connection, *, active: bool = False, limit: int = 100) -> list[Job]:
    """Newest first."""
    query = select(t.jobs).order_by(t.jobs.c.created_at.desc(), t.jobs.c.id).limit(limit)
    if active:
        query = query.where(t.jobs.c.state.in_(ACTIVE))
    return [_job(row) for row in connection.execute(query)]


def due(connection: Connection, kinds: Sequence[str], host: str) -> bool:
    """Whether `claim` would find something. Reads only."""
    return connection.execute(_DUE, _asked(kinds, host)).first() is not None


def claim(
    connection: Connection, kinds: Sequence[str], host: str, job_id: str | None = None
) -> tuple[Job, dict[str, Any]] | None:
    """The oldest job that is due (or that one), now running; with its cursor. An attempt is counted.

    One at a time: two calls at once may each take a job where one was to wait for the other.
    """
    query = _DUE.with_for_update(skip_locked=True)
    if job_id is not None:
        query = query.where(t.jobs.c.id == job_id)
    row = connection.execute(query, _asked(kinds, host)).first()
    if row is None:
        return None
    _set(connection, row.id, state=JobState.RUNNING, attempts=row.attempts + 1)
    return get(connection, row.id), dict(row.cursor)


def _asked(kinds: Sequence[str], host: str) -> dict[str, Any]:
    return {"at": now(), "kinds": list(kinds), "hosts": ["", host]}


def _must_wait() -> ColumnElement[bool]:
    """A collection's documents are read in the order in which that was asked for: `add` jobs one after another, and
    `ingest` jobs. The two may go side by side, since they are about other documents; unless an `ingest` gives its file
    an id of the user's, which an `add` may have too. An `import` is about any: nothing goes beside it.
    """
    job, other = t.jobs.c, t.jobs.alias("other")
    before = or_(other.c.created_at < job.created_at, and_(other.c.created_at == job.created_at, other.c.id < job.id))
    queued = and_(other.c.state.in_((JobState.QUEUED, JobState.WAITING)), other.c.not_before <= _AT, before)
    named = or_(other.c.args["id"].as_string().is_not(None), job.args["id"].as_string().is_not(None))
    return exists().where(
        job.kind.in_(READING),
        other.c.kind.in_(READING),
        other.c.collection_id == job.collection_id,
        other.c.id != job.id,
        other.c.host.in_(_HOSTS),
        or_(other.c.state == JobState.RUNNING, queued),
        or_(other.c.kind == job.kind, named, other.c.kind == "import", job.kind == "import"),
    )


# Made once: an owner asks this all the time, and to put it together takes SQLAlchemy longer than SQLite to answer it.
_AT: BindParameter[Any] = bindparam("at")
_HOSTS: BindParameter[Any] = bindparam("hosts", expanding=True)
_DUE = (
    select(t.jobs)
    .where(
        t.jobs.c.state.in_((JobState.QUEUED, JobState.WAITING)),
        t.jobs.c.not_before <= _AT,
        t.jobs.c.kind.in_(bindparam("kinds", expanding=True)),
        t.jobs.c.host.in_(_HOSTS),
        ~_must_wait(),
    )
    .order_by(t.jobs.c.created_at, t.jobs.c.id)
    .limit(1)
)


def reclaim(connection: Connection, *, host: str | None = None, besides: Collection[str] = ()) -> list[Job]:
    """A new owner takes over what its dead predecessor was running: back to the queue, from the cursor.

    A job that has been begun `MAX_ATTEMPTS` times without progress is given up, and says so; unless its kind is
    persistent. With `host`, only what processes of that machine run; `besides`: jobs that are in good hands.
    """
    query = select(t.jobs).where(t.jobs.c.state == JobState.RUNNING)
    if host is not None:
        query = query.where(t.jobs.c.host.in_(("", host)))
    rows = [row for row in connection.execute(query) if row.id not in besides]
    for row in rows:
        if row.attempts >= MAX_ATTEMPTS and row.kind not in PERSISTENT:
            fail(
                connection,
                row.id,
                f"Given up after {row.attempts} attempts: each time the process that ran it was killed.",
                "Look for what kills it (memory?), then start it again; it goes on where it stopped.",
            )
        else:
            _set(connection, row.id, state=JobState.QUEUED)
    return [_job(row) for row in rows]


def revive(connection: Connection) -> list[Job]:
    """Purges and deletions that have failed or were cancelled go on: what they are about is hidden, not gone."""
    columns = t.jobs.c
    lost = columns.kind.in_(("purge", "delete_collection")) & columns.state.in_((JobState.FAILED, JobState.CANCELLED))
    rows = connection.execute(select(t.jobs).where(lost)).all()
    for row in rows:
        _set(connection, row.id, state=JobState.QUEUED, cancel_requested=False, not_before=0.0, attempts=0)
    return [_job(row) for row in rows]


def release_stale(connection: Connection, host: str, before: float) -> int:
    """Back to the queue with what a process of another machine was running, and has not touched since `before`."""
    columns = t.jobs.c
    elsewhere = columns.host.not_in(("", host))
    stale = (columns.state == JobState.RUNNING) & elsewhere & (columns.updated_at < before)
    return connection.execute(update(t.jobs).where(stale).values(state=JobState.QUEUED, updated_at=now())).rowcount


def progress(connection: Connection, job_id: str, *, cursor: Mapping[str, Any] | None = None, **progress: Any) -> bool:
    """Record progress and, in the same transaction as the work it stands for, the cursor. True: cancel was asked for.

    Progress means that the attempt was not in vain, so attempts start anew.
    """
    values: dict[str, Any] = {"progress": progress, "attempts": 1}
    if cursor is not None:
        values["cursor"] = dict(cursor)
    _set(connection, job_id, **values)
    return bool(connection.execute(select(t.jobs.c.cancel_requested).where(t.jobs.c.id == job_id)).scalar())


def finish(connection: Connection, job_id: str, result: Mapping[str, Any]) -> None:
    _set(connection, job_id, state=JobState.DONE, result=dict(result), error="", hint="")
    drop_uploads(connection, job_id)


def fail(connection: Connection, job_id: str, error: str, hint: str, code: str = "") -> None:
    _set(connection, job_id, state=JobState.FAILED, error=error, hint=hint, error_code=code)
    drop_uploads(connection, job_id)


def wait(connection: Connection, job_id: str, until: float, cursor: Mapping[str, Any], **progress: Any) -> None:
    """Put the job away until a time (seconds since the epoch). Not a failed attempt."""
    _set(
        connection,
        job_id,
        state=JobState.WAITING,
        not_before=until,
        cursor=dict(cursor),
        progress=progress,
        attempts=0,
    )


def wake(connection: Connection, kind: str, *, awaits: int) -> None:
    """Jobs that were put away with `awaits` in their cursor, for this: it has come, and they are due."""
    found = connection.execute(
        select(t.jobs.c.id, t.jobs.c.cursor).where(t.jobs.c.kind == kind, t.jobs.c.state == JobState.WAITING)
    )
    for job_id in [row.id for row in found if row.cursor.get("awaits") == awaits]:
        _set(connection, job_id, not_before=now())


def requeue(connection: Connection, job_id: str, until: float, cursor: Mapping[str, Any], **progress: Any) -> None:
    """Back into the queue until a time: what the job waits for comes soon, and who waits for the job goes on to."""
    _set(
        connection,
        job_id,
        state=JobState.QUEUED,
        not_before=until,
        cursor=dict(cursor),
        progress=progress,
        attempts=0,
    )


def retry(connection: Connection, job_id: str, until: float, error: str, hint: str) -> None:
    """Back into the queue, not before a time; the error stays visible meanwhile."""
    _set(connection, job_id, state=JobState.QUEUED, not_before=until, error=error, hint=hint)


def cancel(connection: Connection, job_id: str) -> Job:
    """A waiting job is cancelled at once; a running one stops at its next step. What it has done stays.

    Raises `Conflict` for a job that has ended, and for the kinds that are `PERSISTENT`.
    """
    job = get(connection, job_id)
    if job.state not in ACTIVE:
        raise Conflict(f"Job {job_id} is {job.state} already.", "Nothing was changed.")
    if job.kind in PERSISTENT:
        raise Conflict(
            f"Job {job_id} ({job.kind}) cannot be cancelled: what it removes is hidden already, and would stay on the "
            "disk for good. Nothing was changed.",
            "Let it end: `whimbrel jobs show` says what it waits for.",
        )
    if job.state is JobState.RUNNING:
        _set(connection, job_id, cancel_requested=True)
    else:
        cancelled(connection, job_id)
    return get(connection, job_id)


def cancelled(connection: Connection, job_id: str) -> None:
    _set(connection, job_id, state=JobState.CANCELLED, cancel_requested=True)
    drop_uploads(connection, job_id)


def uploads(connection: Connection, job_id: str, after: int, limit: int) -> list[tuple[int, dict[str, Any], bytes]]:
    """The next contents of a job, as (ordinal, description, data): as many as are small, or a single large one."""
    columns = t.uploads.c
    mine = (columns.job_id == job_id) & (columns.ordinal > after)
    sizes = select(columns.ordinal, func.length(columns.data)).where(mine).order_by(columns.ordinal).limit(limit)
    last, held = after, 0
    for ordinal, size in connection.execute(sizes):
        held += size
        if held > UPLOAD_BYTES and last > after:
            break
        last = ordinal
    rows = connection.execute(
        select(columns.ordinal, columns.description, columns.data)
        .where(mine, columns.ordinal <= last)
        .order_by(columns.ordinal)
    )
    return [(row.ordinal, row.description, row.data) for row in rows]


def forget(connection: Connection, older_than: float) -> int:
    """Remove jobs that ended before a time."""
    ended = t.jobs.c.state.in_((JobState.DONE, JobState.CANCELLED, JobState.FAILED))
    old = select(t.jobs.c.id).where(ended, t.jobs.c.updated_at < older_than)
    connection.execute(delete(t.uploads).where(t.uploads.c.job_id.in_(old)))
    return connection.execute(delete(t.jobs).where(ended, t.jobs.c.updated_at < older_than)).rowcount


def drop_uploads(connection: Connection, job_id: str, upto: int | None = None) -> None:
    """Remove a job's contents, or those up to an ordinal, which are in the collection now."""
    columns = t.uploads.c
    query = delete(t.uploads).where(columns.job_id == job_id)
    connection.execute(query if upto is None else query.where(columns.ordinal <= upto))


def redact(connection: Connection, collection_id: int, kinds: Sequence[str]) -> None:
    """Take out of a collection's ended jobs what they say of documents: names, metadata, warnings. Counts stay.

    Part of an erasure. The same request under the same idempotency key is still known.
    """
    columns = t.jobs.c
    ended = columns.state.in_((JobState.DONE, JobState.CANCELLED, JobState.FAILED))
    query = select(t.jobs).where(columns.collection_id == collection_id, columns.kind.in_(kinds), ended)
    for row in connection.execute(query).all():
        told = {name: row.args[name] for name in ("collection_id", "count") if name in row.args}
        values: dict[str, Any] = {"args": {**told, "fingerprint": _fingerprint(row.args)}, "cursor": {}}
        values["result"] = {name: value for name, value in row.result.items() if not isinstance(value, list)}
        if any(row.args.get(name) for name in ("paths", "metadata", "id")):
            values["error"] = "It named documents that have been erased since." if row.error else ""
        connection.execute(update(t.jobs).where(columns.id == row.id).values(**values))


def _fingerprint(args: Mapping[str, Any]) -> str:
    """Tells two requests apart, also where one has been redacted."""
    if "fingerprint" in args:
        return str(args["fingerprint"])
    named = {**args, "secrets": True} if "secrets" in args else args  # a name that is drawn for each request
    canonical = json.dumps(named, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _set(connection: Connection, job_id: str, **values: Any) -> None:
    connection.execute(update(t.jobs).where(t.jobs.c.id == job_id).values(**values, updated_at=now()))


def _job(row: AnyRow) -> Job:
    return Job(
        id=row.id,
        kind=row.kind,
        collection=row.collection,
        args=row.args,
        state=JobState(row.state),
        progress=row.progress,
        result=row.result,
        attempts=row.attempts,
        error=row.error,
        hint=row.hint,
        error_code=row.error_code,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        updated_at=datetime.fromtimestamp(row.updated_at, UTC),
        not_before=datetime.fromtimestamp(row.not_before, UTC) if row.not_before else None,
        cancel_requested=row.cancel_requested,
    )
