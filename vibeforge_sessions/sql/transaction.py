"""The transactions of units of work: their own, or a host's; and the translation of what fails."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Dialect, Engine, NestedTransaction, orm
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError, StatementError
from sqlalchemy.util import await_only

from vibeforge_sessions import observe
from vibeforge_sessions.errors import OutcomeUnknownError, StorageError
from vibeforge_sessions.repository import pause
from vibeforge_sessions.sql.databases import DATABASES, database_of
from vibeforge_sessions.sql.execution import Executor, Known, ThroughSQLAlchemy, executor_of, failure_code

ATTEMPTS: Final = 20
"""How often a unit of work is tried that the database rolls back in favour of another, as in a deadlock."""
_LOST: Final = "; the transaction was rolled back by the server: roll back, and do all of it again"

T = TypeVar("T")

_one_at_a_time: Final = threading.Lock()


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

    @abstractmethod
    def run(self, work: Callable[[Executor], T], *, write: bool, at_once: bool) -> T:
        """Do the work, wholly or not at all.

        :param at_once: the work needs no transaction where each write is one statement (`Database.writes_at_once`).
        :raises StorageError: SQLAlchemy or the driver raised; what it raised is chained, without parameters.
        """


class OwnTransactions(Transactions):
    """Each unit of work has a connection of the engine, and a transaction, to itself.

    One that the database rolls back in favour of another is done again.

    :param fast_path: may go past SQLAlchemy's `Connection` (see `execution`).
    """

    def __init__(self, engine: Engine, *, fast_path: bool) -> None:
        make_ready_for_threads(engine)
        self._engine = engine
        self._known: Known | None = {} if fast_path else None

    def __str__(self) -> str:
        return self._engine.dialect.name

    @property
    def bind(self) -> Engine:
        return self._engine

    def run(self, work: Callable[[Executor], T], *, write: bool, at_once: bool) -> T:
        known = self._known
        for attempt in itertools.count(1):
            try:
                return self._once(work, write=write, at_once=at_once, known=known)
            except StorageError as error:
                cause = transient_cause(error, self._engine.dialect)
                if not write or attempt == ATTEMPTS or cause is None:
                    raise
                observe.again(failure_name(cause))
            known = None  # the long way also knows what to do about the other connections of a pool
            self._wait(pause(attempt))
        raise AssertionError("unreachable")

    def _once(self, work: Callable[[Executor], T], *, write: bool, at_once: bool, known: Known | None) -> T:
        """Commit a write at the end; roll back otherwise."""
        executor = _reach(lambda: executor_of(self._engine, known))
        doing, unknown = "use", False
        try:
            begun = executor.begin(write=write, at_once=at_once)
            unknown = write and not begun
            result = work(executor)
            if write and begun:
                doing = "commit"
                executor.commit()
        except BaseException as raised:
            error = executor.failed(raised)
            if doing == "commit":
                executor.rollback()
                unknown = executor.database.unknown_commits
            elif unknown:  # a statement that commits itself may have done so when the connection was lost
                unknown = _is_lost(error)
            if isinstance(error, SQLAlchemyError):
                raise _ours(error, doing, unknown=unknown) from error
            raise
        finally:
            executor.close()
        return result

    def _wait(self, seconds: float) -> None:
        if self._engine.dialect.is_async:  # within a greenlet, whose event loop must go on
            await_only(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)


class HostsTransaction(Transactions):
    """Each unit of work is a savepoint in the transaction of a host, who alone commits it or rolls it back.

    :param host: a `Connection` or an `orm.Session`; its transaction begins with the first call, if it has not yet.
    """

    def __init__(self, host: Connection | orm.Session) -> None:
        self._host = host

    def __str__(self) -> str:
        return f"{type(self._host).__name__} of the host"

    @property
    def bind(self) -> Connection:
        return self._host.connection() if isinstance(self._host, orm.Session) else self._host

    def run(self, work: Callable[[Executor], T], *, write: bool, at_once: bool) -> T:
        executor = ThroughSQLAlchemy(_reach(lambda: self.bind), joined=True)  # an orm.Session may connect only now
        try:
            executor.join()
            savepoint = executor.connection.begin_nested()
        except SQLAlchemyError as error:
            raise _ours(error, "use", lost=_is_lost(error)) from error
        try:
            result = work(executor)
            savepoint.commit()
        except BaseException as raised:
            lost = not _rolled_back(savepoint, executor.connection)
            if isinstance(raised, SQLAlchemyError):
                raise _ours(raised, "use", lost=lost) from raised
            if lost and isinstance(raised, Exception):
                raise StorageError(f"the call was not undone{_LOST}", transaction_lost=True) from raised
            raise
        return result


def transactions_of(bind: object, *, fast_path: bool) -> Transactions:
    """Return what a repository on an engine, or on something with a transaction of its own, runs in."""
    if isinstance(bind, Engine):
        return OwnTransactions(bind, fast_path=fast_path)
    if isinstance(bind, (Connection, orm.Session)):
        return HostsTransaction(bind)
    raise TypeError(f"must be an sqlalchemy Engine, Connection or orm.Session, not {type(bind).__name__}")


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


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


@contextmanager
def connected(engine: Engine) -> Iterator[Connection]:
    """Give a connection of the engine."""
    with _reach(engine.connect) as connection, translated("use"):
        yield connection


def _reach(connect: Callable[[], T]) -> T:
    try:
        return connect()
    except SQLAlchemyError as error:
        raise _ours(error, "reach") from error
    except OSError as error:  # asyncpg's; it shows an address
        raise StorageError(f"could not reach the database: {type(error).__name__}") from None
    except (TypeError, ValueError) as error:  # a driver's own, for options that it does not know
        raise StorageError(
            f"could not reach the database: {type(error).__name__} of the driver; look at the URL's options"
        ) from None


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn SQLAlchemy's errors into ours."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _ours(error, doing) from error


def _ours(error: SQLAlchemyError, doing: str, *, unknown: bool = False, lost: bool = False) -> StorageError:
    _hide_values(error)
    kind = OutcomeUnknownError if unknown else StorageError
    lost = lost or isinstance(error, PendingRollbackError)
    text = f"could not {doing} the database: {failure_name(error)}{_LOST if lost else ''}"
    return kind(text, transaction_lost=lost)


def _hide_values(error: SQLAlchemyError) -> None:
    """Take values out of an error that is to be chained, and so ends up in logs, with a host's engine too."""
    if not isinstance(error, StatementError):
        return
    error.hide_parameters = True
    _keep_first_lines(error)
    raised: Any = error.orig
    while raised is not None:  # asyncpg's own error is the cause of what SQLAlchemy takes for the driver's
        _keep_first_lines(raised)
        if hasattr(raised, "detail"):
            raised.detail = None
        raised = raised.__cause__


def _keep_first_lines(error: BaseException) -> None:
    """Cut what PostgreSQL says in later lines: they quote whole rows."""
    error.args = tuple(arg.split("\n")[0] if isinstance(arg, str) else arg for arg in error.args)


def failure_name(error: SQLAlchemyError) -> str:
    """Return what failed by class and code, such as ``OperationalError SQLITE_BUSY``; never the driver's text."""
    name = type(error).__name__
    if not isinstance(error, DBAPIError) or error.orig is None:
        return name
    code = failure_code(error)
    return f"{name} {code}" if code else name


def transient_cause(error: StorageError, dialect: Dialect) -> DBAPIError | None:
    """Return the cause if the database has rolled the transaction back so that somebody else's could go on."""
    cause = error.__cause__
    if isinstance(error, OutcomeUnknownError) or not isinstance(cause, DBAPIError):
        return None
    return cause if failure_code(cause) in database_of(dialect).transient else None


def has_wrong_schema(error: StorageError) -> bool:
    """Tell whether a statement may have failed because the tables are not those that it was written for.

    No two databases have a code in common, and to ask a host's session for its own could fail as well.
    """
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and any(failure_code(cause) in each.wrong_schema for each in DATABASES)
