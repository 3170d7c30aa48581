"""Repositories in the caller's transaction.

Each call runs in a savepoint. The repository never commits or rolls back the caller's transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, event, orm, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_async_engine

from tests.support.databases import ASYNC_DRIVERS, Storage
from tests.support.repositories import SQLiteFiles
from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    ConfigurationError,
    InvalidSessionError,
    OutcomeUnknownError,
    SchemaError,
    Session,
    SessionExistsError,
    SessionNotFoundError,
    SessionPhase,
    SQLAlchemySessionRepository,
    StaleSessionError,
    StorageError,
)
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.sql.transactions import owned
from vibeforge_sessions.testing.base import SESSION_ID, UNKNOWN_ID, full_session, stored

ConnectionOrSession = Connection | orm.Session

orders_table = Table("orders", MetaData(), Column("name", String(50), primary_key=True))


class Base(orm.DeclarativeBase):
    pass


class Order(Base):
    __table__ = orders_table


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """Return an engine on a database that also has the application's table."""
    orders_table.create(engine)
    return engine


def orders(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(select(orders_table.c.name)))


def order(caller: ConnectionOrSession, name: str) -> None:
    caller.execute(orders_table.insert().values(name=name))


def write_everything(repository: SQLAlchemySessionRepository) -> Session:
    """Make each kind of write, and return the stored session."""
    session = repository.create_session(full_session())
    session.update_phase(SessionPhase.EXECUTION)
    session.add_answer("q", 1)
    session.add_error("t", "m")
    repository.update_session(session)
    repository.append_error(SESSION_ID, "t", "m")
    repository.append_log(SESSION_ID, "line")
    repository.modify_session(SESSION_ID, lambda session: session.add_answer("r", 2))
    repository.create_session(session_id="gone")
    assert repository.delete_session("gone")
    return stored(repository)


def test_commit_stores_callers_row_and_session_together(
    engine: Engine,
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
) -> None:
    order(caller, "before")
    session = write_everything(joined)
    order(caller, "after")
    assert joined.list_sessions() == [SESSION_ID]
    assert joined.find_sessions().items[0].version == 3
    assert len(joined.list_errors(SESSION_ID)) == len(session.error_history) == 3
    assert len(joined.list_logs(SESSION_ID)) == len(session.logs) == 2
    if engine.dialect.name != "sqlite":  # the servers show other transactions the committed state
        assert outside.list_sessions() == []
    caller.commit()
    assert stored(outside) == session
    assert orders(engine) == ["after", "before"]


def test_rollback_undoes_callers_row_and_session_together(
    engine: Engine,
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
) -> None:
    order(caller, "before")
    write_everything(joined)
    order(caller, "after")
    caller.rollback()
    assert (outside.list_sessions(), orders(engine)) == ([], [])
    assert joined.get_session(SESSION_ID) is None
    joined.create_session(session_id=SESSION_ID)  # in the caller's next transaction
    caller.commit()
    assert outside.list_sessions() == [SESSION_ID]


def test_transaction_without_commit_stores_nothing(engine: Engine, outside: SQLAlchemySessionRepository) -> None:
    for caller in (engine.connect(), orm.Session(engine)):
        with caller:
            write_everything(SQLAlchemySessionRepository(caller))
            SQLAlchemySessionRepository(caller).close()
    assert outside.list_sessions() == []


def test_call_that_raises_undoes_only_its_own_writes(
    engine: Engine,
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
) -> None:
    outside.create_session(session_id="other")
    old = joined.get_session("other")
    assert old is not None
    caller.rollback()
    outside.modify_session("other", lambda session: session.add_answer("q", 1))
    order(caller, "one")
    joined.create_session(session_id=SESSION_ID)
    with pytest.raises(SessionExistsError):
        joined.create_session(session_id=SESSION_ID)
    old.add_error("t", "m")
    with pytest.raises(StaleSessionError) as caught:
        joined.update_session(old)
    assert caught.value.stored_version == 2
    with pytest.raises(SessionNotFoundError):
        joined.append_log(UNKNOWN_ID, "m")
    with pytest.raises(InvalidSessionError):
        joined.create_session(Session(answers={"x": {1, 2}}))
    with pytest.raises(KeyError):
        joined.modify_session(SESSION_ID, lambda session: session.answers["missing"])
    order(caller, "two")
    joined.append_log(SESSION_ID, "after the errors")
    caller.commit()
    assert orders(engine) == ["one", "two"]
    assert outside.list_sessions() == ["other", SESSION_ID]
    assert len(outside.list_logs(SESSION_ID)) == 1
    assert outside.list_errors("other") == []


