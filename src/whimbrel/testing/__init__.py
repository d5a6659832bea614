"""Public conformance suites: an adapter is done when it passes. Needs `pip install 'whimbrel[testing]'`.

from whimbrel.testing import Place, StoreConformance

class TestMyStore(StoreConformance):
    name = "mine"

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory):
        return lambda: Place("mine:folder", tmp_path_factory.mktemp("mine"), opener="my_store:MyStore")
"""

import pytest

_SUITES = ("place", "filtering", "living", "rows", "searching", "surviving")
pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in _SUITES))

from whimbrel.testing.place import Place, rows_of, unit_vectors  # noqa: E402
from whimbrel.testing.reference import passes  # noqa: E402
from whimbrel.testing.store import StoreConformance  # noqa: E402

__all__ = ["Place", "StoreConformance", "passes", "rows_of", "unit_vectors"]
