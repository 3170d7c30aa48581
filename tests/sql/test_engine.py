"""Engines on SQLite: what `create_engine` prepares, and what a host's own may be like."""

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
HOSTS: dict[str, Callable[[str], Engine]] = {
    "ours": create_engine,
    "ours with AUTOCOMMIT": lambda url: create_engine(url, isolation_level="AUTOCOMMIT"),
    "plain": sqlalchemy.create_engine,
    "AUTOCOMMIT": lambda url: sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT"),
    "the driver's autocommit": lambda url: sqlalchemy.create_engine(url, connect_args={"isolation_level": None}),
    "the driver's EXCLUSIVE": lambda url: sqlalchemy.create_engine(url, connect_args={"isolation_level": "EXCLUSIVE"}),
    "NullPool": lambda url: sqlalchemy.create_engine(url, poolclass=NullPool),
    "StaticPool": lambda url: sqlalchemy.create_engine(url, poolclass=StaticPool),
}


@pytest.fixture
def path(sqlite_files: SQLiteFiles) -> Path:
    """A new file with our tables."""
    return Path(sqlite_files.new_url().removeprefix("sqlite:///"))


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, path: Path) -> Iterator[Engine]:
    """One engine after the other, each on a file with our tables."""
    engine = HOSTS[request.param](f"sqlite:///{path}")
    yield engine
    checked_out = engine.pool.checkedout() if hasattr(engine.pool, "checkedout") else 0
    engine.dispose()
    assert checked_out == 0


def traced(engine: Engine) -> list[str]:
    """Return a list that every statement will be added to as SQLite gets it."""
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
)
def test_every_connection_is_prepared(
    tmp_path: Path, options: dict[str, Any], synchronous: int, busy_timeout: int
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'new.db'}", **options)
    assert list(tmp_path.iterdir()) == []  # it does not connect by itself
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            assert pragma(connection, "journal_mode") == "wal"
            assert pragma(connection, "synchronous") == synchronous
            assert pragma(connection, "foreign_keys") == 1
            assert pragma(connection, "busy_timeout") == busy_timeout
    engine.dispose()


def test_it_takes_url_objects_and_hides_parameters() -> None:
    url = make_url("sqlite:///new.db")
    assert str(create_engine(url).url) == "sqlite+pysqlite:///new.db"
    assert create_engine(url).hide_parameters
    assert not create_engine(url, hide_parameters=False).hide_parameters


def test_a_hosts_own_transaction_is_one(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host (id INTEGER)"))
        connection.execute(text("INSERT INTO host VALUES (1)"))
        connection.rollback()
    assert "host" not in sqlalchemy.inspect(engine).get_table_names()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host (id INTEGER)"))
    with engine.connect() as reader:  # a snapshot: what is committed meanwhile is not seen
        assert reader.execute(text("SELECT count(*) FROM host")).scalar() == 0
        with engine.begin() as writer:
            writer.execute(text("INSERT INTO host VALUES (1)"))
        assert reader.execute(text("SELECT count(*) FROM host")).scalar() == 0
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///file:shared?mode=memory&cache=shared&uri=true"],
)
def test_a_database_in_memory_is_shared_by_threads(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = create_engine(url)
    migrate.upgrade(engine)
    repository = SQLAlchemySessionRepository(engine)
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: repository.create_session().session_id, range(8)))
        listed = pool.submit(repository.list_sessions).result()
    assert set(listed) == ids
    engine.dispose()
    assert list(tmp_path.iterdir()) == []  # in no file
    assert sqlalchemy.inspect(engine).get_table_names() == []  # and gone with its connection
    engine.dispose()


def test_a_file_uri(path: Path) -> None:
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


def test_writes_begin_immediate_and_reads_do_not(host: Engine) -> None:
    statements = traced(host)
    repository = SQLAlchemySessionRepository(host)
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


