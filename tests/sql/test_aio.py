"""Asynchronous repositories: cancellation at each await, many tasks, thread adapters, and opening by URL."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_async_engine

from tests.support import cases
from tests.support.databases import ASYNC_DRIVERS, SQL_DATABASES, Storage, reject_inserts
from vibeforge_sessions import (
    AsyncInMemorySessionRepository,
    AsyncSQLAlchemySessionRepository,
    ConfigurationError,
    SchemaError,
    Session,
    SessionPhase,
    StorageError,
    open_async_repository,
)
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.testing.base import SESSION_ID, UNKNOWN_ID, full_session

Repository = AsyncSQLAlchemySessionRepository[Session]


class CancelledAt:
    """Awaitable that cancels its task at its n-th await, and optionally once more during the cleanup."""

    def __init__(self, awaited: Awaitable[Any], number: int, *, again: bool) -> None:
        self.awaited = awaited
        self.numbers = {number, number + 1} if again else {number}
        self.waited = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.awaited.__await__()
        step: Callable[[], Any] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value
            if self.waited in self.numbers:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            self.waited += 1
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001
                step = lambda error=error: steps.throw(error)  # type: ignore[misc] # noqa: E731
            else:
                step = lambda: next(steps)  # noqa: E731


async def update(repository: Repository) -> None:
    session = await repository.get_session(SESSION_ID)
    assert session is not None
    session.update_phase(SessionPhase.EXECUTION)
    session.add_answer("new", 1)
    session.add_error("new", "new")
    session.add_log("new")
    await repository.update_session(session)


CALLS: dict[str, Callable[[Repository], Awaitable[Any]]] = {
    "create_session": lambda r: r.create_session(full_session(UNKNOWN_ID)),
    "get_session": lambda r: r.get_session(SESSION_ID),
    "update_session": update,
    "modify_session": lambda r: r.modify_session(SESSION_ID, lambda session: session.add_answer("new", 1)),
    "delete_session": lambda r: r.delete_session(SESSION_ID),
    "hold_session": lambda r: r.hold_session(SESSION_ID),
    "get_record": lambda r: r.get_record(SESSION_ID),
    "list_sessions": lambda r: r.list_sessions(),
    "find_sessions": lambda r: r.find_sessions(),
    "append_error": lambda r: r.append_error(SESSION_ID, "new", "new"),
    "append_log": lambda r: r.append_log(SESSION_ID, "new"),
    "list_errors": lambda r: r.list_errors(SESSION_ID),
    "list_logs": lambda r: r.list_logs(SESSION_ID),
}


async def contents(repository: Repository) -> list[Any]:
    """Return the stored sessions without timestamps and random ids."""
    found = [await repository.get_session(session_id) for session_id in await repository.list_sessions()]
    return [
        (s.session_id, s.phase, s.version, s.answers, [e.task_id for e in s.error_history], len(s.logs))
        for s in found
        if s is not None
    ]


@contextlib.asynccontextmanager
async def on_one_connection(url: str, *, fast_path: bool) -> AsyncIterator[tuple[Repository, AsyncEngine]]:
    """Yield a repository whose pool has one connection. If a call does not return it, the next call fails."""
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=5)
    try:
        yield AsyncSQLAlchemySessionRepository(engine, fast_path=fast_path), engine
    finally:
        await engine.dispose()


@pytest.fixture(params=[*ASYNC_DRIVERS, ("postgresql", "in transactions")], ids="-".join)
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a database.

    The database of "in transactions" has another default isolation level, so each call needs a transaction.
    """
    name, driver = request.param
    storage: Storage = request.getfixturevalue(name)
    if driver != "in transactions":
        return storage.url_with(driver)
    url = storage.url_with("postgresql+psycopg")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(f"ALTER DATABASE \"{engine.url.database}\" SET default_transaction_isolation = 'repeatable read'")
        )
    engine.dispose()
    return url


@pytest.mark.parametrize("again", cases([False, True], (False,)), ids=["once", "twice"])
@pytest.mark.parametrize(
    ("fast_path", "call"),
    cases(
        itertools.product([True, False], CALLS),
        [
            *((True, call) for call in CALLS),
            *((False, call) for call in ("get_session", "update_session", "append_log")),
        ],
    ),
)
def test_call_cancelled_at_any_await_is_complete_or_undone(call: str, url: str, fast_path: bool, again: bool) -> None:
    check_cancelled_at_each_await(call, url, fast_path=fast_path, again=again)


