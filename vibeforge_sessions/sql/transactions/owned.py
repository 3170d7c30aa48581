"""Owned transactions: each operation has a connection of the engine and a transaction to itself, and is retried."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import operator
import threading
import time
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.util import await_only

from vibeforge_sessions.errors import ConfigurationError, OutcomeUnknownError, SessionRepositoryError, StorageError
from vibeforge_sessions.repository import instrumentation
from vibeforge_sessions.repository.fork_locks import fork_lock
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects import database_dialect_of, failure_code
from vibeforge_sessions.sql.dialects.base import BEHIND_POOLER, PREPARED
from vibeforge_sessions.sql.transactions.base import TransactionRunner
from vibeforge_sessions.sql.transactions.connection_executor import ConnectionExecutor
from vibeforge_sessions.sql.transactions.error_translation import (
    FAILURES,
    as_sqlalchemys,
    failure_name,
    failure_of,
    is_lost,
)
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import (
    Operation,
    ResolutionConflict,
    UnresolvableOutcome,
    WriteOperation,
)
from vibeforge_sessions.sql.transactions.precompiled import SCHEMAS, PrecompiledExecutor, Statements
from vibeforge_sessions.sql.transactions.time_limits import limits_of

T = TypeVar("T")

_initializing: Final = fork_lock()

_listeners: Final = operator.attrgetter(
    "after_cursor_execute",
    "after_execute",
    "before_cursor_execute",
    "before_execute",
    "commit",
    "engine_connect",
    "rollback",
    "set_connection_execution_options",
)
"""Listeners to the events that precompiled statements do not raise. SQLite's dialect itself listens to ``begin``."""
_dialect_listeners: Final = operator.attrgetter("do_execute", "do_execute_no_params", "do_executemany", "handle_error")
_KNOWN_OPTIONS: Final = {PREPARED, BEHIND_POOLER, SCHEMAS}
"""The execution options of an engine that precompiled statements follow."""


def prepare_first_connect(engine: Engine) -> None:
    """Make sure that one thread alone initializes the dialect when several use a new engine at once.

    SQLAlchemy (2.1.9, ``event/attr.py``) creates the mutex for the first connect with a check and then a set: two
    threads can get one each, and the second uses a dialect that is half initialized (seen once in 5,000 tests: ``no
    attribute 'default_isolation_level'``). The mutex is created here, without a connection.
    """
    make_mutex = getattr(engine.pool.dispatch.connect, "_get_exec_once_mutex", None)
    if make_mutex is not None:
        with _initializing:
            make_mutex()


class _AttemptFailed(Exception):  # noqa: N818 (private)
    """The failure of one attempt."""

    def __init__(self, error: SessionRepositoryError, *, retryable: bool, in_doubt: bool, name: str) -> None:
        super().__init__()
        self.error = error
        self._name = name
        self.retryable = retryable
        self.in_doubt = in_doubt
        """Whether the write may have been committed."""
        self.server_session: tuple[Any, bool] | None = None
        """Of a lost connection: the argument of `DatabaseDialect.end_server_session`.

        The second part is whether a statement that commits itself was sent.
        """

    @property
    def reason(self) -> str:
        """The name of the failure, for log records."""
        cause = self.error.__cause__
        return failure_name(cause) if isinstance(cause, SQLAlchemyError) else self._name


class _LostSessions:
    """The server sessions of connections that a call has lost."""

    def __init__(self) -> None:
        self.sessions: list[tuple[Any, bool]] = []
        self.may_still_arrive = False
        """Whether the server may still execute a statement that commits itself."""

    def end(self, executor: Executor) -> None:
        """End the sessions, on the connection of a later attempt."""
        while self.sessions and isinstance(executor, ConnectionExecutor):  # every attempt but the first has one
            session, commits_itself = self.sessions[-1]
            is_certain = executor.end_session(session)
            self.may_still_arrive |= commits_itself and not is_certain
            self.sessions.pop()


