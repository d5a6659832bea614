"""The conformance suite of stores. See `whimbrel.testing` for how it is used."""

from __future__ import annotations

from whimbrel.testing.filtering import Filtering
from whimbrel.testing.living import Living
from whimbrel.testing.rows import Rows
from whimbrel.testing.searching import Searching
from whimbrel.testing.surviving import Surviving


class StoreConformance(Rows, Searching, Filtering, Living, Surviving):
    """What every store promises. A subclass gives `name` and the fixture `new_place`; its tests are async, so pytest
    runs with `asyncio_mode = auto`."""