def check_cancelled_at_each_await(call: str, url: str, *, fast_path: bool, again: bool) -> None:
    """Cancel a call at one await after another; check that it is complete or undone, and returns its connection."""

    async def work() -> int:
        async with on_one_connection(url, fast_path=fast_path) as (repository, engine):
            await repository.create_session(full_session())
            before = await contents(repository)
            await CALLS[call](repository)
            after = await contents(repository)
            for number in range(1_000):
                for session_id in (UNKNOWN_ID, SESSION_ID):
                    await repository.delete_session(session_id)
                await repository.create_session(full_session())
                if number % 2:  # makes the call open a connection, too
                    await engine.dispose()
                attempt = CancelledAt(CALLS[call](repository), number, again=again)
                try:
                    await asyncio.ensure_future(wrapped(attempt))
                except asyncio.CancelledError:
                    assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
                    assert await contents(repository) in (before, after)
                else:
                    assert await contents(repository) == after
                    if attempt.waited <= number:
                        return number
            raise AssertionError("the call did not end within 1,000 awaits")

    assert asyncio.run(work()) >= 1


@pytest.mark.parametrize("fast_path", [True, False], ids=["precompiled", "through SQLAlchemy"])
def test_call_cancelled_while_the_isolation_level_changes_returns_its_connection(
    postgresql: Storage, monkeypatch: pytest.MonkeyPatch, fast_path: bool
) -> None:
    """A busy event loop makes psycopg wait in calls that it answers at once otherwise."""
    for name in ("set_autocommit", "set_isolation_level"):
        original = getattr(psycopg.AsyncConnection, name)

        async def after_a_wait(self: Any, value: Any, original: Any = original) -> None:
            await asyncio.sleep(0)
            await original(self, value)

        monkeypatch.setattr(psycopg.AsyncConnection, name, after_a_wait)
    url = postgresql.url_with("postgresql+psycopg")
    check_cancelled_at_each_await("append_log", url, fast_path=fast_path, again=False)


