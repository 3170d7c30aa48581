"""Private servers: start, crash, restart, and complete removal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support import ROOT
from tests.support.servers import (
    MariaDBDatabases,
    MariaDBServer,
    PostgresDatabases,
    PostgresServer,
    PrivateServer,
    ServerUnavailable,
    connected,
)
from tests.support.servers.fixtures import skipping
from tests.support.servers.machine import children_of, is_running, processes_of, wait_for

KINDS = ("postgresql", "mariadb")
CLASSES: dict[str, type[PostgresServer | MariaDBServer]] = {"postgresql": PostgresServer, "mariadb": MariaDBServer}


@pytest.fixture(params=KINDS)
def private(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    with skipping(), CLASSES[request.param](durable=True) as server:
        yield server


def port_is_closed(url: sa.URL) -> bool:
    try:
        connected(url).close()
    except sa.exc.OperationalError:
        return True
    return False


def test_postgresql_has_the_requested_options_and_locale() -> None:
    icu = ("--locale-provider=icu", "--icu-locale=en-US")
    with skipping(), PostgresServer(options=["timezone=Asia/Kathmandu"], initdb_args=icu) as server:
        with connected(server.url) as connection:
            assert connection.scalar(sa.text("SHOW timezone")) == "Asia/Kathmandu"
            assert connection.scalar(sa.text("SELECT 'a' < 'B'"))
        assert server.version >= (13,)


def test_mariadb_has_the_requested_arguments_and_charset() -> None:
    args = ["--default-time-zone=+05:30", "--max-allowed-packet=1M"]
    with skipping(), MariaDBServer(charset="latin1", args=args) as server:
        with connected(server.url_for("mariadb+pymysql")) as connection:
            assert connection.dialect.name == "mariadb"
            row = connection.execute(sa.text("SELECT @@time_zone, @@max_allowed_packet, @@character_set_server")).one()
            assert row == ("+05:30", 2**20, "latin1")
            accounts = "SELECT count(*) FROM mysql.user WHERE user = '' OR (password = '' AND plugin = '')"
            assert connection.scalar(sa.text(accounts)) == 0
        assert server.version >= (10, 6)


def test_restarted_server_has_all_committed_data(private: PrivateServer) -> None:
    databases = PostgresDatabases if isinstance(private, PostgresServer) else MariaDBDatabases
    url = databases(private.url).create(migrated=False)
    with connected(url) as connection:
        connection.execute(sa.text("CREATE TABLE restarts (how VARCHAR(20))"))
        connection.commit()
    for how in ("after a crash", "after a shutdown"):
        with connected(url) as connection:
            connection.execute(sa.text("INSERT INTO restarts VALUES (:how)"), {"how": how})
            connection.commit()
        if how == "after a crash":
            private.kill9()
            assert not is_running(private.pid)
            assert port_is_closed(private.url)
        private.restart()
    with connected(url) as connection:
        assert connection.scalars(sa.text("SELECT how FROM restarts")).all() == ["after a crash", "after a shutdown"]


@pytest.mark.parametrize("state", ["running", "killed", "frozen"])
def test_stop_removes_the_server_completely(private: PrivateServer, state: str) -> None:
    segments = shared_memory_of(private)
    if isinstance(private, PostgresServer) and sys.platform == "linux":
        assert segments & shared_memory()
    family = [private.pid, *children_of(private.pid)]
    if state == "killed":
        private.kill9()
    elif state == "frozen":
        private.freeze()
    private.stop()
    assert not any(map(is_running, family))
    assert not private.directory.exists()
    assert port_is_closed(private.url)
    assert not segments & shared_memory()
    private.stop()  # a second call has no effect


def shared_memory_of(server: PrivateServer) -> set[str]:
    lock_file = server.directory / "data" / "postmaster.pid"
    return {lock_file.read_text().splitlines()[6].split()[1]} if lock_file.exists() else set()


def shared_memory() -> set[str]:
    listing = Path("/proc/sysvipc/shm")
    return {line.split()[1] for line in listing.read_text().splitlines()[1:]} if listing.exists() else set()


OWNER = """
import os, sys, time
from tests.support.servers import MariaDBServer, PostgresServer

class Server({server}):
    def _install(self):
        print(self.directory, flush=True)
        super()._install()

server = Server().start()
if {freezes}:
    server.freeze()
if {forks} and os.fork() == 0:
    time.sleep(60)  # keeps the owner's files open
    os._exit(0)
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("when", ["installing", "running", "forked", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_kill_of_the_owner_removes_the_server_completely(kind: str, when: str) -> None:
    with skipping():
        CLASSES[kind]()  # finds the programs without starting them
    script = OWNER.format(server=CLASSES[kind].__name__, forks=when == "forked", freezes=when == "frozen")
    owner = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert owner.stdout is not None
    with owner.stdout as output:
        directory = Path(output.readline().strip())
        assert directory.name.startswith("vfs-")
        family = list[int]()
        if when == "installing":
            time.sleep(0.15)
        else:
            pid = int(output.readline())
            assert is_running(pid)
            family += [pid, *children_of(pid)]
        owner.kill()
        owner.wait()
        # The guard is the last process to end.
        wait_for(
            lambda: not directory.exists() and not processes_of(directory),
            20,
            "the processes and the directory to be removed",
        )
    assert not any(map(is_running, family))
    if when == "forked":
        os.killpg(owner.pid, signal.SIGKILL)


def test_failed_start_reports_its_reason_and_leaves_nothing() -> None:
    with skipping():
        server = PostgresServer(options=["no_such_setting=1"])
    with pytest.raises(ServerUnavailable, match="no_such_setting"):
        server.start()
    assert not server.directory.exists()
