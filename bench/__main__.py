"""Run the benches: `python -m bench [NAME ...] [--quick] [--keep DIR]`. Without a name, all of them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from bench.figures import about_the_machine

NAMES = (
    *("ingest", "lexical", "serve", "search", "streaming", "formats", "chunking"),
    *("retrieval", "citations", "abstention", "growth", "stores", "move", "move_growth", "move_latency"),
    *("copying", "exchange", "adopt", "caches", "models", "model_serving"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Whimbrel on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="smaller: minutes, not an hour; its figures are no claim")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the searched home here, and use it again")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no bench {unknown[0]!r}; there are {', '.join(NAMES)}")
    # As installed: without its byte code cached, each process compiles what it imports.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    about_the_machine()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="whimbrel-bench-") as made:
        folder = arguments.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.names or NAMES:
            figures = import_module(f"bench.{name}").run(folder, quick=arguments.quick)
            failed += sum(figure.ok is False for figure in figures)
    return 1 if failed and not arguments.quick else 0


if __name__ == "__main__":
    raise SystemExit(main())
