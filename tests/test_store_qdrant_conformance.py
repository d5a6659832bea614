"""Qdrant passes the suite that every store passes: its local mode, and what stands in for a server (there is no
package of the real one), which holds every request to the schema of Qdrant's API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

pytest.importorskip("qdrant_client")

from qdrant_server import QdrantServer
from whimbrel.testing import Place, StoreConformance
from whimbrel.testing.base import StoreSuite

# Local mode compares every row with every filter in Python, and has no limit of rows: few are enough.

pytestmark = pytest.mark.slow


class TestQdrantFolder(StoreConformance):
    name = "Qdrant folder"
    selective_rows = 2_000
    batch_rows = 3_000

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Place]:
        return lambda: Place("qdrant:views", tmp_path_factory.mktemp("qdrant"))


class Api(StoreSuite):
    name = "Qdrant API (stand-in)"
    selective_rows = 2_000
    batch_rows = 3_000

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[QdrantServer]:
        server = QdrantServer()
        server.start()
        yield server
        server.stop()

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, server: QdrantServer) -> Callable[[], Place]:
        numbers = count()
        return lambda: Place(f"{server.uri}/place{next(numbers)}", Path())


@pytest.mark.soak
class TestQdrantApi(Api, StoreConformance):
    """Behind the stand-in is local mode once more."""
