"""Appends per second of one database, by number of processes: ``python -m benchmarks.clients``.

Each process appends to its own session, on a server that syncs every commit. The clients run on the same cores as the
server, so the figures are those of one small machine with both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from tests.support.repositories import text_of, upgrade
from tests.support.servers import MariaDBDatabases, MariaDBServer, PostgresDatabases, PostgresServer
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine

CLIENTS = (1, 2, 4, 8, 16)


@contextmanager
def database(name: str) -> Iterator[str]:
    """Provide the URL of a new database with the tables of this package."""
    if name == "sqlite":
        with tempfile.TemporaryDirectory(prefix="vfs-clients-") as folder:
            engine = create_engine(f"sqlite:///{folder}/sessions.db")
            upgrade(engine.url)
            yield f"sqlite:///{folder}/sessions.db"
    elif name == "postgresql":
        with PostgresServer(durable=True) as postgres:
            yield text_of(PostgresDatabases(postgres.url, upgrade).create())
    else:
        with MariaDBServer(durable=True) as mariadb:
            yield text_of(MariaDBDatabases(mariadb.url, upgrade).create())


def append(url: str, seconds: float) -> int:
    """Append to a new session for some seconds; return the number of appends."""
    repository = SQLAlchemySessionRepository(create_engine(url))
    session_id, done = repository.create_session().session_id, 0
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        repository.append_error(session_id, "task", "it broke")
        done += 1
    return done


def measure(url: str, clients: int, seconds: float) -> float:
    """Return the appends per second of this number of processes."""
    command = [sys.executable, "-m", "benchmarks.clients", "--url", url, "--seconds", str(seconds)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    answers = [process.communicate("go\n") for process in processes] if clients == 1 else _together(processes)
    return sum(int(answer[0]) for answer in answers) / seconds


def _together(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate() for process in processes]


def main() -> None:
    """Run the measurements, and print a table."""
    asked = argparse.ArgumentParser(description="Measure appends per second by number of processes.")
    asked.add_argument("--seconds", type=float, default=5)
    asked.add_argument("--url", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.url:
        sys.stdout.write(f"{append(given.url, given.seconds)}\n")
        return
    console = Console(width=120)
    console.print(f"| processes | {' | '.join(map(str, CLIENTS))} |")
    console.print("|---" * (len(CLIENTS) + 1) + "|")
    for name in ("sqlite", "postgresql", "mariadb"):
        with database(name) as url:
            figures = [f"{measure(url, clients, given.seconds):,.0f}" for clients in CLIENTS]
        console.print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
