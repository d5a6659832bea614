"""Postgres passes the suite that every store passes."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from whimbrel.testing import Place, StoreConformance
from whimbrel.testing.base import NewPlace

NUMBERS = count()
"""Of schemas: the server outlives the class, whose tests may run in several parts."""


class TestPostgres(StoreConformance):
    name = "Postgres"

    @pytest.fixture(scope="class")
    @classmethod
    def new_place(cls, postgres_url: str) -> NewPlace:
        """A schema of its own for each."""
        uri = postgres_url.replace("+psycopg", "")
        return lambda: Place(f"{uri}&schema=suite{next(NUMBERS)}", Path())
