"""`whimbrel eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import log_to_stderr, settings
from whimbrel.cli.options import AsJson
from whimbrel.cli.progress import Progress

if TYPE_CHECKING:
    from whimbrel.evaluation import Comparison

ALL_MODES = "hybrid,dense,lexical"


def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(metavar="BEIR_DIR", help="Holds corpus.jsonl, queries.jsonl, and qrels.tsv or qrels/test.tsv."),
    ],
    modes: Annotated[str, typer.Option(metavar="MODE,...", help="The modes to evaluate.")] = ALL_MODES,
    queries: Annotated[
        int | None, typer.Option(metavar="N", help="Only so many queries, drawn always alike; else all.")
    ] = None,
    min_grade: Annotated[
        int, typer.Option(metavar="GRADE", help="The lowest grade that recall and MRR take as relevant.")
    ] = 1,
    reranker: Annotated[
        str | None, typer.Option(metavar="PROVIDER:MODEL", help="Rerank with this one; `none` for no reranker.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--compare", metavar="A.json", help="Test the difference from what --json printed before."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a judged collection is searched, in a temporary home."""
    found = settings() if reranker is None else settings(reranker=reranker)
    log_to_stderr(found, quiet=True)
    from whimbrel import evaluation

    before = evaluation.read_report(against) if against is not None else None
    progress = Progress(quiet=as_json)
    try:
        result = evaluation.evaluate(
            folder,
            modes=[mode.strip() for mode in modes.split(",") if mode.strip()],
            queries=queries,
            min_grade=min_grade,
            settings=found,
            on_progress=progress.step,
        )
    finally:
        progress.end()
    comparison = evaluation.compare(before, result.per_query) if before is not None else None
    report = result.as_dict()
    if as_json:
        out.data({**report, "compared": {"with": str(against), **comparison.as_dict()}} if comparison else report)
        return
    _tell(report)
    if comparison is not None:
        out.line()
        _tell_comparison(comparison)


def _tell(report: dict[str, Any]) -> None:
    out.line(f"{report['collection']}: {report['documents']:,} documents, {report['queries']:,} queries.")
    metrics = list(next(iter(report["modes"].values())))
    rows = [[mode, *(f"{of[metric]:.4f}" for metric in metrics)] for mode, of in report["modes"].items()]
    out.table(["mode", *metrics], rows)


def _tell_comparison(comparison: Comparison) -> None:
    rows = [
        [
            mode,
            metric,
            f"{one.before:.4f}",
            f"{one.after:.4f}",
            f"{one.difference:+.4f}",
            f"{one.low:+.4f} to {one.high:+.4f}",
            f"{one.p:.4f}",
        ]
        for mode, of in comparison.modes.items()
        for metric, one in of.items()
    ]
    out.table(["mode", "metric", "before", "after", "difference", "95 % interval", "p"], rows)
    if comparison.left_out:
        out.note(f"{comparison.left_out:,} queries are in one of the two only, and were left out.")
