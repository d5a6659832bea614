"""Qdrant's local mode passes the suite that every store passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from whimbrel.testing import Place, StoreConformance

pytest.importorskip("qdrant_client")
pytestmark = pytest.mark.slow


class TestQdrantFolder(StoreConformance):
    name = "Qdrant folder"
    selective_rows = 10_000

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Place]:
        return lambda: Place("qdrant:views", tmp_path_factory.mktemp("qdrant"))
