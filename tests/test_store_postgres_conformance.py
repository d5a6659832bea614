"""Postgres passes the suite that every store passes."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from whimbrel.testing import Place, StoreConformance
from whimbrel.testing.base import NewPlace


class TestPostgres(StoreConformance):
    name = "Postgres"

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, postgres_url: str) -> NewPlace:
        """A schema of its own for each."""
        numbers = count()
        uri = postgres_url.replace("+psycopg", "")
        return lambda: Place(f"{uri}&schema=suite{next(numbers)}", Path())
