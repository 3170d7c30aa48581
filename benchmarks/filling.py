"""Databases filled with a given number of sessions and errors, by bulk inserts of encoded rows.

The sessions are of one year, oldest first. Nine of ten have ended. Half have no errors; the others have 5 to 50, if
there are ten times as many errors as sessions. Each has two log lines and about 700 bytes of documents. The session
`PROBE` has the same long histories in a database of any size, so that reads of it should cost the same.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine, Table, insert

from vibeforge_sessions import Session, SessionPhase
from vibeforge_sessions.repository.spi import changeset_for_create
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions

TABLES: Final = (sessions, documents, errors, logs)
PROBE: Final = "probe"
PROBED: Final = 10_000
"""Number of entries in each history of `PROBE`."""
YEAR: Final = timedelta(days=365)
UNDERWAY: Final = ("QUESTIONNAIRE", "BUILD_SPEC", "PLAN_REVIEW", "EXECUTION", "CLARIFICATION", "VERIFICATION")
TASKS: Final = tuple(f"{verb}_{noun}" for verb in ("write", "compile", "test", "pack") for noun in ("api", "ui", "cli"))
SHARES: Final = (0, 0, 0, 0, 0, 5, 10, 15, 20, 50)
"""Share of the errors in percent, for each of ten sessions."""
MESSAGE: Final = (
    "File \"app.py\", line {}\n    total = sum(item.price for item in cart\nSyntaxError: '(' was never closed\n"
)
CHUNK: Final = 2_000
_SEED: Final = 2026

Rows = Sequence[tuple[Any, ...]]
Write = Callable[[Table, Rows], None]
Report = Callable[[int, float], object]


def session_ids(number: int) -> list[str]:
    """Return the ids of the sessions, oldest first. They are the same in each run."""
    chance = random.Random(_SEED)
    return [_uuid(chance) for _ in range(number)]


def error_count(index: int, number: int, total: int) -> int:
    """Return the number of errors of the session with an index, if `number` sessions have `total` errors."""
    return round(SHARES[index % 10] / 100 * 10 * total / number)


def fill(engine: Engine, number: int, total: int, *, report: Report = lambda _rows, _seconds: None) -> dict[str, float]:
    """Create the tables in an empty database and fill them; return the number of rows, and the seconds.

    :param report: called from time to time with the number of rows and the seconds so far.
    """
    migrate.upgrade(engine)
    begun = time.monotonic()
    write: dict[str, Callable[..., Any]] = {"sqlite": _into_sqlite, "postgresql": _into_postgresql}
    rows = write[engine.dialect.name](engine, number, total, lambda done: report(done, time.monotonic() - begun))
    seconds = time.monotonic() - begun
    migrate.check_schema(engine, exact=True)  # ends the settings of the bulk insert
    return {"rows": rows, "seconds": round(seconds, 1), "rows a second": round(rows / seconds)}


def _into_sqlite(engine: Engine, number: int, total: int, report: Callable[[int], object]) -> int:
    """Insert rows through the driver, without syncs. The engine's next connection switches WAL on again.

    ANALYZE is not run, because the package does not run it either.
    """
    texts = {table.name: str(insert(table).compile(engine)) for table in TABLES}
    orders = {table.name: list(insert(table).compile(engine).positiontup or ()) for table in TABLES}
    for table in TABLES:
        assert orders[table.name] == [column.name for column in table.columns]
    engine.dispose()
    driver = sqlite3.connect(engine.url.database or "", isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -2000000", "locking_mode = EXCLUSIVE"):
        driver.execute(f"PRAGMA {pragma}").close()
    converts = {table.name: _converting(engine, table) for table in TABLES}
    done = 0
    for chunk in _chunks(number, total):
        driver.execute("BEGIN")
        for table, rows in zip(TABLES, chunk, strict=True):
            driver.executemany(texts[table.name], map(converts[table.name], rows))
            done += len(rows)
        driver.execute("COMMIT")
        report(done)
    driver.close()
    return done


def _into_postgresql(engine: Engine, number: int, total: int, report: Callable[[int], object]) -> int:
    """Insert rows by COPY without checks of foreign keys; then run VACUUM and ANALYZE, as autovacuum would."""
    done = 0
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute("SET session_replication_role = replica")
        driver.execute("SET synchronous_commit = off")
        driver.commit()
        for chunk in _chunks(number, total):
            for table, rows in zip(TABLES, chunk, strict=True):
                names = ", ".join(column.name for column in table.columns)
                with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
                done += len(rows)
            driver.commit()
            report(done)
        driver.execute("RESET session_replication_role")
        driver.execute("RESET synchronous_commit")
        driver.commit()
    own = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with own.connect() as connection:
        for table in TABLES:
            connection.exec_driver_sql(f"VACUUM (ANALYZE) {table.name}")
        connection.exec_driver_sql("CHECKPOINT")
    own.dispose()
    return done


def _converting(engine: Engine, table: Table) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return a function that converts a row to values of the driver."""
    found = [column.type.dialect_impl(engine.dialect).bind_processor(engine.dialect) for column in table.columns]
    convert = [(index, process) for index, process in enumerate(found) if process is not None]

    def converted(row: tuple[Any, ...]) -> tuple[Any, ...]:
        values = list(row)
        for index, process in convert:
            values[index] = process(values[index])
        return tuple(values)

    return converted


