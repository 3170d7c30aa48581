"""Database servers for tests.

`postgresql` and `mariadb` provide a server during a block: the server that an environment variable names, or a private
one. ``fixtures.py`` contains the pytest fixtures for them. `PostgresServer` and `MariaDBServer` are private servers
with their own settings, for tests that need such settings or a crash. `PostgresPair` and `GaleraCluster` are groups of
servers with the same data, and `PgBouncer` is a pooler in front of a PostgreSQL server. Importing this package starts
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import sqlalchemy as sa

from .databases import DatabaseFactory, MariaDBDatabases, PostgresDatabases
from .galera import GaleraCluster, GaleraNode
from .mariadb import MariaDBServer
from .pgbouncer import PgBouncer
from .postgres import PostgresServer, find_bindir
from .process import PrivateServer, ServerUnavailable, connected
from .standby import PostgresPair, PostgresStandby

__all__ = [
    "MARIADB_URL",
    "POSTGRESQL_URL",
    "AvailableServer",
    "DatabaseFactory",
    "GaleraCluster",
    "GaleraNode",
    "MariaDBDatabases",
    "MariaDBServer",
    "PgBouncer",
    "PostgresDatabases",
    "PostgresPair",
    "PostgresServer",
    "PostgresStandby",
    "PrivateServer",
    "ServerUnavailable",
    "connected",
    "find_bindir",
    "mariadb",
    "postgresql",
]

#: Environment variables with URLs of servers that replace private ones; the user must be able to create databases.
POSTGRESQL_URL = "VIBEFORGE_SESSIONS_TEST_POSTGRESQL_URL"
MARIADB_URL = "VIBEFORGE_SESSIONS_TEST_MARIADB_URL"


class AvailableServer(NamedTuple):
    """A running server: its administrator's URL, and a factory of empty databases (see ``prepared_by``)."""

    url: sa.URL
    databases: DatabaseFactory


@contextmanager
def postgresql() -> Iterator[AvailableServer]:
    """Provide the PostgreSQL server of the tests, or raise `ServerUnavailable`."""
    given = os.environ.get(POSTGRESQL_URL)
    if given:
        with closing(PostgresDatabases(sa.make_url(given))) as databases:
            yield AvailableServer(databases.admin_url, databases)
    else:
        # The databases of a private server are removed with it.
        with PostgresServer() as server:
            yield AvailableServer(server.url, PostgresDatabases(server.url))


@contextmanager
def mariadb() -> Iterator[AvailableServer]:
    """Provide the MariaDB server of the tests, or raise `ServerUnavailable`."""
    given = os.environ.get(MARIADB_URL)
    if given:
        with closing(MariaDBDatabases(sa.make_url(given))) as databases:
            yield AvailableServer(databases.admin_url, databases)
    else:
        with MariaDBServer() as server:
            yield AvailableServer(server.url, MariaDBDatabases(server.url))
