"""The contract suite on every asynchronous repository and driver."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_async_engine

from tests.support.databases import Storage
from tests.support.repositories import ReusedDatabases, check_connections, text_of
from vibeforge_sessions import AsyncInMemorySessionRepository, AsyncSQLAlchemySessionRepository
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.testing import AsyncSessionRepositoryContract, NewAsyncRepository, Run


@pytest.mark.variant
class TestInMemory(AsyncSessionRepositoryContract):
    @pytest.fixture
    def new_async_repository(self) -> NewAsyncRepository:
        return AsyncInMemorySessionRepository


class DatabaseContract(AsyncSessionRepositoryContract):
    """The contract with one driver, by default with an engine of `create_async_engine` and precompiled statements."""

    storage: str
    driver: str
    make_engine: Callable[..., AsyncEngine | Engine] = staticmethod(create_async_engine)
    fast_path = True

    @pytest.fixture(scope="class")
    @classmethod
    def databases(cls, request: pytest.FixtureRequest) -> Iterator[ReusedDatabases]:
        storage: Storage = request.getfixturevalue(cls.storage)
        with storage.reused() as databases:
            yield databases

    @pytest.fixture(scope="class")
    @classmethod
    def engine_of(cls) -> Callable[[Engine], AsyncEngine | Engine]:
        """Return the engine of the class's driver on a database; it keeps its compiled statements between tests."""
        return functools.cache(lambda owner: cls.make_engine(text_of(owner.url.set(drivername=cls.driver))))

    @pytest.fixture
    def new_async_repository(
        self, databases: ReusedDatabases, engine_of: Callable[[Engine], AsyncEngine | Engine], run: Run
    ) -> Iterator[NewAsyncRepository]:
        engines: list[AsyncEngine | Engine] = []

        def new_repository(**options: Any) -> AsyncSQLAlchemySessionRepository:
            engines.append(engine_of(take()))
            return AsyncSQLAlchemySessionRepository(engines[-1], fast_path=self.fast_path, **options)

        with databases.engines() as take:
            yield new_repository
            for engine in engines:  # the connections belong to the test's event loop
                check_connections(engine)
                if isinstance(engine, AsyncEngine):
                    run(engine.dispose())
                else:
                    engine.dispose()


@pytest.mark.variant
class TestSQLiteInThreads(DatabaseContract):
    storage, driver = "sqlite", "sqlite"
    make_engine = staticmethod(create_engine)


@pytest.mark.variant
class TestPsycopg(DatabaseContract):
    storage, driver = "postgresql", "postgresql+psycopg"


class TestAsyncpg(DatabaseContract):
    storage, driver = "postgresql", "postgresql+asyncpg"


class TestAsyncmy(DatabaseContract):
    storage, driver = "mariadb", "mariadb+asyncmy"


@pytest.mark.variant
class TestPlainAiosqliteEngine(DatabaseContract):
    """A plain SQLAlchemy engine with a SQLite driver that uses one thread per connection."""

    storage, driver = "sqlite", "sqlite+aiosqlite"
    make_engine = staticmethod(create_plain_async_engine)


@pytest.mark.variant
class TestPsycopgThroughSQLAlchemysConnection(DatabaseContract):
    storage, driver = "postgresql", "postgresql+psycopg"
    fast_path = False


@pytest.mark.variant
@pytest.mark.exhaustive  # the synchronous psycopg and asyncpg use the pooler
class TestPsycopgThroughPgBouncer(DatabaseContract):
    storage, driver = "pgbouncer", "postgresql+psycopg"
    make_engine = staticmethod(functools.partial(create_async_engine, pgbouncer=True))


@pytest.mark.variant
class TestAsyncpgThroughPgBouncer(DatabaseContract):
    storage, driver = "pgbouncer", "postgresql+asyncpg"
    make_engine = staticmethod(functools.partial(create_async_engine, pgbouncer=True))


@pytest.mark.variant
@pytest.mark.exhaustive  # a plain engine with psycopg is tested on the same server
class TestPlainAsyncpgEngine(DatabaseContract):
    storage, driver = "postgresql_elsewhere", "postgresql+asyncpg"
    make_engine = staticmethod(create_plain_async_engine)


@pytest.mark.variant
class TestPlainAsyncmyEngine(DatabaseContract):
    storage, driver = "mariadb_elsewhere", "mariadb+asyncmy"
    make_engine = staticmethod(create_plain_async_engine)
