"""A repository in a host's transaction: a savepoint for each call, and nothing of the host's is ever decided."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, event, orm, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_async_engine

from tests.support.databases import ASYNC_DRIVERS, SQL_DATABASES, Storage
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

Host = Connection | orm.Session

hosts = Table("orders", MetaData(), Column("name", String(50), primary_key=True))


class Base(orm.DeclarativeBase):
    pass


class Order(Base):
    __table__ = hosts


@pytest.fixture(params=SQL_DATABASES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    storage: Storage = request.getfixturevalue(request.param)
    engine = storage.new_engine()
    hosts.create(engine)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def orders(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(select(hosts.c.name)))


def order(host: Host, name: str) -> None:
    host.execute(hosts.insert().values(name=name))


def write_everything(repository: SQLAlchemySessionRepository) -> Session:
    """Make every writing call."""
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


def test_the_hosts_row_and_the_session_are_committed_together(
    engine: Engine,
    host: Host,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
) -> None:
    order(host, "before")
    session = write_everything(joined)
    order(host, "after")
    assert joined.list_sessions() == [SESSION_ID]
    assert joined.find_sessions().items[0].version == 3
    assert len(joined.list_errors(SESSION_ID)) == len(session.error_history) == 3
    assert len(joined.list_logs(SESSION_ID)) == len(session.logs) == 2
    if engine.dialect.name != "sqlite":  # where whoever reads sees what was, too
        assert outside.list_sessions() == []
    host.commit()
    assert stored(outside) == session
    assert orders(engine) == ["after", "before"]


def test_the_hosts_row_and_the_session_are_rolled_back_together(
    engine: Engine,
    host: Host,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
) -> None:
    order(host, "before")
    write_everything(joined)
    order(host, "after")
    host.rollback()
    assert (outside.list_sessions(), orders(engine)) == ([], [])
    assert joined.get_session(SESSION_ID) is None
    joined.create_session(session_id=SESSION_ID)  # in the host's next transaction
    host.commit()
    assert outside.list_sessions() == [SESSION_ID]


def test_without_a_commit_nothing_stays(engine: Engine, outside: SQLAlchemySessionRepository) -> None:
    for host in (engine.connect(), orm.Session(engine)):
        with host:
            write_everything(SQLAlchemySessionRepository(host))
            SQLAlchemySessionRepository(host).close()
    assert outside.list_sessions() == []


def test_an_error_in_the_middle_undoes_its_own_call_only(
    engine: Engine,
    host: Host,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
) -> None:
    outside.create_session(session_id="theirs")
    old = joined.get_session("theirs")
    assert old is not None
    host.rollback()
    outside.modify_session("theirs", lambda session: session.add_answer("q", 1))
    order(host, "one")
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
        joined.modify_session(SESSION_ID, lambda session: session.answers["the caller's own"])
    order(host, "two")
    joined.append_log(SESSION_ID, "after all that")
    host.commit()
    assert orders(engine) == ["one", "two"]
    assert outside.list_sessions() == ["theirs", SESSION_ID]
    assert len(outside.list_logs(SESSION_ID)) == 1
    assert outside.list_errors("theirs") == []


def test_a_statement_that_fails_undoes_its_own_call_only(
    engine: Engine, host: Host, joined: SQLAlchemySessionRepository
) -> None:
    outside = SQLAlchemySessionRepository(engine)
    outside.create_session(session_id=SESSION_ID)
    with engine.begin() as connection:  # so that the call fails when half of it is done
        connection.execute(text("ALTER TABLE vibeforge_session_logs RENAME TO away"))
    order(host, "one")
    session = joined.create_session(session_id="kept")
    session.add_answer("q", 1)
    session.add_log("nowhere to put it")
    for call in (lambda: joined.update_session(session), lambda: joined.append_log(SESSION_ID, "m")):
        with pytest.raises(SchemaError, match="vibeforge_session_logs"):
            call()
    with pytest.raises(SchemaError):
        joined.list_logs(SESSION_ID)
    order(host, "two")
    host.commit()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO vibeforge_session_logs"))
    assert orders(engine) == ["one", "two"]
    assert stored(outside, "kept").version == 1


def test_a_savepoint_of_the_hosts_own(engine: Engine, outside: SQLAlchemySessionRepository) -> None:
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
    """An engine whose driver begins a transaction at the first INSERT, and none at a SAVEPOINT."""
    return sqlalchemy.create_engine(url)


def without_transactions(url: str) -> Engine:
    """An engine whose driver begins nothing, and that has no listener to its begin event either."""
    return sqlalchemy.create_engine(url, connect_args={"isolation_level": None})


def with_begin_event(url: str) -> Engine:
    engine = without_transactions(url)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


@pytest.mark.parametrize("make", [plain, without_transactions])
@pytest.mark.parametrize("kind", ["Connection", "Session", "Session that joins by a savepoint"])
@pytest.mark.parametrize("after_insert", [False, True])
def test_savepoint_without_begin_on_sqlite_is_rejected(
    sqlite_files: SQLiteFiles, make: Callable[[str], Engine], kind: str, after_insert: bool
) -> None:
    engine = make(sqlite_files.new_url())
    hosts.create(engine)
    other = create_engine(engine.url)
    outside = SQLAlchemySessionRepository(other)
    for call in (SQLAlchemySessionRepository.create_session, SQLAlchemySessionRepository.list_sessions):
        with engine.connect() as connection, contextlib.ExitStack() as stack:
            if after_insert:
                order(connection, call.__name__)
            host: Host = connection
            if kind == "Session":
                host = stack.enter_context(orm.Session(connection))
            elif kind != "Connection":
                host = stack.enter_context(orm.Session(connection, join_transaction_mode="create_savepoint"))
            with (
                host.begin_nested(),
                pytest.raises(ConfigurationError, match=r"RELEASE.*vibeforge_sessions\.sql\.create_engine"),
            ):
                call(SQLAlchemySessionRepository(host))
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
    with orm.Session(engine) as host:
        with host.begin_nested():
            SQLAlchemySessionRepository(host).create_session(session_id="kept")
        host.commit()
    assert SQLAlchemySessionRepository(engine).list_sessions() == ["kept"]
    engine.dispose()


@pytest.mark.parametrize("kind", [AsyncConnection, AsyncSession])
def test_savepoint_without_begin_on_aiosqlite_is_rejected(
    sqlite: Storage, kind: type[AsyncConnection | AsyncSession]
) -> None:
    url = sqlite.url_with("sqlite+aiosqlite")

    async def work() -> None:
        engine = create_plain_async_engine(url)
        async with engine.connect() if kind is AsyncConnection else AsyncSession(engine) as host:
            async with host.begin_nested():
                with pytest.raises(ConfigurationError, match="RELEASE"):
                    await AsyncSQLAlchemySessionRepository(host).create_session()
            await host.rollback()
        assert await AsyncSQLAlchemySessionRepository(engine).list_sessions() == []
        await engine.dispose()

    asyncio.run(work())


def test_an_orm_session_with_its_own_objects(engine: Engine, outside: SQLAlchemySessionRepository) -> None:
    with orm.Session(engine) as host:
        host.add(Order(name="mine"))
        SQLAlchemySessionRepository(host).create_session(session_id=SESSION_ID)
        host.add(Order(name="mine, too"))
        host.commit()
    assert orders(engine) == ["mine", "mine, too"]
    assert outside.list_sessions() == [SESSION_ID]


def test_nothing_is_committed_or_tried_again(engine: Engine) -> None:
    """Whoever listens to the engine sees a host's one COMMIT."""
    seen: list[str] = []
    event.listen(engine, "commit", lambda _connection: seen.append("commit"))
    event.listen(engine, "rollback", lambda _connection: seen.append("rollback"))
    with engine.connect() as connection:
        write_everything(SQLAlchemySessionRepository(connection))
        assert seen == []
        connection.commit()
    assert seen == ["commit"]


