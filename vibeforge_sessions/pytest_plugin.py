"""Fixtures for whoever tests with sessions: a plugin that pytest finds by itself.

It loads neither SQLAlchemy nor anything else until a test asks for one of its fixtures.
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

_OPTION = "session_repository_url"
_MEANING = (
    "the database server for the fixture session_repository: a database with a random name is made there, and dropped "
    "at the end; the one that the URL names stays as it is (default: SQLite files)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--session-repository-url`` and the setting ``session_repository_url``."""
    group = parser.getgroup("vibeforge_sessions")
    group.addoption("--session-repository-url", dest=_OPTION, metavar="URL", help=_MEANING)
    parser.addini(_OPTION, f"{_MEANING}; --session-repository-url is stronger", default="sqlite://")


@pytest.fixture(scope="session")
def stored_session_type() -> type[Session]:
    """Return the class of session that the repositories store; override it to return a subclass of `Session`."""
    from vibeforge_sessions.model.session import Session  # noqa: PLC0415 (see above)

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
            pytest.fail(f"--session-repository-url: {error}", pytrace=False)  # a trace could show the URL
        yield empty_database


@pytest.fixture
def session_repository_url(_session_databases: EmptyDatabase) -> Iterator[str]:
    """Give the URL of a migrated database without sessions, for what is tested to open a repository of its own."""
    with _session_databases() as url:
        yield url


@pytest.fixture
def session_repository(
    session_repository_url: str, stored_session_type: type[Session]
) -> Iterator[SQLAlchemySessionRepository]:
    """Give a repository on a migrated database without sessions: a SQLite file of its own, or what the option says."""
    from vibeforge_sessions.sql.engine import create_engine  # noqa: PLC0415
    from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository  # noqa: PLC0415

    engine = create_engine(session_repository_url, synchronous="NORMAL")  # these need not survive a power loss
    yield SQLAlchemySessionRepository(engine, session_type=stored_session_type)
    engine.dispose()


@pytest.fixture
def async_session_repository(
    session_repository_url: str, stored_session_type: type[Session]
) -> Iterator[AsyncSQLAlchemySessionRepository]:
    """Give an asynchronous repository on the database of `session_repository`, for any event loop of the test's."""
    import asyncio  # noqa: PLC0415 (see above)

    from vibeforge_sessions.sql.aio import AsyncSQLAlchemySessionRepository  # noqa: PLC0415
    from vibeforge_sessions.sql.engine import create_engine  # noqa: PLC0415

    engine = create_engine(session_repository_url, synchronous="NORMAL")  # in threads, which belong to no loop
    repository = AsyncSQLAlchemySessionRepository(engine, session_type=stored_session_type)
    yield repository
    asyncio.run(repository.close())
    engine.dispose()


@pytest.fixture
def tracked_session_repository(session_repository: SQLAlchemySessionRepository) -> Iterator[TrackedSessionRepository]:
    """Give `session_repository`, tracked: the test fails at its end if a session was changed and never stored."""
    from vibeforge_sessions.testing.unsaved_changes import track_lost_writes  # noqa: PLC0415

    tracked = track_lost_writes(session_repository)
    yield tracked
    if lost := tracked.lost_writes():
        pytest.fail("\n".join(map(str, lost)), pytrace=False)


@pytest.fixture
def memory_session_repository(stored_session_type: type[Session]) -> InMemorySessionRepository:
    """Return an empty repository in memory."""
    from vibeforge_sessions.memory import InMemorySessionRepository  # noqa: PLC0415

    return InMemorySessionRepository(session_type=stored_session_type)
