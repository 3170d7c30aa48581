"""Benefit and cost of the index on ``updated_at``: for `find_sessions`, and for each append.

``python -m benchmarks.listing_index [sqlite|postgresql|mariadb …]`` stores 100,000 sessions on private, durable
servers. It measures listings and appends without the index, with it, and without it again. The figures are in the
docstring of revision 0002.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from sqlalchemy import Engine, Index, MetaData, insert, text

from tests.support.servers import MariaDBServer, PostgresDatabases, PostgresServer
from tests.support.servers.databases import MariaDBDatabases
from vibeforge_sessions import SessionFilter, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.sql.tables import documents, errors, sessions

SESSIONS: Final = 100_000
APPENDS: Final = 3_000
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
ENDED: Final = ("COMPLETE", "FAILED")
UNDERWAY: Final = ("QUESTIONNAIRE", "BUILD_SPEC", "IDEA", "PLAN_REVIEW", "EXECUTION", "VERIFICATION")
NAME: Final = "ix_vibeforge_sessions_updated_at_session_id"
ROUNDS: Final = 3
BEFORE: Final = "vibeforge_0001"
"""Revision before the one that adds the index."""


@contextmanager
def database(kind: str) -> Iterator[Engine]:
    """Provide an engine on a new database of a private, durable server."""
    if kind == "sqlite":
        with TemporaryDirectory() as folder:
            yield from _engine(f"sqlite:///{Path(folder) / 'sessions.db'}")
    elif kind == "postgresql":
        with PostgresServer(durable=True) as server:
            yield from _engine(PostgresDatabases(server.url).create(migrated=False))
    else:
        with MariaDBServer(durable=True) as server:
            yield from _engine(MariaDBDatabases(server.url).create(migrated=False))


def _engine(url: Any) -> Iterator[Engine]:
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def fill(engine: Engine) -> None:
    """Store sessions: 3 % have not ended, 1 % have errors, and the order of updates is not that of creations."""
    numbers = range(SESSIONS)
    for first in range(0, SESSIONS, 5_000):
        rows = [_row(number) for number in numbers[first : first + 5_000]]
        with engine.begin() as connection:
            connection.execute(insert(sessions), rows)
            bare = {"answers": "{}", "completed_task_ids": "[]", "failed_task_ids": "[]"}
            connection.execute(insert(documents), [{"session_id": row["session_id"], **bare} for row in rows])
            entry = {
                "position": 1,
                "timestamp": START,
                "task_id": "task",
                "error_message": "it broke",
                "phase": "EXECUTION",
            }
            with_errors = [row for row in rows if row["error_count"]]
            connection.execute(
                insert(errors),
                [{"session_id": row["session_id"], "write_id": row["write_id"], **entry} for row in with_errors],
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name != "sqlite":
            tables = "vibeforge_sessions, vibeforge_session_documents"
            analyze = "VACUUM ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE TABLE"
            connection.execute(text(f"{analyze} {tables}"))


def _row(number: int) -> dict[str, Any]:
    created = START + timedelta(seconds=number)
    phases = UNDERWAY if number % 33 == 0 else ENDED
    return {
        "session_id": f"{number * 7919 % SESSIONS:08d}-4f2b-4c0e-9d3a-0123456789ab",
        "phase": phases[number % len(phases)],
        "created_at": created,
        "updated_at": created + timedelta(seconds=number * 7 % 5_000),
        "version": 3,
        "write_id": f"{number:032x}",
        "current_question_index": 0,
        "active_task_id": None,
        "error_count": int(number % 100 == 0),
        "log_count": 0,
    }


LISTINGS: Final[dict[str, dict[str, Any]]] = {
    "newest": {},
    "by phase": {"filter": SessionFilter(phases=["EXECUTION"])},
    "by phase, ended": {"filter": SessionFilter(phases=["COMPLETE"])},
    "with errors": {"filter": SessionFilter(has_errors=True)},
    "last touched": {"order": "-updated_at"},
    "last touched of a phase": {"filter": SessionFilter(phases=["COMPLETE"]), "order": "-updated_at"},
    "stuck": {
        "filter": SessionFilter(phases=["EXECUTION"], updated_before=START + timedelta(days=1)),
        "order": "updated_at",
    },
    "touched since": {"filter": SessionFilter(updated_from=START + timedelta(seconds=SESSIONS - 60))},
}


def listings(repository: SQLAlchemySessionRepository) -> dict[str, float]:
    """Return the median of each listing in milliseconds."""
    return {
        name: 1000 * _median(functools.partial(repository.find_sessions, **asked)) for name, asked in LISTINGS.items()
    }


def _median(call: Callable[[], object], rounds: int = 9) -> float:
    call()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def appends(repository: SQLAlchemySessionRepository) -> float:
    """Return the median of an append to a random session, in microseconds."""
    times = []
    for number in range(APPENDS):
        session_id = f"{number * 31 % SESSIONS:08d}-4f2b-4c0e-9d3a-0123456789ab"
        begun = time.perf_counter()
        repository.append_log(session_id, "a line")
        times.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(times)


def logged(engine: Engine) -> int:
    """Return the bytes that the database has written to its log; SQLite does not report them."""
    asked = {
        "postgresql": "SELECT pg_current_wal_lsn() - '0/0'",
        "mysql": "SELECT variable_value FROM information_schema.global_status "
        "WHERE variable_name = 'INNODB_OS_LOG_WRITTEN'",
    }
    if engine.dialect.name not in asked:
        return 0
    with engine.connect() as connection:
        return int(connection.execute(text(asked[engine.dialect.name])).scalar_one())


def index_of() -> Index:
    """Return the measured index, on a private copy of the table."""
    table = sessions.to_metadata(MetaData())
    for index in [each for each in table.indexes if each.name == NAME]:
        table.indexes.remove(index)
    return Index(NAME, table.c.updated_at, table.c.session_id)


def measure(kind: str) -> None:
    """Print the figures of one database."""
    with database(kind) as engine:
        migrate.upgrade(engine, BEFORE)
        fill(engine)
        repository, index = SQLAlchemySessionRepository(engine), index_of()
        found: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
        for how in ("without", "with") * ROUNDS:  # in turns, and the best of each, because of other load on the machine
            (index.create if how == "with" else index.drop)(engine, checkfirst=True)
            before = logged(engine)
            append = {"append": appends(repository) / 1000}
            append["append, bytes of log"] = (logged(engine) - before) / APPENDS
            found[how].append({**append, **listings(repository)})
        print(f"\n{kind}, {SESSIONS:,} sessions; milliseconds, the best of {ROUNDS}\n{'':26}  without     with")
        for name in found["with"][0]:
            figures = "".join(f"{min(each[name] for each in found[how]):9.2f}" for how in found)
            print(f"{name:26}{figures}")


if __name__ == "__main__":
    for asked in sys.argv[1:] or ["sqlite", "postgresql", "mariadb"]:
        measure(asked)
