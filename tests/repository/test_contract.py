"""The contract suite on every synchronous repository and kind of database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, event

from tests.support.databases import Storage
from tests.support.repositories import ReusedDatabases, in_memory, memory_engine
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


class DatabaseContract(SessionRepositoryContract):
    """The contract on one kind of database, by default with an engine of `create_engine` and precompiled statements."""

    storage: str
    make_engine: Callable[[str], Engine] | None = None
    fast_path = True

    @pytest.fixture(scope="class")
    @classmethod
    def databases(cls, request: pytest.FixtureRequest) -> Iterator[ReusedDatabases]:
        storage: Storage = request.getfixturevalue(cls.storage)
        with storage.reused(cls.make_engine) as databases:
            yield databases

    @pytest.fixture
    def new_repository(self, databases: ReusedDatabases) -> Iterator[NewRepository]:
        with databases.repositories(fast_path=self.fast_path) as new_repository:
            yield new_repository


class TestSQLiteFile(DatabaseContract):
    storage = "sqlite"


class TestPostgreSQL(DatabaseContract):
    storage = "postgresql"


class TestMariaDB(DatabaseContract):
    storage = "mariadb"


@pytest.mark.variant
class TestSQLiteInMemory(DatabaseContract):
    storage = "sqlite"
    make_engine = staticmethod(lambda _url: memory_engine())


@pytest.mark.variant
class TestPlainSQLiteEngine(DatabaseContract):
    """A plain SQLAlchemy engine: rollback journal, no foreign keys, and transactions that the driver begins."""

    storage = "sqlite"
    make_engine = staticmethod(lambda url: sqlalchemy.create_engine(url))  # noqa: PLW0108 (the lambda has a known type)


def reversing_engine(url: str) -> Engine:
    """Return an engine whose database reverses the order of rows where a query names no order."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def reverse(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA reverse_unordered_selects = ON")

    return engine


@pytest.mark.variant
class TestSQLiteInReverseOrder(DatabaseContract):
    storage = "sqlite"
    make_engine = staticmethod(reversing_engine)


@pytest.mark.variant
class TestPgBouncer(DatabaseContract):
    """PgBouncer in transaction mode, where all clients share two connections to PostgreSQL."""

    storage = "pgbouncer"


@pytest.mark.variant
class ThroughSQLAlchemysConnection(DatabaseContract):
    """Engines of `create_engine` without precompiled statements: events and instrumentation see every statement."""

    fast_path = False


class TestSQLiteThroughSQLAlchemysConnection(ThroughSQLAlchemysConnection):
    storage = "sqlite"


@pytest.mark.exhaustive  # a plain engine takes the same path
class TestPostgreSQLThroughSQLAlchemysConnection(ThroughSQLAlchemysConnection):
    storage = "postgresql"


@pytest.mark.exhaustive  # a plain engine takes the same path
class TestMariaDBThroughSQLAlchemysConnection(ThroughSQLAlchemysConnection):
    storage = "mariadb"


@pytest.mark.variant
class TestPlainPostgreSQLEngine(DatabaseContract):
    """A plain SQLAlchemy engine on an old server with an ICU locale and a time zone far from UTC."""

    storage = "postgresql_elsewhere"


@pytest.mark.variant
class TestPlainMariaDBEngine(DatabaseContract):
    """A plain SQLAlchemy engine on a server with latin1, READ COMMITTED, no strict mode and its own time zone."""

    storage = "mariadb_elsewhere"


@pytest.mark.variant
class TestCompatSessionStore(SessionRepositoryContract):
    """The `SessionStore` of `compat`, which passes all calls to its repository."""

    @pytest.fixture
    def new_repository(self) -> NewRepository:
        return lambda *, session_type=None: SessionStore(
            lambda: in_memory(**({"session_type": session_type} if session_type else {}))
        )


@pytest.mark.variant
class JoinedTransactionContract(
    SessionTests,
    UpdateTests,
    HistoryTests,
    DiagnosticTests,
    SubclassTests,
    ListingTests,
    StoredValueTests,
    RepositoryTests,
):
    """The contract in a joined transaction, without tests of concurrency because one thread uses the connection."""

    storage: str

    @pytest.fixture(scope="class")
    @classmethod
    def databases(cls, request: pytest.FixtureRequest) -> Iterator[ReusedDatabases]:
        storage: Storage = request.getfixturevalue(cls.storage)
        with storage.reused() as databases:
            yield databases

    @pytest.fixture
    def new_repository(self, databases: ReusedDatabases) -> Iterator[NewRepository]:
        with databases.engines() as take, ExitStack() as stack:

            def new_repository(*, session_type: type[Session] = Session) -> SessionRepository:
                connection = stack.enter_context(take().connect())
                return SQLAlchemySessionRepository(connection, session_type=session_type)

            yield new_repository


class TestJoinedTransactionOnSQLite(JoinedTransactionContract):
    storage = "sqlite"


class TestJoinedTransactionOnPostgreSQL(JoinedTransactionContract):
    storage = "postgresql"


class TestJoinedTransactionOnMariaDB(JoinedTransactionContract):
    storage = "mariadb"
