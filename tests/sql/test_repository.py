"""`SQLAlchemySessionRepository` on SQLite: its statements, and its errors for damaged databases."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, event

from tests.support.repositories import SQLiteFiles
from vibeforge_sessions import (
    ConfigurationError,
    CorruptSessionError,
    RetryPolicy,
    SchemaError,
    Session,
    SessionFilter,
    SessionPhase,
    SQLAlchemySessionRepository,
    StaleSessionError,
    StorageError,
)
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.testing.base import SESSION_ID, assert_same, full_session, numbered, stored
from vibeforge_sessions.testing.updates import round_tripped

SECRET = "s3cr3t-value"
TABLES = ("sessions", "session_documents", "session_errors", "session_logs")
RunSQL = Callable[..., list[Any]]
CALLS: dict[str, Callable[[SQLAlchemySessionRepository], object]] = {
    "get_session": lambda r: r.get_session(SESSION_ID),
    "list_sessions": lambda r: r.list_sessions(),
    "find_sessions": lambda r: r.find_sessions(),
    "list_errors": lambda r: r.list_errors(SESSION_ID),
    "list_logs": lambda r: r.list_logs(SESSION_ID),
    "create_session": lambda r: r.create_session(full_session("another").model_copy(update={"answers": {"q": SECRET}})),
    "append_error": lambda r: r.append_error(SESSION_ID, SECRET, SECRET),
    "append_log": lambda r: r.append_log(SESSION_ID, SECRET),
    "modify_session": lambda r: r.modify_session(SESSION_ID, lambda session: session.add_answer("q", SECRET)),
    "delete_session": lambda r: r.delete_session(SESSION_ID),
}


@pytest.fixture(params=[create_engine, sqlalchemy.create_engine], ids=["engine of the package", "engine of SQLAlchemy"])
def engine(request: pytest.FixtureRequest, sqlite_files: SQLiteFiles) -> Iterator[Engine]:
    """Yield an engine on a file whose name is a secret, which errors must not show."""
    url = sqlite_files.new_url()
    path = Path(url.removeprefix("sqlite:///"))
    engine: Engine = request.param(f"sqlite:///{path.rename(path.with_name(f'{SECRET}-{path.name}'))}")
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture
def repository(engine: Engine) -> SQLAlchemySessionRepository:
    return SQLAlchemySessionRepository(engine)


@pytest.fixture
def sql(engine: Engine) -> Iterator[RunSQL]:
    """Yield a function that runs SQL on the file without the package, as SQLite's shell would."""
    connection = sqlite3.connect(str(engine.url.database), isolation_level=None)
    yield lambda statement, *values: connection.execute(statement, values).fetchall()
    connection.close()


def shown(error: BaseException) -> str:
    """Return the text of an error in a log, including its causes."""
    return f"{error} {error!r} {''.join(traceback.format_exception(error))}"


