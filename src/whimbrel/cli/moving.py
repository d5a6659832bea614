"""`whimbrel move`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson
from whimbrel.cli.progress import Progress
from whimbrel.cli.waiting import finished, owned_elsewhere
from whimbrel.errors import BadInput, Conflict

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel
    from whimbrel.catalog.compatible import Compatible
    from whimbrel.catalog.moves import Move
    from whimbrel.domain import Job

app = typer.Typer(
    name="move",
    help="Take a living collection to another store, embedder or chunking: verified, without downtime, and back.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")]
To = Annotated[
    str | None,
    typer.Option(
        metavar="STORE_URI", help="The target store, as `postgresql://...` or `chroma:PATH`. Default: the same."
    ),
]
Embedder = Annotated[
    str | None, typer.Option(metavar="PROVIDER:MODEL", help="Another embedding model. Default: the same.")
]
Cut = Annotated[
    str | None, typer.Option("--chunking", metavar="SPEC", help="Another chunking, as `tokens=256,overlap=32`.")
]
Eval = Annotated[
    Path | None,
    typer.Option(
        "--eval", metavar="BEIR_DIR", help="Judged queries whose documents are in the collection: search both sides."
    ),
]
MinNdcg = Annotated[
    float,
    typer.Option("--min-ndcg", min=0, max=1, metavar="X", help="nDCG@10 that the target must reach; needs --eval."),
]
Rate = Annotated[float, typer.Option(min=0, metavar="ROWS_PER_S", help="Rows copied per second, at most. 0: no limit.")]


@app.command()
def plan(
    collection: Name, to: To = None, embedder: Embedder = None, chunking: Cut = None, as_json: AsJson = False
) -> None:
    """Say what a move would take and lose, how long it would be, and the disk that it needs. Changes nothing."""
    from whimbrel.cli import planned

    progress = Progress(quiet=as_json)
    with opened() as whimbrel:
        try:
            found = whimbrel.plan_move(
                collection, to=to, embedder=embedder, chunking=chunking, on_progress=progress.doing
            )
        finally:
            progress.end()
    if as_json:
        out.data(found.as_dict())
        return
    planned.show(found)
    if not found.stopped:
        out.note("Nothing was changed. `whimbrel move start` with the same options begins.")


@app.command()
def start(
    collection: Name,
    to: To = None,
    embedder: Embedder = None,
    chunking: Cut = None,
    rate: Rate = 0.0,
    auto_switch: Annotated[bool, typer.Option("--auto-switch", help="Switch as soon as all is verified.")] = False,
    judged: Eval = None,
    min_ndcg: MinNdcg = 0.0,
    compatible: Annotated[
        bool,
        typer.Option(
            "--compatible", help="Let the embedder serve the vectors that there are, if it is measured to be able to."
        ),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; needs a running owner.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build and verify another view beside the live one. Searches and writes go on; nothing is switched yet."""
    if compatible:
        others = [to, chunking, *filter(None, (rate, auto_switch, detach))]
        if embedder is None or any(one is not None for one in others):
            raise BadInput(
                "--compatible goes with --embedder, --eval and --min-ndcg: nothing is copied. Nothing was changed.",
                "Leave the other options out, or --compatible.",
            )
        with opened() as whimbrel:
            declared = whimbrel.declare_compatible(collection, embedder, judged=judged, min_ndcg=min_ndcg)
            _show_declared(declared, as_json)
        return
    with opened() as whimbrel:
        if detach:
            _check_owned(whimbrel)
        move, job = whimbrel.start_move(
            collection,
            to=to,
            embedder=embedder,
            chunking=chunking,
            rate=rate,
            auto_switch=auto_switch,
            judged=judged,
            min_ndcg=min_ndcg,
        )
        _wait(whimbrel, move, job, as_json, detach=detach)


@app.command()
def status(collection: Name, as_json: AsJson = False) -> None:
    """Show where the collection's last move stands."""
    with opened() as whimbrel:
        declared = _declared(whimbrel, collection)
        if declared is not None:
            _show_declared(declared, as_json)
            return
        _show(whimbrel.move_dict(whimbrel.move(collection)), as_json)