@dataclasses.dataclass(slots=True)
class _Attempt(Generic[T]):
    """One transaction of an operation, and how far it has come."""

    operation: Operation[T]
    lost: _LostSessions | None
    resolve: bool
    stage: str = "reach"
    in_doubt: bool = False
    """Whether a statement that commits itself may have been sent."""
    session: Any = None
    """The argument of `DatabaseDialect.end_server_session`."""

    def run(self, executor: Executor) -> T:
        operation, lost, write = self.operation, self.lost, self.operation.is_write
        self.stage = "use"
        if lost is not None:
            lost.end(executor)
        if write and executor.database.is_server:
            self.session = executor.server_session
        single_statement = not (self.resolve or operation.needs_transaction)
        has_transaction = executor.begin(write=write, single_statement=single_statement)
        self.in_doubt = write and not has_transaction
        if self.resolve and isinstance(operation, WriteOperation) and isinstance(executor, ConnectionExecutor):
            may_still_arrive = lost is not None and lost.may_still_arrive
            result: T = operation.resolve(executor, may_still_arrive=may_still_arrive)
        else:
            result = operation.execute(executor)
        if write and has_transaction:
            self.stage = "commit"
            executor.commit()
        return result


class OwnedTransactions(TransactionRunner):
    """Runs each operation in a transaction of its own.

    :param precompiled: use precompiled statements unless the engine is instrumented (see `_connect`).
    """

    def __init__(self, engine: Engine, *, precompiled: bool, retry: RetryPolicy) -> None:
        prepare_first_connect(engine)
        fork_safety.track(engine)
        self._engine = engine
        self._database = database_dialect_of(engine.dialect)
        self._statements: Statements | None = {} if precompiled else None
        self._retry = retry
        self._limited = limits_of(engine.dialect) if self._database.is_server else None
        self._calls = fork_safety.calls_of(engine)

    def __str__(self) -> str:
        return self._engine.dialect.name

    @property
    def bind(self) -> Engine:
        return self._engine

    def run(self, operation: Operation[T]) -> T:
        retry, statements = self._retry, self._statements
        deadline = retry.deadline + operation.extra_seconds
        until = time.monotonic() + deadline
        longest = deadline if retry.attempts == 1 else deadline / 2
        in_doubt: _AttemptFailed | None = None
        lost: _LostSessions | None = None
        for attempt in itertools.count(1):
            seconds = min(longest, max(0.0, until - time.monotonic()))
            try:
                return self._attempt(operation, statements, lost, seconds, resolve=in_doubt is not None)
            except UnresolvableOutcome as reason:
                text = f"{reason}, after this: {in_doubt.error.args[0]}" if in_doubt else str(reason)
                raise OutcomeUnknownError(text) from (in_doubt.error.__cause__ if in_doubt else None)
            except (ConfigurationError, StorageError):  # raised by a check of the connection, before any statement
                if in_doubt is None:
                    raise
                raise in_doubt.error from in_doubt.error.__cause__
            except _AttemptFailed as failed:
                in_doubt = in_doubt or (failed if failed.in_doubt else None)
                if failed.server_session is not None:
                    lost = lost or _LostSessions()
                    lost.sessions.append(failed.server_session)
                delay = retry.delay(attempt)
                may_retry = failed.retryable or failed.in_doubt
                if not may_retry or attempt >= retry.attempts or time.monotonic() + delay >= until:
                    error = (in_doubt or failed).error
                    raise error from error.__cause__
                instrumentation.report_retry(failed.reason)
            self._wait(delay)
            statements = None  # SQLAlchemy's path also handles the other connections of a pool whose server is gone
        raise AssertionError("unreachable")

    def _attempt(
        self,
        operation: Operation[T],
        statements: Statements | None,
        lost: _LostSessions | None,
        seconds: float,
        *,
        resolve: bool,
    ) -> T:
        """Execute or resolve the operation once; commit a write at the end, and roll back otherwise."""
        attempt, executor, call = _Attempt(operation, lost, resolve), None, object()
        with contextlib.nullcontext() if self._limited is None else self._limited(seconds) as limit:
            try:
                if self._calls is not None:
                    self._calls[call] = threading.get_ident()
                    if fork_safety.forks:
                        fork_safety.wait_for_forks(call)
                if limit is None:
                    executor = self._connect(statements)
                else:
                    executor = limit.connecting(self._connect, statements)
                    limit.watch(executor.pooled)
                return attempt.run(executor)
            except BaseException as raised:
                is_late = limit is not None and limit.ended(raised)
                failed = self._failure(executor, raised, attempt, is_late=is_late)
                if failed is None:
                    raise
                raise failed from failed.__cause__
            finally:
                try:
                    if executor is not None:
                        executor.close()
                finally:  # also if closing was interrupted
                    if limit is not None:
                        limit.is_over = True  # at once: the connection may soon have another user
                    if self._calls is not None:
                        self._calls.pop(call, None)

    def _connect(self, statements: Statements | None) -> Executor:
        """Take a connection of the pool, for precompiled statements if nothing would miss the engine's events.

        Nothing does if the engine was made by `create_engine`, has no event listeners, does not log its statements and
        has no execution options that precompiled statements do not follow.

        :param statements: the precompiled statements of the engine; None to execute through SQLAlchemy in any case.
        :raises SQLAlchemyError: the database cannot be reached.
        """
        engine = self._engine
        options = engine.get_execution_options()
        if (
            statements is None
            or not options.get(PREPARED)
            or options.keys() - _KNOWN_OPTIONS
            or engine.logger.isEnabledFor(logging.INFO)
            or any(_listeners(engine.dispatch))
            or any(_dialect_listeners(engine.dialect.dispatch))
        ):
            return ConnectionExecutor(engine.connect())
        try:
            return PrecompiledExecutor(engine, self._database, engine.raw_connection(), statements)
        except engine.dialect.loaded_dbapi.Error as error:
            raise as_sqlalchemys(error, engine.dialect, lost=False) from error

    def _failure(
        self, executor: Executor | None, raised: BaseException, attempt: _Attempt[Any], *, is_late: bool
    ) -> _AttemptFailed | None:
        """Return what an attempt's error means; None if it is not the database's."""
        error = raised if executor is None else executor.failed(raised)
        if executor is not None and attempt.stage == "commit":
            executor.rollback()
        if isinstance(error, ResolutionConflict):
            return _AttemptFailed(StorageError(str(error)), retryable=True, in_doubt=False, name="ResolutionConflict")
        database = self._database
        code = failure_code(error) if isinstance(error, DBAPIError) and error.orig is not None else None
        is_cut = is_late or is_lost(error, self._engine.dialect)
        is_unusable = is_cut or database.is_unavailable(code)
        in_doubt = attempt.in_doubt and is_cut
        if attempt.stage == "commit":
            in_doubt = is_late or database.may_have_committed(code)
        failure: SessionRepositoryError
        if is_late:
            kind = OutcomeUnknownError if in_doubt else StorageError
            failure = kind(f"could not {attempt.stage} the database: no answer")
            retryable = True
        elif isinstance(error, SQLAlchemyError) or (executor is None and isinstance(error, FAILURES)):
            failure = failure_of(error, attempt.stage, unknown=in_doubt)
            retryable = is_unusable or code in database.transient_codes
            if executor is None:
                retryable = isinstance(error, OSError) or (
                    isinstance(error, DBAPIError) and database.is_unreachable(error, code)
                )
            elif is_unusable or code in database.connection_bound_codes:
                executor.give_up()
        else:
            return None
        name = "TimeoutError" if is_late else type(error).__name__
        failed = _AttemptFailed(failure, retryable=retryable, in_doubt=in_doubt, name=name)
        failed.__cause__ = error
        if attempt.session is not None and is_cut:
            failed.server_session = (attempt.session, attempt.in_doubt)
        return failed

    def _wait(self, seconds: float) -> None:
        if self._engine.dialect.is_async:  # in a greenlet: the event loop must continue
            await_only(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)
