"""The proxy: observed messages, cuts, held statements and new connections."""

from __future__ import annotations

import contextlib
import socket
import time
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
EXCHANGES = {  # messages of a SELECT with one row in the driver's text protocol
    "postgresql": ["Query SELECT", "RowDescription", "DataRow", "CommandComplete SELECT 1", "ReadyForQuery"],
    "mariadb": ["SELECT", "Row", "Row", "EOF", "Row", "EOF"],
}


class Line(NamedTuple):
    """A proxy in front of a database with an empty table, and connections through it and directly."""

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
    """Return the names of the messages, with statements reduced to SELECT."""
    return [seen.name.partition("SELECT repeat")[0] + "SELECT" * ("repeat" in seen.name) for seen in proxy.messages]


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["small", "large"])
def test_proxy_lists_each_message_once(line: Line, size: int) -> None:
    line.proxy.reset()
    assert line.client.exec_driver_sql(f"SELECT repeat('x', {size})").scalar() == "x" * size
    assert names(line.proxy) == EXCHANGES[line.name]
    assert [seen.side for seen in line.proxy.messages] == ["client"] + ["server"] * (len(EXCHANGES[line.name]) - 1)
    assert sum(seen.size for seen in line.proxy.messages) > size
    assert line.proxy.events == {"connections": line.proxy.connections}


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize(
    ("cut", "rows"),
    [(Cut("client", 1), 0), (Cut("client", 1, forwarded=True), 1), (Cut("server", 1), 1), (Cut("client", byte=7), 0)],
    ids=str,
)
def test_cut_statement_fails_and_is_executed_only_if_forwarded(line: Line, cut: Cut, rows: int, how: How) -> None:
    line.proxy.arm(replace(cut, how=how))
    with pytest.raises(DBAPIError) as caught:
        line.client.exec_driver_sql(INSERT)
    assert caught.value.connection_invalidated
    line.proxy.heal()
    # after an RST there is no signal that the server has processed the forwarded data
    wait_for(lambda: line.rows == rows, 10, f"{rows} rows")
    assert (line.proxy.pending_cuts, line.proxy.events["cuts"], line.proxy.connections) == (0, 1, 0)


def test_cut_after_the_last_message_leaves_that_exchange_intact(line: Line) -> None:
    last = len(EXCHANGES[line.name]) - 1
    line.proxy.arm(Cut("server", last, forwarded=True))
    line.client.exec_driver_sql("SELECT repeat('x', 1)")
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    assert line.rows == 0


def test_each_cut_of_a_series_counts_from_the_previous_cut(line: Line) -> None:
    line.proxy.arm(Cut("client", 2), Cut("client", 1), Cut("server", 1))
    line.client.exec_driver_sql(INSERT)
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    for pending_cuts in (1, 0):
        with pytest.raises(DBAPIError):  # at the connection's first message, and at the server's answer to it
            connected(line.proxy.url)
        assert line.proxy.pending_cuts == pending_cuts
    connected(line.proxy.url).close()
    assert line.rows == 1


def test_held_statement_is_executed_when_released(line: Line) -> None:
    line.proxy.arm(Cut("client", 1, hold=3600))
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    assert line.rows == 0
    line.proxy.release()
    assert (line.rows, line.proxy.events["delivered"], line.proxy.connections) == (1, 1, 0)


def test_statement_held_briefly_is_executed_after_the_delay(line: Line) -> None:
    line.proxy.arm(Cut("client", 1, hold=0.05))
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    wait_for(lambda: line.rows == line.proxy.events["delivered"] == 1, 10, "the held statement to be delivered")


def test_held_statement_is_undeliverable_after_the_server_closed_its_side(line: Line) -> None:
    own, kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({}, 10000)"),
        "mariadb": ("SELECT CONNECTION_ID()", "KILL {}"),
    }[line.name]
    number = line.client.exec_driver_sql(own).scalar_one()
    line.proxy.arm(Cut("client", 1, hold=3600))
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    line.direct.exec_driver_sql(kill.format(number))
    deadline = time.monotonic() + 60
    while not line.proxy.events["undeliverable"] and time.monotonic() < deadline:
        time.sleep(0.01)  # until the proxy has seen the server's end of the connection
    line.proxy.release()
    assert (line.rows, line.proxy.events["undeliverable"], line.proxy.events["delivered"]) == (0, 1, 0)


