"""Calls interrupted at each function entry, as by Ctrl-C.

After an interruption, connections stay usable, and the stored session is the one before or after the whole call.
CPython runs signal handlers at function entries, among other places. A trace function raises at the same places.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import pytest
from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, make_url
from sqlalchemy.exc import SQLAlchemyError

import vibeforge_sessions
from tests.support import cases
from tests.support.databases import SQL_DATABASES, Storage
from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    InvalidSessionError,
    RetryPolicy,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.sql import create_async_engine, create_engine, fork_safety
from vibeforge_sessions.sql.transactions import joined, owned, time_limits
from vibeforge_sessions.testing.base import SESSION_ID, full_session

State = tuple[Any, ...] | None

pytestmark = [
    pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up"),  # an asynchronous connection
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # raised where a generator is closed
]

PACKAGE = str(Path(vibeforge_sessions.__file__).parent)
TRANSACTIONS = {owned.__file__, joined.__file__}
ONE_CONNECTION: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}
NEW_ID = "new"

orders = Table("orders", MetaData(), Column("name", String(50)))


class Interruption:
    """Context manager that raises an exception at one function entry of the package, and suppresses it afterwards."""

    def __init__(self, number: int, kind: type[BaseException]) -> None:
        self.entries_left = number
        self.is_in_transaction = False
        self.kind = kind
        self.place = ""
        """The interrupted function. It is empty if the call entered fewer functions than `number`."""
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self.previous = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def trace(self, frame: FrameType, _event: str, _argument: object) -> None:
        # the event loop enters coroutines: an exception there would stop the loop in the middle of the call
        if frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_flags & inspect.CO_COROUTINE:
            self.is_in_transaction |= frame.f_code.co_filename in TRANSACTIONS
            self.entries_left -= self.is_in_transaction  # earlier entries hold no connection or transaction
            if self.entries_left == 0:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
                raise self.kind

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        sys.settrace(self.previous)
        self.error = error
        return isinstance(error, (self.kind, InvalidSessionError))


def unreadable_lines() -> Iterator[str]:
    yield "one"
    raise ValueError


class Stage:
    """A database with one session, and the calls that are interrupted."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_engine(url)
        """Engine for preparation and checks. The interrupted calls use another one."""
        orders.create(self.engine)
        # the deadline ends the wait for a lock that an interrupted call did not release
        self.repository = SQLAlchemySessionRepository(self.engine, retry=RetryPolicy(deadline=6.0))

    def prepare(self) -> None:
        """Replace the stored session with a new one, and delete the session that calls create."""
        self.repository.delete_session(SESSION_ID)
        self.repository.delete_session(NEW_ID)
        self.repository.create_session(full_session())

    def state(self) -> tuple[State, State]:
        """Return the stored state that calls change, without timestamps."""
        return self._state_of(SESSION_ID), self._state_of(NEW_ID)

    def _state_of(self, session_id: str) -> State:
        session = self.repository.get_session(session_id)
        if session is None:
            return None
        errors = tuple(entry.error_message for entry in session.error_history)
        return session.version, tuple(session.answers), errors, len(session.logs)

    def calls(self, repository: Any) -> dict[str, Callable[[], Any]]:
        """Return the calls by name. Each one can be made once."""
        changed = self.repository.get_session(SESSION_ID)
        record = self.repository.get_record(SESSION_ID)
        assert changed is not None
        assert record is not None
        changed.add_answer("new", 1)
        changed.add_error("new", "new")
        changed.add_log("new")
        bare = dataclasses.replace(record, version=9, error_count=0, log_count=2)
        new = dataclasses.replace(bare, session_id=NEW_ID)
        lines = ("one", "two")
        return {
            "create": lambda: repository.create_session(full_session(NEW_ID)),
            "get": lambda: repository.get_session(SESSION_ID),
            "update": lambda: repository.update_session(changed),
            "append_error": lambda: repository.append_error(SESSION_ID, "new", "new"),
            "append_log": lambda: repository.append_log(SESSION_ID, "new"),
            "delete": lambda: repository.delete_session(SESSION_ID),
            "restore": lambda: repository.restore_record(new, (), lines),
            "replace": lambda: repository.restore_record(bare, (), lines, replacing=record),
            "fail halfway": lambda: repository.restore_record(bare, (), unreadable_lines(), replacing=record),
        }