def test_call_whose_statement_fails_undoes_only_its_own_writes(
    engine: Engine, caller: ConnectionOrSession, joined: SQLAlchemySessionRepository
) -> None:
    outside = SQLAlchemySessionRepository(engine)
    outside.create_session(session_id=SESSION_ID)
    with engine.begin() as connection:  # makes the call fail after its first statements
        connection.execute(text("ALTER TABLE vibeforge_session_logs RENAME TO away"))
    order(caller, "one")
    session = joined.create_session(session_id="kept")
    session.add_answer("q", 1)
    session.add_log("not stored")
    for call in (lambda: joined.update_session(session), lambda: joined.append_log(SESSION_ID, "m")):
        with pytest.raises(SchemaError, match="vibeforge_session_logs"):
            call()
    with pytest.raises(SchemaError):
        joined.list_logs(SESSION_ID)
    order(caller, "two")
    caller.commit()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO vibeforge_session_logs"))
    assert orders(engine) == ["one", "two"]
    assert stored(outside, "kept").version == 1


def test_rollback_to_callers_savepoint_undoes_only_calls_within_it(
    engine: Engine, outside: SQLAlchemySessionRepository
) -> None:
    with engine.begin() as connection:
        joined = SQLAlchemySessionRepository(connection)
        joined.create_session(session_id="kept")
        with contextlib.suppress(KeyError), connection.begin_nested():
            joined.create_session(session_id="undone")
            raise KeyError
        assert joined.get_session("undone") is None
        with connection.begin_nested():
            joined.append_log("kept", "m")
    assert outside.list_sessions() == ["kept"]
    assert len(outside.list_logs("kept")) == 1


def plain(url: str) -> Engine:
    """Return an engine whose driver begins a transaction at the first INSERT, but not at a SAVEPOINT."""
    return sqlalchemy.create_engine(url)


def without_transactions(url: str) -> Engine:
    """Return an engine that sends no BEGIN: neither the driver nor an event listener does."""
    return sqlalchemy.create_engine(url, connect_args={"isolation_level": None})


def with_begin_event(url: str) -> Engine:
    engine = without_transactions(url)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


@pytest.mark.parametrize("make", [plain, without_transactions])
@pytest.mark.parametrize("kind", ["Connection", "Session", "Session with a savepoint"])
@pytest.mark.parametrize("after_insert", [False, True], ids=["first", "after insert"])
def test_savepoint_without_begin_on_sqlite_is_rejected(
    sqlite_files: SQLiteFiles, make: Callable[[str], Engine], kind: str, after_insert: bool
) -> None:
    engine = make(sqlite_files.new_url())
    orders_table.create(engine)
    other = create_engine(engine.url)
    outside = SQLAlchemySessionRepository(other)
    for call in (SQLAlchemySessionRepository.create_session, SQLAlchemySessionRepository.list_sessions):
        with engine.connect() as connection, contextlib.ExitStack() as stack:
            if after_insert:
                order(connection, call.__name__)
            caller: ConnectionOrSession = connection
            if kind == "Session":
                caller = stack.enter_context(orm.Session(connection))
            elif kind != "Connection":
                caller = stack.enter_context(orm.Session(connection, join_transaction_mode="create_savepoint"))
            with (
                caller.begin_nested(),
                pytest.raises(ConfigurationError, match=r"RELEASE.*vibeforge_sessions\.sql\.create_engine"),
            ):
                call(SQLAlchemySessionRepository(caller))
        assert outside.list_sessions() == []
    for each in (engine, other):
        each.dispose()


@pytest.mark.parametrize("make", [create_engine, with_begin_event])
def test_savepoint_after_begin_on_sqlite_is_joined(sqlite_files: SQLiteFiles, make: Callable[[str], Engine]) -> None:
    engine = make(sqlite_files.new_url())
    with engine.connect() as connection:
        with connection.begin_nested():
            SQLAlchemySessionRepository(connection).create_session(session_id="undone")
        connection.rollback()
    with orm.Session(engine) as caller:
        with caller.begin_nested():
            SQLAlchemySessionRepository(caller).create_session(session_id="kept")
        caller.commit()
    assert SQLAlchemySessionRepository(engine).list_sessions() == ["kept"]
    engine.dispose()


