"""Fixtures for tests of joined transactions. Each test module defines the ``engine`` fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, orm

from vibeforge_sessions import SQLAlchemySessionRepository

ConnectionOrSession = Connection | orm.Session


@pytest.fixture(params=["Connection", "Session"])
def caller(engine: Engine, request: pytest.FixtureRequest) -> Iterator[ConnectionOrSession]:
    """Yield the caller's Connection or Session, whose transaction the repository joins."""
    with engine.connect() if request.param == "Connection" else orm.Session(engine) as caller:
        yield caller


@pytest.fixture
def joined(caller: ConnectionOrSession) -> SQLAlchemySessionRepository:
    """Return a repository in the caller's transaction."""
    return SQLAlchemySessionRepository(caller)


@pytest.fixture
def outside(engine: Engine) -> SQLAlchemySessionRepository:
    """Return a repository with transactions of its own."""
    return SQLAlchemySessionRepository(engine)
