"""`whimbrel backup` and `whimbrel restore`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson
from whimbrel.cli.progress import Progress

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel

File = Annotated[Path, typer.Argument(metavar="FILE", help="The archive.")]


def backup(
    file: File,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if there is one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save the catalog, as it is at one moment, to one archive. The home may be in use."""
    with opened() as whimbrel:
        progress = Progress(quiet=as_json)
        report = whimbrel.backup(file, overwrite=overwrite, progress=progress.rows)
        progress.end()
    if as_json:
        out.data(
            {
                "file": str(report.path),
                "bytes": report.bytes,
                "collections": report.collections,
                "rows": dict(report.rows),
            }
        )
    else:
        out.line(f"{report.path}: {report.bytes:,} bytes, {report.collections} collections.")


def restore(
    file: File,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not build the views now; the next owner does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fill an empty home from an archive, and build its views. Refused while another process owns the home."""
    with opened() as whimbrel:
        progress = Progress(quiet=as_json)
        report = whimbrel.restore(file, progress=progress.rows)
        progress.end()
        if not no_wait:
            _build_views(whimbrel, report.collections, as_json)
    if as_json:
        out.data(
            {
                "created_at": report.created_at,
                "whimbrel": report.whimbrel,
                "collections": list(report.collections),
                "rows": dict(report.rows),
                "requeued": report.requeued,
                "views": "queued" if no_wait else "built",
            }
        )
        return
    names = ", ".join(report.collections) or "none"
    out.line(f"Restored what was saved at {report.created_at}. Collections: {names}.")
    if no_wait:
        out.note("The next owner builds the views: `whimbrel serve`, or the next ingest.")


def _build_views(whimbrel: Whimbrel, collections: Sequence[str], as_json: bool) -> None:
    for name in collections:
        progress = Progress(quiet=as_json)
        try:
            whimbrel.wait_for_head(name, on_lag=progress.lag)
        except KeyboardInterrupt:
            progress.end()
            out.note("The record is restored. The next owner goes on building the views.")
            raise typer.Exit(130) from None
        finally:
            progress.end()
