"""The transactions of units of work: their own, which are tried again, or a host's, which are not."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Dialect, Engine, NestedTransaction, orm
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.util import await_only

from vibeforge_sessions.errors import OutcomeUnknownError, StorageError
from vibeforge_sessions.repository import instrumentation
from vibeforge_sessions.repository.fork_locks import fork_lock
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects import database_of, failure_code
from vibeforge_sessions.sql.operations.in_doubt import CannotTell, LookAgain
from vibeforge_sessions.sql.transactions.connection_executor import ThroughSQLAlchemy
from vibeforge_sessions.sql.transactions.driver_executor import Known
from vibeforge_sessions.sql.transactions.error_translation import FAILURES, LOST, failure_name, failure_of, reach
from vibeforge_sessions.sql.transactions.execution import executor_of
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.joined import joined_writes, queue
from vibeforge_sessions.sql.transactions.time_limits import limits_of

Settle = Callable[..., Any]
"""Finds out what has become of a unit of work, and does it if it was not done (see `evidence`)."""

T = TypeVar("T")

_one_at_a_time: Final = fork_lock()


def make_ready_for_threads(engine: Engine) -> None:
    """See to it that of many threads that use a new engine at once only one initialises its dialect.

    SQLAlchemy (2.1.9, ``event/attr.py``) makes the mutex for that at the first connect, with a check and then a set:
    two threads can get one each, and the second goes on with a dialect that is half initialised (seen once in 5,000
    tests: ``no attribute 'default_isolation_level'``). Made here beforehand; no connection is.
    """
    make_mutex = getattr(engine.pool.dispatch.connect, "_get_exec_once_mutex", None)
    if make_mutex is not None:
        with _one_at_a_time:
            make_mutex()


class Transactions(ABC):
    """Where the units of work of a repository get their transactions from."""

    @property
    @abstractmethod
    def bind(self) -> Engine | Connection:
        """What the state of the schema can be asked of."""

    def transaction_of(self, session_id: str) -> str | None:
        """Return the id of the caller's transaction if it has written a session: it may be rolled back yet."""
        return None

    @abstractmethod
    def run(
        self,
        work: Callable[[Executor], T],
        *,
        write: bool,
        at_once: bool,
        settle: Settle | None = None,
        extra: float = 0,
    ) -> T:
        """Do the work, wholly or not at all.

        :param at_once: the work needs no transaction where each write is one statement (`Database.writes_at_once`).
        :param settle: for a write of which nobody knows whether it was committed: called with an executor in a
            transaction, and ``may_come=`` whether what was sent may be run after that still.
        :param extra: seconds that are added to its deadline.
        :raises StorageError: SQLAlchemy or the driver raised; what it raised is chained, without parameters.
        """


class _Failed(Exception):  # noqa: N818 (never leaves this room)
    """What has become of one attempt."""

    def __init__(self, error: StorageError, *, again: bool, unknown: bool, cut: bool = False, name: str = "") -> None:
        super().__init__()
        self.error = error
        self._name = name
        self.again = again
        """Whether another attempt may do better."""
        self.unknown = unknown
        """Whether something may have been written."""
        self.cut = cut
        """Whether the connection is lost, whose session goes on within the server."""

    @property
    def reason(self) -> str:
        """The name of what happened, for logs."""
        cause = self.error.__cause__
        return failure_name(cause) if isinstance(cause, SQLAlchemyError) else self._name


class _Lost:
    """What a call has left behind on the server, by connections that were lost."""

    def __init__(self) -> None:
        self.sessions: list[tuple[Any, bool]] = []
        """What `Database.end_session` needs, and whether it was sent a statement that commits itself."""
        self.may_come = False
        """Whether such a statement may still be run."""

    def end_sessions(self, executor: Executor) -> None:
        while self.sessions and isinstance(executor, ThroughSQLAlchemy):  # as every attempt but the first
            session, commits_itself = self.sessions[-1]
            certain = executor.end_session(session)
            self.may_come |= commits_itself and not certain
            self.sessions.pop()

    def settling(self, settle: Settle) -> Callable[[Executor], Any]:
        return lambda executor: settle(executor, may_come=self.may_come)


