"""Repositories of the contract tests, and the storage of each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from vibeforge_sessions import InMemorySessionRepository, Session, SessionRepository, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, metadata, migrate
from vibeforge_sessions.testing import NewRepository

_FILLED_TABLES = [table for table in reversed(metadata.sorted_tables) if not table.name.endswith("_compatibility")]


def check_connections(engine: Engine | AsyncEngine) -> None:
    """Fail if a connection is still checked out."""
    left = engine.pool.checkedout() if hasattr(engine.pool, "checkedout") else 0
    assert left == 0, "a connection was left checked out"


@contextmanager
def sql_repositories(
    new_engine: Callable[[], Engine], drop: Callable[[URL], None] | None = None, *, fast_path: bool = True
) -> Iterator[NewRepository]:
    """Provide a function that creates repositories, each on its own engine; check that none keeps a connection.

    :param drop: drops each database at the end: a database in memory takes 8 MB, and a suite creates 340.
    """
    engines: list[Engine] = []

    def new_repository(*, session_type: type[Session] = Session) -> SessionRepository:
        engine = new_engine()
        engines.append(engine)
        return SQLAlchemySessionRepository(engine, session_type=session_type, fast_path=fast_path)

    yield new_repository
    for engine in engines:
        check_connections(engine)
        engine.dispose()
        if drop is not None:
            drop(engine.url)


class ReusedDatabases:
    """Databases that are reused after their rows were deleted, because creating them takes longer than most tests.

    A test that changes tables or listens to an engine's events needs a new database.
    """

    def __init__(self, new_engine: Callable[[], Engine], drop: Callable[[URL], None] | None = None) -> None:
        self._new_engine = new_engine
        self._drop = drop
        self._idle: list[Engine] = []

    @contextmanager
    def engines(self) -> Iterator[Callable[[], Engine]]:
        """Provide a function that returns an engine on an empty database; check that no connection is kept."""
        used: list[Engine] = []

        def take() -> Engine:
            used.append(self._idle.pop() if self._idle else self._new_engine())
            return used[-1]

        yield take
        for engine in used:
            check_connections(engine)
            with engine.begin() as connection:
                for table in _FILLED_TABLES:
                    connection.execute(table.delete())
            self._idle.append(engine)

    @contextmanager
    def repositories(self, *, fast_path: bool = True) -> Iterator[NewRepository]:
        """Provide a function that returns a repository on an empty database."""
        with self.engines() as take:
            yield lambda *, session_type=Session: SQLAlchemySessionRepository(
                take(), session_type=session_type, fast_path=fast_path
            )

    def close(self) -> None:
        """Drop the databases."""
        for engine in self._idle:
            engine.dispose()
            if self._drop is not None:
                self._drop(engine.url)


class SQLiteFiles:
    """New migrated SQLite files, copied from a template."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._template = folder / "template.db"
        engine = sqlalchemy.create_engine(f"sqlite:///{self._template}")
        migrate.upgrade(engine)
        engine.dispose()

    def new_url(self) -> str:
        """Return the URL of a new file."""
        self._count += 1
        path = self._folder / f"{self._count}.db"
        shutil.copyfile(self._template, path)
        return f"sqlite:///{path}"


def text_of(url: URL) -> str:
    """Return a URL as text, including its password."""
    return url.render_as_string(hide_password=False)


def upgrade(url: URL) -> None:
    """Create the tables of the package in an empty database."""
    engine = create_engine(url)
    migrate.upgrade(engine)
    engine.dispose()


def memory_engine() -> Engine:
    """Return an engine on a migrated SQLite database in memory."""
    engine = create_engine("sqlite://")
    migrate.upgrade(engine)
    return engine


def in_memory(*, session_type: type[Session] = Session) -> SessionRepository:
    """Return an in-memory repository."""
    return InMemorySessionRepository(session_type=session_type)