# --- what the server does ---


@pytest.mark.parametrize("kind", ["Connection", "Session"])
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_deadlock_is_the_hosts(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    """PostgreSQL keeps the transaction up to the savepoint; MariaDB loses all of it, and the host hears so."""
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    hosts.create(engine)
    outside = SQLAlchemySessionRepository(engine)
    for session_id in ("a", "b"):
        outside.create_session(session_id=session_id)
    lost: list[bool] = []
    both = threading.Barrier(2)

    def work(first: str, second: str) -> None:
        with engine.connect() if kind == "Connection" else orm.Session(engine) as host:
            joined = SQLAlchemySessionRepository(host)
            order(host, first)
            joined.append_log(first, "mine")
            both.wait()
            try:
                joined.append_log(second, "theirs")
            except StorageError as error:
                lost.append(error.transaction_lost)
                if error.transaction_lost:
                    with pytest.raises(InvalidRequestError):  # the other half must not be committed
                        order(host, "half")
                    with pytest.raises(StorageError) as again:
                        joined.append_log(first, "no use")
                    assert again.value.transaction_lost
                    host.rollback()
                    order(host, first)
                    joined.append_log(first, "again")
            host.commit()

    threads = [threading.Thread(target=work, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == [name == "mariadb"]
    assert orders(engine) == ["a", "b"]
    assert sum(len(outside.list_logs(session_id)) for session_id in ("a", "b")) == 3
    engine.dispose()


KILLING = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mariadb": ("SELECT connection_id()", "KILL {}"),
}


@pytest.mark.parametrize("kind", ["Connection", "Session"])
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_connection_that_is_lost_takes_the_transaction_along(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    asked, killing = KILLING[name]
    with engine.connect() if kind == "Connection" else orm.Session(engine) as host, engine.connect() as other:
        joined = SQLAlchemySessionRepository(host)
        joined.create_session(session_id=SESSION_ID)
        other.execute(text(killing.format(host.execute(text(asked)).scalar())))
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                joined.append_log(SESSION_ID, "m")
            assert caught.value.transaction_lost
            assert type(caught.value) is StorageError  # nothing was being committed: nothing is unknown
        host.rollback()
        assert joined.list_sessions() == []
    engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_what_cannot_be_undone_is_told_whatever_the_call_had_to_say(name: str, request: pytest.FixtureRequest) -> None:
    """Between its statement, which finds no session, and the savepoint's end the connection is lost."""
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    asked, killing = KILLING[name]
    with engine.connect() as host, engine.connect() as other:
        joined = SQLAlchemySessionRepository(host)
        joined.create_session(session_id=SESSION_ID)
        number = host.execute(text(asked)).scalar()

        @event.listens_for(host, "after_cursor_execute")
        def kill(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
            if "UPDATE vibeforge_sessions" in statement:
                other.execute(text(killing.format(number)))

        with pytest.raises(StorageError, match="roll back") as caught:
            joined.append_log(UNKNOWN_ID, "m")
        assert caught.value.transaction_lost
        host.rollback()
        assert joined.list_sessions() == []
    engine.dispose()


def test_what_a_snapshot_does_not_show(mariadb: Storage) -> None:
    """A host's older snapshot shows what was read; the guard sees what is there."""
    engine = mariadb.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    outside.create_session(session_id=SESSION_ID)
    with engine.connect() as host:
        joined = SQLAlchemySessionRepository(host)
        session = stored(joined)
        outside.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
        session.add_answer("q", 2)
        with pytest.raises(StaleSessionError) as caught:
            joined.update_session(session)
        assert caught.value.stored_version == 2
        host.rollback()
        assert stored(joined).answers == {"q": 1}
    engine.dispose()


WRITES: dict[str, Callable[[SQLAlchemySessionRepository], object]] = {
    "append_error": lambda joined: joined.append_error(SESSION_ID, "mine", "m"),
    "append_log": lambda joined: joined.append_log(SESSION_ID, "mine"),
    "hold": lambda joined: joined.hold_session(SESSION_ID),
    "release": lambda joined: joined.release_session(SESSION_ID),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("recent", [None, 1])
def test_what_a_snapshot_shows_of_a_session_that_the_host_has_written(
    mariadb: Storage, write: str, recent: int | None
) -> None:
    """InnoDB shows one's own row as it is, and others as of the snapshot: their documents with a newer version."""
    engine = mariadb.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    outside.create_session(session_id=SESSION_ID)
    outside.append_error(SESSION_ID, "first", "m")
    with engine.connect() as host:
        joined = SQLAlchemySessionRepository(host)
        stored(joined)
        outside.modify_session(SESSION_ID, lambda session: session.add_answer("theirs", 1))
        outside.append_error(SESSION_ID, "theirs", "m")
        outside.append_log(SESSION_ID, "theirs")
        WRITES[write](joined)
        session = joined.get_session(SESSION_ID, recent=recent)
        assert session is not None
        assert session.answers == {"theirs": 1}
        again = SQLAlchemySessionRepository(host)
        tasks = ["first", "theirs", *(["mine"] if write == "append_error" else [])]
        assert [error.task_id for error in again.list_errors(SESSION_ID)] == tasks
        assert [error.position for error in again.list_errors(SESSION_ID, task_id="theirs")] == [2]
        assert [error.task_id for error in again.list_errors(SESSION_ID, after=1, limit=1)] == ["theirs"]
        assert again.list_errors(SESSION_ID, after=9) == []
        assert [line.split()[-1] for line in again.list_logs(SESSION_ID)][:1] == ["theirs"]
        record = again.get_record(SESSION_ID)
        assert record is not None
        assert "theirs" in str(record.content.documents["answers"])
        session.add_answer("mine", 2)
        again.update_session(session)
        host.commit()
        assert stored(again).answers == stored(outside).answers == {"theirs": 1, "mine": 2}
        host.rollback()
        # the next transaction has written nothing: it reads its snapshot, and waits for nobody
        with engine.connect() as third:
            SQLAlchemySessionRepository(third).append_log(SESSION_ID, "later")
            assert stored(again).answers == {"theirs": 1, "mine": 2}
    engine.dispose()


@pytest.mark.parametrize("write", ["update", "create", "restore"])
def test_what_a_snapshot_shows_of_a_session_that_the_host_has_stored(mariadb: Storage, write: str) -> None:
    engine = mariadb.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    outside.create_session(session_id=SESSION_ID)
    outside.append_error(SESSION_ID, "first", "m")
    with engine.connect() as host:
        joined = SQLAlchemySessionRepository(host)
        session = stored(joined)
        record = joined.get_record(SESSION_ID)
        assert record is not None
        if write == "update":
            outside.append_error(SESSION_ID, "theirs", "m")
            session.add_answer("mine", 1)
            joined.update_session(session)
            expected = ["first", "theirs"]
        else:
            outside.delete_session(SESSION_ID)
            if write == "create":
                joined.create_session(session_id=SESSION_ID)
            else:
                joined.restore_record(dataclasses.replace(record, error_count=0))
            expected = []
        assert [error.task_id for error in joined.list_errors(SESSION_ID)] == expected
        assert [error.task_id for error in stored(joined).error_history] == expected
        host.commit()
    assert [error.task_id for error in stored(outside).error_history] == expected
    engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_session_is_read_as_of_one_moment_at_any_level(name: str, request: pytest.FixtureRequest) -> None:
    """Under READ COMMITTED each statement sees another one: a session made anew between two is one or the other."""
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    first = outside.create_session(full_session())
    for _ in range(3):
        outside.append_error(SESSION_ID, "first", "m")
    swapped: list[bool] = []

    with engine.connect().execution_options(isolation_level="READ COMMITTED") as host:
        joined = SQLAlchemySessionRepository(host)

        @event.listens_for(host, "after_cursor_execute")
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


# --- what is refused ---


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_autocommit_is_no_transaction(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as host:
        joined = SQLAlchemySessionRepository(host)
        for call in (joined.create_session, joined.list_sessions):
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                call()
    assert SQLAlchemySessionRepository(engine).list_sessions() == []
    engine.dispose()


def test_on_sqlite_a_transaction_that_has_not_really_begun_is_refused(sqlite_files: SQLiteFiles) -> None:
    url = sqlite_files.new_url()
    engine = sqlalchemy.create_engine(url)
    hosts.create(engine)
    with engine.connect() as host:
        joined = SQLAlchemySessionRepository(host)
        host.execute(select(hosts)).all()  # SQLAlchemy has begun, and the driver has not
        for call in (joined.create_session, joined.list_sessions):
            with pytest.raises(ConfigurationError, match=r"vibeforge_sessions\.sql\.create_engine"):
                call()
        order(host, "really begun by this")
        joined.create_session(session_id=SESSION_ID)
        host.rollback()
    assert SQLAlchemySessionRepository(engine).list_sessions() == []
    assert orders(engine) == []
    with create_engine(url).connect() as host:  # the fix that the error names
        SQLAlchemySessionRepository(host).create_session(session_id=SESSION_ID)
        host.rollback()
    assert SQLAlchemySessionRepository(engine).list_sessions() == []
    engine.dispose()


@pytest.mark.parametrize("bind", [None, "sqlite://", object()])
def test_what_is_neither_is_refused(bind: Any) -> None:
    with pytest.raises(ConfigurationError, match="Connection"):
        SQLAlchemySessionRepository(bind)


def test_a_closed_connection_is_told(sqlite: Storage) -> None:
    engine = sqlite.new_engine()
    with engine.connect() as host:
        joined = SQLAlchemySessionRepository(host)
        assert repr(joined) == "SQLAlchemySessionRepository(Connection of the caller)"
    with pytest.raises(StorageError, match="ResourceClosedError"):
        joined.list_sessions()
    with pytest.raises(StorageError, match="UnboundExecutionError"):
        SQLAlchemySessionRepository(orm.Session()).list_sessions()
    engine.dispose()


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mariadb+pymysql"])
def test_a_session_whose_server_is_not_there(driver: str) -> None:
    engine = create_engine(f"{driver}://u:s3cret@127.0.0.1:1/d")
    with orm.Session(engine) as host, pytest.raises(StorageError, match="could not reach") as caught:
        SQLAlchemySessionRepository(host).list_sessions()
    assert "s3cret" not in str(caught.value)
    assert not caught.value.transaction_lost  # there was none


# --- on an event loop ---


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg", "mariadb+asyncmy"])
def test_an_asynchronous_session_whose_server_is_not_there(driver: str) -> None:
    async def work() -> None:
        engine = create_async_engine(f"{driver}://u:s3cret@127.0.0.1:1/d")
        async with AsyncSession(engine) as host:
            with pytest.raises(StorageError, match="could not reach"):
                await AsyncSQLAlchemySessionRepository(host).list_sessions()
        await engine.dispose()

    asyncio.run(work())


@pytest.mark.parametrize("kind", ["AsyncConnection", "AsyncSession"])
@pytest.mark.parametrize(("name", "driver"), [*ASYNC_DRIVERS, ("sqlite", "sqlite+aiosqlite")])
def test_the_asynchronous_forms(name: str, driver: str, kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(name).url_with(driver)

    async def work() -> None:
        engine = create_async_engine(url)
        outside = AsyncSQLAlchemySessionRepository(engine)
        async with engine.begin() as connection:
            await connection.run_sync(hosts.create)
        host: AsyncConnection | AsyncSession
        async with engine.connect() if kind == "AsyncConnection" else AsyncSession(engine) as host:
            joined = AsyncSQLAlchemySessionRepository(host)
            for ending in (host.rollback, host.commit):
                await host.execute(hosts.insert().values(name="one"))
                session = await joined.create_session(full_session())
                with pytest.raises(SessionExistsError):
                    await joined.create_session(session_id=SESSION_ID)
                session.add_error("t", "m")
                await joined.update_session(session)
                await joined.append_log(SESSION_ID, "m")
                await joined.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
                await ending()
                found = await outside.get_session(SESSION_ID)
                names = (await host.execute(select(hosts.c.name))).scalars().all()
                if ending == host.rollback:
                    assert (found, names) == (None, [])
                    await host.rollback()
                else:
                    assert found is not None
                    assert (found.version, len(found.error_history), len(found.logs)) == (3, 2, 2)
                    assert names == ["one"]
        await engine.dispose()

    asyncio.run(work())


def test_a_joined_call_that_is_cancelled(postgresql: Storage) -> None:
    url = postgresql.url_with("postgresql+psycopg")

    async def work() -> None:
        engine = create_async_engine(url)
        outside = AsyncSQLAlchemySessionRepository(engine)
        await outside.create_session(session_id=SESSION_ID)
        async with engine.connect() as blocker, engine.connect() as host:
            await AsyncSQLAlchemySessionRepository(blocker).append_log(SESSION_ID, "holds the row")
            joined = AsyncSQLAlchemySessionRepository(host)
            await joined.create_session(session_id="mine")
            waiting = asyncio.ensure_future(joined.append_log(SESSION_ID, "waits for it"))
            await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(StorageError) as caught:  # the driver was stopped in the middle of its protocol
                await joined.append_log("mine", "m")
            assert caught.value.transaction_lost
            await host.rollback()
            assert await joined.list_sessions() == [SESSION_ID]
        assert await outside.list_logs(SESSION_ID) == []
        await engine.dispose()

    asyncio.run(work())


# --- writes in doubt ---


def test_in_doubt_write_stays_in_doubt_if_the_next_connection_is_rejected(
    sqlite: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the error would say that nothing was written."""
    engine = sqlite.new_engine()
    repository = SQLAlchemySessionRepository(engine)
    cause = sqlalchemy.exc.OperationalError(None, None, Exception())
    unknown = OutcomeUnknownError("could not commit the database")
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
