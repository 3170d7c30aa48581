"""Joined transactions: each operation runs in a savepoint of the caller's transaction, and is not retried."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import ExitStack
from typing import Final, TypeVar

from sqlalchemy import Connection, NestedTransaction, orm
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.sql.dialects import database_dialect_of
from vibeforge_sessions.sql.transactions.error_translation import LOST, failure_of, reach
from vibeforge_sessions.sql.transactions.executor import Executor, joined_writes
from vibeforge_sessions.sql.transactions.operation import Operation
from vibeforge_sessions.sql.transactions.time_limits import limits_of

T = TypeVar("T")


class JoinedTransaction:
    """Runs each operation in a savepoint; the caller alone commits the transaction or rolls it back.

    :param host: a `Connection` or an `orm.Session`; the first call begins its transaction unless there is one.
    """

    def __init__(self, host: Connection | orm.Session, *, retry: RetryPolicy) -> None:
        self._host = host
        self._deadline = retry.deadline

    def __str__(self) -> str:
        return f"{type(self._host).__name__} of the caller"

    @property
    def bind(self) -> Connection:
        """The connection of the caller's transaction."""
        return self._host.connection() if isinstance(self._host, orm.Session) else self._host

    def transaction_of(self, session_id: str) -> str | None:
        """Return the id of the caller's transaction, which may still be rolled back, if it has written the session."""
        return joined_writes(self.bind).transaction_of(session_id)

    def run(self, operation: Operation[T]) -> T:
        """Execute the operation, wholly or not at all.

        :raises StorageError: SQLAlchemy or the driver raised an error, which is chained without parameters.
        """
        shared: Connection | orm.Session = self._host
        if isinstance(shared, orm.Session) and isinstance(shared.bind, Connection):
            shared = shared.bind
        with ExitStack() as turn:
            _queue(shared, turn)
            connection = reach(lambda: self.bind)  # an orm.Session may open its connection only now
            if connection is not shared:
                _queue(connection, turn)
            return self._run(operation, Executor(connection, database_dialect_of(connection.dialect), joined=True))

    def _run(self, operation: Operation[T], executor: Executor) -> T:
        with limits_of(executor.dialect)(self._deadline + operation.extra_seconds) as limit:
            savepoint = None
            try:
                limit.connecting(executor.join)
                savepoint = executor.connection.begin_nested()
                result = operation.execute(executor)
                savepoint.commit()
            except BaseException as raised:
                is_late = limit.ended(raised)
                if savepoint is None:
                    lost = is_late or executor.database.is_lost(raised)
                else:
                    lost = not _rolled_back(savepoint, executor.connection) or is_late
                if is_late:
                    raise StorageError(f"could not use the database: no answer{LOST}", transaction_lost=True) from None
                if isinstance(raised, SQLAlchemyError):
                    raise failure_of(raised, "use", lost=lost) from raised
                if lost and isinstance(raised, Exception):
                    raise StorageError(
                        f"the changes of the call could not be rolled back{LOST}", transaction_lost=True
                    ) from raised
                raise
            finally:  # the handler may have been interrupted, and the caller keeps the connection
                if savepoint is not None and savepoint.is_active and not executor.connection.invalidated:
                    savepoint.rollback()
                limit.is_over = True
            return result


def _rolled_back(savepoint: NestedTransaction, connection: Connection) -> bool:
    """Roll back to the savepoint; return whether it still existed, and with it the caller's transaction."""
    try:
        if not connection.invalidated:
            savepoint.rollback()
            return not connection.invalidated
    except SQLAlchemyError:  # after a deadlock, MariaDB has rolled back the whole transaction
        # SQLAlchemy has not noticed, and would let the caller commit the statements that follow
        connection.invalidate()
    return False


_queues: Final[weakref.WeakKeyDictionary[object, asyncio.Lock]] = weakref.WeakKeyDictionary()


def _queue(host: Connection | orm.Session, until: ExitStack) -> None:
    """Make the calls of several tasks on one asynchronous connection or session run one after the other.

    If calls interleaved, one call could release or roll back the savepoint of another.

    :param until: the next call starts when this stack is closed.
    """
    if in_greenlet():
        turn = _queues.setdefault(host, asyncio.Lock())
        await_only(turn.acquire())
        until.callback(turn.release)
