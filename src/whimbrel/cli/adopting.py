"""`whimbrel inspect` and `whimbrel adopt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.copying import MetricName
from whimbrel.cli.opening import log_to_stderr, opened, settings
from whimbrel.cli.options import AsJson
from whimbrel.cli.progress import Progress

URI_HELP = "DATABASE_URI, or DATABASE_URI/COLLECTION for one collection."


def inspect(store: Annotated[str, typer.Argument(metavar="STORE_URI", help=URI_HELP)], as_json: AsJson = False) -> None:
    """Show what is in a database that any program filled. It is not written to."""
    said = settings()
    log_to_stderr(said, quiet=True)
    from whimbrel.adopt.inspecting import look_into
    from whimbrel.home import Home

    found = look_into(store, Home(said.home), Path.cwd())
    if as_json:
        out.data(found)
        return
    out.fields({"store": found["store"]})
    for collection in found["collections"]:
        out.line()
        _show(collection)
    if not found["collections"]:
        out.line("There is no collection with vectors in it.")


def _show(collection: Mapping[str, Any]) -> None:
    if "error" in collection:
        out.styled(f"{out.bold(collection['name'])}: {out.shown(collection['error'])}")
        out.note(f"  {collection['hint']}")
        return
    metric = collection["metric"] or "no metric said"
    out.styled(f"{out.bold(collection['name'])}: {collection['count']:,} rows, {out.shown(metric)}")
    for vector in collection["vectors"]:
        out.line(f"  vector {vector['name']}: {_sized(vector)}")
    out.line(f"  text: {collection['text'] or 'in the fields, if anywhere'}")
    for name, kind in collection["fields"].items():
        out.line(f"  {name}: {kind}")
    for note in collection["notes"]:
        out.note(f"  Note: {note}.")


def _sized(vector: Mapping[str, Any]) -> str:
    if vector["kind"] == "sparse":
        return "sparse"
    several = ", several a row" if vector["kind"] == "multi" else ""
    return f"{vector['dimensions']:,} dimensions{several}"


def adopt(
    source: Annotated[str, typer.Argument(metavar="STORE_URI/COLLECTION", help="A collection of a database.")],
    collection: Annotated[str, typer.Option("--collection", "-c", metavar="NAME", help="The name that it gets here.")],
    embedder: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What made its vectors; `none`: search by words alone.")
    ] = None,
    text_field: Annotated[str, typer.Option(metavar="FIELD", help="Where a row's text is.")] = "",
    id_field: Annotated[str, typer.Option(metavar="COLUMN", help="The source's column of ids.")] = "",
    title_field: Annotated[str, typer.Option(metavar="FIELD", help="Where its title is.")] = "",
    uri_field: Annotated[str, typer.Option(metavar="FIELD", help="Where it says what it comes from.")] = "",
    document_field: Annotated[
        str, typer.Option(metavar="FIELD", help="Where it names the document that it is a part of.")
    ] = "",
    vector_field: Annotated[str, typer.Option(metavar="NAME", help="Which of several vectors is searched.")] = "",
    metric: Annotated[
        MetricName | None, typer.Option(help="What the vectors are compared by, where the source does not say.")
    ] = None,
    language: Annotated[str, typer.Option(metavar="CODE", help="The language of its words, or `auto`.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Search a database that another program filled as a collection, without embedding it again.

    The source is never written to. Run it again to take in what is new there.
    """
    progress = Progress(quiet=as_json)
    with opened() as whimbrel:
        begun = whimbrel.start_adopt(
            source,
            collection,
            embedder=embedder,
            text_field=text_field,
            id_field=id_field,
            title_field=title_field,
            uri_field=uri_field,
            document_field=document_field,
            vector_field=vector_field,
            metric=metric.value if metric else None,
            language=language,
        )
        from whimbrel.service.adopting import described

        told = described(begun)
        if not as_json:
            _tell_begun(told, collection)
        try:
            done = whimbrel.finish(
                begun.job,
                wait="all",
                on_progress=lambda job: progress.paced(
                    "adopting", int(job.progress.get("rows", 0)), int(job.progress.get("of", 0))
                ),
            )
        except KeyboardInterrupt:
            progress.end()
            out.note("What was adopted stays: the owner, or the same command, goes on.")
            raise
        finally:
            progress.end()
    if as_json:
        out.data({**told, **done, "collection": collection})
        return
    _tell_done(done, collection)


def _tell_begun(told: Mapping[str, Any], collection: str) -> None:
    out.line(f"{told['uri']} -> {collection}: {told['dimensions']:,} dimensions, {told['metric'] or 'no metric said'}.")
    from whimbrel.adopt.fields import Fields

    for said in Fields.read(told["fields"]).said():
        out.line(f"  {said}")
    fit = told["fit"]
    if fit:
        out.line(
            f"  embedder {told['embedder']}: median cosine {fit['median_cosine']:.4f} of {fit['texts']} texts "
            f"embedded again (lowest {fit['lowest_cosine']:.4f})"
        )
    elif told["embedder"] != "none":  # declared since
        out.line(f"  embedder {told['embedder']}: `whimbrel move status {collection}` shows what was measured")
    else:
        out.line("  no embedder (`none`): searched by words alone; the vectors are kept for a model that comes later")
        way = f"whimbrel move start {collection} --embedder MODEL --compatible"
        out.note(f"  When it is there: `{way}` measures that it fits.")
    for note in told["notes"]:
        out.note(f"  Note: {note}.")
    if fit.get("longer_than_the_model_reads"):
        out.note(
            f"  Note: {fit['longer_than_the_model_reads']} texts of the sample are longer than the model reads: their "
            "vectors are of their beginnings."
        )


def _tell_done(done: Mapping[str, Any], collection: str) -> None:
    out.line(f"  {done['adopted']:,} of {done['rows']:,} rows adopted, {done['rejected']:,} rejected.")
    for reason in done["examples"]:
        out.line(f"    {reason}")
    if done["cut_at"]:
        out.note(
            f"  Note: {done['cut_texts']:,} texts have exactly {done['cut_at']:,} characters, and none is longer: the "
            "program that wrote them seems to have cut them there."
        )
    if done["changed"]:
        out.line(f"  {done['changed']:,} of them had another text before.")
    if done["kept_vectors"]:
        out.note(
            f"  Note: {done['kept_vectors']:,} rows have another vector than before, and the same text: after a move, "
            "the one that was adopted counts."
        )
    if done["gone"]:
        out.note(
            f"  Note: {done['gone']:,} rows that were adopted are not in the source any more: they are found by words, "
            "until their documents are deleted."
        )
    if done["doubled"]:
        out.note(f"  Note: {done['doubled']:,} rows have an id that another has: the first of each counts.")
    if done["other_vectors"]:
        out.note(
            f"  Note: {done['other_vectors']:,} rows have the text of another row and another vector: after a move, "
            "the first one's counts."
        )
    out.note(f'Ask it: whimbrel ask -c {collection} "..."; take it to a store of its own: whimbrel move start')
