"""Fixtures that run the commands in this process, because starting a new process takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import make_url, text

from tests.support import cases
from tests.support.cli_runner import Done, run
from tests.support.databases import SQL_DATABASES, Storage
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine


@dataclass(frozen=True)
class Cli:
    """A migrated database, its repository, and the `sessions` commands."""

    url: str
    repository: SQLAlchemySessionRepository

    def __call__(self, command: str, *arguments: str, **more: Any) -> Done:
        return run(self.url, "sessions", command, *arguments, **more)

    def change(self, *statements: str, **values: Any) -> None:
        """Execute SQL statements, for states that no repository creates."""
        engine = create_engine(self.url)
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement), values)
        engine.dispose()


@pytest.fixture(params=cases(SQL_DATABASES, ("sqlite", "postgresql")))
def cli(request: pytest.FixtureRequest, new_cli: Callable[[str], Cli]) -> Cli:
    """Return the commands on each kind of database."""
    return new_cli(request.param)


@pytest.fixture
def sqlite_cli(new_cli: Callable[[str], Cli]) -> Cli:
    """Return the commands on SQLite, for tests that do not depend on the kind of database."""
    return new_cli("sqlite")


@pytest.fixture
def new_cli(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Cli]]:
    """Return a function that creates a database for the commands."""
    created: list[tuple[Storage, Any]] = []

    def make(name: str) -> Cli:
        storage: Storage = request.getfixturevalue(name)
        assert storage.new_url is not None
        url = storage.new_url()
        engine = create_engine(url)
        created.append((storage, engine))
        return Cli(url, SQLAlchemySessionRepository(engine))

    yield make
    for storage, engine in created:
        engine.dispose()
        if storage.drop is not None:
            storage.drop(make_url(engine.url))
