"""URLs with several hosts, whose first host accepts connections and never answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from sqlalchemy import make_url

from tests.support.databases import Storage
from tests.support.faults.writer import Settings, repository_of
from tests.support.repositories import text_of
from tests.support.servers.process import several_hosts
from vibeforge_sessions.sql.dialects import base
from vibeforge_sessions.sql.dialects import mariadb as mariadb_module

DRIVERS = [
    ("postgresql", "postgresql+psycopg", False),
    ("postgresql", "postgresql+psycopg", True),
    ("postgresql", "postgresql+asyncpg", True),
    ("mariadb", "mariadb+pymysql", False),
    ("mariadb", "mariadb+asyncmy", True),
]


@pytest.fixture
def silent_host() -> Iterator[str]:
    """Return the address of a host that accepts connections and never answers, as a hanging process does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "{}:{}".format(*server.getsockname())


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CONNECT_TIMEOUT", 2)
    monkeypatch.setattr(mariadb_module, "_GREETING_TIMEOUT", 1.0)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("name", "driver", "asynchronous"), DRIVERS, ids=["psycopg", "psycopg async", "asyncpg", "pymysql", "asyncmy"]
)
def test_call_reaches_the_second_host_when_the_first_is_silent(
    name: str, driver: str, asynchronous: bool, silent_host: str, request: pytest.FixtureRequest
) -> None:
    storage: Storage = request.getfixturevalue(name)
    url = make_url(storage.url_with(driver))
    several = several_hosts(url, [silent_host, f"{url.host}:{url.port}"])
    settings = Settings("w", text_of(several), "", [], [], asynchronous=asynchronous, deadline=20.0)
    with repository_of(settings) as repository:
        session_id = repository.create_session().session_id
        assert [repository.append_error(session_id, "t", "m").position for _ in range(3)] == [1, 2, 3]
    if storage.drop is not None:
        storage.drop(url)
