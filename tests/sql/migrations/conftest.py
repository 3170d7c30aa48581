"""SQLite engines, of `create_engine` and as applications create them, for the tests of migrations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.support.migrations import FILES, MEMORY, opened


@pytest.fixture(params=[*FILES, MEMORY])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with opened(request.param, tmp_path / "application.db") as engine:
        yield engine


@pytest.fixture(params=FILES)
def file_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with opened(request.param, tmp_path / "application.db") as engine:
        yield engine
