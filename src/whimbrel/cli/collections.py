"""`whimbrel collections`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import opened
from whimbrel.cli.options import AsJson, Chunking
from whimbrel.cli.progress import Progress
from whimbrel.cli.waiting import finished

if TYPE_CHECKING:
    from whimbrel.catalog.collections import Collection

app = typer.Typer(name="collections", help="Make, rename and delete collections.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The collection.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List collections."""
    with opened() as whimbrel:
        found = whimbrel.status()["collections"]
    if as_json:
        out.data({"collections": found})
        return
    rows = [
        [one["name"], sum(one["documents"].values()) - one["documents"]["gone"], one["chunks"], one["analysed_as"]]
        for one in found
    ]
    out.table(["collection", "documents", "chunks", "language"], rows)


@app.command()
def create(
    name: Name,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="Of its texts, such as de: stop words and stems. auto: found out.")
    ] = "auto",
    chunking: Chunking = None,
    as_json: AsJson = False,
) -> None:
    """Make an empty collection. `ingest` also makes those that are missing."""
    with opened() as whimbrel:
        made = whimbrel.create_collection(name, language=language, chunking=chunking)
    _told(made, as_json, f"Made {made.name!r}.")


@app.command()
def rename(
    name: Name, to: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")], as_json: AsJson = False
) -> None:
    """Give a collection another name. Nothing is copied."""
    with opened() as whimbrel:
        made = whimbrel.rename_collection(name, to)
    _told(made, as_json, f"{name!r} is {made.name!r} now.")


@app.command()
def language(
    name: Name,
    code: Annotated[str, typer.Argument(metavar="CODE", help="Such as de, or auto: found out from its documents.")],
    as_json: AsJson = False,
) -> None:
    """Analyse a collection's words in another language. A lexicon in it is built beside the old one by the owner."""
    with opened() as whimbrel:
        made = whimbrel.set_language(name, code)
    _told(made, as_json, f"{name!r} is to be analysed as {made.language!r}; the owner builds its lexicon anew.")


@app.command()
def delete(name: Name, as_json: AsJson = False) -> None:
    """Delete a collection with its documents and views. Nobody is asked; a backup is the way back."""
    with opened() as whimbrel:
        job = whimbrel.delete_collection(name)
        result = finished(whimbrel, job, Progress(quiet=as_json))
    if as_json:
        out.data({"collection": name, **result})
    else:
        out.line(f"Deleted {name!r}: {result.get('documents', 0):,} documents, {result.get('views', 0)} views.")


def _told(made: Collection, as_json: bool, said: str) -> None:
    if as_json:
        found: dict[str, Any] = {"name": made.name, "language": made.language, "epoch": made.epoch, "head": made.head}
        out.data(found)
    else:
        out.line(said)
