"""One transaction on a host's or our own engine: begin, commit, rollback, and the translation of what fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from vibeforge_sessions.errors import OutcomeUnknownError, StorageError
from vibeforge_sessions.sql.databases import database_of
from vibeforge_sessions.sql.execution import Executor, Known, executor_of, failure_code

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


def run_in_transaction(
    engine: Engine, work: Callable[[Executor], T], *, write: bool, at_once: bool, known: Known | None
) -> T:
    """Do the work on a connection of the engine, in a transaction; commit a write at the end, roll back otherwise.

    :param at_once: the work needs no transaction where each write is one statement (`Database.writes_at_once`).
    :param known: compiled statements, for the way past SQLAlchemy's `Connection` (see `execution`).
    :raises StorageError: SQLAlchemy or the driver raised; what it raised is chained, without parameters.
    """
    executor = _reach(lambda: executor_of(engine, known))
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
            unknown = isinstance(error, DBAPIError) and error.connection_invalidated
        if isinstance(error, SQLAlchemyError):
            raise _ours(error, doing, unknown=unknown) from error
        raise
    finally:
        executor.close()
    return result


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


def _ours(error: SQLAlchemyError, doing: str, *, unknown: bool = False) -> StorageError:
    _hide_values(error)
    kind = OutcomeUnknownError if unknown else StorageError
    return kind(f"could not {doing} the database: {failure_name(error)}")


def _hide_values(error: SQLAlchemyError) -> None:
    """Take values out of an error that is to be chained, and so ends up in logs, with a host's engine too."""
    if not isinstance(error, StatementError):
        return
    error.hide_parameters = True
    if error.orig is not None:  # PostgreSQL's later lines quote whole rows
        error.orig.args = tuple(arg.split("\n")[0] if isinstance(arg, str) else arg for arg in error.orig.args)
        error.args = tuple(arg.split("\n")[0] if isinstance(arg, str) else arg for arg in error.args)


def failure_name(error: SQLAlchemyError) -> str:
    """Return what failed by class and code, such as ``OperationalError SQLITE_BUSY``; never the driver's text."""
    name = type(error).__name__
    if not isinstance(error, DBAPIError) or error.orig is None:
        return name
    code = failure_code(error)
    return f"{name} {code}" if code else name


def is_transient(engine: Engine, error: StorageError) -> bool:
    """Tell whether the database has rolled the transaction back so that somebody else's could go on."""
    cause = error.__cause__
    if isinstance(error, OutcomeUnknownError) or not isinstance(cause, DBAPIError):
        return False
    return failure_code(cause) in database_of(engine.dialect).transient


def is_wrong_schema(engine: Engine, error: DBAPIError) -> bool:
    """Tell whether a statement may have failed because the tables are not those that it was written for."""
    return failure_code(error) in database_of(engine.dialect).wrong_schema
