"""Real database servers for the tests.

`postgresql` and `mariadb` give a server for as long as a block runs: the one that an environment variable names, else a
private one; ``fixtures.py`` makes pytest fixtures of them. `PostgresServer` and `MariaDBServer` are private servers
with settings of their own, for tests that need those, or a crash; `PostgresPair` and `GaleraCluster` are several that
hold the same data, `PgBouncer` stands before a PostgreSQL. Nothing is started by importing this.
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

#: URLs of servers, with the right to create databases there, that are used instead of private ones.
POSTGRESQL_URL = "VIBEFORGE_SESSIONS_TEST_POSTGRESQL_URL"
MARIADB_URL = "VIBEFORGE_SESSIONS_TEST_MARIADB_URL"


class AvailableServer(NamedTuple):
    """A server that answers: its administrator's URL, and a factory of empty databases (see ``prepared_by``)."""

    url: sa.URL
    databases: DatabaseFactory


@contextmanager
def postgresql() -> Iterator[AvailableServer]:
    """The PostgreSQL to test with, or `ServerUnavailable`."""
    given = os.environ.get(POSTGRESQL_URL)
    if given:
        with closing(PostgresDatabases(sa.make_url(given))) as databases:
            yield AvailableServer(databases.admin_url, databases)
    else:
        # A private server takes its databases with it.
        with PostgresServer() as server:
            yield AvailableServer(server.url, PostgresDatabases(server.url))


@contextmanager
def mariadb() -> Iterator[AvailableServer]:
    """The MariaDB to test with, or `ServerUnavailable`."""
    given = os.environ.get(MARIADB_URL)
    if given:
        with closing(MariaDBDatabases(sa.make_url(given))) as databases:
            yield AvailableServer(databases.admin_url, databases)
    else:
        with MariaDBServer() as server:
            yield AvailableServer(server.url, MariaDBDatabases(server.url))
