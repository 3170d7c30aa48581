"""Engines on SQLite: settings of `create_engine`, and repositories on the application's engines."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, NullPool, StaticPool, event, make_url, text

from tests.support.repositories import SQLiteFiles
from vibeforge_sessions import (
    ConfigurationError,
    RetryPolicy,
    SchemaError,
    SessionNotFoundError,
    SQLAlchemySessionRepository,
    StorageError,
)
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.sql.dialects.base import BEHIND_POOLER
from vibeforge_sessions.testing.base import SESSION_ID, assert_same, full_session, stored

TABLES = ("sessions", "session_documents", "session_errors", "session_logs")
ENGINES: dict[str, Callable[[str], Engine]] = {
    "package": create_engine,
    "package with AUTOCOMMIT": lambda url: create_engine(url, isolation_level="AUTOCOMMIT"),
    "plain": sqlalchemy.create_engine,
    "AUTOCOMMIT": lambda url: sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT"),
    "driver with autocommit": lambda url: sqlalchemy.create_engine(url, connect_args={"isolation_level": None}),
    "driver with EXCLUSIVE": lambda url: sqlalchemy.create_engine(url, connect_args={"isolation_level": "EXCLUSIVE"}),
    "NullPool": lambda url: sqlalchemy.create_engine(url, poolclass=NullPool),
    "StaticPool": lambda url: sqlalchemy.create_engine(url, poolclass=StaticPool),
}


@pytest.fixture
def path(sqlite_files: SQLiteFiles) -> Path:
    """Return the path of a new file with the package's tables."""
    return Path(sqlite_files.new_url().removeprefix("sqlite:///"))


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, path: Path) -> Iterator[Engine]:
    """Yield an engine on a file with the package's tables."""
    engine = ENGINES[request.param](f"sqlite:///{path}")
    yield engine
    checked_out = engine.pool.checkedout() if hasattr(engine.pool, "checkedout") else 0
    engine.dispose()
    assert checked_out == 0


def traced(engine: Engine) -> list[str]:
    """Return a list that receives each statement as SQLite executes it."""
    statements: list[str] = []

    @event.listens_for(engine, "connect")
    def trace(connection: Any, _: object) -> None:
        connection.set_trace_callback(statements.append)

    return statements


def pragma(connection: sqlalchemy.Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


@pytest.mark.parametrize(
    ("options", "synchronous", "busy_timeout"),
    [
        ({}, 2, 30_000),
        ({"synchronous": "FULL", "busy_timeout": 0.25}, 2, 250),
        ({"synchronous": "NORMAL", "busy_timeout": 0}, 1, 0),
        ({"connect_args": {"timeout": 2}}, 2, 2_000),
        ({"poolclass": NullPool}, 2, 30_000),
    ],
    ids=["default", "full", "normal", "driver timeout", "no pool"],
)
def test_create_engine_configures_each_connection(
    tmp_path: Path, options: dict[str, Any], synchronous: int, busy_timeout: int
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'new.db'}", **options)
    assert list(tmp_path.iterdir()) == []  # create_engine does not connect
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            assert pragma(connection, "journal_mode") == "wal"
            assert pragma(connection, "synchronous") == synchronous
            assert pragma(connection, "foreign_keys") == 1
            assert pragma(connection, "busy_timeout") == busy_timeout
    engine.dispose()


def test_create_engine_accepts_url_objects_and_hides_parameters() -> None:
    url = make_url("sqlite:///new.db")
    assert str(create_engine(url).url) == "sqlite+pysqlite:///new.db"
    assert create_engine(url).hide_parameters
    assert not create_engine(url, hide_parameters=False).hide_parameters


def test_callers_transaction_is_atomic_snapshot(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER)"))
        connection.execute(text("INSERT INTO orders VALUES (1)"))
        connection.rollback()
    assert "orders" not in sqlalchemy.inspect(engine).get_table_names()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER)"))
    with engine.connect() as reader:  # reads a snapshot, without later commits
        assert reader.execute(text("SELECT count(*) FROM orders")).scalar() == 0
        with engine.begin() as writer:
            writer.execute(text("INSERT INTO orders VALUES (1)"))
        assert reader.execute(text("SELECT count(*) FROM orders")).scalar() == 0
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///file:shared?mode=memory&cache=shared&uri=true"],
)
def test_in_memory_database_is_shared_by_threads(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = create_engine(url)
    migrate.upgrade(engine)
    repository = SQLAlchemySessionRepository(engine)
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: repository.create_session().session_id, range(8)))
        listed = pool.submit(repository.list_sessions).result()
    assert set(listed) == ids
    engine.dispose()
    assert list(tmp_path.iterdir()) == []  # no file was created
    assert sqlalchemy.inspect(engine).get_table_names() == []  # the database ended with its connection
    engine.dispose()


def test_read_only_file_uri_rejects_writes(path: Path) -> None:
    engine = create_engine(f"sqlite:///file:{path}?uri=true")
    created = SQLAlchemySessionRepository(engine).create_session(full_session())
    with engine.connect():
        reading = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
        reader = SQLAlchemySessionRepository(reading)
        assert_same(stored(reader), created)
        with pytest.raises(StorageError, match="SQLITE_READONLY"):
            reader.append_log(SESSION_ID, "m")
        reading.dispose()
    engine.dispose()


