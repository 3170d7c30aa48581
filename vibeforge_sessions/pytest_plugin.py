"""Pytest plugin with fixtures for repositories; pytest loads it through its entry point.

A test requests a fixture by its name, without an import.

It imports SQLAlchemy and the rest of the package only when a test requests one of its fixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vibeforge_sessions.memory import InMemorySessionRepository
    from vibeforge_sessions.model.session import Session
    from vibeforge_sessions.sql.aio import AsyncSQLAlchemySessionRepository
    from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository
    from vibeforge_sessions.testing.temporary_databases import EmptyDatabase
    from vibeforge_sessions.testing.unsaved_changes import TrackedSessionRepository

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
def stored_session_type() -> type[Session]:
    """Return the class of the stored sessions; override it to return a subclass of `Session`."""
    from vibeforge_sessions.model.session import Session  # noqa: PLC0415 (see the module's docstring)

    return Session


@pytest.fixture(scope="session")
def _session_databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmptyDatabase]:
    from vibeforge_sessions.errors import SessionRepositoryError  # noqa: PLC0415
    from vibeforge_sessions.testing.temporary_databases import temporary_databases  # noqa: PLC0415

    url = request.config.getoption(_OPTION) or request.config.getini(_OPTION)
    with ExitStack() as stack:
        try:
            databases = temporary_databases(url, tmp_path_factory.mktemp("session_repository"))
            empty_database = stack.enter_context(databases)
        except SessionRepositoryError as error:
            pytest.fail(f"--session-repository-url: {error}", pytrace=False)  # a traceback could show the URL
        yield empty_database


@pytest.fixture
def session_repository_url(_session_databases: EmptyDatabase) -> Iterator[str]:
    """Yield the URL of a migrated database without sessions, for code that opens its own repository."""
    with _session_databases() as url:
        yield url


@pytest.fixture
def session_repository(
    session_repository_url: str, stored_session_type: type[Session]
) -> Iterator[SQLAlchemySessionRepository]:
    """Yield a repository on a migrated database without sessions: a SQLite file, or one on the option's server."""
    from vibeforge_sessions.sql.engine import create_engine  # noqa: PLC0415
    from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository  # noqa: PLC0415

    engine = create_engine(session_repository_url, synchronous="NORMAL")  # test data need not survive a power loss
    yield SQLAlchemySessionRepository(engine, session_type=stored_session_type)
    engine.dispose()


@pytest.fixture
def async_session_repository(
    session_repository_url: str, stored_session_type: type[Session]
) -> Iterator[AsyncSQLAlchemySessionRepository]:
    """Yield an asynchronous repository on the database of `session_repository`; it works on any event loop."""
    import asyncio  # noqa: PLC0415 (see the module's docstring)

    from vibeforge_sessions.sql.aio import AsyncSQLAlchemySessionRepository  # noqa: PLC0415
    from vibeforge_sessions.sql.engine import create_engine  # noqa: PLC0415

    engine = create_engine(
        session_repository_url, synchronous="NORMAL"
    )  # a synchronous engine in threads, which depend on no loop
    repository = AsyncSQLAlchemySessionRepository(engine, session_type=stored_session_type)
    yield repository
    asyncio.run(repository.close())
    engine.dispose()


@pytest.fixture
def tracked_session_repository(session_repository: SQLAlchemySessionRepository) -> Iterator[TrackedSessionRepository]:
    """Yield `session_repository` with tracking: the test fails at its end if a changed session was not stored."""
    from vibeforge_sessions.testing import track_unsaved_changes  # noqa: PLC0415

    tracked = track_unsaved_changes(session_repository)
    yield tracked
    if unsaved := tracked.unsaved_changes():
        pytest.fail("\n".join(map(str, unsaved)), pytrace=False)


@pytest.fixture
def memory_session_repository(stored_session_type: type[Session]) -> InMemorySessionRepository:
    """Return an empty repository in memory."""
    from vibeforge_sessions.memory import InMemorySessionRepository  # noqa: PLC0415

    return InMemorySessionRepository(session_type=stored_session_type)