@pytest.mark.parametrize("kind", [AsyncConnection, AsyncSession])
def test_savepoint_without_begin_on_aiosqlite_is_rejected(
    sqlite: Storage, kind: type[AsyncConnection | AsyncSession]
) -> None:
    url = sqlite.url_with("sqlite+aiosqlite")

    async def work() -> None:
        engine = create_plain_async_engine(url)
        async with engine.connect() if kind is AsyncConnection else AsyncSession(engine) as caller:
            async with caller.begin_nested():
                with pytest.raises(ConfigurationError, match="RELEASE"):
                    await AsyncSQLAlchemySessionRepository(caller).create_session()
            await caller.rollback()
        assert await AsyncSQLAlchemySessionRepository(engine).list_sessions() == []
        await engine.dispose()

    asyncio.run(work())


def test_commit_of_orm_session_stores_its_objects_too(engine: Engine, outside: SQLAlchemySessionRepository) -> None:
    with orm.Session(engine) as caller:
        caller.add(Order(name="first"))
        SQLAlchemySessionRepository(caller).create_session(session_id=SESSION_ID)
        caller.add(Order(name="second"))
        caller.commit()
    assert orders(engine) == ["first", "second"]
    assert outside.list_sessions() == [SESSION_ID]


def test_joined_calls_neither_commit_nor_roll_back(engine: Engine) -> None:
    """Compare the engine's events with the caller's only COMMIT."""
    seen: list[str] = []
    event.listen(engine, "commit", lambda _connection: seen.append("commit"))
    event.listen(engine, "rollback", lambda _connection: seen.append("rollback"))
    with engine.connect() as connection:
        write_everything(SQLAlchemySessionRepository(connection))
        assert seen == []
        connection.commit()
    assert seen == ["commit"]


# --- failures on the server ---


