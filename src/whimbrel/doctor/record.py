"""Checks of the catalog: the record itself, its jobs, and what it says about documents."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection, func, select, text

from whimbrel.catalog import collections, jobs, leases, listing, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.migrate import REVISIONS, current_revision
from whimbrel.config import Settings, mask_url
from whimbrel.doctor.findings import Finding, Level, size
from whimbrel.doctor.mending import Mender
from whimbrel.domain import DocumentState, Job, JobState
from whimbrel.home import Home, host_name
from whimbrel.owner.lock import LEASE, holder

STUCK_S = 600.0
RECENT_S = 7 * 24 * 3_600.0
LISTED = 5
LONG_WAL_BYTES = 256_000_000
BLOB_BYTES = 4
"""Of one dimension."""


class Opened:
    """The catalog, without an upgrade, and without making it where there is none."""

    def __init__(self, settings: Settings, home: Home) -> None:
        self.settings = settings
        self.home = home
        self._catalog: Catalog | None = None

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            self._catalog = Catalog(self.settings.catalog)
        return self._catalog

    def owner(self, connection: Connection) -> leases.Lease | None:
        """The lease of the living owner."""
        lease = leases.read(connection, LEASE)
        return lease if lease is not None and lease.alive else None

    def close(self) -> None:
        if self._catalog is not None:
            self._catalog.close()


def usable(opened: Opened) -> Iterator[Finding]:
    """Is there a catalog that this version can read? If not, nothing else of it is examined."""
    path = opened.settings.catalog_path
    if path is not None and not path.is_file():
        yield Finding(
            "usable",
            Level.PROBLEM,
            f"There is no catalog at {path}.",
            "Nothing was ingested here yet, or the file was moved: views without their catalog are worth nothing.",
            "`whimbrel ingest PATH` makes one; or restore a backup into a new home.",
        )
        return
    revision = current_revision(opened.catalog)
    if revision is None:
        said = f"The catalog {mask_url(opened.settings.catalog)} is empty."
        yield Finding(
            "usable", Level.PROBLEM, said, "No version of Whimbrel has used it.", "`whimbrel ingest PATH` fills it."
        )
    elif revision not in REVISIONS:
        yield Finding(
            "usable",
            Level.PROBLEM,
            f"The catalog was written by a newer version of Whimbrel: it has schema {revision}.",
            f"This program knows up to {REVISIONS[-1]}. Nothing was changed.",
            "Upgrade Whimbrel, or restore a copy from before the upgrade.",
        )
    elif revision != REVISIONS[-1]:
        yield Finding(
            "usable",
            Level.WARNING,
            f"The catalog has schema {revision}; this version's is {REVISIONS[-1]}.",
            "The next command upgrades it, and saves a copy first. It is examined after that.",
            "Run `whimbrel status`, then doctor again.",
        )


def whole(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    """SQLite's own look at the file: every page, every reference."""
    if not opened.catalog.is_sqlite:
        return
    with opened.catalog.read() as connection:
        said = list(connection.execute(text("PRAGMA quick_check(5)")).scalars())
        broken = Counter(row[0] for row in connection.execute(text("PRAGMA foreign_key_check")))
    if said != ["ok"]:
        yield Finding(
            "whole",
            Level.PROBLEM,
            f"The catalog's file is damaged: {'; '.join(said)}.",
            "A disk or another program has changed it: what is in it can no longer be trusted.",
            "Stop everything that uses it, save the file, and restore the last backup into a new home.",
        )
    for table, count in broken.items():
        yield Finding(
            "whole",
            Level.PROBLEM,
            f"{count} rows of {table} refer to rows that are not there.",
            "Whimbrel never writes that: the file was changed by something else.",
            "Restore the last backup into a new home.",
        )


