"""Pytest fixtures: a plugin, listed in ``pytest_plugins`` of ``tests/conftest.py``.

Each worker of pytest-xdist starts servers of its own: that takes half a second, less than agreeing on a common one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from . import AvailableServer, ServerUnavailable, mariadb, postgresql

#: Set in CI: there, a server that cannot be started is a failure.
REQUIRE_SERVERS = "VIBEFORGE_SESSIONS_TEST_REQUIRE_SERVERS"


@contextmanager
def skipping() -> Iterator[None]:
    """A test whose server is unavailable is skipped, or fails where servers are required."""
    try:
        yield
    except ServerUnavailable as unavailable:
        if os.environ.get(REQUIRE_SERVERS):
            pytest.fail(str(unavailable), pytrace=False)
        pytest.skip(str(unavailable))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[AvailableServer]:
    """A PostgreSQL, for the whole run."""
    with skipping(), postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[AvailableServer]:
    """A MariaDB, for the whole run."""
    with skipping(), mariadb() as server:
        yield server
