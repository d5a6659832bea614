"""`whimbrel view`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson
from whimbrel.cli.progress import Progress
from whimbrel.cli.state import VIEW_HEADERS, view_row
from whimbrel.cli.waiting import finished

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel

app = typer.Typer(
    name="view", help="Look at views; compare them with the catalog; build them anew.", no_args_is_help=True
)

ViewId = Annotated[int, typer.Argument(metavar="VIEW", help="The view's number, as `view list` shows it.")]
Some = Annotated[list[int] | None, typer.Argument(metavar="[VIEW]...", help="Views by number; all, if none is named.")]
OfCollection = Annotated[
    str | None, typer.Option("--collection", "-c", metavar="NAME", help="Only those of this collection.")
]


@app.command("list")
def list_(collection: OfCollection = None, as_json: AsJson = False) -> None:
    """List views with their state, position and lag."""
    with opened() as whimbrel:
        found = _views(whimbrel, collection)
    if as_json:
        out.data({"views": found})
        return
    out.table(VIEW_HEADERS, [view_row(view) for view in found])
    for view in found:
        if view["error"]:
            out.line(f"view {view['id']}: {view['error']}")


@app.command()
def verify(views: Some = None, collection: OfCollection = None, as_json: AsJson = False) -> None:
    """Compare views with the catalog: every id, text, metadata and vector. Ends with status 1 if one differs."""
    reports = []
    with opened() as whimbrel:
        for view in _chosen(whimbrel, views, collection):
            job = whimbrel.start_view_job("verify_view", view)
            reports.append(finished(whimbrel, job, Progress(quiet=as_json)))
    if as_json:
        out.data({"views": reports})
    else:
        counts = ("rows", "expected", "missing", "extra", "different", "doubled")
        rows = [[one["view"], one["kind"], one["equal"], *(one[name] for name in counts)] for one in reports]
        out.table(["view", "kind", "equal", *counts], rows)
    if not all(report["equal"] for report in reports):
        out.note("`whimbrel view rebuild VIEW` makes a view anew from the catalog, which holds everything.")
        raise typer.Exit(1)


@app.command()
def rebuild(views: Some = None, collection: OfCollection = None, as_json: AsJson = False) -> None:
    """Build views anew beside themselves; searches go on meanwhile. No text is embedded again."""
    made = []
    with opened() as whimbrel:
        for view in _chosen(whimbrel, views, collection):
            job = whimbrel.start_view_job("rebuild_view", view)
            made.append(finished(whimbrel, job, Progress(quiet=as_json)))
    if as_json:
        out.data({"views": made})
        return
    for one in made:
        out.line(f"View {one['view']} has taken the place of view {one['replaces']}.")


@app.command()
def drop(
    view: ViewId,
    now: Annotated[bool, typer.Option("--now", help="Without the minute for searches that have it open.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a view that is not live, and its data."""
    with opened() as whimbrel:
        job = whimbrel.start_view_job("drop_view", view, **({"now": True} if now else {}))
        result = finished(whimbrel, job, Progress(quiet=as_json))
        ended = whimbrel.job(job.id)
    if as_json:
        out.data({"view": view, "state": ended.state.value, **result})
    elif result.get("dropped"):
        out.line(f"Dropped view {view}.")
    else:
        out.line(f"View {view} goes in a minute, when no search has it open: job {job.id}.")


def _views(whimbrel: Whimbrel, collection: str | None) -> list[dict[str, Any]]:
    if collection is not None:
        whimbrel.views(collection)  # raises, if there is no such collection
    found = [one for one in whimbrel.status()["collections"] if collection in (None, one["name"])]
    return [view for one in found for view in one["views"]]


def _chosen(whimbrel: Whimbrel, views: list[int] | None, collection: str | None) -> list[int]:
    following = ("building", "live", "standby")
    return views or [view["id"] for view in _views(whimbrel, collection) if view["state"] in following]
