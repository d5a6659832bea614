"""Milvus passes the suite that every store passes: Milvus Lite, and behind a server with a database for each place."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from milvus_server import MilvusServer
from whimbrel.testing import Place, StoreConformance
from whimbrel.testing.base import StoreSuite
from whimbrel.testing.surviving import Surviving

pymilvus = pytest.importorskip("pymilvus")
pytestmark = pytest.mark.slow

NUMBERS = count()
"""Of databases: the server outlives the classes, whose tests may run in several parts."""


class TestMilvusLite(StoreConformance):
    name = "Milvus Lite"
    selective_rows = 10_000
    batch_rows = 3_000

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Place]:
        pytest.importorskip("milvus_lite")
        return lambda: Place("milvus:views.db", tmp_path_factory.mktemp("milvus"))


class Server(StoreSuite):
    name = "Milvus server"
    batch_rows = 3_000

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, milvus_server: MilvusServer) -> Callable[[], Place]:
        def make() -> Place:
            name = f"place{next(NUMBERS)}"
            client = pymilvus.MilvusClient(milvus_server.url, dedicated=True)
            client.create_database(name)
            client.close()
            return Place(f"{milvus_server.uri}?database={name}", Path())

        return make


class TestMilvusServerSurviving(Server, Surviving):
    """A server takes seconds to make each collection: the rest is in the soak."""


@pytest.mark.soak
class TestMilvusServer(Server, StoreConformance):
    """All of it."""
