"""Statements and round trips of each call, and query plans of its statements."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, event, func, insert, literal, select, text

from tests.support.databases import SQL_DATABASES, Storage
from vibeforge_sessions import RetryPolicy, Session, SessionFilter, SessionPhase, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions
from vibeforge_sessions.testing.base import SESSION_ID, full_session, stored

Calls = dict[str, Callable[[], object]]


def calls_of(repository: SQLAlchemySessionRepository) -> Calls:
    """Return repeatable calls on a session with entries in its histories."""
    session = repository.create_session(full_session())
    phases = [SessionPhase.EXECUTION, SessionPhase.VERIFICATION]

    def update_phase() -> None:
        session.update_phase(phases[session.version % 2])
        repository.update_session(session)

    def update_artifact() -> None:
        session.concept = {"version": session.version}
        repository.update_session(session)

    def update_with_entries() -> None:
        session.update_phase(phases[session.version % 2])
        session.add_error("t", "m")
        session.add_error("t", "m")
        session.add_log("m")
        repository.update_session(session)

    def create_whole() -> None:
        repository.create_session(full_session(f"session-{datetime.now(UTC).timestamp()}"))

    return {
        "create": repository.create_session,
        "create whole": create_whole,
        "append_error": lambda: repository.append_error(SESSION_ID, "t", "m"),
        "append_log": lambda: repository.append_log(SESSION_ID, "m"),
        "update phase": update_phase,
        "update artifact": update_artifact,
        "update with entries": update_with_entries,
        "get": lambda: repository.get_session(SESSION_ID),
        "get recent": lambda: repository.get_session(SESSION_ID, recent=1),
        "find": lambda: repository.find_sessions(SessionFilter(phases=["IDEA"])),
        "list": repository.list_sessions,
        "list_errors": lambda: repository.list_errors(SESSION_ID, after=1, limit=5),
        "list_logs": lambda: repository.list_logs(SESSION_ID, limit=5),
    }


# --- statements and round trips ---


@pytest.mark.parametrize("fast_path", [True, False], ids=["precompiled", "through SQLAlchemy"])
def test_postgresql_get_needs_two_round_trips_and_others_one(postgresql: Storage, fast_path: bool) -> None:
    assert postgresql.new_url is not None
    engine = create_engine(postgresql.new_url(), pool_size=1, max_overflow=0)
    calls = calls_of(SQLAlchemySessionRepository(engine, fast_path=fast_path))
    trips: dict[str, int] = {}
    for name, call in calls.items():
        for _ in range(7):  # psycopg prepares a statement at its fifth execution
            call()
        trips[name] = round_trips_of(engine, call)
    engine.dispose()
    assert trips == {name: 2 if name.startswith("get") else 1 for name in calls}


def round_trips_of(engine: Engine, call: Callable[[], object]) -> int:
    """Return the number of libpq's requests to the server, including BEGIN and COMMIT."""
    with engine.connect() as connection:
        libpq: Any = connection.connection.dbapi_connection.pgconn  # type: ignore[union-attr]
    with tempfile.TemporaryFile() as file:
        libpq.trace(file.fileno())
        call()
        libpq.untrace()
        file.seek(0)
        lines = [line.split("\t") for line in file.read().decode().splitlines()]
    return sum(line[1] == "F" and line[3] in {"Sync", "Query"} for line in lines)


def test_sqlite_calls_send_budgeted_statements(sqlite: Storage) -> None:
    assert sqlite.new_url is not None
    engine = create_engine(sqlite.new_url(), pool_size=1, max_overflow=0)
    sent: list[str] = []

    @event.listens_for(engine, "checkout")
    def trace(connection: Any, *_: object) -> None:
        connection.set_trace_callback(lambda statement: sent.append(" ".join(statement.split()[:2])))

    counts: dict[str, int] = {}
    for name, call in calls_of(SQLAlchemySessionRepository(engine)).items():
        sent.clear()
        call()
        counts[name] = sum(not statement.startswith(("BEGIN", "COMMIT", "ROLLBACK")) for statement in sent)
        assert [statement for statement in sent if statement.startswith(("BEGIN", "COMMIT", "ROLLBACK"))] == (
            ["BEGIN IMMEDIATE", "COMMIT"] if name.startswith(("create", "append", "update")) else ["BEGIN", "ROLLBACK"]
        )
    engine.dispose()
    assert counts == {
        "create": 2,
        "create whole": 4,
        "append_error": 2,
        "append_log": 2,
        "update phase": 1,
        "update artifact": 2,
        "update with entries": 4,  # the INSERT of two entries is counted twice
        "get": 3,
        "get recent": 3,
        "find": 1,
        "list": 1,
        "list_errors": 1,
        "list_logs": 1,
    }