def test_a_unit_that_fails_leaves_nothing(host: Engine, path: Path) -> None:
    repository = SQLAlchemySessionRepository(host)
    repository.create_session(session_id="before")
    before = stored(repository, "before")
    with sqlite3.connect(path) as other:  # fails the last statement of each of these units
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
        other.execute("BEGIN IMMEDIATE")  # no lock is left either
        rows = [other.execute(f"SELECT count(*) FROM vibeforge_{table}").fetchone()[0] for table in TABLES]
        other.rollback()
        assert rows == [1, 1, 0, 0]
        assert repository.get_session(SESSION_ID) is None
        assert_same(stored(repository, "before"), before)
    other.close()


def test_a_writer_that_holds_the_lock_too_long(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}", busy_timeout=0.05)
    repository = SQLAlchemySessionRepository(engine, retry=RetryPolicy(deadline=2.0))
    session = repository.create_session(full_session())
    session.add_log("mine")
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


def test_no_error_keeps_a_connection(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, pool_timeout=1)
    repository = SQLAlchemySessionRepository(engine)
    for call in (lambda: repository.append_log("nobody", "m"), lambda: repository.list_errors("nobody")):
        with pytest.raises(SessionNotFoundError):
            call()
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE vibeforge_session_logs")
    other.close()
    with pytest.raises(SchemaError):
        repository.list_logs("nobody")
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
)
def test_an_engine_that_cannot_work_is_refused_with_the_reason(
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
def test_a_folder_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
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


def test_a_file_that_is_being_written_becomes_wal_afterwards(path: Path) -> None:
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")  # SQLite refuses to switch then, at once and whatever the timeout
    impatient, patient = (create_engine(f"sqlite:///{path}", busy_timeout=timeout) for timeout in (0, 60))
    with pytest.raises(StorageError, match="SQLITE_BUSY"):
        SQLAlchemySessionRepository(impatient).list_sessions()
    done = threading.Timer(0.2, writer.close)
    done.start()
    with patient.connect() as connection:
        assert pragma(connection, "journal_mode") == "wal"
    done.join()
    assert SQLAlchemySessionRepository(impatient).list_sessions() == []
    patient.dispose()
    impatient.dispose()


OPENING = """
import os
from vibeforge_sessions.sql import create_engine

start, go = os.pipe()
children = []
for _ in range(20):
    children.append(os.fork())  # before anything has been opened: quicker than to import it all twenty times
    if not children[-1]:
        os.close(go)
        os.read(start, 1)  # until the parent closes its end, for all at once
        engine = create_engine("sqlite:///new.db")
        with engine.connect() as connection:
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        os._exit(0 if mode == "wal" else 3)
os.close(go)
print([os.waitpid(child, 0)[1] for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_processes_that_open_one_new_file_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENING]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == f"{[0] * 20}\n", done.stderr


def test_a_failed_commit_leaves_nothing(path: Path) -> None:
    """SQLAlchemy takes the transaction for ended; the next call on that connection must not commit it."""
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
            repository.append_log(SESSION_ID, "refused")
        reader.execute("ROLLBACK")
        assert repository.list_logs(SESSION_ID) == []
        line = repository.append_log(SESSION_ID, "accepted")
        assert repository.list_logs(SESSION_ID) == [line]
        engine.dispose()


def test_an_interrupted_commit_leaves_nothing(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, busy_timeout=0.1)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)

    def interrupt(_connection: object) -> None:
        raise KeyboardInterrupt

    sqlalchemy.event.listen(engine, "commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        repository.append_log(SESSION_ID, "refused")
    sqlalchemy.event.remove(engine, "commit", interrupt)
    other = create_engine(f"sqlite:///{path}", busy_timeout=0.1)
    line = SQLAlchemySessionRepository(other).append_log(SESSION_ID, "by another")
    assert repository.list_logs(SESSION_ID) == [line]
    engine.dispose()
    other.dispose()


@pytest.mark.parametrize(("query", "milliseconds"), [("", 30_000), ("?timeout=0.05", 50)])
def test_a_url_says_how_long_to_wait_for_another_writer(tmp_path: Path, query: str, milliseconds: int) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}{query}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == milliseconds
    engine.dispose()
