"""Chroma passes the suite that every store passes: in a folder, and behind a server with a database for each place."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from chroma_server import ChromaServer
from whimbrel.testing import Place, StoreConformance

pytest.importorskip("chromadb")
pytestmark = pytest.mark.slow


class TestChromaFolder(StoreConformance):
    name = "Chroma folder"
    selective_rows = 10_000
    batch_rows = 6_000

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Place]:
        return lambda: Place("chroma:views", tmp_path_factory.mktemp("chroma"))


class TestChromaServer(StoreConformance):
    name = "Chroma server"
    selective_rows = 10_000
    batch_rows = 6_000

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
        server = ChromaServer(tmp_path_factory.mktemp("chroma") / "data")
        server.start()
        yield server
        server.kill()

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, server: ChromaServer) -> Callable[[], Place]:
        numbers = count()

        def make() -> Place:
            name = f"place{next(numbers)}"
            url = f"http://127.0.0.1:{server.port}/api/v2/tenants/default_tenant/databases"
            headers = {"Content-Type": "application/json"}
            asked = urllib.request.Request(url, json.dumps({"name": name}).encode(), headers, method="POST")
            urllib.request.urlopen(asked, timeout=30).close()
            return Place(f"{server.uri}?database={name}", Path())

        return make