class OwnTransactions(Transactions):
    """Each unit of work has a connection of the engine, and a transaction, to itself.

    :param fast_path: may go past SQLAlchemy's `Connection` (see `execution`).
    """

    def __init__(self, engine: Engine, *, fast_path: bool, retry: RetryPolicy) -> None:
        make_ready_for_threads(engine)
        fork_safety.track(engine)
        self._engine = engine
        self._known: Known | None = {} if fast_path else None
        self._retry = retry
        self._limited = limits_of(engine.dialect)
        self._call = fork_safety.waiting_for_forks(engine)

    def __str__(self) -> str:
        return self._engine.dialect.name

    @property
    def bind(self) -> Engine:
        return self._engine

    def run(
        self,
        work: Callable[[Executor], T],
        *,
        write: bool,
        at_once: bool,
        settle: Settle | None = None,
        extra: float = 0,
    ) -> T:
        retry, known, lost = self._retry, self._known, _Lost()
        deadline = retry.deadline + extra
        until = time.monotonic() + deadline
        longest = deadline if retry.attempts == 1 else deadline / 2
        doubt: _Failed | None = None
        for attempt in itertools.count(1):
            seconds = min(longest, max(0.0, until - time.monotonic()))
            try:
                with self._call:
                    return self._once(work, lost, write=write, at_once=at_once, known=known, seconds=seconds)
            except CannotTell as reason:
                text = f"{reason}, after this: {doubt.error}" if doubt else str(reason)
                raise OutcomeUnknownError(text) from (doubt.error.__cause__ if doubt else None)
            except _Failed as failed:
                doubt = doubt or (failed if failed.unknown else None)
                delay = retry.delay(attempt)
                may = failed.again or (failed.unknown and settle is not None)
                if not may or attempt >= retry.attempts or time.monotonic() + delay >= until:
                    error = (doubt or failed).error
                    raise error from error.__cause__
                instrumentation.again(failed.reason)
            self._wait(delay)
            known = None  # the long way also knows what to do about the other connections of a pool
            if doubt is not None and settle is not None:
                work, at_once = lost.settling(settle), False
        raise AssertionError("unreachable")

    def _once(
        self,
        work: Callable[[Executor], T],
        lost: _Lost,
        *,
        write: bool,
        at_once: bool,
        known: Known | None,
        seconds: float,
    ) -> T:
        """Commit a write at the end; roll back otherwise."""
        with self._limited(seconds) as limit:
            executor, session, doing, unknown = None, None, "reach", False
            try:
                executor = limit.connecting(executor_of, self._engine, known)
                limit.watch(executor.pooled)
                doing = "use"
                lost.end_sessions(executor)
                session = executor.server_session if write else None
                begun = executor.begin(write=write, at_once=at_once)
                unknown = write and not begun
                result = work(executor)
                if write and begun:
                    doing = "commit"
                    executor.commit()
            except BaseException as raised:
                late = limit.ended(raised)
                error = raised if executor is None else executor.failed(raised)
                if executor is not None and doing == "commit":
                    executor.rollback()
                failed = self._failed(executor, error, doing, late=late, unknown=unknown)
                if failed is None:
                    raise
                if session is not None and failed.cut:
                    lost.sessions.append((session, unknown))
                raise failed from error
            finally:
                if executor is not None:
                    executor.close()
                limit.is_over = True  # before anything else can be interrupted: the connection is another's soon
            return result

    def _failed(
        self, executor: Executor | None, error: BaseException, doing: str, *, late: bool, unknown: bool
    ) -> _Failed | None:
        """Return what an attempt's error means; None for one that is not the database's.

        :param unknown: the attempt was a statement that commits itself, and may have done so when it was lost.
        """
        if isinstance(error, LookAgain):
            return _Failed(StorageError(str(error)), again=True, unknown=False, name="LookAgain")
        database = database_of(self._engine.dialect)
        code = failure_code(error) if isinstance(error, DBAPIError) and error.orig is not None else None
        cut = late or _is_lost(error, self._engine.dialect)
        lost = cut or database.is_unavailable(code)
        unknown = late or database.may_have_committed(code) if doing == "commit" else unknown and cut
        if late:
            failure = (OutcomeUnknownError if unknown else StorageError)(f"could not {doing} the database: no answer")
            return _Failed(failure, again=True, unknown=unknown, cut=cut, name="TimeoutError")
        if not isinstance(error, SQLAlchemyError) and not (executor is None and isinstance(error, FAILURES)):
            return None
        again = lost or code in database.transient
        if executor is None:
            again = isinstance(error, OSError) or (
                isinstance(error, DBAPIError) and database.is_unreachable(error, code)
            )
        elif lost or code in database.lasting:
            executor.give_up()
        failure = failure_of(error, doing, unknown=unknown)
        return _Failed(failure, again=again, unknown=unknown, cut=cut, name=type(error).__name__)

    def _wait(self, seconds: float) -> None:
        if self._engine.dialect.is_async:  # within a greenlet, whose event loop must go on
            await_only(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)


