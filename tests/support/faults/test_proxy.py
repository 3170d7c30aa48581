"""The proxy cuts where it is told, and nowhere else."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import sqlalchemy
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from tests.support.faults.framing import PostgresFraming
from tests.support.faults.proxy import Cut, How, Proxy
from tests.support.servers import AvailableServer, connected
from tests.support.servers.machine import wait_for

ENCRYPTION = {"postgresql+psycopg": {"sslmode": "disable"}, "mysql+pymysql": {"ssl_disabled": "true"}}
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
INSERT = "INSERT INTO t VALUES (1)"
EXCHANGES = {  # of a SELECT with one row, in the driver's simplest way
    "postgresql": ["Query SELECT", "RowDescription", "DataRow", "CommandComplete SELECT 1", "ReadyForQuery"],
    "mariadb": ["SELECT", "Row", "Row", "EOF", "Row", "EOF"],
}


class Line(NamedTuple):
    """A proxy before a database with an empty table, and connections to that: by the proxy, and past it."""

    proxy: Proxy
    name: str
    client: Connection
    direct: Connection

    @property
    def rows(self) -> int:
        return int(self.direct.execute(text("SELECT count(*) FROM t")).scalar_one())


@pytest.fixture(params=["postgresql", "mariadb"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    server: AvailableServer = request.getfixturevalue(f"{request.param}_server")
    with server.databases.database(migrated=False) as database:
        url = database.update_query_dict(ENCRYPTION[database.drivername])
        with connected(url, isolation_level="AUTOCOMMIT") as direct, Proxy(url) as proxy:
            direct.execute(text("CREATE TABLE t (n int)"))
            with contextlib.closing(connected(proxy.url, isolation_level="AUTOCOMMIT")) as client:
                client.execute(text("SELECT 1"))
                yield Line(proxy, request.param, client, direct)
                if not client.invalidated:
                    client.invalidate()


def names(proxy: Proxy) -> list[str]:
    """Return the names of what went by, without statements."""
    return [seen.name.partition("SELECT repeat")[0] + "SELECT" * ("repeat" in seen.name) for seen in proxy.messages]


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_it_sees_each_message_once(line: Line, size: int) -> None:
    line.proxy.forget()
    assert line.client.exec_driver_sql(f"SELECT repeat('x', {size})").scalar() == "x" * size
    assert names(line.proxy) == EXCHANGES[line.name]
    assert [seen.side for seen in line.proxy.messages] == ["client"] + ["server"] * (len(EXCHANGES[line.name]) - 1)
    assert sum(seen.size for seen in line.proxy.messages) > size
    assert line.proxy.happened == {"connections": line.proxy.connections}


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize(
    ("cut", "rows"),
    [(Cut("client", 1), 0), (Cut("client", 1, forwarded=True), 1), (Cut("server", 1), 1), (Cut("client", byte=7), 0)],
    ids=str,
)
def test_a_statement_that_is_cut_off(line: Line, cut: Cut, rows: int, how: How) -> None:
    line.proxy.arm(replace(cut, how=how))
    with pytest.raises(DBAPIError) as caught:
        line.client.exec_driver_sql(INSERT)
    assert caught.value.connection_invalidated
    line.proxy.heal()
    # nobody is told when the server is done with what was forwarded before an RST
    wait_for(lambda: line.rows == rows, 10, f"{rows} rows")
    assert (line.proxy.to_come, line.proxy.happened["cuts"], line.proxy.connections) == (0, 1, 0)


def test_what_comes_after_the_last_message_is_not_cut(line: Line) -> None:
    last = len(EXCHANGES[line.name]) - 1
    line.proxy.arm(Cut("server", last, forwarded=True))
    line.client.exec_driver_sql("SELECT repeat('x', 1)")
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    assert line.rows == 0


def test_each_cut_of_a_series_counts_anew(line: Line) -> None:
    line.proxy.arm(Cut("client", 2), Cut("client", 1), Cut("server", 1))
    line.client.exec_driver_sql(INSERT)
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    for to_come in (1, 0):
        with pytest.raises(DBAPIError):  # at the first message of its own, and at the server's answer to that
            connected(line.proxy.url)
        assert line.proxy.to_come == to_come
    connected(line.proxy.url).close()
    assert line.rows == 1


def test_a_statement_that_is_held(line: Line) -> None:
    line.proxy.arm(Cut("client", 1, hold=3600))
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    assert line.rows == 0
    line.proxy.release()
    assert (line.rows, line.proxy.happened["delivered"], line.proxy.connections) == (1, 1, 0)


def test_a_statement_that_is_held_for_a_moment(line: Line) -> None:
    line.proxy.arm(Cut("client", 1, hold=0.05))
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    wait_for(lambda: line.rows == 1, 10, "the statement to come")
    assert line.proxy.happened["delivered"] == 1


def test_a_statement_that_nobody_takes_any_more(line: Line) -> None:
    own, kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({}, 10000)"),
        "mariadb": ("SELECT CONNECTION_ID()", "KILL {}"),
    }[line.name]
    number = line.client.exec_driver_sql(own).scalar_one()
    line.proxy.arm(Cut("client", 1, hold=3600))
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    line.direct.exec_driver_sql(kill.format(number))
    line.proxy.release()
    assert (line.rows, line.proxy.happened["undeliverable"], line.proxy.happened["delivered"]) == (0, 1, 0)


def test_something_happens_at_the_cut(line: Line) -> None:
    seen: list[int] = []
    line.proxy.arm(Cut("server", 1, then=lambda: seen.append(line.rows)))
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    assert seen == [1]


def test_what_fails_at_the_cut_is_told(line: Line) -> None:
    with pytest.raises(ZeroDivisionError), Proxy(line.direct.engine.url) as proxy:  # noqa: PT012
        proxy.arm(Cut("client", 1, then=lambda: 1 // 0))
        with pytest.raises(DBAPIError):
            connected(proxy.url)


# --- connections ---


@contextlib.contextmanager
def dial(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        if proxy.url.get_backend_name() == "postgresql":  # MariaDB speaks first
            connection.sendall(SSL_REQUEST)
        yield connection


def check_silence(connection: socket.socket) -> None:
    """Assert that nothing is said."""
    connection.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(10)


def test_new_connections(line: Line) -> None:
    line.proxy.let("refused")
    with pytest.raises(ConnectionRefusedError), dial(line.proxy):
        pass
    line.proxy.let("reset")
    with pytest.raises((ConnectionResetError, BrokenPipeError)), dial(line.proxy) as connection:
        connection.recv(1)
    line.proxy.let("mute")
    with dial(line.proxy) as connection:
        check_silence(connection)
    line.proxy.let("open")
    with dial(line.proxy) as connection:
        assert connection.recv(1)
    line.client.exec_driver_sql(INSERT)  # the old one goes on
    assert (line.proxy.happened["resets"], line.proxy.happened["mutes"]) == (1, 1)


def test_a_number_of_bytes(mariadb_server: AvailableServer) -> None:
    with Proxy(mariadb_server.url) as proxy:
        proxy.arm(Cut("server", byte=10, how="close"))
        with dial(proxy) as connection:
            assert connection.recv(100) == connection_bytes(mariadb_server.url)[:10]
            assert connection.recv(100) == b""
        proxy.arm(Cut("server", byte=10, how="reset"))
        # the reset may come while it still connects, and takes along what nobody has read yet
        said: list[bytes] = []
        with pytest.raises(ConnectionResetError), dial(proxy) as connection:
            said.extend(iter(lambda: connection.recv(100), b""))
        assert connection_bytes(mariadb_server.url)[:10].startswith(b"".join(said))


def connection_bytes(url: URL) -> bytes:
    """Return the beginning of what the server says first, which is the same each time."""
    with socket.create_connection((url.host or "", url.port or 0), timeout=5) as connection:
        return connection.recv(12)


def test_a_black_hole(line: Line) -> None:
    with dial(line.proxy) as old:
        old.recv(4096)
        line.proxy.blackhole()
        with dial(line.proxy) as new:
            for connection in (old, new):
                check_silence(connection)
            line.proxy.heal()
            for connection in (old, new):
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    connected(line.proxy.url).close()
    assert line.rows == 0


@pytest.mark.parametrize("how", ["reset", "close"])
def test_all_are_cut(line: Line, how: How) -> None:
    others = [connected(line.proxy.url) for _ in range(3)]
    assert line.proxy.connections == 4
    line.proxy.cut_all(how)
    line.proxy.heal()
    assert line.proxy.connections == 0
    for connection in (line.client, *others):
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT 1")
    for connection in others:
        connection.close()


def test_a_server_that_is_down() -> None:
    with Proxy(sqlalchemy.make_url("mysql+pymysql://u:p@127.0.0.1:1/d")) as proxy:
        with pytest.raises(DBAPIError):
            connected(proxy.url)
        assert proxy.connections == 0


def test_encryption_is_refused_by_name() -> None:
    framing = PostgresFraming()
    asked = framing.take("client", bytearray(SSL_REQUEST))
    assert asked is not None
    assert asked.name == "SSLRequest"
    with pytest.raises(ValueError, match="sslmode=disable"):
        framing.take("server", bytearray(b"S"))
