"""Kills of PostgreSQL's primary under load: ``python -m tests.support.faults.failover``.

Writers in several processes, one for each driver, have a URL of both servers. The primary is killed. A moment later its
standby is promoted, or the primary is started again. The writers continue by means of the repository's own retries.
Afterwards their journals are compared with the database.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from tests.support.faults import report
from tests.support.faults.ledger import Findings, Writers, examine, shared_sessions
from tests.support.faults.writer import Settings
from tests.support.repositories import text_of
from tests.support.servers import PostgresPair, connected
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate

DRIVERS: Final = ("psycopg", "psycopg async", "asyncpg")
EVENTS: Final = {
    "promote": "the primary is killed, and its synchronous standby is promoted",
    "restart": "the primary is killed and started again",
    "hang": "the primary stops answering without closing connections, as a hanging machine; its standby is promoted",
    "stall": "the synchronous standby is cut off for longer than the deadline of calls (2 s) before the kill",
    "lag": "the standby is asynchronous and cut off before the primary is killed: its missing writes must be found",
}
"""Events of a round. The last one must report lost writes, which shows that the comparison detects them."""


def one_round(
    pair: PostgresPair,
    how: str,
    *,
    calls: int,
    pause: float = 1.0,
    drivers: tuple[str, ...] = DRIVERS,
) -> Findings:
    """Let writers write to a new database, kill the primary meanwhile, and examine the result.

    :param calls: number of calls that must be acknowledged before and after the event.
    :param pause: seconds between the kill and the promotion or restart.
    """
    database = f"round_{time.monotonic_ns()}"
    with connected(pair.primary.url, isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {database}")
    with tempfile.TemporaryDirectory(prefix="vfs-failover-") as folder:
        with repository_on(pair, database) as (engine, repository):
            migrate.upgrade(engine)
            histories, states = shared_sessions(repository)
        settings = [
            Settings(
                name=f"w{index}",
                url=text_of(pair.url(database, f"postgresql+{driver.split()[0]}")),
                journal=f"{folder}/w{index}.journal",
                histories=histories,
                states=states,
                asynchronous=driver != "psycopg",
                deadline=2.0 if how == "stall" else 30.0,
            )
            for index, driver in enumerate(drivers)
        ]
        former = None
        with Writers(settings) as writers:
            writers.wait_for(calls)
            if how in {"lag", "stall"}:
                assert pair.standby is not None
                pair.standby.cut()
            if how == "lag":
                writers.wait_for(calls)
            elif how == "stall":
                time.sleep(5)
            (pair.primary.freeze if how == "hang" else pair.primary.kill9)()
            time.sleep(pause)
            if how == "restart":
                pair.primary.restart()
            else:
                former = pair.fail_over()
            writers.wait_for(calls)
        if former is not None:
            former.stop()
        with repository_on(pair, database) as (_, repository):
            return examine(repository, settings)


@contextlib.contextmanager
def repository_on(pair: PostgresPair, database: str) -> Iterator[tuple[Engine, SQLAlchemySessionRepository]]:
    """Provide a repository on the current primary, and its engine."""
    engine = create_engine(pair.primary.url.set(database=database))
    yield engine, SQLAlchemySessionRepository(engine)
    engine.dispose()


def main() -> None:
    """Run the rounds and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.faults.failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each event (6)")
    parser.add_argument("--how", default=",".join(EVENTS), help="events (all)")
    parser.add_argument("--calls", type=int, default=2000, help="calls acknowledged before and after the event (2000)")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds from the kill to the promotion (1.0)")
    parser.add_argument("--drivers", default=",".join(DRIVERS), help="drivers of the writer processes (all)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results, such as benchmarks/results")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": report.machine(), "options": {**vars(options), "out": None}}
    for how in options.how.split(","):
        with PostgresPair(synchronous=how != "lag", durable=True) as pair:
            results["server"] = ".".join(map(str, pair.primary.version))
            results[how] = []
            for _ in range(options.rounds):
                port = pair.primary.port
                drivers = tuple(options.drivers.split(","))
                found = one_round(pair, how, calls=options.calls, pause=options.pause, drivers=drivers)
                results[how].append(found.as_figures())
                if pair.standby is None:
                    pair.add_standby(port)
    report.write("failover", results, _lines(results), options.out)
    for how in options.how.split(","):
        if any(each["violations"] for each in results[how]) != (how == "lag"):
            sys.exit(1)


def _lines(results: dict[str, Any]) -> Iterator[str]:
    options = results["options"]
    yield (
        f"PostgreSQL {results['server']}. Processes of 4 clients each, one for each driver ({options['drivers']});"
        f" {options['calls']} calls are acknowledged before the event, and as many after it. The standby is"
        f" promoted, or the primary is started again, {options['pause']:g} s after the kill."
    )
    for how in options["how"].split(","):
        what = EVENTS[how]
        yield from ("", f"### {what[0].upper()}{what[1:]}", "")
        yield from report.rounds(results[how])


if __name__ == "__main__":
    main()
