"""`whimbrel status` and `whimbrel doctor`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.jobs import doing
from whimbrel.cli.opening import log_to_stderr, opened, settings
from whimbrel.cli.options import AsJson


def status(as_json: AsJson = False) -> None:
    """Show collections, documents by state, views with their lag, and jobs that are not done."""
    with opened() as whimbrel:
        found = whimbrel.status()
    if as_json:
        out.data(found)
        return
    owner = found["owner"]
    out.fields(
        {
            "home": found["home"],
            "catalog": found["catalog"],
            "owner": owner["holder"] if owner else "nobody runs one now",
        }
    )
    for collection in found["collections"]:
        out.line()
        _collection(collection)
    if not found["collections"]:
        out.line("There is no collection yet. `whimbrel ingest PATH` makes one.")
    for model in found["models"]["paused"]:
        out.line()
        out.line(f"not asked now: {model['model']}, after {model['failures']} failures in a row ({model['reason']})")
    if found["models"]["shared"]["out"]:
        out.line()
        out.line(f"breakers and rates: kept by each process for itself. {found['models']['shared']['out']}")
    if found["jobs"]:
        out.line()
        out.table(["job", "kind", "collection", "state", "doing"], [_job(job) for job in found["jobs"]])


def _collection(collection: dict[str, Any]) -> None:
    states = ", ".join(f"{count:,} {state}" for state, count in collection["documents"].items() if count)
    out.styled(f"{out.bold(collection['name'])}: {states or 'no documents'}; {collection['chunks']:,} chunks")
    for said in collection["differs"]:
        out.line(f"  differs: {said}")
    if collection["views"]:
        out.table(VIEW_HEADERS, [view_row(view) for view in collection["views"]])
    for view in collection["views"]:
        if view["state"] == "frozen" and view["lag"]:
            out.line(f"  view {view['id']}: frozen; {view['lag']:,} changes wait for a move (`whimbrel move start`)")
        if view["error"]:
            out.line(f"  view {view['id']}: {view['error']}")


VIEW_HEADERS = ("view", "collection", "kind", "uri", "state", "position", "lag")


def view_row(view: dict[str, Any]) -> list[object]:
    return [view[name] for name in ("id", "collection", "kind", "uri", "state", "position", "lag")]


def _job(job: dict[str, Any]) -> list[object]:
    return [job["id"], job["kind"], job["collection"], job["state"], doing(job)]


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended without risk.")] = False,
    as_json: AsJson = False,
) -> None:
    """Examine the home, explain what is wrong with it, and mend it if asked to.

    Ends with status 1 if something needs attention. It can run beside a server.
    """
    found = settings()
    log_to_stderr(found, quiet=True)
    from whimbrel.doctor import diagnose, is_healthy

    findings = diagnose(found, fix=fix)
    if as_json:
        out.data({"healthy": is_healthy(findings), "findings": [finding.as_dict() for finding in findings]})
    else:
        for finding in findings:
            mark = "mended" if finding.mended else str(finding.level)
            out.styled(f"{out.bold(mark)}: {out.shown(finding.what)}")
            for said in (finding.why, finding.fix if not finding.mended else ""):
                if said:
                    out.line(f"  {said}")
        if is_healthy(findings):
            warned = any(finding.level == "warning" and not finding.mended for finding in findings)
            out.line(f"{found.home} works; the warnings are worth a look." if warned else f"{found.home} is in order.")
        elif not fix and any(finding.mendable for finding in findings):
            out.note("`whimbrel doctor --fix` mends what can be mended without risk.")
    if not is_healthy(findings):
        raise typer.Exit(1)
