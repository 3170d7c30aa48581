"""Sessions whose write was rolled back by the caller's transaction: they are not taken for stored."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, orm
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.databases import ASYNC_DRIVERS, SQL_DATABASES, Storage
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

Host = Connection | orm.Session


@pytest.fixture(params=SQL_DATABASES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    storage: Storage = request.getfixturevalue(request.param)
    engine = storage.new_engine()
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


Journey = Callable[[Session], Session]


def pickled(session: Session) -> Session:
    loaded: Session = pickle.loads(pickle.dumps(session))  # noqa: S301
    return loaded


JOURNEYS = pytest.mark.parametrize("journey", [lambda session: session, pickled], ids=["same", "pickled"])


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


@JOURNEYS
def test_an_update_is_stored_by_the_next_transaction(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository, journey: Journey
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    for _ in range(3):
        joined.update_session(session)
        assert session.version == 2
        host.rollback()
        session = journey(session)
    assert stored(outside).version == 1
    joined.update_session(session)
    host.commit()
    assert_stored(outside, session)
    joined.update_session(session)  # what was committed is not written again
    host.commit()
    assert stored(outside).version == session.version == 2


@JOURNEYS
def test_an_update_is_stored_by_a_repository_of_its_own(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository, journey: Journey
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    joined.update_session(session)
    change(session, 2)
    joined.update_session(session)
    host.rollback()
    outside.append_error(SESSION_ID, "other", "in the position of the first")
    session = journey(session)
    change(session, 3)
    outside.update_session(session)
    after = stored(outside)
    assert (after.version, after.answers["paid"]) == (2, 3)
    assert [entry.error_message for entry in after.error_history[1:]] == [
        "in the position of the first",
        *(f"error {number}" for number in (1, 2, 3)),
    ]
    assert [line.split()[-1] for line in after.logs] == ["started", "1", "2", "3"]
    outside.update_session(session)
    assert stored(outside).version == 2


@JOURNEYS
def test_an_update_is_stored_after_a_rollback_to_a_savepoint(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository, journey: Journey
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    joined.update_session(session)
    for number in (2, 3):
        savepoint = host.begin_nested()
        change(session, number)
        joined.update_session(session)
        change(session, 10 * number)
        joined.update_session(session)
        savepoint.rollback()
        session = journey(session)
    joined.update_session(session)
    host.commit()
    assert session.version == 3
    assert_stored(outside, session)
    assert [line.split()[-1] for line in session.logs] == ["started", "1", "2", "20", "3", "30"]


def test_an_update_after_another_writer_is_stale(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    joined.update_session(session)
    host.rollback()
    outside.modify_session(SESSION_ID, lambda other: change(other, 2))
    for repository in (outside, joined):
        with pytest.raises(StaleSessionError) as caught:
            repository.update_session(session)
        assert (caught.value.version, caught.value.stored_version) == (2, 2)
        host.rollback()
    assert stored(outside).answers["paid"] == 2


@JOURNEYS
def test_a_session_that_was_created_is_not_taken_for_stored(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository, journey: Journey
) -> None:
    session = full_session()
    copies = [session, joined.create_session(session), stored(joined)]
    host.rollback()
    for copy in map(journey, copies):
        for repository in (joined, outside):
            with pytest.raises(StaleSessionError) as caught:
                repository.update_session(copy)
            assert caught.value.stored_version == 0
    host.rollback()
    outside.create_session(journey(session))
    assert stored(outside) == session


def test_a_session_that_was_created_after_a_savepoint(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository
) -> None:
    joined.create_session(session_id="before")
    savepoint = host.begin_nested()
    session = joined.create_session(full_session())
    savepoint.rollback()
    session.add_answer("q", 1)
    with pytest.raises(StaleSessionError):
        joined.update_session(session)
    host.commit()
    assert outside.list_sessions() == ["before"]


def test_a_session_that_the_same_transaction_deleted_is_not_found(
    host: Host, joined: SQLAlchemySessionRepository
) -> None:
    session = joined.create_session(full_session())
    joined.delete_session(SESSION_ID)
    session.add_answer("q", 1)
    with pytest.raises(SessionNotFoundError):
        joined.update_session(session)
    host.rollback()


@JOURNEYS
def test_what_was_read_in_the_transaction_is_not_taken_for_stored(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository, journey: Journey
) -> None:
    session = outside.create_session(full_session())
    change(session, 1)
    joined.update_session(session)
    read = stored(joined)
    host.rollback()
    read = journey(read)
    for _ in range(2):
        with pytest.raises(StaleSessionError):
            outside.update_session(read)  # without a change of its own
    assert stored(outside).version == 1


@JOURNEYS
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_an_entry_that_was_appended_is_not_taken_for_stored(
    host: Host,
    joined: SQLAlchemySessionRepository,
    outside: SQLAlchemySessionRepository,
    journey: Journey,
    taken: bool,
) -> None:
    outside.create_session(full_session())
    for history in ("errors", "logs"):
        if history == "errors":
            joined.append_error(SESSION_ID, "t", "rolled back")
        else:
            joined.append_log(SESSION_ID, "rolled back")
        read = stored(joined)
        host.rollback()
        if taken:  # another entry stands in its position
            outside.append_error(SESSION_ID, "t", "another")
            outside.append_log(SESSION_ID, "another")
        read = journey(read)
        read.add_answer("q", 1)
        for repository in (outside, joined):
            with pytest.raises(StaleSessionError):
                repository.update_session(read)
        host.rollback()
    assert "q" not in stored(outside).answers


def test_what_was_committed_is_updated_on(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository
) -> None:
    session = joined.create_session(full_session())
    for number in range(2, 6):
        joined.append_error(SESSION_ID, "t", f"appended {number}")
        copies = [session, stored(joined)]
        host.commit()
        for copy in copies:
            outside.update_session(copy)  # nothing to write
            assert baseline_of(copy).transaction is None
        assert stored(outside).version == number - 1
        change(session, number)
        (outside if number % 2 else joined).update_session(session)
        assert session.version == number
        host.commit()
    after = stored(outside)
    assert after.answers["paid"] == 5
    assert len(after.error_history) == 9


def test_a_dict_of_a_session_that_was_rolled_back_is_stale(
    host: Host, joined: SQLAlchemySessionRepository, outside: SQLAlchemySessionRepository
) -> None:
    outside.create_session(full_session())
    joined.append_error(SESSION_ID, "t", "rolled back")
    session = Session.from_dict(stored(joined).to_dict())
    host.rollback()
    outside.append_error(SESSION_ID, "t", "another")
    session.add_answer("q", 1)
    with pytest.raises(StaleSessionError):
        outside.update_session(session)


def test_a_transaction_that_fails_at_its_commit(postgresql: Storage) -> None:
    engine = postgresql.new_engine()
    outside = SQLAlchemySessionRepository(engine)
    session = outside.create_session(full_session())
    outside.create_session(session_id="other")
    change(session, 1)
    serializable = engine.execution_options(isolation_level="SERIALIZABLE")
    with orm.Session(serializable) as host:
        joined = SQLAlchemySessionRepository(host)
        stored(joined, "other")
        joined.update_session(session)
        with orm.Session(serializable) as rival, rival.begin():  # each has read what the other writes
            theirs = SQLAlchemySessionRepository(rival)
            stored(theirs)
            theirs.append_log("other", "theirs")
        with pytest.raises(OperationalError, match="could not serialize"):
            host.commit()
    with orm.Session(serializable) as host:
        SQLAlchemySessionRepository(host).update_session(session)
        host.commit()
    assert_stored(outside, session)
    assert session.version == 2
    engine.dispose()


@pytest.mark.parametrize(("database", "driver"), ASYNC_DRIVERS)
def test_an_asynchronous_update_is_stored_by_the_next_transaction(
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
            async with AsyncSession(engine) as host:
                await AsyncSQLAlchemySessionRepository(host).update_session(session)
                await (host.rollback() if attempt == 1 else host.commit())
        after = await outside.get_session(SESSION_ID)
        assert after == session
        assert after.version == 2
        await engine.dispose()

    asyncio.run(work())
