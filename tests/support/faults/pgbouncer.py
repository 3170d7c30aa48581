"""Kills of PgBouncer under load: ``python -m tests.support.faults.pgbouncer``.

A kill ends all connections of clients and all connections to the server, some of them during a statement that commits
itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.support.faults import report
from tests.support.faults.ledger import Findings, Writers, examine, shared_sessions
from tests.support.faults.writer import Settings
from tests.support.repositories import text_of, upgrade
from tests.support.servers import DatabaseFactory, PgBouncer, PostgresDatabases, PostgresServer
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine

DRIVERS: Final = ("psycopg", "psycopg async", "asyncpg")


def one_round(databases: DatabaseFactory, *, calls: int, pause: float, times: int = 1) -> Findings:
    """Let writers write through PgBouncer, kill and restart it meanwhile, and examine the result.

    :param calls: number of calls that must be acknowledged before a kill, and after the restart.
    :param pause: seconds between kill and restart.
    :param times: number of kills.
    """
    with (
        tempfile.TemporaryDirectory(prefix="vfs-bouncer-") as folder,
        databases.database() as direct,
        PgBouncer(databases.admin_url) as bouncer,
    ):
        engine = create_engine(direct)
        repository = SQLAlchemySessionRepository(engine)
        histories, states = shared_sessions(repository)
        settings = [
            Settings(
                name=f"w{index}",
                url=text_of(bouncer.url_of(direct).set(drivername=f"postgresql+{driver.split()[0]}")),
                journal=f"{folder}/w{index}.journal",
                histories=histories,
                states=states,
                asynchronous=driver != "psycopg",
                engine={"pgbouncer": True},
            )
            for index, driver in enumerate(DRIVERS)
        ]
        with Writers(settings) as writers:
            writers.wait_for(calls)
            for _ in range(times):
                bouncer.kill9()
                time.sleep(pause)
                bouncer.restart()
                writers.wait_for(calls)
        findings = examine(repository, settings)
        engine.dispose()
        return findings


def main() -> None:
    """Run the rounds and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.faults.pgbouncer", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (5)")
    parser.add_argument("--times", type=int, default=4, help="kills in each round (4)")
    parser.add_argument("--calls", type=int, default=1000, help="calls acknowledged before and after each kill (1000)")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between kill and restart (0.5)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results, such as benchmarks/results")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": report.machine(), "options": {**vars(options), "out": None}}
    with PostgresServer(durable=True) as server:
        databases = PostgresDatabases(server.url, upgrade)
        results["rounds"] = [
            one_round(databases, calls=options.calls, pause=options.pause, times=options.times).as_figures()
            for _ in range(options.rounds)
        ]
        results["server"] = ".".join(map(str, server.version))
    report.write("pgbouncer", results, _lines(results), options.out)
    if any(each["violations"] for each in results["rounds"]):
        sys.exit(1)


def _lines(results: dict[str, Any]) -> Iterator[str]:
    options = results["options"]
    yield (
        f"PostgreSQL {results['server']} behind PgBouncer in transaction mode, which is killed and restarted"
        f" {options['pause']:g} s later, {options['times']} times in each round. Processes of 4 clients each, one for"
        f" each driver ({', '.join(DRIVERS)})."
    )
    yield ""
    yield from report.rounds(results["rounds"])


if __name__ == "__main__":
    main()