def test_writes_begin_immediate_and_reads_do_not(engine: Engine) -> None:
    statements = traced(engine)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)

    def begins_of(call: Callable[[], object]) -> tuple[list[str], list[str]]:
        statements.clear()
        call()
        begins = [statement.strip() for statement in statements if statement.startswith("BEGIN")]
        return begins, [statement for statement in statements if statement.startswith(("COMMIT", "ROLLBACK"))]

    for write in (
        lambda: repository.create_session(full_session("other")),
        lambda: repository.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1)),
        lambda: repository.append_error(SESSION_ID, "t", "m"),
        lambda: repository.append_log(SESSION_ID, "m"),
        lambda: repository.delete_session(SESSION_ID),
    ):
        begins, ends = begins_of(write)
        assert begins[-1] == "BEGIN IMMEDIATE"
        assert ends[-1] == "COMMIT"
    for read in (
        lambda: repository.get_session("other"),
        lambda: repository.list_errors("other"),
        lambda: repository.list_logs("other"),
        repository.list_sessions,
        repository.find_sessions,
    ):
        begins, ends = begins_of(read)
        assert begins in (["BEGIN"], ["BEGIN DEFERRED"])
        assert len(ends) == 1


def test_failed_call_changes_nothing(engine: Engine, path: Path) -> None:
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id="before")
    before = stored(repository, "before")
    with sqlite3.connect(path) as other:  # makes the last statement of each call fail
        other.execute("CREATE TRIGGER f BEFORE INSERT ON vibeforge_session_logs BEGIN SELECT RAISE(ABORT, 'no'); END")
    changed = stored(repository, "before")
    changed.add_answer("q", 1)
    changed.add_error("t", "m")
    changed.add_log("m")
    for call in (
        lambda: repository.create_session(full_session()),
        lambda: repository.update_session(changed),
        lambda: repository.append_log("before", "m"),
    ):
        with pytest.raises(StorageError, match="SQLITE_CONSTRAINT_TRIGGER"):
            call()
        other.execute("BEGIN IMMEDIATE")  # the failed call released its lock
        rows = [other.execute(f"SELECT count(*) FROM vibeforge_{table}").fetchone()[0] for table in TABLES]
        other.rollback()
        assert rows == [1, 1, 0, 0]
        assert repository.get_session(SESSION_ID) is None
        assert_same(stored(repository, "before"), before)
    other.close()


def test_writes_during_long_lock_raise_storage_error(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}", busy_timeout=0.05)
    repository = SQLAlchemySessionRepository(engine, retry=RetryPolicy(deadline=2.0))
    session = repository.create_session(full_session())
    session.add_log("own")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for call in (
        lambda: repository.append_error(SESSION_ID, "t", "m"),
        lambda: repository.update_session(session),
        repository.create_session,
        lambda: repository.delete_session(SESSION_ID),
    ):
        with pytest.raises(StorageError, match="SQLITE_BUSY") as caught:
            call()
        assert isinstance(caught.value.__cause__, sqlalchemy.exc.OperationalError)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert len(stored(repository).logs) == 1  # readers do not wait for a writer
    other.execute("ROLLBACK")
    other.close()
    repository.update_session(session)
    assert_same(stored(repository), session)
    engine.dispose()


def test_failed_calls_return_connection_to_pool(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, pool_timeout=1)
    repository = SQLAlchemySessionRepository(engine)
    for call in (lambda: repository.append_log("unknown", "m"), lambda: repository.list_errors("unknown")):
        with pytest.raises(SessionNotFoundError):
            call()
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE vibeforge_session_logs")
    other.close()
    with pytest.raises(SchemaError):
        repository.list_logs("unknown")
    assert repository.list_sessions() == []
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


NEW_DRIVER = pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3.connect has autocommit= since Python 3.12")
NEVER_ROLLED_BACK = {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (create_engine, NEVER_ROLLED_BACK, "skip_autocommit_rollback=True"),
        (sqlalchemy.create_engine, NEVER_ROLLED_BACK, "skip_autocommit_rollback=True"),
        (sqlalchemy.create_engine, {"url": "sqlite://"}, "an empty SQLite database of its own"),
        pytest.param(sqlalchemy.create_engine, {"connect_args": {"autocommit": True}}, "autocommit", marks=NEW_DRIVER),
    ],
    ids=["package without rollback", "SQLAlchemy without rollback", "memory", "driver with autocommit"],
)
def test_unsupported_engine_is_rejected_with_reason(
    path: Path, make: Callable[..., Engine], options: dict[str, Any], reason: str
) -> None:
    engine = make(**{"url": f"sqlite:///{path}", **options})
    for call in (SQLAlchemySessionRepository(engine).create_session, SQLAlchemySessionRepository(engine).list_sessions):
        with pytest.raises(ConfigurationError, match=reason):
            call()
    engine.dispose()