SOME_CALLS = ("update", "fail halfway")
CALLS = (
    "create",
    "get",
    "update",
    "append_error",
    "append_log",
    "delete",
    "restore",
    "replace",
    "fail halfway",
)


def on_each_database(calls: tuple[str, ...]) -> pytest.MarkDecorator:
    """Return parameters `stage` and `call`; a few calls on the servers suffice where SQLite has all of them."""
    quick = [(name, call) for name in SQL_DATABASES for call in calls if name == "sqlite" or call in SOME_CALLS]
    return pytest.mark.parametrize(
        ("stage", "call"), cases(itertools.product(SQL_DATABASES, calls), quick), indirect=["stage"]
    )


@pytest.fixture(params=SQL_DATABASES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Yield a stage. Earlier objects are frozen, so that frequent garbage collections are fast."""
    storage: Storage = request.getfixturevalue(request.param)
    assert storage.new_url is not None
    stage = Stage(storage.new_url())
    gc.collect()
    gc.freeze()
    yield stage
    gc.unfreeze()
    stage.engine.dispose()


@pytest.fixture
def engine(stage: Stage) -> Iterator[Engine]:
    """Yield an engine whose pool has one connection. If a call does not return it, the next call fails."""
    engine = create_engine(stage.url, **ONE_CONNECTION)
    yield engine
    engine.dispose()


def defaults_of(connection: Connection) -> object:
    """Return the transaction settings of a pooled connection."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        return driver.autocommit, driver.isolation_level, driver.info.transaction_status
    if connection.dialect.name == "sqlite":
        return driver.isolation_level, driver.in_transaction
    return driver.get_autocommit(), connection.exec_driver_sql("SELECT @@tx_isolation").scalar()


def expire_limits() -> None:
    """Expire all time limits while the application still holds the exception."""
    for limit in list(time_limits._watchdog._limits):
        limit.expire()


class Interrupted:
    """Runner that repeats a call, and interrupts it at one function entry after another."""

    def __init__(self, stage: Stage, engine: Engine, call: str, kind: type[BaseException]) -> None:
        self.stage = stage
        self.engine = engine
        self.call = call
        self.kind = kind
        self.repository = SQLAlchemySessionRepository(engine)
        self.faults: list[str] = []
        self.count = 0

    def states(self) -> set[tuple[State, State]]:
        """Return the states allowed after an interruption: before and after the whole call."""
        self.stage.prepare()
        before = self.stage.state()
        with contextlib.suppress(InvalidSessionError):  # also compiles the statements for the later calls
            self.stage.calls(self.repository)[self.call]()
        return {before, self.stage.state()}

    def run(self, *, cold: bool = False) -> None:
        """Make the call once for each of its function entries, and assert that none leaves a fault.

        :param cold: each call opens a connection and compiles its statements.
        """
        with self.engine.connect() as connection:
            self.defaults = defaults_of(connection)
        allowed = self.states()
        prepared = None
        for number in range(1, 10_000):
            if prepared is None or self.stage.state() != prepared:
                self.stage.prepare()
                prepared = self.stage.state()
            if cold:
                self.engine.dispose()
                self.repository = SQLAlchemySessionRepository(self.engine)
            call: Any = self.stage.calls(self.repository)[self.call]
            with Interruption(number, self.kind) as interruption:
                call()
            if not interruption.place:
                break
            self.count += 1
            expire_limits()
            interruption.error = call = None
            gc.collect()
            self.faults += [f"{number} {interruption.place}: {fault}" for fault in self.faults_after(allowed)]
        assert self.count > 3
        assert not self.faults, f"{len(self.faults)} of {self.count}: {self.faults[:20]}"

    def faults_after(self, allowed: set[tuple[State, State]]) -> Iterator[str]:
        """Yield the faults after an interruption."""
        if fork_safety._calls:
            fork_safety._calls.clear()
            yield "the call is still registered, so each later fork would wait for it"
        time_limits._watchdog.check()  # removes ended limits, as the watchdog's thread does
        limits = time_limits._watchdog._limits
        if len(limits):
            limits.clear()
            yield "a time limit is still active"
        if self.engine.pool.checkedout():  # type: ignore[attr-defined]
            yield "the connection was not returned to the pool"
            self.engine.dispose()
        try:
            with self.engine.connect() as connection:
                defaults = defaults_of(connection)
                connection.rollback()
                connection.execute(orders.insert().values(name="rolled back"))
                connection.rollback()
        except SQLAlchemyError as error:
            yield f"the connection is unusable: {error!r}"
        else:
            if defaults != self.defaults:
                yield f"the connection's settings are {defaults}"
                self.engine.dispose()
        with self.stage.engine.begin() as connection:
            if connection.execute(orders.delete()).rowcount:
                yield "the application's row was not rolled back"
        state = self.stage.state()
        if state not in allowed:
            yield f"the stored state is {state}"


@on_each_database(CALLS)
def test_interrupted_call_leaves_connection_and_session_intact(stage: Stage, engine: Engine, call: str) -> None:
    Interrupted(stage, engine, call, KeyboardInterrupt).run()


@pytest.mark.parametrize("stage", ["postgresql"], indirect=True)
@pytest.mark.parametrize("call", cases(CALLS, SOME_CALLS))
def test_interrupted_call_through_sqlalchemy_leaves_connection_and_session_intact(
    stage: Stage, engine: Engine, call: str
) -> None:
    interrupted = Interrupted(stage, engine, call, KeyboardInterrupt)
    interrupted.repository = SQLAlchemySessionRepository(engine, fast_path=False)
    interrupted.run()


@pytest.mark.parametrize("stage", ["postgresql"], indirect=True)
@pytest.mark.parametrize("call", cases(["get", "append_log", "replace"], ["append_log"]))
def test_call_that_runs_out_of_memory_leaves_connection_and_session_intact(
    stage: Stage, engine: Engine, call: str
) -> None:
    Interrupted(stage, engine, call, MemoryError).run()


@pytest.mark.parametrize("call", ["append_log"])
def test_call_interrupted_while_connecting_leaves_pool_intact(stage: Stage, engine: Engine, call: str) -> None:
    Interrupted(stage, engine, call, KeyboardInterrupt).run(cold=True)


@on_each_database(("get", "update", "append_error", "replace", "fail halfway"))
def test_interrupted_call_in_joined_transaction_is_undone_or_complete(stage: Stage, engine: Engine, call: str) -> None:
    interrupted = Interrupted(stage, engine, call, KeyboardInterrupt)
    stage.prepare()
    before = stage.state()
    allowed = interrupted.states()
    faults = []
    for number in range(1, 10_000):
        if stage.state() != before:
            stage.prepare()
        with engine.connect() as connection:
            connection.execute(orders.insert().values(name="application"))
            work: Any = stage.calls(SQLAlchemySessionRepository(connection))[call]
            with Interruption(number, KeyboardInterrupt) as interruption:
                work()
            if not interruption.place:
                break
            expire_limits()
            try:
                connection.commit()  # the application continues in spite of the interruption
            except SQLAlchemyError:  # the interruption during a statement made the connection unusable
                expected: tuple[int, set[tuple[State, State]]] = 0, {before}
            else:
                expected = 1, allowed
        interruption.error = work = None
        gc.collect()  # SQLite releases its lock with the last cursor of a connection
        with stage.engine.begin() as connection:
            if connection.execute(orders.delete()).rowcount != expected[0]:
                faults.append(f"{number} {interruption.place}: the application's row differs from its transaction")
        if stage.state() not in expected[1]:
            faults.append(f"{number} {interruption.place}: the stored state is {stage.state()}")
    assert number > 20
    assert not faults, f"{len(faults)} of {number}: {faults[:20]}"


class InterruptedOnLoop:
    """Runner that repeats a call of the asynchronous repository, interrupted at one function entry after another."""

    def __init__(self, stage: Stage, driver: str, call: str, *, fast_path: bool) -> None:
        self.stage = stage
        self.call = call
        self.engine = create_async_engine(
            make_url(stage.url).set(drivername=f"postgresql+{driver}"), **{**ONE_CONNECTION, "pool_timeout": 0.1}
        )
        self.repository = AsyncSQLAlchemySessionRepository(self.engine, fast_path=fast_path)
        self.timers: list[tuple[asyncio.TimerHandle, Callable[[], None]]] = []
        """Timers of time limits."""
        self.faults: list[str] = []

    def record_timers(self) -> None:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def recording_call_later(
            seconds: float, callback: Callable[..., Any], *arguments: Any, **given: Any
        ) -> asyncio.TimerHandle:
            timer = call_later(seconds, callback, *arguments, **given)
            if getattr(callback, "__module__", "") == time_limits.__name__:
                self.timers.append((timer, callback))
            return timer

        loop.call_later = recording_call_later  # type: ignore[assignment,method-assign]

    async def run(self) -> None:
        try:
            await self.run_on_engine()
        finally:
            await self.engine.dispose()

    async def run_on_engine(self) -> None:
        self.record_timers()
        self.stage.prepare()
        before = self.stage.state()
        default = await self.use()
        with contextlib.suppress(InvalidSessionError):
            await self.stage.calls(self.repository)[self.call]()
        allowed = {before, self.stage.state()}
        for number in range(1, 10_000):
            if self.stage.state() != before:
                self.stage.prepare()
            call: Any = self.stage.calls(self.repository)[self.call]
            self.timers.clear()
            with Interruption(number, KeyboardInterrupt) as interruption:
                await call()
            if not interruption.place:
                break
            try:
                await self.run_timers()
                interruption.error = call = None
                await self.collect()
                found: object = await self.use()
            except (asyncio.CancelledError, SQLAlchemyError, OSError) as error:
                found = repr(error)
                await self.engine.dispose()
            self.faults += [
                f"{number} {interruption.place}: {fault}" for fault in self.faults_of(found, default, allowed)
            ]
        assert number > 20
        assert not self.faults, f"{len(self.faults)} of {number}: {self.faults[:20]}"

    async def run_timers(self) -> None:
        for timer, callback in self.timers:
            if not timer.cancelled():
                callback()
        await asyncio.sleep(0)

    async def collect(self) -> None:
        gc.collect()
        await asyncio.sleep(0)

    async def use(self) -> object:
        """Return the transaction settings of a pooled connection, after a transaction that is rolled back."""
        async with self.engine.connect() as connection:
            pooled: Any = await connection.get_raw_connection()
            kept: Any = pooled.driver_connection if self.engine.driver == "psycopg" else pooled.dbapi_connection
            found = pooled.dbapi_connection.autocommit, kept.isolation_level
            await connection.execute(orders.insert().values(name="rolled back"))
            await connection.rollback()
            return found

    def faults_of(self, found: object, default: object, allowed: set[tuple[State, State]]) -> Iterator[str]:
        if self.engine.pool.checkedout():  # type: ignore[attr-defined]
            yield "the connection was not returned to the pool"
        if found != default:
            yield f"the connection's settings are {found}"
        with self.stage.engine.begin() as connection:
            if connection.execute(orders.delete()).rowcount:
                yield "the application's row was not rolled back"
        if self.stage.state() not in allowed:
            yield f"the stored state is {self.stage.state()}"


@pytest.mark.parametrize("stage", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("driver", "call", "fast_path"),
    cases(
        itertools.product(["psycopg", "asyncpg"], ["get", "append_log", "replace", "fail halfway"], [True, False]),
        [("psycopg", "append_log", True), ("psycopg", "replace", False), ("asyncpg", "fail halfway", True)],
    ),
)
def test_interrupted_call_on_event_loop_leaves_connection_and_session_intact(
    stage: Stage, driver: str, call: str, fast_path: bool
) -> None:
    asyncio.run(InterruptedOnLoop(stage, driver, call, fast_path=fast_path).run())


@pytest.mark.parametrize("stage", ["postgresql"], indirect=True)
def test_call_on_pooled_connection_in_autocommit_is_rolled_back(stage: Stage, engine: Engine) -> None:
    pooled: Any = engine.raw_connection()
    pooled.driver_connection.autocommit = True  # an interruption within SQLAlchemy can leave this setting
    pooled.close()
    stage.prepare()
    before = stage.state()
    with pytest.raises(InvalidSessionError):
        stage.calls(SQLAlchemySessionRepository(engine))["fail halfway"]()
    assert stage.state() == before
