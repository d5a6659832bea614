"""`whimbrel documents`."""

from __future__ import annotations

from typing import Annotated

import typer

from whimbrel.cli import out
from whimbrel.cli.jobs import as_dict
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson, Collection
from whimbrel.cli.progress import Progress
from whimbrel.cli.waiting import finished, owned_elsewhere
from whimbrel.domain import DocumentState, Job

app = typer.Typer(name="documents", help="Look at documents, remove or erase them.", no_args_is_help=True)

Documents = Annotated[
    list[str], typer.Argument(metavar="DOCUMENT...", help="By id, by your own id, by URI, or by path.")
]


@app.command("list")
def list_(
    collection: Collection = "default",
    state: Annotated[DocumentState | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the first so many.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List documents by URI; those that have gone only with --state gone."""
    with opened() as whimbrel:
        found = whimbrel.documents(collection, state=state.value if state else None, limit=limit, offset=offset)
    if as_json:
        out.data({"documents": found, "limit": limit, "offset": offset})
        return
    out.table(
        ["id", "state", "chunks", "uri", "reason"],
        [[one["document_id"], one["state"], one["chunks"], one["uri"], one["reason"]] for one in found],
    )
    if len(found) == limit:
        out.note(f"There may be more: --offset {offset + limit}.")


@app.command()
def show(
    document: Annotated[str, typer.Argument(metavar="DOCUMENT", help="By id, by your own id, by URI, or by path.")],
    collection: Collection = "default",
    as_json: AsJson = False,
) -> None:
    """Show a document: what is known of it, and its text."""
    with opened() as whimbrel:
        found = whimbrel.document(document, collection)
    if as_json:
        out.data(found)
        return
    out.fields({name: value for name, value in found.items() if name != "text" and value not in ("", None)})
    if found["text"]:
        out.line()
        out.line(found["text"])


@app.command()
def delete(documents: Documents, collection: Collection = "default", as_json: AsJson = False) -> None:
    """Remove documents from a collection: no search finds them from now on. To erase their text, use purge."""
    with opened() as whimbrel:
        found = whimbrel.delete(documents, collection)
    if as_json:
        out.data(found)
    else:
        out.line(f"{found['removed']:,} removed, with {found['chunks_removed']:,} chunks.")


@app.command()
def purge(
    documents: Documents,
    collection: Collection = "default",
    wait: Annotated[bool, typer.Option("--wait", help="Return when every trace has gone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase documents: hidden at once, then removed from catalog, log, views and the free pages of files.

    Old versions of views are kept for readers that have them open, an hour unless configured; the job says until when.
    """
    with opened() as whimbrel:
        job = whimbrel.purge(documents, collection)
        out.note(f"Hidden already. Job {job.id} removes every trace.")
        finished(whimbrel, job, Progress(quiet=as_json), wait="end" if wait else "job")
        job = whimbrel.job(job.id)
        alone = not owned_elsewhere(whimbrel)
    if as_json:
        out.data(as_dict(job))
        return
    if job.state == "done":
        out.line(
            f"Erased: {job.result['documents']:,} documents, {job.result['chunks']:,} chunks. Job {job.id} is done."
        )
        for said in job.result.get("notes", ()):
            out.note(said)
        return
    out.line(f"Job {job.id} waits for {job.progress.get('waiting_for', 'an owner')}; {_end(job)}.")
    if alone:
        out.note("It needs an owner then: `whimbrel serve` or `whimbrel owner`.")


def _end(job: Job) -> str:
    """When a purge that waits will be done."""
    until = job.progress.get("completes_at", "unknown")
    return "when that has passed, it goes on" if until == "unknown" else f"it completes at {until}"
