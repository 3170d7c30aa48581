"""Clients at work while servers and processes are killed: what they were told can be put in one order, per session."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, cast

import pytest
from sqlalchemy import URL, make_url

from tests.databases import Storage
from tests.faults import disturbances, history
from tests.faults.checker import check
from tests.faults.clients import OnLoop, Processes, Threads, last_reads
from tests.faults.history import Outcome
from tests.repositories import upgrade
from tests.servers import MariaDBDatabases, MariaDBServer, PostgresDatabases, PostgresServer, PrivateServer
from tests.servers.fixtures import skipping
from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    InMemorySessionRepository,
    SessionRepository,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.sql import create_async_engine, create_engine

SESSIONS: Final = ["s1", "s2", "s3", "s4"]
CLIENTS: Final = 6
ASYNC_DRIVERS: Final = {"postgresql": "postgresql+asyncpg", "mysql": "mysql+asyncmy"}
CALLS: Final = 10
"""All that a client makes."""


@contextlib.contextmanager
def repositories(url: URL) -> Iterator[list[SessionRepository]]:
    """Give every client a repository on the same database: half of them the synchronous one, half the other."""
    engine = create_engine(url)
    driver = ASYNC_DRIVERS.get(url.get_backend_name())
    async_engine = None if driver is None else create_async_engine(url.set(drivername=driver))
    loop = OnLoop(lambda: AsyncSQLAlchemySessionRepository(engine if async_engine is None else async_engine))
    half = CLIENTS // 2
    yield [SQLAlchemySessionRepository(engine)] * half + [cast(SessionRepository, loop)] * half
    loop.close()
    if async_engine is not None:
        loop.run(async_engine.dispose())
    loop.stop()
    engine.dispose()


@contextlib.contextmanager
def clients_at_work(those: list[SessionRepository], folder: Path) -> Iterator[Threads]:
    with last_reads(those[0], SESSIONS, folder), Threads(those, SESSIONS, folder) as clients:
        yield clients


def judge(folder: Path) -> None:
    """Fail if what is in the journals cannot be put in order; tell what there was."""
    operations = history.read(folder)
    counted = Counter(operation.outcome for operation in operations)
    figures = ", ".join(f"{counted[outcome]} {outcome}" for outcome in Outcome if counted[outcome])
    print(f"{len(operations)} calls: {figures}; no answer for {history.longest_gap(operations):.2f} s at the most")
    assert len({each.call for each in operations if each.outcome is Outcome.DONE}) == CALLS, "some were never made"
    assert "\n".join(map(str, check(operations))) == ""


class Durable(NamedTuple):
    """A server that can be killed, and a new database on it."""

    server: PrivateServer
    url: URL


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(f"faults-{name}")) for name in ("postgresql", "mariadb")],
)
def durable_server(
    request: pytest.FixtureRequest,
) -> Iterator[tuple[PrivateServer, PostgresDatabases | MariaDBDatabases]]:
    with skipping(), contextlib.ExitStack() as stack:
        if request.param == "postgresql":
            postgres = stack.enter_context(PostgresServer(durable=True, options=["deadlock_timeout=200ms"]))
            yield postgres, PostgresDatabases(postgres.url, upgrade)
        else:
            mariadb = stack.enter_context(MariaDBServer(durable=True))
            yield mariadb, MariaDBDatabases(mariadb.url, upgrade)


@pytest.fixture
def durable(durable_server: tuple[PrivateServer, PostgresDatabases | MariaDBDatabases]) -> Durable:
    server, databases = durable_server
    return Durable(server, databases.create())


def test_in_memory(tmp_path: Path) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    with clients_at_work([repository] * CLIENTS, tmp_path) as clients:
        clients.wait_for(1000)
    judge(tmp_path)


def test_on_sqlite(sqlite: Storage, tmp_path: Path) -> None:
    assert sqlite.new_url is not None
    with repositories(make_url(sqlite.new_url())) as those, clients_at_work(those, tmp_path) as clients:
        clients.wait_for(1000)
    judge(tmp_path)


def test_on_sqlite_while_writers_are_killed(sqlite: Storage, tmp_path: Path) -> None:
    assert sqlite.new_url is not None
    url = sqlite.new_url()
    engine = create_engine(url)
    with (
        last_reads(SQLAlchemySessionRepository(engine), SESSIONS, tmp_path),
        Processes(url, SESSIONS, tmp_path, 4) as clients,
    ):
        disturbances.kill_clients(clients, times=12, answers=80)
    engine.dispose()
    judge(tmp_path)


def test_while_the_server_is_killed(durable: Durable, tmp_path: Path) -> None:
    with repositories(durable.url) as those, clients_at_work(those, tmp_path) as clients:
        disturbances.crash(durable.server, clients, times=3, answers=300)
    judge(tmp_path)


def test_while_connections_are_killed(durable: Durable, tmp_path: Path) -> None:
    with repositories(durable.url) as those, clients_at_work(those, tmp_path) as clients:
        disturbances.kill_connections(durable.url, clients, times=60)
    judge(tmp_path)


def test_while_transactions_are_deadlocked(durable: Durable, tmp_path: Path) -> None:
    with repositories(durable.url) as those, clients_at_work(those, tmp_path) as clients:
        disturbances.make_deadlocks(durable.url, clients, SESSIONS, times=5)
    judge(tmp_path)
