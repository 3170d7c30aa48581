"""The contract, asked of every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, event

from tests.databases import Storage
from tests.repositories import SQLiteFiles, in_memory, memory_engine, sql_repositories
from vibeforge_sessions import Session, SessionRepository, SQLAlchemySessionRepository
from vibeforge_sessions.compat import SessionStore
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.testing import NewRepository, SessionRepositoryContract
from vibeforge_sessions.testing.base import RepositoryTests
from vibeforge_sessions.testing.diagnostics import DiagnosticTests
from vibeforge_sessions.testing.histories import HistoryTests
from vibeforge_sessions.testing.listings import ListingTests
from vibeforge_sessions.testing.sessions import SessionTests
from vibeforge_sessions.testing.stored_values import StoredValueTests
from vibeforge_sessions.testing.subclasses import SubclassTests
from vibeforge_sessions.testing.updates import UpdateTests


class TestInMemory(SessionRepositoryContract):
    @pytest.fixture
    def new_repository(self) -> NewRepository:
        return in_memory


class TestSQLiteFile(SessionRepositoryContract):
    @pytest.fixture
    def new_repository(self, sqlite_files: SQLiteFiles) -> Iterator[NewRepository]:
        with sql_repositories(lambda: create_engine(sqlite_files.new_url())) as new_repository:
            yield new_repository


class TestSQLiteInMemory(SessionRepositoryContract):
    @pytest.fixture
    def new_repository(self) -> Iterator[NewRepository]:
        with sql_repositories(memory_engine) as new_repository:
            yield new_repository


class TestHostsPlainSQLiteEngine(SessionRepositoryContract):
    """Without any of our settings: rollback journal, no foreign keys, the driver's own idea of transactions."""

    @pytest.fixture
    def new_repository(self, sqlite_files: SQLiteFiles) -> Iterator[NewRepository]:
        with sql_repositories(lambda: sqlalchemy.create_engine(sqlite_files.new_url())) as new_repository:
            yield new_repository


class TestSQLiteInAnotherOrder(SessionRepositoryContract):
    """Where no order was asked for, this database gives the other one."""

    @pytest.fixture
    def new_repository(self, sqlite_files: SQLiteFiles) -> Iterator[NewRepository]:
        def new_engine() -> Engine:
            engine = create_engine(sqlite_files.new_url())
            event.listen(engine, "connect", reverse)
            return engine

        def reverse(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA reverse_unordered_selects = ON")

        with sql_repositories(new_engine) as new_repository:
            yield new_repository


class TestPostgreSQL(SessionRepositoryContract):
    @pytest.fixture
    def new_repository(self, postgresql: Storage) -> Iterator[NewRepository]:
        with postgresql.repositories() as new_repository:
            yield new_repository


class TestPgBouncer(SessionRepositoryContract):
    """Clients that take turns, transaction by transaction, on two connections to PostgreSQL."""

    @pytest.fixture
    def new_repository(self, pgbouncer: Storage) -> Iterator[NewRepository]:
        with pgbouncer.repositories() as new_repository:
            yield new_repository


class TestMariaDB(SessionRepositoryContract):
    @pytest.fixture
    def new_repository(self, mariadb: Storage) -> Iterator[NewRepository]:
        with mariadb.repositories() as new_repository:
            yield new_repository


class ThroughSQLAlchemysConnection(SessionRepositoryContract):
    """Our engines, with every statement where events and instrumentation see it."""

    name: str

    @pytest.fixture
    def new_repository(self, request: pytest.FixtureRequest) -> Iterator[NewRepository]:
        storage: Storage = request.getfixturevalue(self.name)
        with storage.repositories(fast_path=False) as new_repository:
            yield new_repository


class TestSQLiteThroughSQLAlchemysConnection(ThroughSQLAlchemysConnection):
    name = "sqlite"


class TestPostgreSQLThroughSQLAlchemysConnection(ThroughSQLAlchemysConnection):
    name = "postgresql"


class TestMariaDBThroughSQLAlchemysConnection(ThroughSQLAlchemysConnection):
    name = "mariadb"


class TestHostsPlainPostgreSQLEngine(SessionRepositoryContract):
    """Without any of our settings, on an old server with an ICU locale and a time zone of its own."""

    @pytest.fixture
    def new_repository(self, postgresql_elsewhere: Storage) -> Iterator[NewRepository]:
        with postgresql_elsewhere.repositories() as new_repository:
            yield new_repository


class TestHostsPlainMariaDBEngine(SessionRepositoryContract):
    """Without any of our settings, on a server of latin1, READ COMMITTED and no strict mode, in its own time zone."""

    @pytest.fixture
    def new_repository(self, mariadb_elsewhere: Storage) -> Iterator[NewRepository]:
        with mariadb_elsewhere.repositories() as new_repository:
            yield new_repository


class TestTheApplicationsStore(SessionRepositoryContract):
    """What ``compat`` hands out only passes calls on; here that it passes all of them on as they are."""

    @pytest.fixture
    def new_repository(self) -> NewRepository:
        return lambda *, session_type=None: SessionStore(
            lambda: in_memory(**({"session_type": session_type} if session_type else {}))
        )


class InAHostsTransaction(
    SessionTests,
    UpdateTests,
    HistoryTests,
    DiagnosticTests,
    SubclassTests,
    ListingTests,
    StoredValueTests,
    RepositoryTests,
):
    """All of the contract but threads: a connection, and so its transaction, is one thread's."""

    name: str

    @pytest.fixture
    def new_repository(self, request: pytest.FixtureRequest) -> Iterator[NewRepository]:
        storage: Storage = request.getfixturevalue(self.name)
        with ExitStack() as stack:

            def new_repository(*, session_type: type[Session] = Session) -> SessionRepository:
                engine = storage.new_engine()
                if storage.drop is not None:
                    stack.callback(storage.drop, engine.url)
                stack.callback(engine.dispose)
                connection = stack.enter_context(engine.connect())
                return SQLAlchemySessionRepository(connection, session_type=session_type)

            yield new_repository


class TestInAHostsTransactionOnSQLite(InAHostsTransaction):
    name = "sqlite"


class TestInAHostsTransactionOnPostgreSQL(InAHostsTransaction):
    name = "postgresql"


class TestInAHostsTransactionOnMariaDB(InAHostsTransaction):
    name = "mariadb"
