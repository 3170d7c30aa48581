"""Owned transactions: each operation has its own connection and its own transaction, and is retried."""

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
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects import database_dialect_of
from vibeforge_sessions.sql.dialects.base import BEHIND_POOLER, PREPARED, failure_code
from vibeforge_sessions.sql.transactions.error_translation import FAILURES, could_not, failure_name, failure_of
from vibeforge_sessions.sql.transactions.executor import Executor, PrecompiledExecutor, PrecompiledStatements
from vibeforge_sessions.sql.transactions.operation import (
    Operation,
    ResolutionConflict,
    UnresolvableOutcome,
    WriteOperation,
)
from vibeforge_sessions.sql.transactions.time_limits import limits_of

T = TypeVar("T")

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
"""Listeners to the events that precompiled statements do not raise, except ``begin``, which SQLite's dialect uses."""
_dialect_listeners: Final = operator.attrgetter("do_execute", "do_execute_no_params", "do_executemany", "handle_error")
_SCHEMAS: Final = "schema_translate_map"
_KNOWN_OPTIONS: Final = {PREPARED, BEHIND_POOLER, _SCHEMAS}
"""Execution options of an engine on which precompiled statements can be used."""


@dataclasses.dataclass(eq=False)
class _AttemptFailed(Exception):  # noqa: N818 (private)
    """The failure of one attempt."""

    error: SessionRepositoryError
    retryable: bool
    in_doubt: bool
    """Whether the write may have been committed."""
    name: str
    """The name of the failure, for log records."""


@dataclasses.dataclass(slots=True, eq=False)
class _Call(Generic[T]):
    """An operation with the stage of its current attempt and the results of earlier attempts."""

    operation: Operation[T]
    in_doubt: SessionRepositoryError | None = None
    """The error of the first attempt after which the write may have been committed."""
    lost_session: tuple[Any, bool] | None = None
    """For a lost connection: the argument of `DatabaseDialect.end_server_session`, and `commits_itself`."""
    may_still_arrive: bool = False
    """Whether the server may still execute a statement that commits itself."""
    stage: str = "reach"
    session: Any = None
    """The argument of `DatabaseDialect.end_server_session` for the attempt's connection."""
    commits_itself: bool = False
    """Whether a statement that commits itself may have been sent."""


