"""Sessions whose write the caller's transaction rolled back. The repository does not treat them as stored."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, orm
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.databases import ASYNC_DRIVERS, Storage
from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    Session,
    SessionNotFoundError,
    SQLAlchemySessionRepository,
    StaleSessionError,
)
from vibeforge_sessions.repository.changeset import baseline_of
from vibeforge_sessions.sql import create_async_engine
from vibeforge_sessions.testing.base import SESSION_ID, full_session, stored

ConnectionOrSession = Connection | orm.Session


Copy = Callable[[Session], Session]


def pickled(session: Session) -> Session:
    loaded: Session = pickle.loads(pickle.dumps(session))  # noqa: S301
    return loaded


COPIES = pytest.mark.parametrize("copy_of", [lambda session: session, pickled], ids=["same object", "pickled"])


def change(session: Session, number: int) -> None:
    session.add_answer("paid", number)
    session.add_error("t", f"error {number}")
    session.add_log(f"line {number}")


def assert_stored(repository: SQLAlchemySessionRepository, session: Session) -> None:
    after = stored(repository)
    assert after == session
    assert after.version == session.version
    assert [entry.position for entry in after.error_history] == [entry.position for entry in session.error_history]
    assert [entry.position for entry in after.error_history] == list(range(1, len(after.error_history) + 1))


@COPIES
def test_update_after_rollback_is_stored_by_next_transaction(
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
    copy_of: Copy,
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    for _ in range(3):
        joined.update_session(session)
        assert session.version == 2
        caller.rollback()
        session = copy_of(session)
    assert stored(outside).version == 1
    joined.update_session(session)
    caller.commit()
    assert_stored(outside, session)
    joined.update_session(session)  # writes nothing, because the change was committed
    caller.commit()
    assert stored(outside).version == session.version == 2


@COPIES
def test_update_after_rollback_is_stored_outside_transaction(
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
    copy_of: Copy,
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    joined.update_session(session)
    change(session, 2)
    joined.update_session(session)
    caller.rollback()
    outside.append_error(SESSION_ID, "other", "at the position of the rolled-back entry")
    session = copy_of(session)
    change(session, 3)
    outside.update_session(session)
    after = stored(outside)
    assert (after.version, after.answers["paid"]) == (2, 3)
    assert [entry.error_message for entry in after.error_history[1:]] == [
        "at the position of the rolled-back entry",
        *(f"error {number}" for number in (1, 2, 3)),
    ]
    assert [line.split()[-1] for line in after.logs] == ["started", "1", "2", "3"]
    outside.update_session(session)
    assert stored(outside).version == 2


@COPIES
def test_update_after_rollback_to_savepoint_is_stored(
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
    copy_of: Copy,
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    joined.update_session(session)
    for number in (2, 3):
        savepoint = caller.begin_nested()
        change(session, number)
        joined.update_session(session)
        change(session, 10 * number)
        joined.update_session(session)
        savepoint.rollback()
        session = copy_of(session)
    joined.update_session(session)
    caller.commit()
    assert session.version == 3
    assert_stored(outside, session)
    assert [line.split()[-1] for line in session.logs] == ["started", "1", "2", "20", "3", "30"]


def test_update_after_rollback_and_another_writer_raises_stale(
    caller: ConnectionOrSession, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    joined.update_session(session)
    caller.rollback()
    outside.modify_session(SESSION_ID, lambda other: change(other, 2))
    for repository in (outside, joined):
        with pytest.raises(StaleSessionError) as caught:
            repository.update_session(session)
        assert (caught.value.version, caught.value.stored_version) == (2, 2)
        caller.rollback()
    assert stored(outside).answers["paid"] == 2


@COPIES
def test_update_of_session_whose_creation_was_rolled_back_raises_stale(
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
    copy_of: Copy,
) -> None:
    session = full_session()
    copies = [session, joined.create_session(session), stored(joined)]
    caller.rollback()
    for copy in map(copy_of, copies):
        for repository in (joined, outside):
            with pytest.raises(StaleSessionError) as caught:
                repository.update_session(copy)
            assert caught.value.stored_version == 0
    caller.rollback()
    outside.create_session(copy_of(session))
    assert stored(outside) == session


def test_update_of_session_created_after_rolled_back_savepoint_raises_stale(
    caller: ConnectionOrSession, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository
) -> None:
    joined.create_session(session_id="before")
    savepoint = caller.begin_nested()
    session = joined.create_session(full_session())
    savepoint.rollback()
    session.add_answer("q", 1)
    with pytest.raises(StaleSessionError):
        joined.update_session(session)
    caller.commit()
    assert outside.list_sessions() == ["before"]


def test_update_of_session_deleted_in_same_transaction_raises_not_found(
    caller: ConnectionOrSession, joined: SQLAlchemySessionRepository
) -> None:
    session = joined.create_session(full_session())
    joined.delete_session(SESSION_ID)
    session.add_answer("q", 1)
    with pytest.raises(SessionNotFoundError):
        joined.update_session(session)
    caller.rollback()


@COPIES
def test_update_of_session_read_before_rollback_raises_stale(
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
    copy_of: Copy,
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    joined.update_session(session)
    read = stored(joined)
    caller.rollback()
    read = copy_of(read)
    for _ in range(2):
        with pytest.raises(StaleSessionError):
            outside.update_session(read)  # without further changes
    assert stored(outside).version == 1


@COPIES
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_update_of_session_with_rolled_back_entry_raises_stale(
    caller: ConnectionOrSession,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
    copy_of: Copy,
    taken: bool,
) -> None:
    outside.create_session(full_session())
    for history in ("errors", "logs"):
        if history == "errors":
            joined.append_error(SESSION_ID, "t", "rolled back")
        else:
            joined.append_log(SESSION_ID, "rolled back")
        read = stored(joined)
        caller.rollback()
        if taken:  # store another entry at its position
            outside.append_error(SESSION_ID, "t", "another")
            outside.append_log(SESSION_ID, "another")
        read = copy_of(read)
        read.add_answer("q", 1)
        for repository in (outside, joined):
            with pytest.raises(StaleSessionError):
                repository.update_session(read)
        caller.rollback()
    assert "q" not in stored(outside).answers


def test_update_of_session_after_commit_is_stored(
    caller: ConnectionOrSession, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository
) -> None:
    session = joined.create_session(full_session())
    for number in range(2, 6):
        joined.append_error(SESSION_ID, "t", f"appended {number}")
        copies = [session, stored(joined)]
        caller.commit()
        for copy in copies:
            outside.update_session(copy)  # nothing to write
            assert baseline_of(copy).transaction is None
        assert stored(outside).version == number - 1
        change(session, number)
        (outside if number % 2 else joined).update_session(session)
        assert session.version == number
        caller.commit()
    after = stored(outside)
    assert after.answers["paid"] == 5
    assert len(after.error_history) == 9


def test_update_of_session_from_dict_with_rolled_back_entry_raises_stale(
    caller: ConnectionOrSession, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository
) -> None:
    outside.create_session(full_session())
    joined.append_error(SESSION_ID, "t", "rolled back")
    session = Session.from_dict(stored(joined).to_dict())
    caller.rollback()
    outside.append_error(SESSION_ID, "t", "another")
    session.add_answer("q", 1)
    with pytest.raises(StaleSessionError):
        outside.update_session(session)


def test_update_after_failed_commit_is_stored_by_next_transaction(postgresql: Storage) -> None:
    engine = postgresql.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    session = outside.create_session(full_session())
    outside.create_session(session_id="other")
    change(session, 1)
    serializable = engine.execution_options(isolation_level="SERIALIZABLE")
    with orm.Session(serializable) as caller:
        joined = SQLAlchemySessionRepository(caller)
        stored(joined, "other")
        joined.update_session(session)
        # each of the two transactions writes a session that the other one has read
        with orm.Session(serializable) as rival, rival.begin():
            other = SQLAlchemySessionRepository(rival)
            stored(other)
            other.append_log("other", "by the other transaction")
        with pytest.raises(OperationalError, match="could not serialize"):
            caller.commit()
    with orm.Session(serializable) as caller:
        SQLAlchemySessionRepository(caller).update_session(session)
        caller.commit()
    assert_stored(outside, session)
    assert session.version == 2
    engine.dispose()


@pytest.mark.parametrize(("database", "driver"), ASYNC_DRIVERS)
def test_async_update_after_rollback_is_stored_by_next_transaction(
    request: pytest.FixtureRequest, database: str, driver: str
) -> None:
    storage: Storage = request.getfixturevalue(database)
    url = storage.url_with(driver)

    async def work() -> None:
        engine = create_async_engine(url)
        outside = AsyncSQLAlchemySessionRepository(engine)
        session = await outside.create_session(full_session())
        change(session, 1)
        for attempt in (1, 2):
            async with AsyncSession(engine) as caller:
                await AsyncSQLAlchemySessionRepository(caller).update_session(session)
                await (caller.rollback() if attempt == 1 else caller.commit())
        after = await outside.get_session(SESSION_ID)
        assert after == session
        assert after.version == 2
        await engine.dispose()

    asyncio.run(work())
