"""Pytest plugin with fixtures for repositories; pytest loads it through its entry point.

A test requests a fixture by its name, without an import.

The plugin imports SQLAlchemy and the rest of the package only when a test requests one of its fixtures, because
`vibeforge_sessions` imports its public names at their first use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import vibeforge_sessions as store

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from vibeforge_sessions.testing import TrackedSessionRepository
    from vibeforge_sessions.testing.temporary_databases import EmptyDatabase

__all__ = [
    "async_session_repository",
    "memory_session_repository",
    "session_repository",
    "session_repository_url",
    "stored_session_type",
    "tracked_session_repository",
]

_OPTION = "session_repository_url"
_HELP = (
    "database server for the fixture session_repository: a database with a random name is created there and dropped "
    "at the end; the database that the URL names is not changed (default: SQLite files)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--session-repository-url`` and the setting ``session_repository_url``."""
    group = parser.getgroup("vibeforge_sessions")
    group.addoption("--session-repository-url", dest=_OPTION, metavar="URL", help=_HELP)
    parser.addini(_OPTION, f"{_HELP}; --session-repository-url takes precedence", default="sqlite://")


@pytest.fixture(scope="session")
def stored_session_type() -> type[store.Session]:
    """Return the class of the stored sessions; override it to return a subclass of `Session`."""
    return store.Session


@pytest.fixture(scope="session")
def _session_databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmptyDatabase]:
    from vibeforge_sessions.testing.temporary_databases import temporary_databases  # noqa: PLC0415

    url = request.config.getoption(_OPTION) or request.config.getini(_OPTION)
    try:
        with temporary_databases(url, tmp_path_factory.mktemp("session_repository")) as empty_database:
            yield empty_database
    except store.SessionRepositoryError as error:
        pytest.fail(f"--session-repository-url: {error}", pytrace=False)  # a traceback could show the URL


@pytest.fixture
def session_repository_url(_session_databases: EmptyDatabase) -> Iterator[str]:
    """Yield the URL of a migrated database without sessions, for code that opens its own repository."""
    with _session_databases() as url:
        yield url


@pytest.fixture
def _session_repository_engine(session_repository_url: str) -> Iterator[Engine]:
    from vibeforge_sessions.sql.engine import create_engine  # noqa: PLC0415

    engine = create_engine(session_repository_url, synchronous="NORMAL")  # test data need not survive a power loss
    yield engine
    engine.dispose()


@pytest.fixture
def session_repository(
    _session_repository_engine: Engine, stored_session_type: type[store.Session]
) -> store.SQLAlchemySessionRepository:
    """Return a repository without sessions, on a SQLite file or on a database of the server that the option names."""
    return store.SQLAlchemySessionRepository(_session_repository_engine, session_type=stored_session_type)


@pytest.fixture
def async_session_repository(
    _session_repository_engine: Engine, stored_session_type: type[store.Session]
) -> Iterator[store.AsyncSQLAlchemySessionRepository]:
    """Yield an asynchronous repository on the database of `session_repository`; it works on any event loop."""
    import asyncio  # noqa: PLC0415 (see the module's docstring)

    # on a synchronous engine, calls run in threads, which work with any event loop
    repository = store.AsyncSQLAlchemySessionRepository(_session_repository_engine, session_type=stored_session_type)
    yield repository
    asyncio.run(repository.close())


@pytest.fixture
def tracked_session_repository(
    session_repository: store.SQLAlchemySessionRepository,
) -> Iterator[TrackedSessionRepository]:
    """Yield `session_repository` with tracking: the test fails in its teardown if a changed session was not stored."""
    from vibeforge_sessions.testing import track_unsaved_changes  # noqa: PLC0415

    tracked = track_unsaved_changes(session_repository)
    yield tracked
    if unsaved := tracked.unsaved_changes():
        pytest.fail("\n".join(map(str, unsaved)), pytrace=False)


@pytest.fixture
def memory_session_repository(stored_session_type: type[store.Session]) -> store.InMemorySessionRepository:
    """Return an empty repository in memory."""
    return store.InMemorySessionRepository(session_type=stored_session_type)