class OwnedTransactions:
    """Runs each operation in a transaction of its own.

    :param precompiled: use precompiled statements unless the engine is instrumented (see `_connect`).
    """

    def __init__(self, engine: Engine, *, precompiled: bool, retry: RetryPolicy) -> None:
        fork_safety.track(engine)
        self.bind = engine
        self._database = database_dialect_of(engine.dialect)
        self._statements = PrecompiledStatements(engine.dialect, None) if precompiled else None
        self._retry = retry
        self._limited = limits_of(engine.dialect) if self._database.is_server else None
        self._calls = fork_safety.calls_of(engine)

    def __str__(self) -> str:
        return self.bind.dialect.name

    def transaction_of(self, session_id: str) -> None:
        """Return None, because every write is already committed."""

    def run(self, operation: Operation[T]) -> T:
        """Execute the operation, wholly or not at all.

        :raises StorageError: SQLAlchemy or the driver raised an error, which is chained without parameters.
        :raises OutcomeUnknownError: the outcome of an in-doubt write could not be resolved.
        """
        retry, call, statements = self._retry, _Call(operation), self._statements
        deadline = retry.deadline + operation.extra_seconds
        until = time.monotonic() + deadline
        longest = deadline if retry.attempts == 1 else deadline / 2
        for attempt in itertools.count(1):
            try:
                return self._attempt(call, statements, min(longest, max(0.0, until - time.monotonic())))
            except UnresolvableOutcome as reason:
                text = f"{call.in_doubt.args[0]}; {reason}" if call.in_doubt else str(reason)
                raise OutcomeUnknownError(text) from (call.in_doubt.__cause__ if call.in_doubt else None)
            except (ConfigurationError, StorageError):  # raised by a check of the connection, before any statement
                if call.in_doubt is None:
                    raise
                raise call.in_doubt from call.in_doubt.__cause__
            except _AttemptFailed as failed:
                if failed.in_doubt:
                    call.in_doubt = call.in_doubt or failed.error
                delay = retry.delay(attempt)
                may_retry = failed.retryable or failed.in_doubt
                if not may_retry or attempt >= retry.attempts or time.monotonic() + delay >= until:
                    error = call.in_doubt or failed.error
                    raise error from error.__cause__
                instrumentation.report_retry(failed.name)
            if self.bind.dialect.is_async:  # in a greenlet: the event loop must continue
                await_only(asyncio.sleep(delay))
            else:
                time.sleep(delay)
            statements = None  # the ordinary path also discards the pool's other connections if the server is gone
        raise AssertionError("unreachable")

    def _attempt(self, call: _Call[T], statements: PrecompiledStatements | None, seconds: float) -> T:
        """Execute the operation once, or resolve it if it is in doubt; commit a write, and roll back otherwise."""
        executor: Executor | None = None
        call.stage, call.session, call.commits_itself = "reach", None, False
        with contextlib.nullcontext() if self._limited is None else self._limited(seconds) as limit:
            try:
                if limit is None:
                    executor = self._connect(call, statements)
                else:
                    executor = limit.connecting(self._connect, call, statements)
                call.stage = "use"
                if call.lost_session is not None:
                    _end_lost_session(call, executor, call.lost_session)
                operation, write = call.operation, call.operation.is_write
                call.session = executor.server_session if write and self._database.is_server else None
                single_statement = call.in_doubt is None and not operation.needs_transaction
                has_transaction = executor.begin(write=write, single_statement=single_statement)
                call.commits_itself = write and not has_transaction
                if call.in_doubt and isinstance(operation, WriteOperation):
                    result: T = operation.resolve(executor, may_still_arrive=call.may_still_arrive)
                else:
                    result = operation.execute(executor)
                if write and has_transaction:
                    call.stage = "commit"
                    executor.commit()
                return result
            except BaseException as raised:
                self._raise_failure(call, executor, raised, is_late=limit is not None and limit.ended(raised))
                raise
            finally:
                try:
                    if executor is not None:
                        executor.close()
                finally:  # even if closing was interrupted
                    if limit is not None:
                        limit.is_over = True  # without delay: the connection may soon have another user
                    if self._calls is not None:
                        self._calls.pop(call, None)

    def _connect(self, call: _Call[Any], statements: PrecompiledStatements | None) -> Executor:
        """Take a connection from the pool, and choose precompiled statements if no code depends on the engine's events.

        That is the case if the engine was made by `create_engine`, has no event listeners, does not log statements, and
        has no execution options except `_KNOWN_OPTIONS`. The first call on a server takes the ordinary path, which
        reads the server's settings.

        :param statements: the precompiled statements of the engine; None to execute through SQLAlchemy in any case.
        :raises SQLAlchemyError: the database cannot be reached.
        """
        if self._calls is not None:
            self._calls[call] = threading.get_ident()
            if fork_safety.forks:
                fork_safety.wait_for_forks(call)
        engine = self.bind
        options = engine.get_execution_options()
        if (
            statements is None
            or not options.get(PREPARED)
            or options.keys() - _KNOWN_OPTIONS
            or engine.logger.isEnabledFor(logging.INFO)
            or any(_listeners(engine.dispatch))
            or any(_dialect_listeners(engine.dialect.dispatch))
            or (self._database.is_server and engine.dialect not in self._database.server_settings)
        ):
            return Executor(engine.connect(), self._database)
        if statements.schemas != options.get(_SCHEMAS):  # an engine's schema may be changed at any time
            statements = self._statements = PrecompiledStatements(engine.dialect, options.get(_SCHEMAS))
        return PrecompiledExecutor(engine.connect(), self._database, statements)

    def _raise_failure(
        self, call: _Call[Any], executor: Executor | None, raised: BaseException, *, is_late: bool
    ) -> None:
        """Translate and raise the error of an attempt if it is an error of the database; otherwise return."""
        error = raised if executor is None else executor.failed(raised)
        if executor is not None and call.stage == "commit":
            executor.rollback()
        if isinstance(error, ResolutionConflict):
            failure: SessionRepositoryError = StorageError(str(error))
            raise _AttemptFailed(failure, retryable=True, in_doubt=False, name=type(error).__name__)
        database, code = self._database, failure_code(error)
        is_cut = is_late or database.is_lost(error)
        is_unusable = is_cut or code in database.unavailable_codes
        in_doubt = call.commits_itself and is_cut
        if call.stage == "commit":
            in_doubt = is_late or database.may_have_committed(code)
        if is_late:
            kind = OutcomeUnknownError if in_doubt else StorageError
            failure = kind(f"{could_not(call.stage)}no answer")
            retryable, name = True, "TimeoutError"
        elif isinstance(error, SQLAlchemyError) or (executor is None and isinstance(error, FAILURES)):
            failure = failure_of(error, call.stage, unknown=in_doubt)
            retryable, name = is_unusable or code in database.transient_codes, failure_name(error)
            if executor is None:
                retryable = isinstance(error, OSError) or (
                    isinstance(error, DBAPIError) and database.is_unreachable(error, code)
                )
            elif is_unusable or code in database.connection_bound_codes:
                executor.give_up()
        else:
            return
        if call.session is not None and is_cut:
            call.lost_session = call.session, call.commits_itself
        raise _AttemptFailed(failure, retryable=retryable, in_doubt=in_doubt, name=name) from error


def _end_lost_session(call: _Call[Any], executor: Executor, lost_session: tuple[Any, bool]) -> None:
    """End the server session of a connection that the call has lost, using the connection of a later attempt."""
    (session, commits_itself), connection, database = lost_session, executor.connection, executor.database
    is_certain = False
    try:
        is_certain = database.end_server_session(connection, session)
    except DBAPIError as error:
        if database.is_lost(error) or failure_code(error) in database.unavailable_codes:
            raise
    finally:
        if not connection.closed:
            connection.rollback()
    call.may_still_arrive |= commits_itself and not is_certain
    call.lost_session = None
