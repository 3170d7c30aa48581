"""What fails, in our words: names and codes, never a driver's text, a URL or values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError, StatementError

from vibeforge_sessions.errors import ConfigurationError, OutcomeUnknownError, SessionRepositoryError, StorageError
from vibeforge_sessions.sql.dialects import DATABASE_DIALECTS, database_dialect_of, failure_code

LOST: Final = "; the transaction was rolled back by the server: roll back, and do all of it again"
FAILURES: Final = (SQLAlchemyError, OSError, TypeError, ValueError)
"""What connecting may raise."""
_DAMAGED: Final = "; the database is damaged: stop writing, and restore a backup"

T = TypeVar("T")


@contextmanager
def connected(engine: Engine) -> Iterator[Connection]:
    """Give a connection of the engine."""
    with reach(engine.connect) as connection, translated("use"):
        yield connection


def reach(connect: Callable[[], T]) -> T:
    """Return what `connect` does, which may fail in more ways than SQLAlchemy's."""
    try:
        return connect()
    except FAILURES as error:
        failure = failure_of(error, "reach")
        raise failure from failure.__cause__


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn SQLAlchemy's errors into ours."""
    try:
        yield
    except SQLAlchemyError as error:
        raise failure_of(error, doing) from error


def failure_of(
    error: BaseException, doing: str, *, unknown: bool = False, lost: bool = False
) -> SessionRepositoryError:
    """Return our error for what SQLAlchemy or a driver has raised, with its cause where that shows no data.

    :param doing: what could not be done: "reach", "use" or "commit".
    :param unknown: nobody can tell whether it was done.
    :param lost: a host's transaction is lost.
    :raises ValueError: the driver could not make sense of a stored value.
    """
    text = f"could not {doing} the database: "
    if isinstance(error, DBAPIError) and any(each.is_undecodable_value(error) for each in DATABASE_DIALECTS):
        raise ValueError("a text is no text") from None
    if isinstance(error, OSError):  # asyncpg's; it shows an address
        return StorageError(text + type(error).__name__)
    if not isinstance(error, SQLAlchemyError):  # a driver's own, for options that it does not know
        return ConfigurationError(
            f"{text}the driver raised {type(error).__name__}: check the options in the URL and in connect_args"
        )
    _hide_values(error)
    lost = lost or isinstance(error, PendingRollbackError)
    text += failure_name(error)
    if isinstance(error, DBAPIError) and any(
        failure_code(error) in each.corruption_codes for each in DATABASE_DIALECTS
    ):
        text += _DAMAGED
    failure: SessionRepositoryError
    if unknown:
        failure = OutcomeUnknownError(text)
    else:
        failure = StorageError(text + (LOST if lost else ""), transaction_lost=lost)
    failure.__cause__ = error
    return failure


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


def has_wrong_schema(error: StorageError) -> bool:
    """Tell whether a statement may have failed because the tables are not those that it was written for.

    No two databases have a code in common, and to ask a host's session for its own could fail as well.
    """
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and any(
        failure_code(cause) in each.missing_schema_codes for each in DATABASE_DIALECTS
    )


def as_sqlalchemys(error: Exception, dialect: Dialect, *, lost: bool) -> BaseException:
    """Return a driver's own error as SQLAlchemy would raise it."""
    base = dialect.loaded_dbapi.Error
    wrapped = DBAPIError.instance(
        None, None, error, base, hide_parameters=True, connection_invalidated=lost, dialect=dialect
    )
    wrapped.__cause__ = error
    return wrapped


def is_lost(error: BaseException, dialect: Dialect) -> bool:
    """Return whether an error means that the connection is lost."""
    return isinstance(error, DBAPIError) and database_dialect_of(dialect).is_lost(error)
