"""Concurrent calls of several tasks on one AsyncSession or AsyncConnection, which run one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from tests.support.databases import ASYNC_DRIVERS, Storage
from vibeforge_sessions import AsyncSQLAlchemySessionRepository, Session, StaleSessionError
from vibeforge_sessions.sql import create_async_engine
from vibeforge_sessions.testing.base import SESSION_ID

DRIVERS = [*ASYNC_DRIVERS, ("sqlite", "sqlite+aiosqlite")]


@pytest.fixture(params=DRIVERS, ids=[driver for _, driver in DRIVERS])
def url(request: pytest.FixtureRequest) -> str:
    storage: Storage = request.getfixturevalue(request.param[0])
    return storage.url_with(request.param[1])


@asynccontextmanager
async def engine_on(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


@asynccontextmanager
async def binds_of(engine: AsyncEngine, kind: str) -> AsyncIterator[list[Any]]:
    """Yield the caller's connections and sessions that share one transaction."""
    async with engine.connect() as connection:
        if kind == "connection":
            yield [connection]
        elif kind == "session":
            async with AsyncSession(engine) as session:
                yield [session]
        elif kind == "session and its connection":
            async with AsyncSession(engine) as session:
                yield [await session.connection(), session]
        else:
            async with AsyncSession(connection) as session:
                yield [connection, session]


async def commit(binds: list[Any]) -> None:
    for bind in reversed(binds):
        if not (isinstance(bind, AsyncConnection) and bind.closed):  # the session's commit closes its own connection
            await bind.commit()


KINDS = pytest.mark.parametrize("kind", ["connection", "session", "both", "session and its connection"])


@KINDS
@pytest.mark.parametrize("shared", [True, False], ids=["one repository", "repository per call"])
def test_gathered_calls_are_all_stored(url: str, kind: str, shared: bool) -> None:
    async def work() -> None:
        async with engine_on(url) as engine:
            outside = AsyncSQLAlchemySessionRepository(engine)
            await outside.create_session(session_id=SESSION_ID)
            async with binds_of(engine, kind) as binds:
                repositories = [AsyncSQLAlchemySessionRepository(bind) for bind in binds]
                calls: list[Coroutine[Any, Any, object]] = []
                for number in range(20):
                    bind = binds[number % len(binds)]
                    repository = repositories[number % len(binds)] if shared else AsyncSQLAlchemySessionRepository(bind)
                    calls.append(repository.append_log(SESSION_ID, f"line {number}"))
                    calls.append(repository.create_session(session_id=f"s{number}"))
                    calls.append(repository.get_session(SESSION_ID))
                await asyncio.gather(*calls)
                await commit(binds)
            found = await outside.get_session(SESSION_ID)
            assert found is not None
            assert sorted(line.split(" ", 1)[1] for line in found.logs) == sorted(f"line {n}" for n in range(20))
            assert len(await outside.list_sessions()) == 21

    asyncio.run(work())


@KINDS
def test_gathered_call_that_raises_undoes_only_its_own_writes(url: str, kind: str) -> None:
    async def work() -> None:
        async with engine_on(url) as engine:
            outside = AsyncSQLAlchemySessionRepository(engine)
            stale = await outside.create_session(session_id=SESSION_ID)
            await outside.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
            stale.add_answer("q", 2)
            async with binds_of(engine, kind) as binds:
                repository = AsyncSQLAlchemySessionRepository[Session](binds[-1])
                results = await asyncio.gather(
                    repository.append_log(SESSION_ID, "one"),
                    repository.update_session(stale),
                    repository.append_log(SESSION_ID, "two"),
                    return_exceptions=True,
                )
                assert isinstance(results[1], StaleSessionError)
                await commit(binds)
            found = await outside.get_session(SESSION_ID)
            assert found is not None
            assert [line.split()[-1] for line in found.logs] == ["one", "two"]
            assert found.answers == {"q": 1}

    asyncio.run(work())


@KINDS
def test_gathered_call_cancelled_while_waiting_is_not_stored(url: str, kind: str) -> None:
    async def work() -> None:
        async with engine_on(url) as engine:
            outside = AsyncSQLAlchemySessionRepository(engine)
            await outside.create_session(session_id=SESSION_ID)
            async with binds_of(engine, kind) as binds:
                repository = AsyncSQLAlchemySessionRepository[Session](binds[-1])
                tasks = [asyncio.ensure_future(repository.append_log(SESSION_ID, f"{n}")) for n in range(4)]
                await asyncio.sleep(0)  # the first call has begun, and the others wait for it
                tasks[2].cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert isinstance(results[2], asyncio.CancelledError)
                await commit(binds)
            found = await outside.get_session(SESSION_ID)
            assert found is not None
            assert [line.split()[-1] for line in found.logs] == ["0", "1", "3"]

    asyncio.run(work())


def test_caller_can_use_connection_after_call(url: str) -> None:
    async def work() -> None:
        async with engine_on(url) as engine, engine.connect() as connection:
            assert isinstance(connection, AsyncConnection)
            for _ in range(2):
                repository = AsyncSQLAlchemySessionRepository[Session](connection)
                await asyncio.gather(repository.list_sessions(), repository.list_sessions())
                assert await connection.scalar(text("SELECT 1")) == 1
                await connection.rollback()

    asyncio.run(work())
