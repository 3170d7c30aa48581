"""Databases of the test suite; a test that runs on each of them is parametrized over `DATABASES`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, make_url

from tests.support.repositories import ReusedDatabases, SQLiteFiles, in_memory, sql_repositories, text_of, upgrade
from tests.support.servers import (
    AvailableServer,
    MariaDBDatabases,
    MariaDBServer,
    PgBouncer,
    PostgresDatabases,
    PostgresServer,
    find_bindir,
)
from tests.support.servers.fixtures import skipping
from vibeforge_sessions import SessionRepository
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.testing import NewRepository


def fast_folder() -> Path | None:
    """Return a folder in memory if the system has one, because every commit is synced."""
    in_memory = Path("/dev/shm")
    return in_memory if in_memory.is_dir() and os.access(in_memory, os.W_OK) else None


@contextmanager
def _memory() -> Iterator[NewRepository]:
    yield in_memory


@dataclass(frozen=True)
class Storage:
    """A kind of storage; `new_url` creates a new migrated database, and is None for memory."""

    name: str
    new_url: Callable[[], str] | None
    make_engine: Callable[[str], Engine] = create_engine
    drop: Callable[[URL], None] | None = None

    def url_with(self, driver: str) -> str:
        """Return the URL of a new database with another driver."""
        assert self.new_url is not None
        return text_of(make_url(self.new_url()).set(drivername=driver))

    def new_engine(self) -> Engine:
        """Return an engine on a new database."""
        assert self.new_url is not None
        return self.make_engine(self.new_url())

    @contextmanager
    def reused(self, make_engine: Callable[[str], Engine] | None = None) -> Iterator[ReusedDatabases]:
        """Provide databases that several tests use, one after another."""
        assert self.new_url is not None
        new_url, make = self.new_url, make_engine or self.make_engine
        with closing(ReusedDatabases(lambda: make(new_url()), self.drop)) as databases:
            yield databases

    def repositories(self, *, fast_path: bool = True) -> AbstractContextManager[NewRepository]:
        """Return a context that provides a function for repositories, each with its own storage."""
        return _memory() if self.new_url is None else sql_repositories(self.new_engine, self.drop, fast_path=fast_path)


SQL_DATABASES = ["sqlite", "postgresql", "mariadb"]
"""Names of fixtures that return the `Storage` of a real database."""
DATABASES = ["memory", *SQL_DATABASES]
ASYNC_DRIVERS = [
    ("postgresql", "postgresql+psycopg"),
    ("postgresql", "postgresql+asyncpg"),
    ("mariadb", "mariadb+asyncmy"),
]
"""Pairs of a server's fixture and one of its asynchronous drivers."""


@pytest.fixture(scope="session")
def sqlite_files() -> Iterator[SQLiteFiles]:
    """Provide new migrated SQLite files."""
    with TemporaryDirectory(prefix="vfs-sqlite-", dir=fast_folder()) as folder:
        yield SQLiteFiles(Path(folder))


@pytest.fixture(scope="session")
def memory() -> Storage:
    """Return the storage of the in-memory repository."""
    return Storage("memory", None)


@pytest.fixture(scope="session")
def sqlite(sqlite_files: SQLiteFiles) -> Storage:
    """Return the storage of SQLite files."""
    return Storage("sqlite", sqlite_files.new_url)


@pytest.fixture(scope="session")
def postgresql(postgresql_server: AvailableServer) -> Storage:
    """Return databases on a PostgreSQL server."""
    databases = postgresql_server.databases.prepared_by(upgrade)
    return Storage("postgresql", lambda: text_of(databases.create()), drop=databases.drop)


@pytest.fixture(params=SQL_DATABASES)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of a migrated database, on each kind of database."""
    storage: Storage = request.getfixturevalue(request.param)
    assert storage.new_url is not None
    url = storage.new_url()
    yield url
    if storage.drop is not None:
        storage.drop(make_url(url))


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """Yield an engine of the package on each kind of database; all its connections must be returned."""
    engine = create_engine(url)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture(scope="session")
def pgbouncer(postgresql_server: AvailableServer) -> Iterator[Storage]:
    """Provide databases on a PostgreSQL server through PgBouncer in transaction mode."""
    databases = postgresql_server.databases.prepared_by(upgrade)
    with skipping(), PgBouncer(postgresql_server.url) as bouncer:
        yield Storage(
            "pgbouncer",
            lambda: text_of(bouncer.url_of(databases.create())),
            functools.partial(create_engine, pgbouncer=True),
            databases.drop,
        )


@pytest.fixture(scope="session")
def mariadb(mariadb_server: AvailableServer) -> Storage:
    """Return databases on a MariaDB server."""
    databases = mariadb_server.databases.prepared_by(upgrade)
    return Storage("mariadb", lambda: text_of(databases.create()), drop=databases.drop)


@pytest.fixture(scope="session")
def postgresql_elsewhere() -> Iterator[Storage]:
    """Provide an application's plain engine on the oldest PostgreSQL, with an ICU locale and another time zone."""
    with (
        skipping(),
        PostgresServer(
            bindir=find_bindir(icu=True),
            options=["timezone=Asia/Kathmandu"],
            initdb_args=["--locale-provider=icu", "--icu-locale=sv-SE"],
        ) as server,
    ):
        databases = PostgresDatabases(server.url, upgrade)
        yield Storage(
            "postgresql_elsewhere", lambda: text_of(databases.create()), sqlalchemy.create_engine, databases.drop
        )


@pytest.fixture(scope="session")
def mariadb_elsewhere() -> Iterator[Storage]:
    """Provide an application's plain engine on a MariaDB with latin1, another time zone and silent truncation."""
    args = ["--default-time-zone=+05:45", "--sql-mode=", "--transaction-isolation=READ-COMMITTED"]
    with skipping(), MariaDBServer(charset="latin1", args=args) as server:
        databases = MariaDBDatabases(server.url, upgrade)
        yield Storage(
            "mariadb_elsewhere", lambda: text_of(databases.create()), sqlalchemy.create_engine, databases.drop
        )


@pytest.fixture(params=DATABASES)
def new_repository(request: pytest.FixtureRequest) -> Iterator[NewRepository]:
    """Provide a function that creates empty repositories, for each database."""
    storage: Storage = request.getfixturevalue(request.param)
    with storage.repositories() as new:
        yield new


@pytest.fixture
def repository(new_repository: NewRepository) -> SessionRepository:
    """Return an empty repository on each database."""
    return new_repository()


def reject_inserts(engine: Engine, table: str, times: int) -> None:
    """Let PostgreSQL reject this many inserts into a table with a deadlock error."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SEQUENCE tries")  # a rollback does not reset a sequence
        connection.exec_driver_sql(
            "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF nextval('tries') <= {times} THEN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END IF; "
            "RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            f"CREATE TRIGGER reject BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION reject()"
        )
