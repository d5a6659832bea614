"""`whimbrel config`."""

from __future__ import annotations

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import settings
from whimbrel.cli.options import AsJson

app = typer.Typer(name="config", help="The configuration.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The configuration."""


@app.command()
def show(as_json: AsJson = False) -> None:
    """Show every setting with its value and where that came from. Secrets are masked."""
    from whimbrel.config import explain

    found = settings()
    explained = explain(found)
    if as_json:
        listed = [
            {
                "key": one.key,
                "value": one.value_shown,
                "source": one.source,
                "environment": one.env,
                "description": one.description,
            }
            for one in explained
        ]
        out.data({"file": str(found.config_file) if found.config_file else None, "settings": listed})
        return
    out.line(f"configuration file: {found.config_file or 'none'}")
    out.table(["key", "value", "from"], [[one.key, one.value_shown, one.source] for one in explained])