@pytest.mark.parametrize("kind", ["Connection", "Session"])
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_deadlock_reports_whether_callers_transaction_is_lost(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """Provoke a deadlock.

    PostgreSQL keeps the transaction up to the savepoint. MariaDB rolls all of it back, and the error reports that.
    """
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    orders_table.create(engine)
    outside = SQLAlchemySessionRepository(engine)
    for session_id in ("a", "b"):
        outside.create_session(session_id=session_id)
    lost: list[bool] = []
    both = threading.Barrier(2)

    def work(first: str, second: str) -> None:
        with engine.connect() if kind == "Connection" else orm.Session(engine) as caller:
            joined = SQLAlchemySessionRepository(caller)
            order(caller, first)
            joined.append_log(first, "own session")
            both.wait()
            try:
                joined.append_log(second, "session of the other thread")
            except StorageError as error:
                lost.append(error.transaction_lost)
                if error.transaction_lost:
                    with pytest.raises(InvalidRequestError):  # a commit would store only a part of the transaction
                        order(caller, "part")
                    with pytest.raises(StorageError) as again:
                        joined.append_log(first, "rejected")
                    assert again.value.transaction_lost
                    caller.rollback()
                    order(caller, first)
                    joined.append_log(first, "again")
            caller.commit()

    threads = [threading.Thread(target=work, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == [name == "mariadb"]
    assert orders(engine) == ["a", "b"]
    assert sum(len(outside.list_logs(session_id)) for session_id in ("a", "b")) == 3
    engine.dispose()


KILL_QUERIES = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mariadb": ("SELECT connection_id()", "KILL {}"),
}


@pytest.mark.parametrize("kind", ["Connection", "Session"])
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_lost_connection_is_reported_as_lost_transaction(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    id_query, kill_statement = KILL_QUERIES[name]
    with engine.connect() if kind == "Connection" else orm.Session(engine) as caller, engine.connect() as other:
        joined = SQLAlchemySessionRepository(caller)
        joined.create_session(session_id=SESSION_ID)
        other.execute(text(kill_statement.format(caller.execute(text(id_query)).scalar())))
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                joined.append_log(SESSION_ID, "m")
            assert caught.value.transaction_lost
            assert type(caught.value) is StorageError  # no COMMIT was sent, so the outcome is known
        caller.rollback()
        assert joined.list_sessions() == []
    engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_lost_connection_is_reported_instead_of_calls_own_error(name: str, request: pytest.FixtureRequest) -> None:
    """Cut the connection after the statement that finds no session, before the savepoint is rolled back."""
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    id_query, kill_statement = KILL_QUERIES[name]
    with engine.connect() as caller, engine.connect() as other:
        joined = SQLAlchemySessionRepository(caller)
        joined.create_session(session_id=SESSION_ID)
        number = caller.execute(text(id_query)).scalar()

        @event.listens_for(caller, "after_cursor_execute")
        def kill(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
            if "UPDATE vibeforge_sessions" in statement:
                other.execute(text(kill_statement.format(number)))

        with pytest.raises(StorageError, match="call rollback") as caught:
            joined.append_log(UNKNOWN_ID, "m")
        assert caught.value.transaction_lost
        caller.rollback()
        assert joined.list_sessions() == []
    engine.dispose()


def test_update_in_older_snapshot_raises_stale(mariadb: Storage) -> None:
    """Read in a snapshot that is older than another writer's update. The version check reads the current row."""
    engine = mariadb.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    outside.create_session(session_id=SESSION_ID)
    with engine.connect() as caller:
        joined = SQLAlchemySessionRepository(caller)
        session = stored(joined)
        outside.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
        session.add_answer("q", 2)
        with pytest.raises(StaleSessionError) as caught:
            joined.update_session(session)
        assert caught.value.stored_version == 2
        caller.rollback()
        assert stored(joined).answers == {"q": 1}
    engine.dispose()


WRITES: dict[str, Callable[[SQLAlchemySessionRepository], object]] = {
    "append_error": lambda joined: joined.append_error(SESSION_ID, "own", "m"),
    "append_log": lambda joined: joined.append_log(SESSION_ID, "own"),
    "hold": lambda joined: joined.hold_session(SESSION_ID),
    "release": lambda joined: joined.release_session(SESSION_ID),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("recent", [None, 1], ids=["whole histories", "recent entries"])
def test_read_after_write_in_older_snapshot_returns_current_session(
    mariadb: Storage, write: str, recent: int | None
) -> None:
    """Read a session after a write in an older snapshot.

    InnoDB shows the transaction's own row with its current values, and other rows as of the snapshot. A plain read
    would combine old documents with a newer version.
    """
    engine = mariadb.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    outside.create_session(session_id=SESSION_ID)
    outside.append_error(SESSION_ID, "first", "m")
    with engine.connect() as caller:
        joined = SQLAlchemySessionRepository(caller)
        stored(joined)
        outside.modify_session(SESSION_ID, lambda session: session.add_answer("other", 1))
        outside.append_error(SESSION_ID, "other", "m")
        outside.append_log(SESSION_ID, "other")
        WRITES[write](joined)
        session = joined.get_session(SESSION_ID, recent=recent)
        assert session is not None
        assert session.answers == {"other": 1}
        again = SQLAlchemySessionRepository(caller)
        tasks = ["first", "other", *(["own"] if write == "append_error" else [])]
        assert [error.task_id for error in again.list_errors(SESSION_ID)] == tasks
        assert [error.position for error in again.list_errors(SESSION_ID, task_id="other")] == [2]
        assert [error.task_id for error in again.list_errors(SESSION_ID, after=1, limit=1)] == ["other"]
        assert again.list_errors(SESSION_ID, after=9) == []
        assert [line.split()[-1] for line in again.list_logs(SESSION_ID)][:1] == ["other"]
        record = again.get_record(SESSION_ID)
        assert record is not None
        assert "other" in str(record.content.documents["answers"])
        session.add_answer("own", 2)
        again.update_session(session)
        caller.commit()
        assert stored(again).answers == stored(outside).answers == {"other": 1, "own": 2}
        caller.rollback()
        # the next transaction has written nothing, so it reads its snapshot and waits for no lock
        with engine.connect() as third:
            SQLAlchemySessionRepository(third).append_log(SESSION_ID, "later")
            assert stored(again).answers == {"other": 1, "own": 2}
    engine.dispose()


@pytest.mark.parametrize("write", ["update", "create", "restore"])
def test_histories_after_storing_session_in_older_snapshot_are_current(mariadb: Storage, write: str) -> None:
    engine = mariadb.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    outside.create_session(session_id=SESSION_ID)
    outside.append_error(SESSION_ID, "first", "m")
    with engine.connect() as caller:
        joined = SQLAlchemySessionRepository(caller)
        session = stored(joined)
        record = joined.get_record(SESSION_ID)
        assert record is not None
        if write == "update":
            outside.append_error(SESSION_ID, "other", "m")
            session.add_answer("own", 1)
            joined.update_session(session)
            expected = ["first", "other"]
        else:
            outside.delete_session(SESSION_ID)
            if write == "create":
                joined.create_session(session_id=SESSION_ID)
            else:
                joined.restore_record(dataclasses.replace(record, error_count=0))
            expected = []
        assert [error.task_id for error in joined.list_errors(SESSION_ID)] == expected
        assert [error.task_id for error in stored(joined).error_history] == expected
        caller.commit()
    assert [error.task_id for error in stored(outside).error_history] == expected
    engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_read_under_read_committed_returns_one_incarnation(name: str, request: pytest.FixtureRequest) -> None:
    """Replace the session with a new incarnation between two statements of a read.

    Under READ COMMITTED each statement has a snapshot of its own, but the session must come from one incarnation.
    """
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    first = outside.create_session(full_session())
    for _ in range(3):
        outside.append_error(SESSION_ID, "first", "m")
    swapped: list[bool] = []

    with engine.connect().execution_options(isolation_level="READ COMMITTED") as caller:
        joined = SQLAlchemySessionRepository(caller)

        @event.listens_for(caller, "after_cursor_execute")
        def swap(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
            if "vibeforge_session_documents" in statement and not swapped:
                swapped.append(True)
                outside.delete_session(SESSION_ID)
                outside.create_session(session_id=SESSION_ID).add_error("second", "m")
                for _ in range(4):
                    outside.append_error(SESSION_ID, "second", "m")

        session = stored(joined)
    tasks = {entry.task_id for entry in session.error_history}
    assert swapped
    assert (tasks, session.answers) in [({"t3", "first"}, first.answers), ({"second"}, {})]
    engine.dispose()


# --- rejected binds ---


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_connection_in_autocommit_is_rejected(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as caller:
        joined = SQLAlchemySessionRepository(caller)
        for call in (joined.create_session, joined.list_sessions):
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                call()
    assert SQLAlchemySessionRepository(engine).list_sessions() == []
    engine.dispose()


def test_sqlite_transaction_that_driver_has_not_begun_is_rejected(sqlite_files: SQLiteFiles) -> None:
    url = sqlite_files.new_url()
    engine = sqlalchemy.create_engine(url)
    orders_table.create(engine)
    with engine.connect() as caller:
        joined = SQLAlchemySessionRepository(caller)
        caller.execute(select(orders_table)).all()  # begins a transaction in SQLAlchemy, but not in the driver
        for call in (joined.create_session, joined.list_sessions):
            with pytest.raises(ConfigurationError, match=r"vibeforge_sessions\.sql\.create_engine"):
                call()
        order(caller, "begins the driver's transaction")
        joined.create_session(session_id=SESSION_ID)
        caller.rollback()
    assert SQLAlchemySessionRepository(engine).list_sessions() == []
    assert orders(engine) == []
    with create_engine(url).connect() as caller:  # the fix that the error names
        SQLAlchemySessionRepository(caller).create_session(session_id=SESSION_ID)
        caller.rollback()
    assert SQLAlchemySessionRepository(engine).list_sessions() == []
    engine.dispose()


@pytest.mark.parametrize("bind", [None, "sqlite://", object()], ids=["none", "url", "object"])
def test_bind_of_another_type_is_rejected(bind: Any) -> None:
    with pytest.raises(ConfigurationError, match="Connection"):
        SQLAlchemySessionRepository(bind)


def test_call_on_closed_connection_raises_storage_error(sqlite: Storage) -> None:
    engine = sqlite.new_engine()
    with engine.connect() as caller:
        joined = SQLAlchemySessionRepository(caller)
        assert repr(joined) == "SQLAlchemySessionRepository(Connection of the caller)"
    with pytest.raises(StorageError, match="ResourceClosedError"):
        joined.list_sessions()
    with pytest.raises(StorageError, match="UnboundExecutionError"):
        SQLAlchemySessionRepository(orm.Session()).list_sessions()
    engine.dispose()


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mariadb+pymysql"])
def test_session_with_unreachable_server_raises_without_password(driver: str) -> None:
    engine = create_engine(f"{driver}://u:s3cret@127.0.0.1:1/d")
    with orm.Session(engine) as caller, pytest.raises(StorageError, match="could not reach") as caught:
        SQLAlchemySessionRepository(caller).list_sessions()
    assert "s3cret" not in str(caught.value)
    assert not caught.value.transaction_lost  # no transaction had begun


# --- event loop ---


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg", "mariadb+asyncmy"])
def test_async_session_with_unreachable_server_raises(driver: str) -> None:
    async def work() -> None:
        engine = create_async_engine(f"{driver}://u:s3cret@127.0.0.1:1/d")
        async with AsyncSession(engine) as caller:
            with pytest.raises(StorageError, match="could not reach"):
                await AsyncSQLAlchemySessionRepository(caller).list_sessions()
        await engine.dispose()

    asyncio.run(work())


@pytest.mark.parametrize("kind", ["AsyncConnection", "AsyncSession"])
@pytest.mark.parametrize(("name", "driver"), [*ASYNC_DRIVERS, ("sqlite", "sqlite+aiosqlite")])
def test_async_joined_calls_end_with_callers_transaction(
    name: str, driver: str, kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(name).url_with(driver)

    async def work() -> None:
        engine = create_async_engine(url)
        outside = AsyncSQLAlchemySessionRepository(engine)
        async with engine.begin() as connection:
            await connection.run_sync(orders_table.create)
        caller: AsyncConnection | AsyncSession
        async with engine.connect() if kind == "AsyncConnection" else AsyncSession(engine) as caller:
            joined = AsyncSQLAlchemySessionRepository(caller)
            for ending in (caller.rollback, caller.commit):
                await caller.execute(orders_table.insert().values(name="one"))
                session = await joined.create_session(full_session())
                with pytest.raises(SessionExistsError):
                    await joined.create_session(session_id=SESSION_ID)
                session.add_error("t", "m")
                await joined.update_session(session)
                await joined.append_log(SESSION_ID, "m")
                await joined.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
                await ending()
                found = await outside.get_session(SESSION_ID)
                names = (await caller.execute(select(orders_table.c.name))).scalars().all()
                if ending == caller.rollback:
                    assert (found, names) == (None, [])
                    await caller.rollback()
                else:
                    assert found is not None
                    assert (found.version, len(found.error_history), len(found.logs)) == (3, 2, 2)
                    assert names == ["one"]
        await engine.dispose()

    asyncio.run(work())


def test_cancelled_joined_call_loses_callers_transaction(postgresql: Storage) -> None:
    url = postgresql.url_with("postgresql+psycopg")

    async def work() -> None:
        engine = create_async_engine(url)
        outside = AsyncSQLAlchemySessionRepository(engine)
        await outside.create_session(session_id=SESSION_ID)
        async with engine.connect() as blocker, engine.connect() as caller:
            await AsyncSQLAlchemySessionRepository(blocker).append_log(SESSION_ID, "locks the row")
            joined = AsyncSQLAlchemySessionRepository(caller)
            await joined.create_session(session_id="own")
            waiting = asyncio.ensure_future(joined.append_log(SESSION_ID, "waits for the lock"))
            await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(StorageError) as caught:  # the cancellation interrupted the driver's protocol
                await joined.append_log("own", "m")
            assert caught.value.transaction_lost
            await caller.rollback()
            assert await joined.list_sessions() == [SESSION_ID]
        assert await outside.list_logs(SESSION_ID) == []
        await engine.dispose()

    asyncio.run(work())


# --- in-doubt writes ---


def test_in_doubt_write_stays_in_doubt_if_the_next_connection_is_rejected(
    sqlite: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise the first error: the second one would claim that nothing was written."""
    engine = sqlite.new_engine()
    repository = SQLAlchemySessionRepository(engine)
    cause = sqlalchemy.exc.OperationalError(None, None, Exception())
    unknown = OutcomeUnknownError("could not commit the transaction")
    unknown.__cause__ = cause
    lost = owned._AttemptFailed(unknown, retryable=True, in_doubt=True, name="lost")
    attempts = iter([lost, ConfigurationError("latin1")])

    def fail(*_: object, **__: object) -> None:
        raise next(attempts)

    monkeypatch.setattr(owned.OwnedTransactions, "_attempt", fail)
    with pytest.raises(OutcomeUnknownError, match="could not commit") as caught:
        repository.create_session(session_id=SESSION_ID)
    assert caught.value.__cause__ is cause
    with pytest.raises(StopIteration):
        next(attempts)
    engine.dispose()