def write_ahead_log(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    path = opened.catalog.path
    if path is None:
        return
    wal = Path(f"{path}-wal")
    length = wal.stat().st_size if wal.exists() else 0
    if length > LONG_WAL_BYTES:
        yield Finding(
            "write_ahead_log",
            Level.WARNING,
            f"The write-ahead log {wal} has grown to {size(length)}.",
            "A process has been reading for a long time, or the last one was killed.",
            "Empty it: `whimbrel doctor --fix`, when no long search or backup runs.",
            mend=lambda: _checkpoint(opened.settings),
        )


def _checkpoint(settings: Settings) -> None:
    catalog = Catalog(settings.catalog)
    try:
        with catalog.bare() as connection:
            connection.execute(text("PRAGMA busy_timeout = 5000"))
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    finally:
        catalog.close()


def owner(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    """Do lock and lease agree?"""
    with opened.catalog.read() as connection:
        lease = leases.read(connection, LEASE)
    lock = holder(opened.home)
    here = lease is not None and (lease.info.get("host"), lease.info.get("home")) == (
        host_name(),
        str(opened.home.path),
    )
    if lock is not None and lease is not None and here and not lease.alive:
        yield Finding(
            "owner",
            Level.PROBLEM,
            f"Process {lock.get('pid', '?')} holds the home but has not renewed its lease since "
            f"{time.strftime('%H:%M:%S', time.localtime(lease.expires_at))}.",
            "It hangs or is stopped: views do not follow, jobs stand still.",
            "Look at its log, and end it; the next owner goes on where it stopped.",
        )
    elif lock is None and lease is not None and here and lease.alive:
        yield Finding(
            "owner",
            Level.NOTE,
            f"The owner {lease.holder} has died without giving its lease back.",
            "The next owner takes over at once, and goes on with its jobs.",
        )
    elif lock is None and lease is not None and lease.alive and not here:
        yield Finding("owner", Level.NOTE, f"{lease.holder} owns the home.", "It changes the views.")


def failed_jobs(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    with opened.catalog.read() as connection:
        found = [job for job in jobs.listing(connection, limit=1_000) if job.state is JobState.FAILED]
    recent = [job for job in found if time.time() - job.updated_at.timestamp() < RECENT_S]
    for job in recent[:LISTED]:
        said = f"Job {job.id} ({job.kind}) failed: {job.error}"
        yield Finding("failed_jobs", Level.WARNING, said, "What it had done stays.", job.hint)
    if len(recent) > LISTED:
        said = f"{len(recent) - LISTED} more jobs failed in the last week."
        yield Finding("failed_jobs", Level.WARNING, said, fix="`whimbrel jobs list` shows them.")


def standing_jobs(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    with opened.catalog.read() as connection:
        active = jobs.listing(connection, active=True, limit=1_000)
        alive = opened.owner(connection)
    waiting = [job for job in active if job.state is JobState.QUEUED and not job.error]
    if alive is None and active:
        yield Finding(
            "standing_jobs",
            Level.NOTE,
            f"{len(active)} jobs wait for an owner.",
            "Nobody owns the home now, so nothing is done.",
            "`whimbrel serve` or `whimbrel owner`.",
        )
        return
    for job in active:
        if job.state is JobState.RUNNING and _silent(job):
            said = f"Job {job.id} ({job.kind}) has said nothing for {_minutes(job)} minutes."
            yield Finding("standing_jobs", Level.WARNING, said, fix="Look at the owner's log.")
        elif job.error:
            said = f"Job {job.id} ({job.kind}) is tried again after: {job.error}"
            yield Finding("standing_jobs", Level.WARNING, said, fix=job.hint)
    if len(waiting) > 1 and all(_silent(job) for job in waiting):
        said = f"{len(waiting)} jobs have been waiting for more than {STUCK_S / 60:.0f} minutes."
        yield Finding("standing_jobs", Level.NOTE, said, "A long job is before them, or they are for another machine.")


def _silent(job: Job) -> bool:
    return time.time() - job.updated_at.timestamp() > STUCK_S


def _minutes(job: Job) -> int:
    return int((time.time() - job.updated_at.timestamp()) / 60)


def deletions(opened: Opened, mender: Mender) -> Iterator[Finding]:
    """Collections that were deleted, and that no job removes."""
    with opened.catalog.read() as connection:
        leaving = collections.every(connection, deleting=True)
        active = {job.args.get("collection_id") for job in jobs.listing(connection, active=True, limit=1_000)}
    for collection in leaving:
        if collection.id not in active:
            name = collection.name.partition("#")[0]
            yield Finding(
                "deletions",
                Level.WARNING,
                f"The deleted collection {name!r} is still on the disk.",
                "The job that removes it has ended without doing so.",
                "Start it again.",
                mend=mender.deleting(collection.id, name),
            )


def failed_documents(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    columns = t.documents.c
    query = (
        select(t.collections.c.name, columns.reason, func.count())
        .join(t.collections, t.collections.c.id == columns.collection_id)
        .where(columns.state == DocumentState.FAILED, t.collections.c.deleting.is_(False))
        .group_by(t.collections.c.name, columns.reason)
    )
    counts: Counter[tuple[str, str]] = Counter()
    with opened.catalog.read() as connection:
        for name, reason, count in connection.execute(query):
            counts[name, reason.partition(":")[0]] += count
    for (name, reason), count in sorted(counts.items()):
        yield Finding(
            "failed_documents",
            Level.WARNING,
            f"{count} documents of {name!r} could not be taken in: {reason}.",
            fix=f"`whimbrel documents list -c {name} --state failed` names them.",
        )


def refused_texts(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    with opened.catalog.read() as connection:
        for collection in collections.every(connection):
            store, _ = collections.live_views(connection, collection)
            if store is None or store.view.space_id is None:
                continue
            refused = vectors.refusals(connection, store.view.space_id, collection.id, store.view.chunking_id)
            if refused:
                yield Finding(
                    "refused_texts",
                    Level.WARNING,
                    f"The model refused {refused} chunks of {collection.name!r}.",
                    "They are found by words, not by meaning.",
                )


def segments(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    """Each chunk's text begins in a segment that is there."""
    missing = ~select(t.segments.c.id).where(t.segments.c.id == t.chunks.c.segment_id).exists()
    with opened.catalog.read() as connection:
        count = connection.execute(select(func.count()).select_from(t.chunks).where(missing)).scalar_one()
    if count:
        yield Finding(
            "segments",
            Level.PROBLEM,
            f"The text of {count} chunks is not in the catalog.",
            "Whimbrel never writes that: the catalog was changed by something else.",
            "Ingest their documents again after deleting them, or restore the last backup into a new home.",
        )


def vector_sizes(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    length = func.length(t.vectors.c.data)
    with opened.catalog.read() as connection:
        for key in connection.execute(select(t.spaces.c.id)).scalars().all():
            space, _ = vectors.read_space(connection, key)
            wrong = t.vectors.c.data.is_not(None) & (length != BLOB_BYTES * space.dimensions)
            query = select(func.count()).select_from(t.vectors).where(t.vectors.c.space_id == key, wrong)
            count = connection.execute(query).scalar_one()
            if count:
                yield Finding(
                    "vector_sizes",
                    Level.PROBLEM,
                    f"{count} vectors of {space.model} do not have {space.dimensions} dimensions.",
                    "Whimbrel never writes that: the catalog was changed by something else.",
                    "Restore the last backup into a new home.",
                )


def differences(opened: Opened, _mender: Mender) -> Iterator[Finding]:
    """Where the configuration says otherwise than the catalog, which wins."""
    with opened.catalog.read() as connection:
        found = listing.status(connection, opened.settings, str(opened.home.path))
    for collection in found["collections"]:
        for said in collection["differs"]:
            yield Finding(
                "differences",
                Level.NOTE,
                f"Collection {collection['name']!r}: {said}.",
                "The catalog wins; the configuration is for new collections.",
            )


CHECKS: tuple[Callable[[Opened, Mender], Iterator[Finding]], ...] = (
    whole,
    write_ahead_log,
    owner,
    failed_jobs,
    standing_jobs,
    deletions,
    failed_documents,
    refused_texts,
    segments,
    vector_sizes,
    differences,
)
