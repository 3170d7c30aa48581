"""The contract, asked of every asynchronous implementation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_async_engine

from tests.databases import Storage
from tests.repositories import SQLiteFiles
from vibeforge_sessions import AsyncInMemorySessionRepository, AsyncSQLAlchemySessionRepository
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.testing import AsyncSessionRepositoryContract, NewAsyncRepository, Run


@contextmanager
def repositories(
    new_engine: Callable[[], AsyncEngine | Engine], run: Run, drop: Callable[[URL], None] | None = None, **options: Any
) -> Iterator[NewAsyncRepository]:
    """Give a maker of repositories, each on an engine of its own; check that none keeps a connection."""
    engines: list[AsyncEngine | Engine] = []

    def new_repository(**more: Any) -> AsyncSQLAlchemySessionRepository:
        engines.append(new_engine())
        return AsyncSQLAlchemySessionRepository(engines[-1], **options, **more)

    yield new_repository
    for engine in engines:
        left = engine.pool.checkedout() if hasattr(engine.pool, "checkedout") else 0
        if isinstance(engine, AsyncEngine):
            run(engine.dispose())
        else:
            engine.dispose()
        assert left == 0, "a connection was left checked out"
        if drop is not None:
            drop(engine.url)


class TestInMemory(AsyncSessionRepositoryContract):
    @pytest.fixture
    def new_async_repository(self) -> NewAsyncRepository:
        return AsyncInMemorySessionRepository


class TestSQLiteInThreads(AsyncSessionRepositoryContract):
    @pytest.fixture
    def new_async_repository(self, sqlite_files: SQLiteFiles, run: Run) -> Iterator[NewAsyncRepository]:
        with repositories(lambda: create_engine(sqlite_files.new_url()), run) as new_repository:
            yield new_repository


class OnAnAsyncEngine(AsyncSessionRepositoryContract):
    """With the driver named, on an engine of ours."""

    storage: str
    driver: str
    options: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)
    make: Callable[..., AsyncEngine] = staticmethod(create_async_engine)

    @pytest.fixture
    def new_async_repository(self, request: pytest.FixtureRequest, run: Run) -> Iterator[NewAsyncRepository]:
        storage: Storage = request.getfixturevalue(self.storage)
        with repositories(
            lambda: self.make(storage.url_with(self.driver)), run, storage.drop, **self.options
        ) as new_repository:
            yield new_repository


class TestHostsPlainAiosqliteEngine(OnAnAsyncEngine):
    """The slow way to SQLite, with none of our settings."""

    storage, driver = "sqlite", "sqlite+aiosqlite"
    make = staticmethod(create_plain_async_engine)


class TestPsycopg(OnAnAsyncEngine):
    storage, driver = "postgresql", "postgresql+psycopg"


class TestPsycopgThroughSQLAlchemysConnection(OnAnAsyncEngine):
    storage, driver = "postgresql", "postgresql+psycopg"
    options = {"fast_path": False}  # noqa: RUF012 (nobody changes it)


class TestAsyncpg(OnAnAsyncEngine):
    storage, driver = "postgresql", "postgresql+asyncpg"


class TestPsycopgThroughPgBouncer(OnAnAsyncEngine):
    storage, driver = "pgbouncer", "postgresql+psycopg"
    make = staticmethod(functools.partial(create_async_engine, pgbouncer=True))


class TestAsyncpgThroughPgBouncer(OnAnAsyncEngine):
    storage, driver = "pgbouncer", "postgresql+asyncpg"
    make = staticmethod(functools.partial(create_async_engine, pgbouncer=True))


class TestHostsPlainAsyncpgEngine(OnAnAsyncEngine):
    storage, driver = "postgresql_elsewhere", "postgresql+asyncpg"
    make = staticmethod(create_plain_async_engine)


class TestAsyncmy(OnAnAsyncEngine):
    storage, driver = "mariadb", "mariadb+asyncmy"


class TestHostsPlainAsyncmyEngine(OnAnAsyncEngine):
    storage, driver = "mariadb_elsewhere", "mariadb+asyncmy"
    make = staticmethod(create_plain_async_engine)
