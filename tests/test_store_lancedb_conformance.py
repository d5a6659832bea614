"""LanceDB passes the suite that every store passes."""

from __future__ import annotations

import pytest

from whimbrel.testing import Place, StoreConformance
from whimbrel.testing.base import NewPlace


class TestLanceDB(StoreConformance):
    name = "LanceDB"

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
        return lambda: Place("lancedb:views", tmp_path_factory.mktemp("lancedb"))
