"""Standbys, poolers and clusters: the operations that fault tests need.

(``tests/faults/test_galera.py`` tests failures of Galera nodes.)
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support import ROOT
from tests.support.servers import (
    AvailableServer,
    GaleraCluster,
    PgBouncer,
    PostgresPair,
    connected,
)
from tests.support.servers.fixtures import skipping
from tests.support.servers.machine import is_running, processes_of, wait_for


def run(url: sa.URL, *statements: str) -> None:
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def numbers(url: sa.URL) -> list[int]:
    with connected(url) as connection:
        return sorted(connection.scalars(sa.text("SELECT n FROM numbers")))


def has_table(url: sa.URL) -> bool:
    with connected(url) as connection:
        return sa.inspect(connection).has_table("numbers")


# -- PostgreSQL with a standby


@pytest.fixture
def pair() -> Iterator[PostgresPair]:
    with skipping(), PostgresPair() as pair:
        run(pair.primary.url, "CREATE TABLE numbers (n int)")
        yield pair


def test_standby_takes_over_and_is_replaced(pair: PostgresPair) -> None:
    assert pair.standby is not None
    url, ports = pair.url(), {pair.primary.port, pair.standby.port}
    for number in (1, 2):
        run(url, f"INSERT INTO numbers VALUES ({number})")
        pair.primary.kill9()
        former = pair.fail_over()
        former.stop()
        assert not pair.replicates_synchronously()
        pair.add_standby(former.port)
        assert pair.replicates_synchronously()
        assert pair.standby is not None
        assert {pair.primary.port, pair.standby.port} == ports
    run(url, "INSERT INTO numbers VALUES (3)")
    assert numbers(url) == [1, 2, 3]
    assert pair.standby is not None
    standby = pair.standby.url
    wait_for(lambda: numbers(standby) == [1, 2, 3], 10, "the standby to apply the commits")
    with pytest.raises(sa.exc.InternalError, match="read-only"):
        run(standby, "INSERT INTO numbers VALUES (4)")


def test_commit_waits_for_a_standby_that_was_cut_off(pair: PostgresPair) -> None:
    assert pair.standby is not None
    pair.standby.cut()
    writer = threading.Thread(target=run, args=(pair.url(), "INSERT INTO numbers VALUES (1)"))
    writer.start()
    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

    def waits() -> bool:
        with connected(pair.primary.url) as connection:
            return bool(connection.scalar(waiting))

    wait_for(waits, 10, "the commit to wait")
    assert numbers(pair.primary.url) == []
    pair.standby.mend()
    writer.join(30)
    assert not writer.is_alive()
    assert numbers(pair.primary.url) == [1]


def test_asynchronous_standby_lacks_commits_after_the_cut() -> None:
    with skipping(), PostgresPair(synchronous=False) as pair:
        assert pair.standby is not None
        standby = pair.standby.url
        run(pair.url(), "CREATE TABLE numbers (n int)", "INSERT INTO numbers VALUES (1)")
        wait_for(lambda: has_table(standby) and numbers(standby) == [1], 10, "the standby to apply the insert")
        pair.standby.cut()
        run(pair.url(), "INSERT INTO numbers VALUES (2)")
        pair.primary.kill9()
        pair.fail_over().stop()
        assert numbers(pair.primary.url) == [1]


# -- PgBouncer


def test_pgbouncer_shares_a_connection_between_transactions_and_restarts(postgresql_server: AvailableServer) -> None:
    with (
        postgresql_server.databases.database(migrated=False) as direct,
        skipping(),
        PgBouncer(postgresql_server.url, connections=1) as bouncer,
    ):
        url = bouncer.url_of(direct)
        assert bouncer.version >= (1, 18)
        run(url, "CREATE TABLE numbers (n int)")
        with connected(url) as first, connected(url) as second:
            shared = [connection.scalar(sa.text("SELECT pg_backend_pid()")) for connection in (first, first)]
            first.rollback()
            shared.append(second.scalar(sa.text("SELECT pg_backend_pid()")))
            assert len(set(shared)) == 1
        bouncer.kill9()
        with pytest.raises(sa.exc.OperationalError):
            run(url, "SELECT 1")
        bouncer.restart()
        assert numbers(url) == []


# -- all kinds of servers

OWNER = """
import time
from tests.support.servers import GaleraCluster, PgBouncer, PostgresPair, PostgresServer

def report(*servers):
    print(*(server.pid for server in servers), *(server.directory for server in servers), flush=True)
    time.sleep(60)

{body}
"""
BODIES = {
    "pair": "pair = PostgresPair().start(); report(pair.primary, pair.standby)",
    "pgbouncer": "server = PostgresServer().start(); report(server, PgBouncer(server.url).start())",
    "galera": "cluster = GaleraCluster(size=2).start(); report(*cluster.nodes)",
}
AVAILABLE: dict[str, Callable[[], object]] = {
    "pair": PostgresPair,
    "pgbouncer": lambda: PgBouncer(sa.make_url("postgresql://")),
    "galera": GaleraCluster,
}


@pytest.mark.parametrize("kind", BODIES)
def test_kill_of_the_owner_removes_all_servers(kind: str) -> None:
    with skipping():
        AVAILABLE[kind]()  # finds the programs without starting them
    script = OWNER.format(body=BODIES[kind])
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        first, second, *directories = owner.stdout.readline().split()
        assert is_running(int(first))
        assert is_running(int(second))
        owner.send_signal(signal.SIGKILL)
    for directory in map(Path, directories):
        wait_for(lambda d=directory: not d.exists() and not processes_of(d), 15, "the end of all processes")  # type: ignore[misc]
    assert not is_running(int(first))
    assert not is_running(int(second))
