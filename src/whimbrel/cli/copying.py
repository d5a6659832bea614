"""`whimbrel copy`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import log_to_stderr, settings
from whimbrel.cli.options import AsJson
from whimbrel.cli.progress import Progress

if TYPE_CHECKING:
    from whimbrel.move.copy import CopyReport, Told
    from whimbrel.stores.foreign.resolve import Address

FROM_HELP = "DATABASE_URI/COLLECTION; `*` for all collections, quoted for the shell."


class Verify(StrEnum):
    FULL = "full"
    SAMPLE = "sample"
    NONE = "none"


class MetricName(StrEnum):
    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


def copy(
    source: Annotated[str, typer.Argument(metavar="FROM_URI/COLLECTION", help=FROM_HELP)],
    target: Annotated[str, typer.Argument(metavar="TO_URI/COLLECTION", help="As FROM; `*` keeps the names.")],
    verify: Annotated[Verify, typer.Option(help="Compare every row, a sample, or nothing.")] = Verify.FULL,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a copy that did not end.")] = False,
    cold: Annotated[
        bool, typer.Option("--cold", help="Copy a Chroma folder's files, or from Qdrant server to server by snapshots.")
    ] = False,
    id_: Annotated[str, typer.Option("--id", metavar="COLUMN", help="The source's column of ids.")] = "",
    text: Annotated[str, typer.Option(metavar="COLUMN", help="The source's column of texts.")] = "",
    vector: Annotated[str, typer.Option(metavar="COLUMN", help="The source's column of vectors.")] = "",
    metric: Annotated[
        MetricName | None, typer.Option(help="What the vectors are compared by, where the source does not say.")
    ] = None,
    allow_gone: Annotated[
        bool, typer.Option("--allow-gone", help="Remove rows that have vanished from the source, however many.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy collections from one database to another, and compare every row. The source is not written to."""
    found = settings()
    log_to_stderr(found, quiet=True)
    from whimbrel.adopt import unnamed
    from whimbrel.home import Home
    from whimbrel.move.copy import Options
    from whimbrel.stores.foreign.base import Chosen
    from whimbrel.stores.foreign.resolve import parse
    from whimbrel.stores.metrics import Metric

    here, there = unnamed.parse(source, Path.cwd()), parse(target)
    chosen = Chosen(id_, text, vector, Metric(metric) if metric else None)
    options = Options(verify=verify.value, resume=resume, chosen=chosen, allow_gone=allow_gone)
    progress = Progress(quiet=as_json)
    try:
        if cold:
            _copy_cold(here, there, progress, as_json)
            return
        holds = _copy(here, there, options, Home(found.home).copying, progress, as_json)
    except KeyboardInterrupt:
        progress.end()
        out.note("What was copied stays: the same command with --resume goes on.")
        raise
    finally:
        progress.end()
    if not holds:
        raise typer.Exit(1)


def _copy(here: Address, there: Address, options: object, states: Path, progress: Progress, as_json: bool) -> bool:
    import asyncio

    from whimbrel.adopt.unnamed import noticed
    from whimbrel.move.copy import CopyReport, Options, copy_all

    assert isinstance(options, Options)
    if here.scheme == "chroma" and there.scheme.startswith("chroma"):
        out.note(
            "To bring all of a Chroma folder to a new place, copying its files is exact and quicker: "
            "`whimbrel copy --cold 'chroma:PATH/*' 'chroma:NEW/*'`, then `chroma run --path NEW`."
        )
    if here.scheme.startswith("qdrant+") and there.scheme.startswith("qdrant+"):
        out.note("From Qdrant server to server, `--cold` carries snapshots, which have the index too.")

    def told(report: Told) -> None:
        progress.end()
        if isinstance(report, CopyReport):
            if not as_json:
                _tell(report)
            return
        error = report.error
        out.note(f"{report.source} -> {report.target}: did not go. {error.code}: {error.message}")
        if error.hint:
            out.note(f"  {error.hint}")

    async def copied() -> list[Told]:
        async with noticed(here, Path.cwd()):
            return await copy_all(
                here, there, options, base=Path.cwd(), states=states, on_step=progress.paced, on_report=told
            )

    reports = asyncio.run(copied())
    holds = all(report.holds for report in reports)
    gone = sum(isinstance(report, CopyReport) for report in reports)
    if gone < len(reports):
        out.note(f"{gone:,} of {len(reports):,} collections were copied; what the others need is said above.")
    if as_json:
        out.data({"holds": holds, "collections": [report.as_dict() for report in reports]})
    return holds


def _copy_cold(here: Address, there: Address, progress: Progress, as_json: bool) -> None:
    import asyncio

    from whimbrel.move.copy import copy_cold

    report = asyncio.run(copy_cold(here, there, base=Path.cwd(), on_step=progress.paced))
    progress.end()
    if as_json:
        out.data(report.as_dict())
        return
    rows = ", ".join(f"{name} ({rows:,} rows)" for name, rows in report.collections.items()) or "no collection"
    out.line(f"{report.files:,} files, {report.bytes:,} bytes, each read back: {rows}.")
    if there.scheme == "chroma":
        out.note(f"Serve them: chroma run --path {report.target}")


def _tell(report: CopyReport) -> None:
    verified = report.verified
    metric = report.metric or "no metric said"
    out.line(f"{report.source} -> {report.target}: {report.rows:,} rows of {report.dimensions:,} dimensions, {metric}.")
    out.line(
        f"  {report.written:,} written, {report.unchanged:,} as they were, {report.removed:,} removed, "
        f"{report.rejected:,} rejected, in {report.seconds:,.1f} s."
    )
    if verified.mode == "none":
        out.line("  Not verified.")
    else:
        exactly = "bit for bit" if not verified.tolerance else f"vectors within {verified.tolerance:g} of their length"
        share = "every row" if verified.mode == "full" else f"{verified.rows:,} rows, drawn with seed {verified.seed}"
        said = f"{verified.missing:,} missing, {verified.extra:,} too many, {verified.differing:,} differ"
        out.line(f"  Verified, all ids and {share}, {exactly}: {'the same' if verified.holds else said}.")
        for id_, what in verified.examples.items():
            out.line(f"    {id_}: {what}")
    for note in report.notes:
        out.note(f"  Note: {note}.")
    if report.source_changed:
        out.note("  The source was written to meanwhile: the same command brings the changes over.")
    if report.rejected:
        out.note(f"  Rows that cannot go, with the reasons: {report.state}/rejects.jsonl")
