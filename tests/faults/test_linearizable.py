"""Clients at work while servers and processes are killed: what they were told can be put in one order, per session."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from sqlalchemy import URL, make_url

from tests.databases import Storage
from tests.faults import broken, disturbances, history
from tests.faults.at_work import Processes, Threads, last_reads, repositories
from tests.faults.checker import check
from tests.faults.history import Crash, Outcome
from tests.faults.proxy import Proxy
from tests.repositories import upgrade
from tests.servers import (
    DatabaseFactory,
    MariaDBDatabases,
    MariaDBServer,
    PostgresDatabases,
    PostgresServer,
    PrivateServer,
)
from tests.servers.fixtures import skipping
from vibeforge_sessions import (
    InMemorySessionRepository,
    RetryPolicy,
    SessionRepository,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.sql import create_engine

SESSIONS: Final = ["s1", "s2", "s3", "s4"]
CLIENTS: Final = 6
CALLS: Final = 10
"""All that a client makes."""
IMPATIENT: Final = RetryPolicy(deadline=4.0)
"""For servers that say nothing: an attempt is given up after two seconds."""
ONCE: Final = RetryPolicy(attempts=1, deadline=2.0)


@contextlib.contextmanager
def clients_at_work(
    those: Sequence[SessionRepository], folder: Path, session_ids: Sequence[str] = SESSIONS
) -> Iterator[Threads]:
    """Let clients use these repositories as long as the block runs."""
    with last_reads(those[0], session_ids, folder), Threads(those, session_ids, folder) as clients:
        yield clients


def judge(folder: Path, *, glimpses: Iterable[Crash] = ()) -> None:
    """Fail if what is in the journals cannot be put in order; tell what there was."""
    operations = history.read(folder)
    counted = Counter(operation.outcome for operation in operations)
    figures = ", ".join(f"{counted[outcome]} {outcome}" for outcome in Outcome if counted[outcome])
    print(f"{len(operations)} calls: {figures}; no answer for {history.longest_gap(operations):.2f} s at the most")
    assert len({each.call for each in operations if each.outcome is Outcome.DONE}) == CALLS, "some were never made"
    assert "\n".join(map(str, check(operations, glimpses=glimpses))) == ""


class Durable(NamedTuple):
    """A server that can be killed, and a new database on it."""

    server: PrivateServer
    url: URL
    glimpses: bool
    """Whether it shows what is not safe yet."""


#: Without a binary log MariaDB shows a commit to others before it is safe.
BINARY_LOG: Final = ("--log-bin=binary", "--sync-binlog=1")


@contextlib.contextmanager
def durable_server(kind: str) -> Iterator[tuple[PrivateServer, DatabaseFactory]]:
    """Give a server that waits for its disk."""
    if kind == "postgresql":
        with PostgresServer(durable=True, options=["deadlock_timeout=200ms"]) as postgres:
            yield postgres, PostgresDatabases(postgres.url, upgrade)
    else:
        args = BINARY_LOG if kind == "mariadb with a binary log" else ()
        with MariaDBServer(durable=True, args=args) as mariadb:
            yield mariadb, MariaDBDatabases(mariadb.url, upgrade)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, tuple[PrivateServer, DatabaseFactory]]]:
    """The servers of this module, started when they are asked for."""
    with contextlib.ExitStack() as stack:

        class Servers(dict[str, tuple[PrivateServer, DatabaseFactory]]):
            def __missing__(self, kind: str) -> tuple[PrivateServer, DatabaseFactory]:
                self[kind] = stack.enter_context(durable_server(kind))
                return self[kind]

        yield Servers()


KINDS: Final = ["postgresql", "mariadb"]


def on(*kinds: str) -> pytest.MarkDecorator:
    """Ask for the test on each kind of server; those of one are made by one worker."""
    params = [pytest.param(kind, marks=pytest.mark.xdist_group(f"faults on {kind}")) for kind in kinds]
    return pytest.mark.parametrize("durable", params, indirect=True)


@pytest.fixture
def durable(request: pytest.FixtureRequest, servers: dict[str, tuple[PrivateServer, DatabaseFactory]]) -> Durable:
    with skipping():
        server, databases = servers[request.param]
        return Durable(server, databases.create(), glimpses=request.param == "mariadb")


# -- nothing goes wrong


def test_in_memory(tmp_path: Path) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    with clients_at_work([repository] * CLIENTS, tmp_path) as clients:
        clients.wait_for(1000)
    judge(tmp_path)


def test_on_sqlite(sqlite: Storage, tmp_path: Path) -> None:
    assert sqlite.new_url is not None
    with repositories(make_url(sqlite.new_url()), CLIENTS) as (those, _), clients_at_work(those, tmp_path) as clients:
        clients.wait_for(1000)
    judge(tmp_path)


# -- something goes wrong


def test_on_sqlite_while_writers_are_killed(sqlite: Storage, tmp_path: Path) -> None:
    assert sqlite.new_url is not None
    url = sqlite.new_url()
    engine = create_engine(url)
    with (
        last_reads(SQLAlchemySessionRepository(engine), SESSIONS, tmp_path),
        Processes(url, SESSIONS, tmp_path, 4) as clients,
    ):
        disturbances.kill_clients(clients, times=10, answers=100)
    engine.dispose()
    judge(tmp_path)


@on(*KINDS, "mariadb with a binary log")
def test_while_the_server_is_killed(durable: Durable, tmp_path: Path) -> None:
    with repositories(durable.url, CLIENTS) as (those, _), clients_at_work(those, tmp_path) as clients:
        crashes = disturbances.crash(durable.server, clients, times=3, answers=300)
    judge(tmp_path, glimpses=crashes if durable.glimpses else ())


@on(*KINDS)
def test_while_the_server_ends_connections(durable: Durable, tmp_path: Path) -> None:
    with repositories(durable.url, CLIENTS) as (those, _), clients_at_work(those, tmp_path) as clients:
        disturbances.kill_connections(durable.url, clients, times=60)
    judge(tmp_path)


@on(*KINDS)
def test_while_connections_are_cut(durable: Durable, tmp_path: Path) -> None:
    with (
        Proxy(durable.url) as proxy,
        repositories(proxy.url, CLIENTS, retry=IMPATIENT) as (those, _),
        clients_at_work(those, tmp_path) as clients,
    ):
        disturbances.cut_connections(proxy, clients, times=60)
        proxy.heal()
    judge(tmp_path)


@on(*KINDS)
def test_while_transactions_are_deadlocked(durable: Durable, tmp_path: Path) -> None:
    with repositories(durable.url, CLIENTS) as (those, _), clients_at_work(those, tmp_path) as clients:
        disturbances.make_deadlocks(durable.url, clients, SESSIONS, times=5)
    judge(tmp_path)


# -- the repository is wrong


def noticed(
    wrong: Sequence[SessionRepository], folder: Path, disturb: Callable[[Threads], list[Crash]], *, rounds: int = 10
) -> bool:
    """Tell whether the checker cries in one of so many rounds: even what is wrong does not show every time.

    :param disturb: returns the crashes that may have taken back what was read: that is not what is to be noticed.
    """
    for number in range(rounds):
        own = folder / str(number)
        own.mkdir()
        with clients_at_work(wrong, own, [f"{number}.{session_id}" for session_id in SESSIONS]) as clients:
            crashes = disturb(clients)
        if check(history.read(own), glimpses=crashes):
            return True
    return False


@pytest.mark.parametrize("wrong", broken.ALWAYS_WRONG)
def test_it_notices(wrong: type[SQLAlchemySessionRepository], sqlite: Storage, tmp_path: Path) -> None:
    engine = sqlite.new_engine()

    def let_them_work(clients: Threads) -> list[Crash]:
        clients.wait_for(700)
        return []

    assert noticed([wrong(engine) for _ in range(CLIENTS)], tmp_path, let_them_work)
    engine.dispose()


@on(*KINDS)
@pytest.mark.parametrize("wrong", [broken.LooksAtNoVersion, broken.TriesAgainBlindly])
def test_it_notices_while_connections_are_cut(
    wrong: type[SQLAlchemySessionRepository], durable: Durable, tmp_path: Path
) -> None:
    with Proxy(durable.url) as proxy:
        engine = create_engine(proxy.url)
        repository = wrong(engine, retry=ONCE if wrong is broken.TriesAgainBlindly else IMPATIENT)

        def disturb(clients: Threads) -> list[Crash]:
            disturbances.cut_connections(proxy, clients, times=20)
            proxy.heal()
            return []

        assert noticed([repository] * CLIENTS, tmp_path, disturb)
        engine.dispose()


@on(*KINDS)
def test_it_notices_what_is_tried_again_blindly_while_the_server_is_killed(durable: Durable, tmp_path: Path) -> None:
    engine = create_engine(durable.url)
    repository = broken.TriesAgainBlindly(engine, retry=ONCE)

    def disturb(clients: Threads) -> list[Crash]:
        crashes = disturbances.crash(durable.server, clients, times=1, answers=100)
        return crashes if durable.glimpses else []

    assert noticed([repository] * CLIENTS, tmp_path, disturb, rounds=20)
    engine.dispose()
