"""The child process of `maintain`."""

import sys

from whimbrel.stores.lancedb.maintain import main

raise SystemExit(main(sys.argv[1:]))