def test_engine_behind_pooler_keeps_its_mark_with_schema() -> None:
    engine = create_engine("postgresql+psycopg://h/d", pgbouncer=True, schema="forge")
    options = engine.get_execution_options()
    assert options["schema_translate_map"] == {None: "forge"}
    assert BEHIND_POOLER in options


@pytest.mark.parametrize(
    ("url", "name", "value"),
    [
        ("sqlite://", "synchronous", "OFF"),
        ("sqlite://", "synchronous", None),
        ("sqlite://", "synchronous", ["FULL"]),
        ("sqlite://", "busy_timeout", -1),
        ("sqlite://", "busy_timeout", "30"),
        ("sqlite://", "busy_timeout", float("nan")),
        ("sqlite://", "busy_timeout", float("inf")),
        ("postgresql://h/d", "pgbouncer", 1),
        ("sqlite://", "pgbouncer", True),
        ("mariadb://h/d", "pgbouncer", True),
    ],
)
def test_invalid_engine_option_is_rejected_by_name(url: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_engine(url, **{name: value})
    assert caught.value.name == name


@pytest.mark.parametrize("kind", ["missing", "file", "unwritable"])
def test_unusable_folder_raises_storage_error_without_path(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "s3cr3t-folder"
    if kind == "file":
        folder.touch()
    elif kind == "unwritable":
        folder.mkdir(mode=0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("root may write everywhere")
    engine = create_engine(f"sqlite:///{folder / 'sessions.db'}")
    repository = SQLAlchemySessionRepository(engine)
    for call in (repository.create_session, repository.list_sessions, lambda: migrate.upgrade(engine)):
        with pytest.raises(StorageError, match="SQLITE_CANTOPEN") as caught:
            call()
        assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


def test_connection_waits_for_writer_before_switching_to_wal(path: Path) -> None:
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")  # SQLite then rejects the switch immediately, regardless of its timeout
    without_timeout, with_timeout = (create_engine(f"sqlite:///{path}", busy_timeout=timeout) for timeout in (0, 60))
    with pytest.raises(StorageError, match="SQLITE_BUSY"):
        SQLAlchemySessionRepository(without_timeout).list_sessions()
    release = threading.Timer(0.2, writer.close)
    release.start()
    with with_timeout.connect() as connection:
        assert pragma(connection, "journal_mode") == "wal"
    release.join()
    assert SQLAlchemySessionRepository(without_timeout).list_sessions() == []
    with_timeout.dispose()
    without_timeout.dispose()


OPENING = """
import os
from vibeforge_sessions.sql import create_engine

start, go = os.pipe()
children = []
for _ in range(20):
    children.append(os.fork())  # forks before any file is open: faster than importing the package twenty times
    if not children[-1]:
        os.close(go)
        os.read(start, 1)  # waits until the parent closes its end, so that all children start together
        engine = create_engine("sqlite:///new.db")
        with engine.connect() as connection:
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        os._exit(0 if mode == "wal" else 3)
os.close(go)
print([os.waitpid(child, 0)[1] for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_processes_that_open_new_file_concurrently_all_succeed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENING]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == f"{[0] * 20}\n", done.stderr


def test_failed_commit_is_rolled_back(path: Path) -> None:
    """Fail a COMMIT.

    SQLAlchemy treats the transaction as ended, but SQLite keeps it open. The next call on the connection must not
    commit it.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("PRAGMA journal_mode = DELETE")
        engine = sqlalchemy.create_engine(
            f"sqlite:///{path}", pool_size=1, max_overflow=0, connect_args={"timeout": 0.1}
        )
        repository = SQLAlchemySessionRepository(engine, retry=RetryPolicy(deadline=2.0))
        repository.create_session(session_id=SESSION_ID)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM vibeforge_sessions").fetchall()
        with pytest.raises(StorageError, match=r"could not commit .* SQLITE_BUSY"):
            repository.append_log(SESSION_ID, "rolled back")
        reader.execute("ROLLBACK")
        assert repository.list_logs(SESSION_ID) == []
        line = repository.append_log(SESSION_ID, "accepted")
        assert repository.list_logs(SESSION_ID) == [line]
        engine.dispose()


def test_interrupted_commit_is_rolled_back(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, busy_timeout=0.1)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)

    def interrupt(_connection: object) -> None:
        raise KeyboardInterrupt

    sqlalchemy.event.listen(engine, "commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        repository.append_log(SESSION_ID, "rolled back")
    sqlalchemy.event.remove(engine, "commit", interrupt)
    other = create_engine(f"sqlite:///{path}", busy_timeout=0.1)
    line = SQLAlchemySessionRepository(other).append_log(SESSION_ID, "by another")
    assert repository.list_logs(SESSION_ID) == [line]
    engine.dispose()
    other.dispose()


@pytest.mark.parametrize(("query", "milliseconds"), [("", 30_000), ("?timeout=0.05", 50)], ids=["default", "query"])
def test_url_sets_busy_timeout(tmp_path: Path, query: str, milliseconds: int) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}{query}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == milliseconds
    engine.dispose()
