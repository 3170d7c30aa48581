"""Rounds of working clients during a disturbance, and a linearizability check of their histories.

    python -m tests.support.faults.linearizable                                  # five rounds of every kind
    python -m tests.support.faults.linearizable --rounds 20 --only 'postgresql: the server is killed'
    python -m tests.support.faults.linearizable --out benchmarks/results         # linearizable.json and .md

``test_linearizable`` runs one round of each kind. Six clients share four sessions, which are created and deleted: half
of them use the synchronous repository, half the asynchronous one. On SQLite there are also rounds with four processes
that are killed. The exit code is 1 if a history is not linearizable. The longest time without an answer is reported,
but has no limit.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from sqlalchemy import URL, make_url

from tests.support.databases import fast_folder
from tests.support.faults import disturbances, history, report
from tests.support.faults.at_work import Processes, Threads, last_reads, repositories
from tests.support.faults.checker import check
from tests.support.faults.history import Crash, Outcome
from tests.support.faults.proxy import Proxy
from tests.support.repositories import SQLiteFiles, text_of, upgrade
from tests.support.servers import (
    MariaDBDatabases,
    MariaDBServer,
    PostgresDatabases,
    PostgresServer,
    PrivateServer,
)
from vibeforge_sessions import RetryPolicy, SessionRepository, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine

SESSIONS: Final = ["s1", "s2", "s3", "s4"]
CLIENTS: Final = 6
IMPATIENT: Final = RetryPolicy(deadline=4.0)
"""A policy for servers that do not answer: an attempt is abandoned after two seconds."""


class Database(NamedTuple):
    """A new database, and its server if it has one."""

    url: URL
    server: PrivateServer | None = None
    shows_glimpses: bool = False
    """Whether the server shows commits to other clients before they are durable."""


_BINARY_LOG: Final = ("--log-bin=binary", "--sync-binlog=1")
_LOGGED: Final = "mariadb with a binary log"


@contextlib.contextmanager
def databases(kind: str) -> Iterator[Callable[[], Database]]:
    """Provide a function that creates databases; a server waits for its disk."""
    if kind == "sqlite":
        with TemporaryDirectory(prefix="vfs-sqlite-", dir=fast_folder()) as folder:
            files = SQLiteFiles(Path(folder))
            yield lambda: Database(make_url(files.new_url()))
        return
    shows_glimpses = kind == "mariadb"
    if kind == "postgresql":
        with PostgresServer(durable=True, options=["deadlock_timeout=200ms"]) as postgres:
            postgres_databases = PostgresDatabases(postgres.url, upgrade)
            yield lambda: Database(postgres_databases.create(), postgres)
    else:
        with MariaDBServer(durable=True, args=() if shows_glimpses else _BINARY_LOG) as mariadb:
            mariadb_databases = MariaDBDatabases(mariadb.url, upgrade)
            yield lambda: Database(mariadb_databases.create(), mariadb, shows_glimpses)


@contextlib.contextmanager
def clients_at_work(
    targets: Sequence[SessionRepository], folder: Path, session_ids: Sequence[str] = SESSIONS
) -> Iterator[Threads]:
    """Let clients use these repositories during the block, and read the stored sessions at its end."""
    with last_reads(targets[0], session_ids, folder), Threads(targets, session_ids, folder) as clients:
        yield clients


# -- disturbances


def nothing(database: Database, folder: Path) -> list[Crash]:
    """Let clients work without a disturbance."""
    with repositories(database.url, CLIENTS) as (targets, _), clients_at_work(targets, folder) as clients:
        clients.wait_for(1000)
    return []


def writers_are_killed(database: Database, folder: Path) -> list[Crash]:
    """Kill processes of clients."""
    engine = create_engine(database.url)
    with (
        last_reads(SQLAlchemySessionRepository(engine), SESSIONS, folder),
        Processes(text_of(database.url), SESSIONS, folder, 4) as clients,
    ):
        disturbances.kill_clients(clients, times=10, answers=100)
    engine.dispose()
    return []


def the_server_is_killed(database: Database, folder: Path) -> list[Crash]:
    """Kill the server and start it again."""
    assert database.server is not None
    with repositories(database.url, CLIENTS) as (targets, _), clients_at_work(targets, folder) as clients:
        crashes = disturbances.crash(database.server, clients, times=3, answers=300)
    return crashes if database.shows_glimpses else []


def the_server_ends_connections(database: Database, folder: Path) -> list[Crash]:
    """Let the server end connections."""
    with repositories(database.url, CLIENTS) as (targets, _), clients_at_work(targets, folder) as clients:
        disturbances.kill_connections(database.url, clients, times=60)
    return []


def connections_are_cut(database: Database, folder: Path) -> list[Crash]:
    """Cut connections between client and server."""
    with (
        Proxy(database.url) as proxy,
        repositories(proxy.url, CLIENTS, retry=IMPATIENT) as (targets, _),
        clients_at_work(targets, folder) as clients,
    ):
        disturbances.cut_connections(proxy, clients, times=60)
        proxy.heal()
    return []


def transactions_are_deadlocked(database: Database, folder: Path) -> list[Crash]:
    """Deadlock updates of the package with a transaction of another client."""
    with repositories(database.url, CLIENTS) as (targets, _), clients_at_work(targets, folder) as clients:
        disturbances.make_deadlocks(database.url, clients, SESSIONS, times=5)
    return []


Disturbed = Callable[[Database, Path], list[Crash]]
"""Writes journals into a folder; returns the crashes that may have revoked data that a client had read."""

_ON_SERVERS: Final[list[Disturbed]] = [
    nothing,
    the_server_is_killed,
    the_server_ends_connections,
    connections_are_cut,
    transactions_are_deadlocked,
]
ROUNDS: Final[list[tuple[str, Disturbed]]] = [
    ("sqlite", nothing),
    ("sqlite", writers_are_killed),
    *(("postgresql", each) for each in _ON_SERVERS),
    *(("mariadb", each) for each in _ON_SERVERS),
    (_LOGGED, the_server_is_killed),
]


def name_of(kind: str, disturbed: Disturbed) -> str:
    """Return the name of a kind of round."""
    return f"{kind}: {disturbed.__name__.replace('_', ' ')}"


# -- evaluation


def evaluated(folder: Path, glimpses: Sequence[Crash] = ()) -> dict[str, Any]:
    """Return the figures and the violations of a round's journals."""
    operations = history.read(folder)
    return {
        "calls": len(operations),
        "outcomes": dict(Counter(operation.outcome.value for operation in operations)),
        "made": dict(Counter(each.call for each in operations if each.outcome is Outcome.DONE)),
        "silence": round(history.longest_gap(operations), 3),
        "violations": [str(each) for each in check(operations, glimpses=glimpses)],
    }


