"""The commands, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whimbrel import __version__
from whimbrel.cli import (
    adopting,
    archives,
    asking,
    collections,
    config,
    conversations,
    copying,
    documents,
    evaluate,
    exporting,
    ingesting,
    jobs,
    models,
    moving,
    out,
    passages,
    searching,
    serving,
    state,
    usage,
    views,
)
from whimbrel.cli.opening import given

app = typer.Typer(
    name="whimbrel",
    help="Documents in, passages and cited answers out. Everything is kept in one folder, the home.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        out.line(f"whimbrel {__version__}")
        raise typer.Exit


@app.callback()
def options(
    home: Annotated[Path | None, typer.Option(metavar="DIR", help="The home, instead of WHIMBREL_HOME.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The configuration file, instead of whimbrel.yaml.")
    ] = None,
    profile: Annotated[str | None, typer.Option(metavar="NAME", help="The profile to start from.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log everything to stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    given.home, given.config, given.profile, given.verbose = home, config_file, profile, verbose


for command in (
    ingesting.ingest,
    searching.search,
    asking.ask,
    state.status,
    usage.usage,
    serving.serve,
    serving.owner,
    models.models,
    archives.backup,
    archives.restore,
    exporting.export,
    copying.copy,
    adopting.inspect,
    adopting.adopt,
    state.doctor,
):
    app.command()(command)
app.command("open")(passages.open_)
app.command("import")(exporting.import_)
app.command("eval")(evaluate.evaluate)
for group in (documents, collections, conversations, views, moving, jobs, config):
    app.add_typer(group.app, rich_help_panel=None)
