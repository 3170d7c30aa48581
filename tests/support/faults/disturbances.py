"""Disturbances of working clients: server crashes, killed connections and processes, and deadlocks.

Each function waits for answers of the clients between two disturbances, never for a fixed time.
"""

from __future__ import annotations

import random
import time
from typing import Any, Final

import sqlalchemy as sa

from tests.support.faults.at_work import PATIENCE, Clients, Processes
from tests.support.faults.framing import Side
from tests.support.faults.history import Crash
from tests.support.faults.proxy import Cut, How, Proxy
from tests.support.servers import PrivateServer, connected
from tests.support.servers.machine import wait_for

_BETWEEN: Final = 12
"""Answers between two killed connections or two deadlocked transactions."""
_SIDES: Final[tuple[Side, ...]] = ("client", "server", "server")
_HOWS: Final[tuple[How, ...]] = ("reset", "close")
_MEET: Final = 0.01
"""Seconds in which another transaction begins to wait for the lock."""


def crash(server: PrivateServer, clients: Clients, *, times: int, answers: int) -> list[Crash]:
    """Kill the server with all its processes at a random moment and start it again; return the times."""
    crashes = []
    for _ in range(times):
        clients.wait_for(answers)
        time.sleep(random.uniform(0, 0.01))  # a random moment, not always directly after an answer
        killed = time.monotonic_ns()
        server.kill9()
        server.restart()
        crashes.append(Crash(killed, time.monotonic_ns()))
    clients.wait_for(answers)
    return crashes


def kill_clients(clients: Processes, *, times: int, answers: int) -> None:
    """Kill client processes at random moments, and start others."""
    for number in range(times):
        clients.wait_for(answers)
        time.sleep(random.uniform(0, 0.003))
        clients.kill(number % 2)
        clients.start()
    clients.wait_for(answers)


_ACTIVE_CONNECTION: Final = {
    "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    " ORDER BY state = 'active' DESC, random() LIMIT 1",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    " ORDER BY command = 'Query' DESC, rand() LIMIT 1",
}


def kill_connections(url: sa.URL, clients: Clients, *, times: int) -> None:
    """Let the server end random connections, preferably active ones."""
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        for _ in range(times):
            clients.wait_for(_BETWEEN)
            found = connection.scalar(sa.text(_ACTIVE_CONNECTION[url.get_backend_name()]))
            if url.get_backend_name() == "mysql" and found is not None:
                try:
                    connection.exec_driver_sql(f"KILL {found}")
                except sa.exc.DBAPIError as error:
                    if "Unknown thread id" not in str(error):  # the connection has just ended by itself
                        raise
    clients.wait_for(10 * _BETWEEN)


def cut_connections(proxy: Proxy, clients: Clients, *, times: int) -> None:
    """Cut connections at random messages, preferably of the server, so that clients do not learn what was done.

    Every twentieth connection becomes mute instead. The server's side ends a little later, and its transaction keeps
    its locks until then.
    """
    for number in range(times):
        clients.wait_for(_BETWEEN)
        side = random.choice(_SIDES)
        how: How = "mute" if number % 20 == 10 else random.choice(_HOWS)
        proxy.arm(Cut(side, message=random.randint(1, 8), forwarded=random.random() < 0.3, how=how))
        wait_for(lambda: not proxy.pending_cuts, PATIENCE, "a message to cut a connection at")
        if how == "mute":
            clients.wait_for(_BETWEEN)
            proxy.heal()
    clients.wait_for(10 * _BETWEEN)


def lose_answers(proxy: Proxy, clients: Clients, *, times: int) -> None:
    """Cut connections after the server has received a message: it executes the request, but no answer arrives."""
    for _ in range(times):
        clients.wait_for(_BETWEEN)
        proxy.arm(Cut("client", message=random.randint(1, 8), forwarded=True, how=random.choice(_HOWS)))
        wait_for(lambda: not proxy.pending_cuts, PATIENCE, "a message to cut a connection at")


_DEADLOCKS: Final = {
    "postgresql": "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
    "mysql": "SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'",
}


def make_deadlocks(url: sa.URL, clients: Clients, session_ids: list[str], *, times: int) -> None:
    """Lock documents before the row of a session, in reverse of the package's order, until updates are deadlocked."""
    with connected(url) as connection:
        _avoid_being_the_victim(connection)
        before = _count(connection)
        end = time.monotonic() + PATIENCE
        while _count(connection) < before + times:
            assert time.monotonic() < end, "no deadlock occurred"
            clients.wait_for(1)
            parameters = {"id": random.choice(session_ids)}
            try:
                if url.get_backend_name() == "mysql":  # MariaDB rolls back the transaction that has written less
                    connection.execute(sa.text("INSERT INTO others (n) VALUES (1)"), [{}] * 100)
                connection.execute(
                    sa.text("SELECT 1 FROM vibeforge_session_documents WHERE session_id = :id FOR UPDATE"), parameters
                )
                time.sleep(_MEET)
                connection.execute(
                    sa.text("SELECT 1 FROM vibeforge_sessions WHERE session_id = :id FOR UPDATE"), parameters
                )
            except sa.exc.DBAPIError as error:
                if "eadlock" not in str(error):  # this transaction was the victim
                    raise
            connection.rollback()


def _avoid_being_the_victim(connection: sa.Connection) -> None:
    # PostgreSQL rolls back the transaction whose deadlock_timeout ends first, and MariaDB the one with fewer changes
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET deadlock_timeout = '2s'"))
    else:
        connection.execute(sa.text("CREATE TABLE IF NOT EXISTS others (n INTEGER)"))
        connection.execute(sa.text("SET GLOBAL innodb_monitor_enable = 'lock_deadlocks'"))
    connection.commit()


def _count(connection: sa.Connection) -> Any:
    found = connection.scalar(sa.text(_DEADLOCKS[connection.dialect.name]))
    connection.rollback()
    return found