@app.command()
def report(
    collection: Name,
    open_it: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of the collection's last move: a page, JSON, and the rows that could not go."""
    with opened() as whimbrel:
        move = whimbrel.move(collection)
        page = whimbrel.write_move_report(move)
        if as_json:
            out.data({**whimbrel.move_report(move), "page": str(page)})
        else:
            out.line(str(page))
    if open_it and typer.launch(page.as_uri()) != 0:
        out.note("No browser could be started: open the page by hand.")


@app.command()
def pause(collection: Name, as_json: AsJson = False) -> None:
    """Write nothing more to the target until `move resume`."""
    _steer(collection, as_json, lambda whimbrel, move: whimbrel.pause_move(move))


@app.command()
def resume(
    collection: Name,
    rate: Annotated[float | None, typer.Option(min=0, metavar="ROWS_PER_S", help="Another limit from here on.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; needs a running owner.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a move that was paused or has failed. Rows that differ are written again."""
    with opened() as whimbrel:
        if detach:
            _check_owned(whimbrel)
        move, job = whimbrel.resume_move(whimbrel.move(collection), rate=rate)
        _wait(whimbrel, move, job, as_json, detach=detach)


@app.command()
def verify(
    collection: Name,
    accept: Annotated[
        bool, typer.Option("--accept", help="Accept the differences that the last comparison named.")
    ] = False,
    judged: Eval = None,
    min_ndcg: MinNdcg = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compare every row of the target with the catalog again. Ends with status 1 if one differs."""
    if accept:
        _steer(collection, as_json, lambda whimbrel, move: whimbrel.accept_move(move))
        return
    with opened() as whimbrel:
        move = whimbrel.move(collection)
        found = _wait(whimbrel, move, whimbrel.verify_move(move, judged=judged, min_ndcg=min_ndcg), as_json)
    if not found["checks"].get("holds"):
        raise typer.Exit(1)


@app.command()
def switch(collection: Name, as_json: AsJson = False) -> None:
    """Let searches read the target, when every process has it open. The old view is fed still."""
    with opened() as whimbrel:
        move = whimbrel.move(collection)
        _wait(whimbrel, move, whimbrel.switch_move(move), as_json)


@app.command()
def rollback(collection: Name, as_json: AsJson = False) -> None:
    """Switch back to the old view. The target is fed still."""
    with opened() as whimbrel:
        if _declared(whimbrel, collection) is not None:
            _show_declared(whimbrel.withdraw_compatible(collection), as_json)
            return
        move = whimbrel.move(collection)
        _wait(whimbrel, move, whimbrel.rollback_move(move), as_json)


@app.command()
def finalise(collection: Name, as_json: AsJson = False) -> None:
    """Give up the way back: the old view is no longer fed. Its data stays until `view drop`."""
    with opened() as whimbrel:
        if _declared(whimbrel, collection) is not None:
            _show_declared(whimbrel.finalise_compatible(collection), as_json)
            return
        _show(whimbrel.move_dict(whimbrel.finalise_move(whimbrel.move(collection))), as_json)


@app.command()
def abort(collection: Name, as_json: AsJson = False) -> None:
    """End a move before its switch. What it made is dropped; nothing else is."""
    _steer(collection, as_json, lambda whimbrel, move: whimbrel.abort_move(move))


def _declared(whimbrel: Whimbrel, collection: str) -> Compatible | None:
    """The last declaration about the collection's space, where no move was begun since."""
    from whimbrel.errors import MoveNotFound

    found = whimbrel.compatible(collection)
    if found is None:
        return None
    try:
        return found if whimbrel.move(collection).created_at < found.created_at else None
    except MoveNotFound:
        return found


def _show_declared(found: Compatible, as_json: bool) -> None:
    if as_json:
        out.data(found.as_dict())
        return
    said = {
        "serving": "serves the vectors that there are; nothing was embedded again",
        "finalised": "serves the vectors that there are, for good",
        "rolled_back": "was taken back: the model that made the vectors serves them",
    }[found.state]
    out.styled(f"{out.bold(found.collection)}: {out.bold(found.embedder)} {said}")
    for line in _measured(found.checks):
        out.line(f"  {line}")
    _show_quality(found.checks.get("quality"), "before", "after")
    if found.state == "serving":
        out.note(f"`whimbrel move rollback {found.collection}` goes back; `move finalise` gives that up.")


def _measured(checks: Mapping[str, Any]) -> Iterator[str]:
    """Of a declaration, or of an adoption."""
    lowest, longer = checks["lowest_cosine"], checks.get("longer_than_the_model_reads", 0)
    if "median_cosine" in checks:
        yield f"cosine of the same texts: median {checks['median_cosine']:.4f}, lowest {lowest:.4f}"
        yield f"by {checks['texts']:,} texts, when it was adopted"
    else:
        common = f"{checks['overlap@10']:.1%} of the nearest ten in common"
        yield f"cosine of the same texts: mean {checks['mean_cosine']:.4f}, lowest {lowest:.4f}; {common}"
        yield f"by {checks['chunks']:,} chunks and {checks['questions']:,} recent questions"
    if longer:
        yield f"{longer:,} texts are longer than the model reads: their vectors are of their beginnings"


def _steer(collection: str, as_json: bool, change: Callable[[Whimbrel, Move], Move]) -> None:
    with opened() as whimbrel:
        changed = change(whimbrel, whimbrel.move(collection))
        _show(whimbrel.move_dict(changed), as_json)


def _check_owned(whimbrel: Whimbrel) -> None:
    """Raises `Conflict` where nobody would do what is asked for."""
    if not owned_elsewhere(whimbrel):
        raise Conflict(
            "--detach needs a running owner, and there is none. Nothing was begun.",
            "Start `whimbrel owner` or `whimbrel serve`; or leave --detach out, and the command does it.",
        )


def _wait(whimbrel: Whimbrel, move: Move, job: Job, as_json: bool, *, detach: bool = False) -> dict[str, Any]:
    """Until the job has ended, then show the move, and return it. Status 1 where the move has failed."""
    if detach:
        found = whimbrel.move_dict(move)
        _show(found, as_json)
        return found
    finished(whimbrel, job, Progress(quiet=as_json))
    found = whimbrel.move_dict(whimbrel.move_by_id(move.id))
    _show(found, as_json)
    if found["state"] == "failed":
        raise typer.Exit(1)
    return found


def _show(move: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out.data(move)
        return
    paused = " (paused)" if move["paused"] else ""
    out.styled(f"{out.bold(move['collection'])}: move {move['id']} is {out.bold(move['state'])}{paused}")
    for side in ("source", "target"):
        for view in move[side]:
            lag = f", {view['lag']:,} changes behind" if view["lag"] and view["state"] != "retired" else ""
            model = f", {view['space']['embedder']}" if view["space"] else ""
            out.line(f"  {side}: view {view['id']} ({view['kind']}, {view['state']}{lag}) {view['uri']}{model}")
            if view["error"]:
                out.line(f"    {view['error']}")
    rows = move["rows"]
    if move["seconds_left"] is not None:
        pace = f"{move['rows_per_s']:,.0f}/s, {move['seconds_left']:,.0f} s left"
        out.line(f"  {rows['done']:,} of {rows['total']:,} rows, {pace}")
    checks = move["checks"]
    for view in checks.get("views", []):
        verdict = "equal" if view["equal"] else "DIFFERENT"
        out.line(
            f"  verified: view {view['view']}, {view['rows']:,} rows at position {view['position']:,}: {verdict} "
            f"(missing {view['missing']:,}, extra {view['extra']:,}, different {view['different']:,})"
        )
        for what, ids in view["examples"].items():
            if ids:
                out.line(f"    {what}: {', '.join(ids)}{' ...' if view[what] > len(ids) else ''}")
    found = checks.get("search")
    if found:
        for side in ("target", "source"):
            one = found[side]
            said = one.get("error") or f"recall@10 {one['recall@10']:.3f}, p50 {one['p50_ms']:.1f} ms"
            out.line(f"  searched {side}: {said}")
    _show_quality(checks.get("quality"))
    if move["rejects"]:
        out.line(f"  rejected: {move['rejects']:,} rows; `whimbrel move report {move['collection']}` names them")
    if move["error"]:
        out.line(f"  {move['error']}")
    elif checks.get("said") and not move["accepted"]:
        out.line(f"  {checks['said']}")
    said = move["hint"] or _NEXT.get(move["state"], "").format(name=move["collection"])
    if said:
        out.note(said)


def _show_quality(found: Mapping[str, Any] | None, before: str = "source", after: str = "target") -> None:
    if not found:
        return
    if "error" in found:
        out.line(f"  judged queries: {found['error']}")
        return
    about = f"{found['queries']:,} queries of {found['name']}, {found['matched']:,} of {found['documents']:,} documents"
    out.line(f"  judged by {about}:")
    for mode, of in found["modes"].items():
        for metric in ("ndcg@10", "recall@100"):
            one = of[metric]
            out.line(
                f"    {mode:<6} {metric:<10} {before} {one['before']:.4f}, {after} {one['after']:.4f} "
                f"({one['difference']:+.4f}, p {one['p']:.3f})"
            )


_NEXT = {
    "ready": "Next: `whimbrel move switch {name}`.",
    "switched": "Searches read the target. `whimbrel move rollback {name}` goes back; `move finalise` gives that up.",
    "rolled_back": "Searches read the old view. `whimbrel move switch {name}` switches again; `move abort` ends it.",
    "finalised": "The old view's data is kept: `whimbrel view drop` removes it.",
}
