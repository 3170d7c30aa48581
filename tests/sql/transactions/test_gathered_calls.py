"""Calls of several tasks on one AsyncSession or AsyncConnection: they run one after the other."""

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
async def hosts_of(engine: AsyncEngine, kind: str) -> AsyncIterator[list[Any]]:
    """Give the caller's objects that share one transaction."""
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


async def commit(hosts: list[Any]) -> None:
    for host in reversed(hosts):
        if not (isinstance(host, AsyncConnection) and host.closed):  # the session's commit closes its own connection
            await host.commit()


KINDS = pytest.mark.parametrize("kind", ["connection", "session", "both", "session and its connection"])


@KINDS
@pytest.mark.parametrize("shared", [True, False], ids=["one repository", "a repository each"])
def test_gathered_calls_are_all_stored(url: str, kind: str, shared: bool) -> None:
    async def work() -> None:
        async with engine_on(url) as engine:
            outside = AsyncSQLAlchemySessionRepository(engine)
            await outside.create_session(session_id=SESSION_ID)
            async with hosts_of(engine, kind) as hosts:
                repositories = [AsyncSQLAlchemySessionRepository(host) for host in hosts]
                calls: list[Coroutine[Any, Any, object]] = []
                for number in range(20):
                    host = hosts[number % len(hosts)]
                    repository = repositories[number % len(hosts)] if shared else AsyncSQLAlchemySessionRepository(host)
                    calls.append(repository.append_log(SESSION_ID, f"line {number}"))
                    calls.append(repository.create_session(session_id=f"s{number}"))
                    calls.append(repository.get_session(SESSION_ID))
                await asyncio.gather(*calls)
                await commit(hosts)
            found = await outside.get_session(SESSION_ID)
            assert found is not None
            assert sorted(line.split(" ", 1)[1] for line in found.logs) == sorted(f"line {n}" for n in range(20))
            assert len(await outside.list_sessions()) == 21

    asyncio.run(work())


@KINDS
def test_a_gathered_call_that_fails_undoes_itself_only(url: str, kind: str) -> None:
    async def work() -> None:
        async with engine_on(url) as engine:
            outside = AsyncSQLAlchemySessionRepository(engine)
            stale = await outside.create_session(session_id=SESSION_ID)
            await outside.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
            stale.add_answer("q", 2)
            async with hosts_of(engine, kind) as hosts:
                repository = AsyncSQLAlchemySessionRepository[Session](hosts[-1])
                results = await asyncio.gather(
                    repository.append_log(SESSION_ID, "one"),
                    repository.update_session(stale),
                    repository.append_log(SESSION_ID, "two"),
                    return_exceptions=True,
                )
                assert isinstance(results[1], StaleSessionError)
                await commit(hosts)
            found = await outside.get_session(SESSION_ID)
            assert found is not None
            assert [line.split()[-1] for line in found.logs] == ["one", "two"]
            assert found.answers == {"q": 1}

    asyncio.run(work())


@KINDS
def test_a_gathered_call_that_is_cancelled_while_it_waits(url: str, kind: str) -> None:
    async def work() -> None:
        async with engine_on(url) as engine:
            outside = AsyncSQLAlchemySessionRepository(engine)
            await outside.create_session(session_id=SESSION_ID)
            async with hosts_of(engine, kind) as hosts:
                repository = AsyncSQLAlchemySessionRepository[Session](hosts[-1])
                tasks = [asyncio.ensure_future(repository.append_log(SESSION_ID, f"{n}")) for n in range(4)]
                await asyncio.sleep(0)  # the first has begun, the others wait for it
                tasks[2].cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert isinstance(results[2], asyncio.CancelledError)
                await commit(hosts)
            found = await outside.get_session(SESSION_ID)
            assert found is not None
            assert [line.split()[-1] for line in found.logs] == ["0", "1", "3"]

    asyncio.run(work())


def test_a_call_leaves_the_connection_to_the_caller(url: str) -> None:
    async def work() -> None:
        async with engine_on(url) as engine, engine.connect() as connection:
            assert isinstance(connection, AsyncConnection)
            for _ in range(2):
                repository = AsyncSQLAlchemySessionRepository[Session](connection)
                await asyncio.gather(repository.list_sessions(), repository.list_sessions())
                assert await connection.scalar(text("SELECT 1")) == 1
                await connection.rollback()

    asyncio.run(work())
