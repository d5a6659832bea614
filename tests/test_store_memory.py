"""The worked example of docs/stores/adding.md passes the suite that every store passes."""

from __future__ import annotations

import uuid

import pytest

from whimbrel.testing import Place, StoreConformance
from whimbrel.testing.base import NewPlace


class TestMemory(StoreConformance):
    name = "memory (example)"
    durable = False
    selective_rows = 10_000

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
        folder = tmp_path_factory.mktemp("memory")
        return lambda: Place(f"memory:{uuid.uuid4()}", folder, opener="tests.memory_store:MemoryStore")