def _chunks(number: int, total: int) -> Iterator[tuple[Rows, Rows, Rows, Rows]]:
    """Yield the rows of each table, in parts that fit into memory."""
    now = datetime.now(UTC)
    chance = random.Random(_SEED + 1)
    texts = {phase: _documents(phase) for phase in ("COMPLETE", "FAILED", *UNDERWAY)}
    yield _rows([(PROBE, now - timedelta(days=1), "EXECUTION", PROBED, PROBED)], texts, chance)
    batch = []
    for index, session_id in enumerate(session_ids(number)):
        created = now - YEAR * (1 - index / number)
        ended = "COMPLETE" if index % 10 else "FAILED"
        phase = UNDERWAY[index // 10 % len(UNDERWAY)] if index % 10 == 3 else ended
        batch.append((session_id, created, phase, error_count(index, number, total), 2))
        if len(batch) == CHUNK:
            yield _rows(batch, texts, chance)
            batch = []
    yield _rows(batch, texts, chance)


def _rows(
    batch: Sequence[tuple[str, datetime, str, int, int]], texts: dict[str, list[str | None]], chance: random.Random
) -> tuple[Rows, Rows, Rows, Rows]:
    of: tuple[list[Any], list[Any], list[Any], list[Any]] = ([], [], [], [])
    for session_id, created, phase, error_total, log_total in batch:
        step = timedelta(seconds=chance.uniform(1, 90))
        updated = created + step * (max(error_total, log_total) + 1)
        write_id = f"{chance.getrandbits(128):032x}"
        active = "compile_api" if phase == "EXECUTION" else None
        of[0].append((session_id, phase, created, updated, 8, write_id, 3, active, error_total, log_total, None))
        of[1].append((session_id, *texts[phase]))
        first = chance.randrange(len(TASKS))
        for position in range(1, error_total + 1):
            task = TASKS[(first + position // 4) % len(TASKS)]
            time_ = created + step * position
            of[2].append((session_id, position, time_, task, MESSAGE.format(position), "EXECUTION", write_id))
        for position in range(1, log_total + 1):
            line = f"[{(created + step * position).isoformat()}] step {position} of the plan is done"
            of[3].append((session_id, position, line, write_id))
    return of


def _documents(phase: str) -> list[str | None]:
    """Return the JSON texts of a session's documents, in the order of the columns."""
    session = Session(phase=SessionPhase(phase), answers={"audience": "two friends", "budget": [1, 2.5, None]})
    if phase != "QUESTIONNAIRE":
        session.intent_profile = {"wants": "to share a bill", "platform": "a terminal"}
        session.build_spec = {"language": "Python", "files": ["bill.py", "test_bill.py"]}
        session.concept = {"name": "bill", "about": "shares a sum among people, to the cent"}
        session.task_graph = {"tasks": [{"id": task, "needs": []} for task in TASKS]}
        session.completed_task_ids = list(TASKS if phase == "COMPLETE" else TASKS[:4])
    content = changeset_for_create(session).content
    return [content.documents[column.name] for column in documents.columns if column.name != "session_id"]


def _uuid(chance: random.Random) -> str:
    digits = f"{chance.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
