"""`whimbrel config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whimbrel.cli import out
from whimbrel.cli.opening import settings
from whimbrel.cli.options import AsJson
from whimbrel.errors import ConfigError, Conflict

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


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other program's YAML.")],
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there; to stdout unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Translate another program's configuration into a whimbrel.yaml, and name what has no counterpart.

    Keys and tokens are never copied.
    """
    from whimbrel.config.foreign import read_leaves
    from whimbrel.config.translate import Became, as_yaml, translate

    made = translate(read_leaves(file))
    text = as_yaml(made, file.name)
    if to is not None:
        _write(to, text)
    if as_json:
        listed = [line.as_dict() for line in made.lines]
        out.data({"file": str(to) if to else None, "settings": made.settings, "lines": listed})
        return
    for line in made.lines:
        mark = "->" if line.became is Became.TAKEN else f"{line.became}:"
        out.note(f"{file.name}:{line.line} {line.key} {mark} {line.said}")
    out.note(f"{len(made.settings)} settings" + (f" in {to}." if to else "."))
    if to is None:
        out.line(text.rstrip("\n"))


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Conflict(f"{path} is there already, and was left as it is.", "Name another file: --out.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", "Name another file: --out.") from error
