"""Waiting for a job, visibly, and what a Ctrl-C in the meantime means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.progress import Progress

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel
    from whimbrel.domain import Job

INTERRUPTED = 130


def finished(whimbrel: Whimbrel, job: Job, progress: Progress, *, wait: str = "job") -> dict[str, Any]:
    """The job's result, as `Service.finish` returns it. Raises the job's error."""
    try:
        return whimbrel.finish(job, wait=wait, on_progress=progress.job, on_lag=progress.lag)
    except KeyboardInterrupt:
        progress.end()
        out.note(what_goes_on(whimbrel, job))
        raise typer.Exit(INTERRUPTED) from None
    finally:
        progress.end()


def owned_elsewhere(whimbrel: Whimbrel) -> bool:
    """Is another process the owner?"""
    here = whimbrel.owner is not None and whimbrel.owner.running
    return not here and whimbrel.owner_lease() is not None


def what_goes_on(whimbrel: Whimbrel, job: Job) -> str:
    """After the user has stopped waiting."""
    if owned_elsewhere(whimbrel):
        return f"Job {job.id} goes on in the process that owns the home: `whimbrel jobs show {job.id}`."
    if whimbrel.job(job.id).state == "done":
        return (
            f"Interrupted. Job {job.id} is done: all is in the catalog. The views catch up when an owner runs: at "
            "the next ingest, or with `whimbrel serve`."
        )
    return (
        f"Interrupted. Job {job.id} is kept, with all that it has done; it goes on when an owner runs: at the next "
        "ingest, or with `whimbrel serve`."
    )