@pytest.mark.parametrize("make", [create_engine, sqlalchemy.create_engine], ids=["package", "SQLAlchemy"])
def test_constructor_does_not_connect(tmp_path: Path, make: Callable[[str], Engine]) -> None:
    for url in (f"sqlite:///{tmp_path / 'missing' / 'x.db'}", f"sqlite:///{tmp_path / 'x.db'}"):
        repository = SQLAlchemySessionRepository(make(url))
        assert str(tmp_path) not in f"{repository} {repository!r}"
        assert "sqlite" in repr(repository)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "engine",
    [None, "sqlite://", f"sqlite:///{SECRET}", Engine, object()],
    ids=["none", "url", "secret url", "class", "object"],
)
def test_bind_of_another_type_is_rejected_without_showing_it(engine: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SQLAlchemySessionRepository(engine)
    assert SECRET not in str(caught.value)


@pytest.fixture
def statements(engine: Engine) -> list[str]:
    """Return a list that receives the repository's statements, except those that begin and end transactions."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def send(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            sent.append(" ".join(statement.split()))

    return sent


def kind(statement: str) -> str:
    """Return the kind of a statement, and the first table that it names."""
    table = re.search(r"(?:FROM|INTO|UPDATE) vibeforge_(\w+)", statement)
    assert table is not None
    return f"{statement.partition(' ')[0]} {table[1]}"


def test_write_sends_minimal_statements(repository: SQLAlchemySessionRepository, statements: list[str]) -> None:
    def sent(call: Callable[[], object]) -> list[str]:
        statements.clear()
        call()
        return [kind(statement) for statement in statements]

    session = Session(session_id=SESSION_ID)
    assert sent(lambda: repository.create_session(session)) == ["INSERT sessions", "INSERT session_documents"]
    assert sent(lambda: repository.update_session(session)) == []
    assert sent(lambda: repository.append_error(SESSION_ID, "t", "m")) == ["UPDATE sessions", "INSERT session_errors"]
    assert sent(lambda: repository.append_log(SESSION_ID, "m")) == ["UPDATE sessions", "INSERT session_logs"]
    session.update_phase(SessionPhase.EXECUTION)
    session.current_question_index = 3
    assert sent(lambda: repository.update_session(session)) == ["UPDATE sessions"]
    session.add_answer("q", 1)
    session.concept = {"title": "x"}
    assert sent(lambda: repository.update_session(session)) == ["UPDATE sessions", "UPDATE session_documents"]
    for _ in range(3):
        session.add_error("t", "m")
    assert sent(lambda: repository.update_session(session)) == ["UPDATE sessions", "INSERT session_errors"]
    session.add_log("m")
    session.add_log("m")
    assert sent(lambda: repository.update_session(session)) == ["UPDATE sessions", "INSERT session_logs"]
    assert sent(lambda: repository.update_session(round_tripped(session))) == ["SELECT sessions"]
    everything = full_session("other")
    assert sent(lambda: repository.create_session(everything)) == [f"INSERT {table}" for table in TABLES]
    assert sent(lambda: repository.delete_session("unknown")) == ["DELETE sessions"]


def test_read_sends_at_most_budgeted_statements(repository: SQLAlchemySessionRepository, statements: list[str]) -> None:
    repository.create_session(full_session())
    repository.create_session(session_id="empty")
    session_filter = SessionFilter(phases=["IDEA"], has_errors=True)
    for call, most in (
        (lambda: repository.get_session(SESSION_ID), 3),
        (lambda: repository.get_session(SESSION_ID, recent=1), 3),
        (lambda: repository.get_session(SESSION_ID, recent=0), 1),
        (lambda: repository.get_session("empty"), 1),
        (lambda: repository.find_sessions(session_filter, order="updated_at"), 1),
        (lambda: repository.list_sessions(session_filter), 1),
        (lambda: repository.list_errors(SESSION_ID, task_id="t", phase="IDEA"), 1),
        (lambda: repository.list_logs(SESSION_ID, after=1), 1),
    ):
        statements.clear()
        call()
        assert len(statements) <= most
        assert all(statement.startswith("SELECT") for statement in statements)


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"answers": {"q": 1}}, {"answers"}),
        ({"concept": None, "task_graph": {}}, {"concept", "task_graph"}),
        ({"completed_task_ids": ["t9"], "phase": SessionPhase.IDEA}, {"completed_task_ids"}),
        ({"clarification_answer": None, "build_spec": {"stack": "vite-react"}}, {"clarification_answer"}),
        ({"failed_task_ids": [], "pending_clarification": {}}, {"failed_task_ids", "pending_clarification"}),
    ],
    ids=["one document", "removed document", "document and phase", "unchanged document", "empty documents"],
)
def test_update_writes_only_changed_documents(
    repository: SQLAlchemySessionRepository, statements: list[str], change: dict[str, Any], columns: set[str]
) -> None:
    session = repository.create_session(full_session())
    for name, value in change.items():
        setattr(session, name, value)
    statements.clear()
    repository.update_session(session)
    (written,) = [statement for statement in statements if statement.startswith("UPDATE vibeforge_session_documents")]
    assignments = written.split(" SET ")[1].split(" WHERE ")[0]
    assert {assignment.split("=")[0].strip() for assignment in assignments.split(",")} == columns
    assert_same(stored(repository), session)


# Revision vibeforge_0002 states the reason with measurements.
def test_append_updates_only_one_index_of_sessions(engine: Engine) -> None:
    indexes = [set(index["column_names"]) for index in sqlalchemy.inspect(engine).get_indexes("vibeforge_sessions")]
    assert [columns for columns in indexes if not columns <= {"created_at", "phase", "session_id"}] == [
        {"updated_at", "session_id"}
    ]


def test_each_write_has_unique_write_id(repository: SQLAlchemySessionRepository, sql: RunSQL) -> None:
    def row() -> tuple[int, str]:
        version, write_id = sql("SELECT version, write_id FROM vibeforge_sessions")[0]
        return version, write_id

    session = repository.create_session(full_session())
    first = row()
    repository.append_error(SESSION_ID, "t", "m")
    repository.append_log(SESSION_ID, "m")
    repository.update_session(session)  # without a change
    assert row() == first
    session.add_error("t", "m")
    session.add_log("m")
    repository.update_session(session)
    second = row()
    assert (first[0], second[0]) == (1, 2)
    errors, logs = (
        [write_id for (write_id,) in sql(f"SELECT write_id FROM vibeforge_session_{child} ORDER BY position")]
        for child in ("errors", "logs")
    )
    assert (errors[0], errors[2]) == (logs[0], logs[2]) == (first[1], second[1])
    ids = {*errors, *logs}
    assert len(ids) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", write_id) for write_id in ids)
    repository.delete_session(SESSION_ID)
    repository.create_session(session_id=SESSION_ID)
    assert row()[0] == 1
    assert row()[1] not in ids


def test_delete_removes_rows_of_all_tables_without_cascade(
    repository: SQLAlchemySessionRepository, sql: RunSQL
) -> None:
    repository.create_session(full_session())
    other = repository.create_session(full_session("other"))
    repository.delete_session(SESSION_ID)
    for child in TABLES:
        assert sql(f"SELECT DISTINCT session_id FROM vibeforge_{child}") == [("other",)]
    assert_same(stored(repository, "other"), other)


def test_session_with_unknown_phase_can_be_listed_but_not_read(
    repository: SQLAlchemySessionRepository, sql: RunSQL
) -> None:
    repository.create_session(full_session())
    sql("UPDATE vibeforge_sessions SET phase = 'DEPLOYMENT'")
    for call in (CALLS["get_session"], CALLS["modify_session"]):
        with pytest.raises(CorruptSessionError, match="phase") as caught:
            call(repository)
        assert caught.value.session_id == SESSION_ID
    assert repository.list_sessions() == repository.list_sessions(SessionFilter(phases=["DEPLOYMENT"])) == [SESSION_ID]
    assert [item.phase for item in repository.find_sessions().items] == ["DEPLOYMENT"]
    assert repository.append_error(SESSION_ID, "t", "m").phase == "DEPLOYMENT"
    assert len(repository.list_errors(SESSION_ID)) == 2
    assert repository.delete_session(SESSION_ID)


def setting(table: str, columns: str, *values: str) -> list[str]:
    return [f"UPDATE vibeforge_{table} SET {column} = {value}" for column in columns.split() for value in values]


FAILING = "BEGIN SELECT RAISE(ABORT, 'no'); END"
SCHEMA_ERRORS = (SchemaError, StorageError)
DAMAGED = [
    *setting("session_documents", "answers", f"'{{\"{SECRET}'", f"'[\"{SECRET}\"]'", f"'{{\"{SECRET}\":NaN}}'"),
    *setting("session_documents", "answers", "''", "'null'", "7", "x'ff'", f"'{'[' * 100_000}'", f"'{'9' * 5_000}'"),
    *setting("session_documents", "concept completed_task_ids", f"'\"{SECRET}\"'"),
    *setting("session_documents", "clarification_answer extension", f"'{SECRET}'"),
    *setting("sessions", "phase version current_question_index error_count", f"'{SECRET}'", "-1"),
    *setting("sessions", "error_count log_count", "99"),
    *setting("sessions", "active_task_id", f"'{SECRET}' || char(10)"),
    *setting("sessions", "created_at updated_at", "7"),
    *(f"DELETE FROM vibeforge_{table}" for table in TABLES[1:]),
    *setting("sessions", "created_at updated_at", f"'{SECRET}'"),
    *setting("session_errors", "timestamp", f"'{SECRET}'"),
]
FAILURES: list[tuple[str, Any, str]] = [
    *((damage, CorruptSessionError, "get_session") for damage in DAMAGED),
    (DAMAGED[-2], CorruptSessionError, "append_error append_log find_sessions"),
    ("ALTER TABLE vibeforge_sessions RENAME COLUMN session_id TO id", SCHEMA_ERRORS, " ".join(CALLS)),
    ("ALTER TABLE vibeforge_session_documents DROP COLUMN concept", SCHEMA_ERRORS, "create_session get_session"),
    ("DROP TABLE vibeforge_session_errors", SchemaError, "get_session list_errors append_error delete_session"),
    (f"CREATE TRIGGER t BEFORE INSERT ON vibeforge_session_logs {FAILING}", StorageError, "create_session append_log"),
    (f"CREATE TRIGGER t BEFORE UPDATE ON vibeforge_session_documents {FAILING}", StorageError, "modify_session"),
]


@pytest.mark.parametrize(
    ("damage", "errors", "name"), [(*case[:2], name) for case in FAILURES for name in case[2].split()], ids=numbered
)
def test_damaged_database_raises_package_error_without_values(
    repository: SQLAlchemySessionRepository, sql: RunSQL, damage: str, errors: Any, name: str
) -> None:
    repository.create_session(full_session())
    sql(damage)
    with pytest.raises(errors) as caught:
        CALLS[name](repository)
    assert SECRET not in shown(caught.value)
    if errors is CorruptSessionError and name != "find_sessions":
        assert caught.value.session_id == SESSION_ID
    assert damage.startswith(("ALTER", "DROP")) or repository.list_sessions() == [SESSION_ID]


@pytest.mark.parametrize("name", CALLS)
def test_missing_tables_raise_schema_error_with_upgrade_command(
    repository: SQLAlchemySessionRepository, sql: RunSQL, name: str
) -> None:
    for table in (*reversed(TABLES), "sessions_compatibility", "sessions_alembic_version"):
        sql(f"DROP TABLE vibeforge_{table}")
    with pytest.raises(SchemaError, match=r'alembic -c ".+" upgrade head') as caught:
        CALLS[name](repository)
    assert caught.value.state == "empty"
    assert SECRET not in shown(caught.value)


def test_threads_wait_until_dialect_of_new_engine_is_initialized(
    monkeypatch: pytest.MonkeyPatch, sqlite_files: SQLiteFiles
) -> None:
    class SlowLocks:
        """Replacement for SQLAlchemy's `threading` in which creating a lock is slow enough for a thread switch."""

        @staticmethod
        def Lock() -> threading.Lock:  # noqa: N802 (threading's name)
            time.sleep(0.02)
            return threading.Lock()

    monkeypatch.setattr("sqlalchemy.event.attr.threading", SlowLocks)
    engine = sqlalchemy.create_engine(sqlite_files.new_url())
    initialized = threading.Event()
    initialize = engine.dialect.initialize

    def slow_initialize(connection: Connection) -> None:
        time.sleep(0.05)
        initialize(connection)
        initialized.set()

    monkeypatch.setattr(engine.dialect, "initialize", slow_initialize)
    repository = SQLAlchemySessionRepository(engine)
    barrier = threading.Barrier(8)

    def list_after_start() -> bool:
        barrier.wait()
        repository.list_sessions()
        return initialized.is_set()

    with ThreadPoolExecutor(8) as threads:
        assert all(call.result() for call in [threads.submit(list_after_start) for _ in range(8)])
    engine.dispose()


@pytest.mark.parametrize("column", ["version = 7", "write_id = 'another'"])
def test_update_with_other_version_or_write_id_raises_stale(
    repository: SQLAlchemySessionRepository, sql: RunSQL, column: str
) -> None:
    session = repository.create_session(full_session())
    sql(f"UPDATE vibeforge_sessions SET {column}")
    session.update_phase(SessionPhase.FAILED)
    with pytest.raises(StaleSessionError):
        repository.update_session(session)
    assert stored(repository).phase == full_session().phase


# --- instrumented engines ---

EVENTS = [
    *("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute"),
    *("commit", "rollback", "engine_connect", "set_connection_execution_options"),
    *("do_execute", "do_executemany", "handle_error"),
]


@pytest.mark.parametrize("name", EVENTS)
def test_event_listener_receives_events_of_all_statements(sqlite_files: SQLiteFiles, name: str) -> None:
    engine = create_engine(sqlite_files.new_url())
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)  # runs precompiled statements before the listener is added
    received: list[str] = []
    event.listen(engine, name, lambda *_: received.append(name))
    session = stored(repository)
    session.add_log("1")
    session.add_log("2")
    repository.update_session(session)
    if name == "handle_error":
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE vibeforge_session_errors")
        with pytest.raises(SchemaError):
            repository.append_error(SESSION_ID, "t", "m")
    assert received
    engine.dispose()


def test_rejected_commit_is_not_committed_by_the_next_call(sqlite_files: SQLiteFiles) -> None:
    """Another connection reads in a rollback journal, so that the COMMIT is rejected and its transaction stays open."""
    url = sqlite_files.new_url()
    engine = sqlalchemy.create_engine(url, pool_reset_on_return=None, connect_args={"timeout": 0})
    repository = SQLAlchemySessionRepository(engine, retry=RetryPolicy(attempts=1))
    repository.create_session(session_id=SESSION_ID)
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT session_id FROM vibeforge_sessions").fetchall()
        with pytest.raises(StorageError, match="could not commit"):
            repository.append_log(SESSION_ID, "rejected")
    assert repository.append_log(SESSION_ID, "stored") == repository.list_logs(SESSION_ID)[0]
    engine.dispose()


def test_engine_echo_logs_statements_without_values(
    sqlite_files: SQLiteFiles, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(sqlite_files.new_url())
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)
    assert "INSERT" not in caplog.text
    engine.echo = True
    repository.append_log(SESSION_ID, SECRET)
    assert "INSERT INTO vibeforge_session_logs" in caplog.text
    assert SECRET not in caplog.text
    engine.dispose()
