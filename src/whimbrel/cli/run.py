"""Running one command line to its exit status: every error is told in one way."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import cast

import typer

from whimbrel.cli import out
from whimbrel.cli.app import app
from whimbrel.errors import WhimbrelError
from whimbrel.memory import bound_memory

# The one class of its family that typer exports; its base is the error of every wrong command line.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130


def run(args: Sequence[str]) -> int:
    """0 if all went well, 2 where the request is wrong, 130 when interrupted, 1 for everything else.

    With `--json` among the arguments, an error is also told on stdout, as one line of JSON.
    """
    bound_memory()
    as_json = "--json" in args
    try:
        status = app(args=list(args), prog_name="whimbrel", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except WhimbrelError as error:
        return out.failed(error, as_json=as_json)
    except UsageError as error:
        error.show()
        if as_json:
            message = error.format_message()
            out.data({"error": "UsageError", "message": message, "hint": "whimbrel COMMAND --help", "status": 400})
        return USAGE_EXIT
    except KeyboardInterrupt:
        out.note("Interrupted. What was committed stays.")
        return INTERRUPTED_EXIT
    except Exception as error:  # a bug: told in the same form, with the trace that a report of it needs
        traceback.print_exc()
        out.note("This is a bug of Whimbrel: please report it with the lines above. What was committed stays.")
        if as_json:
            out.data({"error": type(error).__name__, "message": "A bug; stderr has it.", "hint": "", "status": 500})
        return 1
