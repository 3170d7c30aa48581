"""One transaction on a host's or our own engine: begin, commit, rollback, and the translation of what fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from vibeforge_sessions.errors import OutcomeUnknownError, StorageError
from vibeforge_sessions.sql.databases import database_of

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


@contextmanager
def transaction(engine: Engine, *, write: bool) -> Iterator[Connection]:
    """Give a connection in a transaction; commit a write at the end, roll back otherwise.

    :raises StorageError: SQLAlchemy or the driver raised; what it raised is chained, without parameters.
    """
    database = database_of(engine.dialect)
    with connected(engine) as connection:
        with translated("use"):
            database.begin(connection, write=write)
            yield connection
        if write:
            try:
                with translated("commit", unknown=database.unknown_commits):
                    connection.commit()
            except BaseException:
                _forget(connection)
                raise


@contextmanager
def connected(engine: Engine) -> Iterator[Connection]:
    """Give a connection of the engine."""
    with translated("reach"):
        try:
            connection = engine.connect()
        except (TypeError, ValueError) as error:  # a driver's own, for options that it does not know
            raise StorageError(
                f"could not reach the database: {type(error).__name__} of the driver; look at the URL's options"
            ) from None
        with connection:
            yield connection


def _forget(connection: Connection) -> None:
    """Undo what a failed COMMIT has left: SQLAlchemy takes the transaction for ended, SQLite's may go on.

    The next one to get this connection would commit it.
    """
    try:
        connection.connection.rollback()
    except Exception:  # noqa: BLE001 (whatever it is, this connection is of no more use)
        connection.invalidate()


@contextmanager
def translated(doing: str, *, unknown: bool = False) -> Iterator[None]:
    """Turn SQLAlchemy's errors into ours; `unknown` where a failure does not tell whether it was done."""
    try:
        yield
    except SQLAlchemyError as error:
        _hide_values(error)
        kind = OutcomeUnknownError if unknown else StorageError
        raise kind(f"could not {doing} the database: {failure_name(error)}") from error


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


def failure_code(error: DBAPIError) -> Any:
    """Return SQLite's error name, PostgreSQL's SQLSTATE or MariaDB's error number."""
    original: Any = error.orig
    if original.args and isinstance(original.args[0], int):
        return original.args[0]
    return getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None)


def is_transient(engine: Engine, error: StorageError) -> bool:
    """Tell whether the database has rolled the transaction back so that somebody else's could go on."""
    cause = error.__cause__
    if isinstance(error, OutcomeUnknownError) or not isinstance(cause, DBAPIError):
        return False
    return failure_code(cause) in database_of(engine.dialect).transient


def is_wrong_schema(engine: Engine, error: DBAPIError) -> bool:
    """Tell whether a statement may have failed because the tables are not those that it was written for."""
    return failure_code(error) in database_of(engine.dialect).wrong_schema
