"""Pytest fixtures of servers: a plugin, listed in ``pytest_plugins`` of ``tests/conftest.py``.

Each worker of pytest-xdist starts its own servers. That takes half a second, less than coordinating a shared server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from . import AvailableServer, ServerUnavailable, mariadb, postgresql

#: Set in CI, where a server that cannot be started is a failure.
REQUIRE_SERVERS = "VIBEFORGE_SESSIONS_TEST_REQUIRE_SERVERS"


@contextmanager
def skipping() -> Iterator[None]:
    """Skip the test if a server is unavailable, or fail it where servers are required."""
    try:
        yield
    except ServerUnavailable as unavailable:
        if os.environ.get(REQUIRE_SERVERS):
            pytest.fail(str(unavailable), pytrace=False)
        pytest.skip(str(unavailable))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[AvailableServer]:
    """Provide a PostgreSQL server for the whole run."""
    with skipping(), postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[AvailableServer]:
    """Provide a MariaDB server for the whole run."""
    with skipping(), mariadb() as server:
        yield server