def test_callback_of_a_cut_runs_before_the_client_notices(line: Line) -> None:
    seen: list[int] = []
    line.proxy.arm(Cut("server", 1, then=lambda: seen.append(line.rows)))
    with pytest.raises(DBAPIError):
        line.client.exec_driver_sql(INSERT)
    assert seen == [1]


def test_exception_of_a_callback_is_raised_at_the_end_of_the_block(line: Line) -> None:
    with pytest.raises(ZeroDivisionError), Proxy(line.direct.engine.url) as proxy:  # noqa: PT012
        proxy.arm(Cut("client", 1, then=lambda: 1 // 0))
        with pytest.raises(DBAPIError):
            connected(proxy.url)


# --- connections ---


@contextlib.contextmanager
def dial(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        if proxy.url.get_backend_name() == "postgresql":  # a MariaDB server sends the first message itself
            connection.sendall(SSL_REQUEST)
        yield connection


def check_silence(connection: socket.socket) -> None:
    """Assert that no data arrives."""
    connection.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(10)


def test_entrance_determines_what_happens_to_new_connections(line: Line) -> None:
    line.proxy.set_entrance("refused")
    with pytest.raises(ConnectionRefusedError), dial(line.proxy):
        pass
    line.proxy.set_entrance("reset")
    with pytest.raises((ConnectionResetError, BrokenPipeError)), dial(line.proxy) as connection:
        connection.recv(1)
    line.proxy.set_entrance("mute")
    with dial(line.proxy) as connection:
        check_silence(connection)
    line.proxy.set_entrance("open")
    with dial(line.proxy) as connection:
        assert connection.recv(1)
    line.client.exec_driver_sql(INSERT)  # the existing connection is not affected
    assert (line.proxy.events["resets"], line.proxy.events["mutes"]) == (1, 1)


def test_cut_after_a_number_of_bytes_forwards_exactly_these_bytes(mariadb_server: AvailableServer) -> None:
    with Proxy(mariadb_server.url) as proxy:
        proxy.arm(Cut("server", byte=10, how="close"))
        with dial(proxy) as connection:
            assert connection.recv(100) == connection_bytes(mariadb_server.url)[:10]
            assert connection.recv(100) == b""
        proxy.arm(Cut("server", byte=10, how="reset"))
        # the reset may arrive while the client still connects, and discards data that was not read yet
        received: list[bytes] = []
        with pytest.raises(ConnectionResetError), dial(proxy) as connection:
            received.extend(iter(lambda: connection.recv(100), b""))
        assert connection_bytes(mariadb_server.url)[:10].startswith(b"".join(received))


def connection_bytes(url: URL) -> bytes:
    """Return the first bytes that the server sends, which are the same for every connection."""
    with socket.create_connection((url.host or "", url.port or 0), timeout=5) as connection:
        return connection.recv(12)


def test_blackhole_silences_old_and_new_connections_until_healed(line: Line) -> None:
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
def test_cut_all_ends_every_connection(line: Line, how: How) -> None:
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


def test_connection_fails_when_the_server_is_down() -> None:
    with Proxy(sqlalchemy.make_url("mysql+pymysql://u:p@127.0.0.1:1/d")) as proxy:
        with pytest.raises(DBAPIError):
            connected(proxy.url)
        assert proxy.connections == 0


def test_encrypting_server_raises_an_error_that_names_sslmode() -> None:
    framing = PostgresFraming()
    request = framing.take("client", bytearray(SSL_REQUEST))
    assert request is not None
    assert request.name == "SSLRequest"
    with pytest.raises(ValueError, match="sslmode=disable"):
        framing.take("server", bytearray(b"S"))