async def wrapped(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


# --- many tasks ---


@pytest.mark.parametrize(("name", "driver"), ASYNC_DRIVERS)
def test_thousand_tasks_share_connections_of_pool(name: str, driver: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(name).url_with(driver)

    async def work() -> None:
        engine = create_async_engine(url, pool_size=3, max_overflow=1)
        repository = AsyncSQLAlchemySessionRepository(engine)
        most, made = 0, set()

        @event.listens_for(engine.sync_engine, "checkout")
        def checked_out(connection: object, *_: object) -> None:
            nonlocal most
            made.add(id(connection))
            most = max(most, engine.sync_engine.pool.checkedout())  # type: ignore[attr-defined]

        await repository.create_session(session_id=SESSION_ID)
        await asyncio.gather(*(repository.append_log(SESSION_ID, f"{number}") for number in range(1_000)))
        assert len(set(await repository.list_logs(SESSION_ID, limit=2_000))) == 1_000
        assert 1 < most <= 4
        await engine.dispose()

    asyncio.run(work())


def test_pause_between_retries_does_not_block_event_loop(postgresql: Storage) -> None:
    """Compare the pauses: the adapter must call `asyncio.sleep`, not `time.sleep`."""
    assert postgresql.new_url is not None
    url = postgresql.new_url()
    engine = create_engine(url)
    reject_inserts(engine, "vibeforge_session_logs", 5)
    engine.dispose()

    async def work() -> None:
        async_engine = create_async_engine(url)
        repository = AsyncSQLAlchemySessionRepository(async_engine)
        await repository.create_session(session_id=SESSION_ID)
        slept: list[float] = []
        sleep = asyncio.sleep

        async def recording_sleep(seconds: float) -> None:
            slept.append(seconds)
            await sleep(seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", recording_sleep)
            patch.setattr("time.sleep", lambda _seconds: pytest.fail("time.sleep blocked the event loop"))
            await repository.append_log(SESSION_ID, "after five retries")
        assert len(slept) == 5
        assert len(await repository.list_logs(SESSION_ID)) == 1
        await async_engine.dispose()

    asyncio.run(work())


# --- threads ---


@contextlib.contextmanager
def locked(url: str) -> Any:
    """Hold a writer's lock on a SQLite file."""
    connection = sqlite3.connect(str(make_url(url).database), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    finally:
        connection.close()


def test_cancelled_call_in_thread_ends_only_with_thread(sqlite: Storage) -> None:
    engine = sqlite.new_engine()

    async def work() -> None:
        async with AsyncSQLAlchemySessionRepository(engine) as repository:
            await repository.create_session(session_id=SESSION_ID)
            with locked(str(engine.url)) as lock:
                tasks = [asyncio.ensure_future(repository.append_log(SESSION_ID, f"{number}")) for number in range(50)]
                while not engine.pool.checkedout():  # type: ignore[attr-defined] # noqa: ASYNC110 (a thread changes it)
                    await asyncio.sleep(0.001)
                for task in tasks:
                    task.cancel()
                await asyncio.sleep(0.05)
                assert not all(task.done() for task in tasks)  # a call in a thread cannot be stopped
                for task in tasks:  # a second cancellation does not stop it either
                    task.cancel()
                lock.execute("ROLLBACK")
                done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in done)
            kept = await repository.list_logs(SESSION_ID)
            assert 1 <= len(kept) <= engine.pool.size()  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
            assert await repository.list_logs(SESSION_ID) == kept
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    asyncio.run(work())
    engine.dispose()


def test_reads_succeed_while_write_waits_for_lock_in_thread(sqlite: Storage) -> None:
    engine = sqlite.new_engine()

    async def work() -> None:
        async with AsyncSQLAlchemySessionRepository(engine) as repository:
            await repository.create_session(session_id=SESSION_ID)
            with locked(str(engine.url)) as lock:
                waiting = asyncio.ensure_future(repository.append_log(SESSION_ID, "m"))
                assert await repository.get_session(SESSION_ID)  # readers do not wait for a writer
                assert not waiting.done()
                lock.execute("ROLLBACK")
            await waiting

    asyncio.run(work())
    engine.dispose()


def test_thread_runs_in_callers_context_and_ends_with_repository(sqlite: Storage) -> None:
    seen: list[tuple[str, str]] = []
    request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")
    engine = sqlite.new_engine()
    event.listen(
        engine, "before_cursor_execute", lambda *_: seen.append((request_id.get(), threading.current_thread().name))
    )

    async def work() -> None:
        request_id.set("r-1")
        async with AsyncSQLAlchemySessionRepository(engine) as repository:
            await repository.list_sessions()

    asyncio.run(work())
    engine.dispose()
    assert {name for name, _ in seen} == {"r-1"}
    assert all(thread.startswith("vibeforge_sessions") for _, thread in seen)
    for thread in threading.enumerate():
        if thread.name.startswith("vibeforge_sessions"):
            thread.join(5)
            assert not thread.is_alive()


# --- opening ---


@pytest.mark.parametrize(
    ("name", "driver", "kind"),
    [
        ("sqlite", "sqlite", Engine),
        ("sqlite", "sqlite+aiosqlite", AsyncEngine),
        ("postgresql", "postgresql", AsyncEngine),
        ("postgresql", "postgresql+asyncpg", AsyncEngine),
        ("mariadb", "mariadb+pymysql", Engine),
        ("mariadb", "mysql+asyncmy", AsyncEngine),
    ],
)
def test_opened_repository_uses_async_driver_or_threads(
    name: str, driver: str, kind: type, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(name).url_with(driver)

    async def work() -> None:
        async with await open_async_repository(url) as repository:
            assert isinstance(repository, AsyncSQLAlchemySessionRepository)
            assert isinstance(repository._owned, kind)
            assert repr(repository) == f"AsyncSQLAlchemySessionRepository({driver.split('+', maxsplit=1)[0]})"
            session = await repository.create_session()
            session.add_answer("q", 1)
            await repository.update_session(session)
            assert await repository.get_session(session.session_id) == session

    asyncio.run(work())


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite"])
def test_open_async_repository_checks_or_migrates_schema(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIBEFORGE_SESSIONS_DATABASE_URL", f"{driver}:///{tmp_path / 'x.db'}")

    async def work() -> None:
        with pytest.raises(SchemaError, match="vibeforge-sessions db upgrade"):
            await open_async_repository()
        async with await open_async_repository(migrate=True) as repository:
            await repository.create_session()
        monkeypatch.setenv("VIBEFORGE_SESSIONS_MIGRATE", "1")
        async with await open_async_repository() as repository:
            assert len(await repository.list_sessions()) == 1

    asyncio.run(work())


def test_open_async_repository_without_url_uses_memory() -> None:
    async def work() -> None:
        for url in (None, "memory://"):
            async with await open_async_repository(url) as repository:
                assert isinstance(repository, AsyncInMemorySessionRepository)

    asyncio.run(work())


@pytest.mark.parametrize(
    "url", ["postgresql+asyncpg://u:s3cret@127.0.0.1:1/d", "mariadb+asyncmy://u:s3cret@127.0.0.1:1/d"]
)
def test_open_async_repository_with_unreachable_server_raises_without_password(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        asyncio.run(open_async_repository(url))
    assert "s3cret" not in repr(caught.value)


@pytest.mark.parametrize(("name", "driver"), ASYNC_DRIVERS)
def test_missing_database_raises_storage_error(name: str, driver: str, request: pytest.FixtureRequest) -> None:
    url = make_url(request.getfixturevalue(name).url_with(driver)).set(database="missing")

    async def work() -> None:
        engine = create_async_engine(url)
        for fast_path in (True, False):
            with pytest.raises(StorageError, match="could not"):
                await AsyncSQLAlchemySessionRepository(engine, fast_path=fast_path).list_sessions()
        await engine.dispose()
        with pytest.raises(StorageError, match="could not"):
            await open_async_repository(url.render_as_string(hide_password=False))

    asyncio.run(work())


def test_url_or_unstarted_connection_as_bind_is_rejected(sqlite: Storage) -> None:
    with pytest.raises(ConfigurationError, match="AsyncEngine"):
        AsyncSQLAlchemySessionRepository("sqlite://")  # type: ignore[arg-type]

    async def work() -> None:
        engine = create_plain_async_engine(sqlite.url_with("sqlite+aiosqlite"))
        with pytest.raises(ConfigurationError, match="started"):
            AsyncSQLAlchemySessionRepository(engine.connect())
        await engine.dispose()

    asyncio.run(work())


def test_error_without_greenlet_names_extra(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["greenlet"] = None
import asyncio, vibeforge_sessions as v
from vibeforge_sessions.sql import create_async_engine, create_engine
engine = create_engine("sqlite://")
asyncio.run(v.AsyncInMemorySessionRepository().create_session())
for attempt in (lambda: v.AsyncSQLAlchemySessionRepository(engine), lambda: create_async_engine("postgresql+asyncpg://h/d"),
                lambda: asyncio.run(v.open_async_repository("sqlite://"))):
    try:
        attempt()
    except (ImportError, v.ConfigurationError) as error:
        assert "vibeforge-sessions[async]" in str(error), error
        print("named")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("named\n" * 3, "")


@pytest.mark.parametrize("name", SQL_DATABASES)
def test_session_stored_through_thread_adapter_can_be_read(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    given = full_session()

    async def work() -> Session | None:
        async with AsyncSQLAlchemySessionRepository(engine) as repository:
            await repository.create_session(given)
            return await repository.get_session(SESSION_ID)

    assert asyncio.run(work()) == given
    engine.dispose()


@pytest.mark.parametrize(("name", "driver"), ASYNC_DRIVERS)
@pytest.mark.parametrize("fast_path", [True, False], ids=["precompiled", "through SQLAlchemy"])
def test_error_does_not_show_values_in_driver_message(
    name: str, driver: str, fast_path: bool, request: pytest.FixtureRequest
) -> None:
    hidden = "s3cret"
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    url = storage.new_url()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE vibeforge_session_logs ADD CHECK (message NOT LIKE '%s3cret%')"))
    engine.dispose()

    async def work() -> None:
        async_engine = create_async_engine(make_url(url).set(drivername=driver))
        repository = AsyncSQLAlchemySessionRepository(async_engine, fast_path=fast_path)
        await repository.create_session(session_id=SESSION_ID)
        with pytest.raises(StorageError) as caught:
            await repository.append_log(SESSION_ID, f"xx {hidden} xx")
        shown = "".join(traceback.format_exception(caught.value))
        assert "constraint" in shown.lower()
        assert f"xx {hidden} xx" not in shown
        await async_engine.dispose()

    asyncio.run(work())
