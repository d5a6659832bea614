"""The command line: parse, call the app, print. No logic.

Modules here import the app inside commands: `whimbrel --help` must not wait for a database library.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The command `whimbrel`. Ends the process with the exit status of the command or of its error."""
    from whimbrel.cli.run import run

    sys.exit(run(sys.argv[1:]))