class HostsTransaction(Transactions):
    """Each unit of work is a savepoint in the transaction of a host, who alone commits it or rolls it back.

    Nothing is tried again.

    :param host: a `Connection` or an `orm.Session`; its transaction begins with the first call, if it has not yet.
    """

    def __init__(self, host: Connection | orm.Session, *, retry: RetryPolicy) -> None:
        self._host = host
        self._deadline = retry.deadline

    def __str__(self) -> str:
        return f"{type(self._host).__name__} of the host"

    @property
    def bind(self) -> Connection:
        return self._host.connection() if isinstance(self._host, orm.Session) else self._host

    def transaction_of(self, session_id: str) -> str | None:
        writes = joined_writes(self.bind)
        return writes.transaction_id if session_id in writes.deleted else None

    def run(
        self,
        work: Callable[[Executor], T],
        *,
        write: bool,
        at_once: bool,
        settle: Settle | None = None,
        extra: float = 0,
    ) -> T:
        shared: Connection | orm.Session = self._host
        if isinstance(shared, orm.Session) and isinstance(shared.bind, Connection):
            shared = shared.bind
        with ExitStack() as turn:
            queue(shared, turn)
            connection = reach(lambda: self.bind)  # an orm.Session may connect only now
            if connection is not shared:
                queue(connection, turn)
            return self._run(work, ThroughSQLAlchemy(connection, joined=True), self._deadline + extra)

    def _run(self, work: Callable[[Executor], T], executor: ThroughSQLAlchemy, seconds: float) -> T:
        with limits_of(executor.dialect)(seconds) as limit:
            savepoint = None
            try:
                limit.connecting(executor.join)
                limit.watch(executor.pooled)
                savepoint = executor.connection.begin_nested()
                result = work(executor)
                savepoint.commit()
            except BaseException as raised:
                late = limit.ended(raised)
                lost = late or (_is_lost(raised, executor.dialect) if savepoint is None else False)
                if savepoint is not None and not _rolled_back(savepoint, executor.connection):
                    lost = True
                if late:
                    raise StorageError(f"could not use the database: no answer{LOST}", transaction_lost=True) from None
                if isinstance(raised, SQLAlchemyError):
                    raise failure_of(raised, "use", lost=lost) from raised
                if lost and isinstance(raised, Exception):
                    raise StorageError(f"the call was not undone{LOST}", transaction_lost=True) from raised
                raise
            finally:  # what stands above may have been interrupted, and the connection is the host's
                if savepoint is not None and savepoint.is_active and not executor.connection.invalidated:
                    savepoint.rollback()
                limit.is_over = True
            return result


def transactions_of(bind: object, *, fast_path: bool, retry: RetryPolicy) -> Transactions:
    """Return what a repository on an engine, or on something with a transaction of its own, runs in."""
    if not isinstance(retry, RetryPolicy):
        raise TypeError(f"retry must be a RetryPolicy, not {type(retry).__name__}")
    if isinstance(bind, Engine):
        return OwnTransactions(bind, fast_path=fast_path, retry=retry)
    if isinstance(bind, (Connection, orm.Session)):
        return HostsTransaction(bind, retry=retry)
    raise TypeError(f"must be an sqlalchemy Engine, Connection or orm.Session, not {type(bind).__name__}")


def _is_lost(error: BaseException, dialect: Dialect) -> bool:
    return isinstance(error, DBAPIError) and database_of(dialect).is_lost(error)


def _rolled_back(savepoint: NestedTransaction, connection: Connection) -> bool:
    """Roll back to the savepoint; return whether it was there still, and with it the host's transaction."""
    try:
        if not connection.invalidated:
            savepoint.rollback()
            return not connection.invalidated
    except SQLAlchemyError:  # after a deadlock MariaDB has rolled back everything
        # SQLAlchemy, which has not heard of that, would let the host commit what comes after
        connection.invalidate()
    return False