def test_mariadb_calls_send_budgeted_statements(mariadb: Storage) -> None:
    assert mariadb.new_url is not None
    engine = create_engine(mariadb.new_url(), pool_size=1, max_overflow=0)

    def questions() -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("SHOW SESSION STATUS LIKE 'Questions'")).one()[1])

    counts: dict[str, int] = {}
    for name, call in calls_of(SQLAlchemySessionRepository(engine)).items():
        idle = -questions() + questions()
        before = questions()
        call()
        counts[name] = questions() - before - idle
    engine.dispose()
    # each count includes the pool's ROLLBACK; appends need one more query, because MariaDB has no UPDATE ... RETURNING
    assert counts == {
        "create": 4,
        "create whole": 6,
        "append_error": 5,
        "append_log": 5,
        "update phase": 4,
        "update artifact": 5,
        "update with entries": 6,
        "get": 4,
        "get recent": 4,
        "find": 2,
        "list": 2,
        "list_errors": 2,
        "list_logs": 2,
    }


@pytest.mark.parametrize("name", SQL_DATABASES)
def test_update_of_phase_writes_no_document(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    repository = SQLAlchemySessionRepository(engine)
    session = repository.create_session(full_session())
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    # after the first update, no document text is known for comparison
    for phase in (SessionPhase.EXECUTION, SessionPhase.FAILED):
        session.update_phase(phase)
        repository.update_session(session)
    assert any("UPDATE vibeforge_sessions" in statement for statement in sent)
    assert not any("session_documents" in statement for statement in sent)
    engine.dispose()


# --- plans ---

SESSIONS = 100_000


@dataclass(frozen=True)
class Sent:
    """Statement and parameters that a call has passed to the driver."""

    statement: str
    parameters: Any


def fill(connection: Connection) -> None:
    """Insert 100,000 sessions, and 100,000 entries into each history of one of them."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    phases = [phase.value for phase in SessionPhase]
    numbers = range(SESSIONS)
    rows = [
        {
            "session_id": f"s{number * 7919 % SESSIONS:06}",
            "phase": phases[number % len(phases)],
            "created_at": start + timedelta(seconds=number // 2),
            "updated_at": start + timedelta(seconds=number * 31 % SESSIONS),
            "version": 1,
            "write_id": "w",
            "current_question_index": 0,
            "active_task_id": None,
            "error_count": number % 10,
            "log_count": 0,
        }
        for number in numbers
    ]
    rows[SESSIONS // 2] |= {"error_count": SESSIONS, "log_count": SESSIONS}
    long = rows[SESSIONS // 2]["session_id"]
    connection.execute(insert(sessions), rows)
    of_session = sessions.c.session_id
    position = func.row_number().over(order_by=of_session)
    entry = {"session_id": literal(long), "position": position, "write_id": literal("w")}
    contents: dict[Table, dict[str, Any]] = {
        documents: {
            "session_id": of_session,
            "answers": literal("{}"),
            "completed_task_ids": literal("[]"),
            "failed_task_ids": literal("[]"),
        },
        errors: {
            **entry,
            "timestamp": literal(start, errors.c.timestamp.type),
            "task_id": literal("t"),
            "error_message": literal("m"),
            "phase": literal("IDEA"),
        },
        logs: {**entry, "message": literal("m")},
    }
    for table, columns in contents.items():
        connection.execute(insert(table).from_select(list(columns), select(*columns.values()).select_from(sessions)))


ANALYZE = {
    "sqlite": ["ANALYZE"],
    "postgresql": ["VACUUM ANALYZE"],
    "mariadb": [f"ANALYZE TABLE {table.name}" for table in (sessions, documents, errors, logs)],
}


@pytest.fixture(scope="module", params=SQL_DATABASES)
def large(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Yield an engine on a database with many sessions, and one with many entries, after ANALYZE."""
    storage: Storage = request.getfixturevalue(request.param)
    engine = storage.new_engine()
    with engine.begin() as connection:
        fill(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in ANALYZE[request.param]:
            connection.exec_driver_sql(statement)
    yield engine
    engine.dispose()


CREATED = datetime(2026, 1, 1, 6, tzinfo=UTC)
LONG = f"s{SESSIONS // 2 * 7919 % SESSIONS:06}"
IDS = "ids of a phase"
LISTS: dict[str, Callable[[SQLAlchemySessionRepository], object]] = {
    "newest": lambda r: r.find_sessions(),
    "oldest": lambda r: r.find_sessions(order="created_at"),
    "next page": lambda r: r.find_sessions(cursor=r.find_sessions(limit=1000).next_cursor),
    "next page of the oldest": lambda r: r.find_sessions(
        order="created_at", cursor=r.find_sessions(order="created_at").next_cursor
    ),
    "of a phase": lambda r: r.find_sessions(SessionFilter(phases=["EXECUTION"])),
    "next page of a phase": lambda r: r.find_sessions(
        SessionFilter(phases=["EXECUTION"]), cursor=r.find_sessions(SessionFilter(phases=["EXECUTION"])).next_cursor
    ),
    "since a time": lambda r: r.find_sessions(SessionFilter(created_from=CREATED)),
    "before a time": lambda r: r.find_sessions(SessionFilter(created_before=CREATED)),
    "of a phase since": lambda r: r.find_sessions(SessionFilter(phases=["EXECUTION"], created_from=CREATED)),
    "to be pruned": lambda r: r.find_sessions(
        SessionFilter(phases=["EXECUTION"], updated_before=CREATED), order="created_at"
    ),
    # returns thousands of ids, so PostgreSQL prefers to sort the rows that the index finds
    IDS: lambda r: r.list_sessions(SessionFilter(phases=["EXECUTION"], created_before=CREATED)),
}
SLICES: dict[str, Callable[[SQLAlchemySessionRepository], object]] = {
    "first errors": lambda r: r.list_errors(LONG, limit=20),
    "errors in the middle": lambda r: r.list_errors(LONG, after=SESSIONS // 2, limit=20),
    "last errors": lambda r: r.list_errors(LONG, after=SESSIONS - 20, limit=20),
    "logs in the middle": lambda r: r.list_logs(LONG, after=SESSIONS // 2, limit=20),
    "recent": lambda r: r.get_session(LONG, recent=20),
}


@pytest.mark.parametrize("name", [*LISTS, *SLICES])
def test_lists_and_slices_use_index(large: Engine, name: str) -> None:
    forbidden = "Seq Scan" if (name, large.dialect.name) == (IDS, "postgresql") else FORBIDDEN[large.dialect.name]
    for plan in plans_of(large, {**LISTS, **SLICES}[name]):
        assert not re.search(forbidden, plan), plan


@pytest.mark.parametrize("order", ["created_at", "-created_at"])
@pytest.mark.parametrize("resumed", [False, True], ids=["first page", "next page"])
def test_list_of_several_phases_reads_one_page_of_each(large: Engine, order: Any, resumed: bool) -> None:
    """Check that the plan sorts one page of each phase, not all sessions of the phases."""
    session_filter = SessionFilter(phases=["EXECUTION", "FAILED"])
    page = SQLAlchemySessionRepository(large).find_sessions(session_filter, order=order)
    cursor = page.next_cursor if resumed else None
    (plan,) = plans_of(large, lambda r: r.find_sessions(session_filter, order=order, cursor=cursor))
    assert len(re.findall(r"ix_\w*_phase_created_at|phase_created_at_\w+", plan)) == 2, plan
    assert not re.search(r"Seq Scan on vibeforge|type=ALL table=vibeforge|SCAN vibeforge", plan), plan


def plans_of(large: Engine, call: Callable[[SQLAlchemySessionRepository], object]) -> list[str]:
    """Return the database's plan for each statement of a call."""
    sent: list[Sent] = []

    def keep(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "SELECT" in statement and "vibeforge" in statement:
            sent.append(Sent(statement, parameters))

    event.listen(large, "before_cursor_execute", keep)
    call(SQLAlchemySessionRepository(large))
    event.remove(large, "before_cursor_execute", keep)
    assert sent
    with large.connect() as connection:
        return ["\n".join(EXPLAIN[large.dialect.name](connection, each)) for each in sent]


def explain_sqlite(connection: Connection, sent: Sent) -> list[str]:
    return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sent.statement}", sent.parameters)]


def explain_postgresql(connection: Connection, sent: Sent) -> list[str]:
    return [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {sent.statement}", sent.parameters)]


def explain_mariadb(connection: Connection, sent: Sent) -> list[str]:
    rows = connection.exec_driver_sql(f"EXPLAIN {sent.statement}", sent.parameters).mappings()
    return [f"type={row['type']} table={row['table']} key={row['key']} extra={row['Extra']}" for row in rows]


EXPLAIN = {
    "sqlite": explain_sqlite,
    "postgresql": explain_postgresql,
    "mysql": explain_mariadb,
    "mariadb": explain_mariadb,
}
FORBIDDEN = {
    # "SCAN table USING INDEX" reads the index in its order up to the limit, so it is allowed
    "sqlite": r"SCAN \w+$|SCAN \w+\n|TEMP B-TREE",
    "postgresql": r"Seq Scan|Sort",
    "mysql": r"type=ALL table=vibeforge|filesort|temporary",
    "mariadb": r"type=ALL table=vibeforge|filesort|temporary",
}


def test_session_with_many_entries_is_read_completely(large: Engine) -> None:
    """Read the session that the query plans use, without a deadline that a slow machine could miss."""
    repository = SQLAlchemySessionRepository(large, retry=RetryPolicy(deadline=600))
    session = stored(repository, LONG)
    assert [entry.position for entry in session.error_history] == list(range(1, SESSIONS + 1))
    assert len(session.logs) == SESSIONS
    assert isinstance(session, Session)
