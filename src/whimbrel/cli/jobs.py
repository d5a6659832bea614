"""`whimbrel jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson

if TYPE_CHECKING:
    from whimbrel.domain import Job

app = typer.Typer(name="jobs", help="Work that the owner does: look at it, or stop it.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


@app.command("list")
def list_(
    active: Annotated[bool, typer.Option("--active", help="Only those that are not done.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with opened() as whimbrel:
        found = [as_dict(job) for job in whimbrel.jobs(active=active, limit=limit)]
    if as_json:
        out.data({"jobs": found})
        return
    out.table(
        ["job", "kind", "collection", "state", "created", "doing"],
        [[job["id"], job["kind"], job["collection"], job["state"], job["created_at"], doing(job)] for job in found],
    )


@app.command()
def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job: its state, progress, result or error."""
    with opened() as whimbrel:
        found = as_dict(whimbrel.job(job))
    _show(found, as_json)


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job at its next step. What it has done stays."""
    with opened() as whimbrel:
        found = as_dict(whimbrel.cancel(job))
    _show(found, as_json)
    if found["state"] == "running":
        out.note("It stops at its next step.")


def as_dict(job: Job) -> dict[str, Any]:
    from whimbrel.catalog.listing import job_dict

    return job_dict(job)


def doing(job: dict[str, Any]) -> str:
    """What a job is at, in a few words."""
    if job["error"]:
        return str(job["error"])
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in job["progress"].items())
    return f"until {job['not_before']}: {said}" if job["state"] == "waiting" and job["not_before"] else said


def _show(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out.data(job)
        return
    plain = {
        name: value for name, value in job.items() if name not in ("progress", "result") and value not in ("", None)
    }
    nested = {f"{part} {name}": value for part in ("progress", "result") for name, value in job[part].items()}
    out.fields({**plain, **nested})
