"""`whimbrel export` and `whimbrel import`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson
from whimbrel.cli.progress import Progress
from whimbrel.cli.waiting import finished


def export(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or is empty.")],
    as_json: AsJson = False,
) -> None:
    """Write a collection to a folder of Parquet files, as it is at one moment. The home may be in use."""
    with opened() as whimbrel:
        progress = Progress(quiet=as_json)
        try:
            report = whimbrel.export(collection, folder, progress=progress.paced)
        finally:
            progress.end()
    if as_json:
        out.data(
            {
                "folder": str(report.path),
                "collection": report.collection,
                "position": report.position,
                "documents": report.documents,
                "chunks": report.chunks,
                "vectors": report.vectors,
                "bytes": report.bytes,
                "files": list(report.files),
                "seconds": report.seconds,
            }
        )
        return
    out.line(
        f"{report.path}: {report.documents:,} documents, {report.chunks:,} chunks, {report.vectors:,} vectors, "
        f"{report.bytes:,} bytes, at position {report.position:,}, in {report.seconds:.1f} s."
    )


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `whimbrel export` wrote.")],
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", metavar="NAME", help="The new collection; else as it was called."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait for the views; the owner builds them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a new collection of an exported one. Its vectors come with it: nothing is embedded again."""
    with opened() as whimbrel:
        progress = Progress(quiet=as_json)
        try:
            job = whimbrel.start_import(folder, collection, progress=progress.paced)
        finally:
            progress.end()
        progress = Progress(quiet=as_json)
        result = finished(whimbrel, job, progress, wait="job" if no_wait else "all")
    if as_json:
        out.data(result)
        return
    out.line(
        f"{result['collection']}: {result['documents']:,} documents, {result['chunks']:,} chunks, "
        f"{result['vectors']:,} vectors, in {result['seconds']:.1f} s."
    )
    _tell_model(result)
    if no_wait:
        out.note("The next owner builds the views: `whimbrel serve`, or the next ingest.")


def _tell_model(result: Mapping[str, Any]) -> None:
    name = result["collection"]
    if result.get("embedder") == "none":
        out.note(
            "Its vectors came without the model that made them: it is searched by words. When the model is there, "
            f"`whimbrel move start {name} --embedder MODEL --compatible` measures that it fits, and search by meaning "
            "begins; with another model, the same without --compatible embeds the texts anew."
        )
    elif "declared" in result:
        out.note(
            f"{result['embedder']} serves its vectors, which another model made: so it was declared where it was "
            f"exported. `whimbrel move status {name}` shows what was measured."
        )
