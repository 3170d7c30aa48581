"""A database for the commands, and a way to run them in this process: a new one takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import make_url, text

from tests.support.cli_runner import Done, run
from tests.support.databases import SQL_DATABASES, Storage
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine


@dataclass(frozen=True)
class Place:
    """A database with our tables, and the commands on it."""

    url: str
    repository: SQLAlchemySessionRepository

    def __call__(self, command: str, *arguments: str, **more: Any) -> Done:
        return run(self.url, "sessions", command, *arguments, **more)

    def change(self, *statements: str, **values: Any) -> None:
        """Do by hand what no repository does."""
        engine = create_engine(self.url)
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement), values)
        engine.dispose()


@pytest.fixture(params=SQL_DATABASES)
def place(request: pytest.FixtureRequest, new_place: Callable[[str], Place]) -> Place:
    """A place on each database."""
    return new_place(request.param)


@pytest.fixture
def on_sqlite(new_place: Callable[[str], Place]) -> Place:
    """A place where databases make no difference."""
    return new_place("sqlite")


@pytest.fixture
def new_place(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Place]]:
    """Give a maker of places."""
    made: list[tuple[Storage, Any]] = []

    def make(name: str) -> Place:
        storage: Storage = request.getfixturevalue(name)
        assert storage.new_url is not None
        url = storage.new_url()
        engine = create_engine(url)
        made.append((storage, engine))
        return Place(url, SQLAlchemySessionRepository(engine))

    yield make
    for storage, engine in made:
        engine.dispose()
        if storage.drop is not None:
            storage.drop(make_url(engine.url))