def one_round(new_database: Callable[[], Database], disturbed: Disturbed) -> dict[str, Any]:
    """Run one round and evaluate it."""
    with TemporaryDirectory(prefix="vfs-journals-") as folder:
        crashes = disturbed(new_database(), Path(folder))
        return evaluated(Path(folder), crashes)


def lines(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Yield the lines of the report."""
    rows = []
    for name, rounds in results.items():
        total: Counter[str] = sum((Counter(each["outcomes"]) for each in rounds), Counter())
        rejected = total[Outcome.STALE] + total[Outcome.NOT_FOUND] + total[Outcome.EXISTS]
        silences = [each["silence"] for each in rounds]
        rows.append(
            (
                *(name, len(rounds), total[Outcome.DONE], rejected, total[Outcome.NOT_DONE], total[Outcome.UNKNOWN]),
                f"{statistics.median(silences):.2f} s, {max(silences):.2f} s",
                sum(len(each["violations"]) for each in rounds),
            )
        )
    head = ("", "rounds", "done", "rejected", "not done", "unknown", "longest silence (median, most)", "violations")
    yield from report.table(head, rows)
    yield ""
    yield "Rejected: stale, not found, exists. Unknown: includes the interrupted calls of killed clients."
    for name, rounds in results.items():
        for each in rounds:
            for violation in each["violations"]:
                yield from ("", f"{name}: {violation}")


def main() -> int:
    """Run the rounds and report; return the exit code."""
    names = [name_of(*each) for each in ROUNDS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.faults.linearizable", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind (5)")
    parser.add_argument("--only", choices=names, help="only this kind of round")
    parser.add_argument("--out", type=Path, help="folder of the results, such as benchmarks/results")
    options = parser.parse_args()
    machine = report.machine()
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in dict.fromkeys(kind for kind, _ in ROUNDS):
        chosen = [each for name, each in ROUNDS if name == kind and options.only in {None, name_of(name, each)}]
        if chosen:
            with databases(kind) as new_database:
                for each in chosen:
                    found[name_of(kind, each)] = [one_round(new_database, each) for _ in range(options.rounds)]
    report.write("linearizable", {"machine": machine, "rounds": found}, lines(found), options.out)
    return int(any(each["violations"] for rounds in found.values() for each in rounds))


if __name__ == "__main__":
    sys.exit(main())
