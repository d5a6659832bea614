"""`whimbrel ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson, Chunking, Collection, parsed
from whimbrel.cli.progress import Progress
from whimbrel.cli.waiting import finished, owned_elsewhere
from whimbrel.errors import BadInput

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel

FAILURES_SHOWN = 20
ALIKE_SHOWN = 3


def ingest(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    collection: Collection = "default",
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Your own id, for a single file.")] = None,
    meta: Annotated[
        str | None, typer.Option("--meta", metavar="JSON", help="Metadata of the documents, as a JSON object.")
    ] = None,
    wait: Annotated[
        Literal["lexical", "all"], typer.Option(help="Return when words find it (lexical), or when all views do.")
    ] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    allow_gone: Annotated[
        bool, typer.Option("--allow-gone", help="Remove vanished documents, however many they are.")
    ] = False,
    password: Annotated[
        list[str] | None,
        typer.Option("--password", metavar="TEXT", help="Of encrypted PDFs; may be given several times."),
    ] = None,
    chunking: Chunking = None,
    as_json: AsJson = False,
) -> None:
    """Take in files and folders; the collection is made if there is none.

    Unchanged files cost nothing, changed ones replace their own chunks, and what has gone from a folder is removed. A
    file that cannot be read is reported, and the others go on.
    """
    metadata = parsed(meta, "--meta", BadInput, """--meta '{"team": "search", "year": 2026}'""")
    if metadata is not None and not isinstance(metadata, dict):
        raise BadInput("--meta is not a JSON object.", """For example: --meta '{"team": "search"}'""")
    with opened() as whimbrel:
        if dry_run:
            _preview(whimbrel, paths, collection, id, metadata, as_json)
            return
        progress = Progress(quiet=as_json)
        job = whimbrel.start_ingest(
            paths,
            collection,
            id=id,
            metadata=metadata,
            allow_gone=allow_gone,
            passwords=password or (),
            chunking=chunking,
        )
        result = finished(whimbrel, job, progress, wait=wait)
        embedding = wait == "lexical" and not owned_elsewhere(whimbrel)
    _report(result, as_json)
    if embedding and result["chunks_added"]:
        out.note("Words find it now. It is embedded when an owner runs: `whimbrel serve`, or the next ingest.")
    taken = result["added"] + result["changed"] + result["unchanged"] + result["removed"]
    if result["failed"] and not taken:
        raise typer.Exit(1)


def _preview(
    whimbrel: Whimbrel, paths: list[Path], collection: str, id: str | None, metadata: Any, as_json: bool
) -> None:
    found = whimbrel.preview(paths, collection, id=id, metadata=metadata).as_dict()
    if as_json:
        out.data({"collection": collection, **found})
        return
    for sign, kind in (("+", "added"), ("~", "changed"), ("-", "removed"), ("!", "failed"), ("?", "skipped")):
        named = found["uris"].get(kind, [])
        for uri in named:
            out.line(f"{sign} {uri}")
        if found[kind] > len(named):
            out.line(f"{sign} ... and {found[kind] - len(named):,} more")
    out.line(
        f"Nothing was written. An ingest into {collection!r} would add {found['added']:,}, change "
        f"{found['changed']:,}, remove {found['removed']:,}, and leave {found['unchanged']:,} as they are."
    )
    if found["failed"]:
        out.line(f"{found['failed']:,} cannot be read.")
    if found["guarded"]:
        out.note("So many documents have vanished that it would stop instead of removing them; see --allow-gone.")


def _report(result: dict[str, Any], as_json: bool) -> None:
    for warning in result["warnings"][:FAILURES_SHOWN]:
        out.note(f"warning: {warning}")
    _report_failures(result)
    if as_json:
        out.data(result)
        return
    if not result["documents"] and not result["removed"]:
        out.line("There was no file to take in.")
        return
    told = [
        f"{result[name]:,} {name}" for name in ("added", "changed", "unchanged", "removed", "failed") if result[name]
    ]
    chunks = f"{result['chunks_added']:,} new chunks" if result["chunks_added"] else "no new chunks"
    out.line(f"{result['collection']}: {', '.join(told)}; {chunks}, {result['seconds']:.1f} s to read.")


def _report_failures(result: dict[str, Any]) -> None:
    """What failed for one reason together, so that no reason drowns among others."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for failure in result["failures"]:
        alike.setdefault((failure["error"], failure["reason"], failure["hint"]), []).append(failure["uri"])
    shown = 0
    for (error, reason, hint), uris in list(alike.items())[:FAILURES_SHOWN]:
        shown += len(uris)
        if len(uris) == 1:
            out.note(f"failed: {uris[0]}: {error}: {reason} {hint}".rstrip())
            continue
        out.note(f"failed: {len(uris)} documents: {error}: {reason} {hint}".rstrip())
        for uri in uris[:ALIKE_SHOWN]:
            out.note(f"    {uri}")
        if len(uris) > ALIKE_SHOWN:
            out.note(f"    ... and {len(uris) - ALIKE_SHOWN:,} more")
    if result["failed"] > shown:
        out.note(f"failed: {result['failed'] - shown:,} more.")
    if result["failed"] > 1:
        out.note("`whimbrel documents list --state failed` shows them all.")
