"""Fixtures of the tests of joined transactions; a module defines ``engine``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, orm

from vibeforge_sessions import SQLAlchemySessionRepository

Host = Connection | orm.Session


@pytest.fixture(params=["Connection", "Session"])
def host(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Host]:
    with engine.connect() if request.param == "Connection" else orm.Session(engine) as host:
        yield host


@pytest.fixture
def joined(host: Host) -> SQLAlchemySessionRepository:
    return SQLAlchemySessionRepository(host)


@pytest.fixture
def outside(engine: Engine) -> SQLAlchemySessionRepository:
    return SQLAlchemySessionRepository(engine)
