"""Translation of errors of SQLAlchemy and drivers. Messages never contain a driver's text, a URL or values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError, StatementError

from vibeforge_sessions.errors import ConfigurationError, OutcomeUnknownError, SessionRepositoryError, StorageError
from vibeforge_sessions.sql.dialects import DATABASE_DIALECTS
from vibeforge_sessions.sql.dialects.base import failure_code

LOST: Final = "; the server has rolled back the transaction: call rollback(), and repeat the whole transaction"
FAILURES: Final = (SQLAlchemyError, OSError, TypeError, ValueError)
"""The errors that connecting may raise."""
_DAMAGED: Final = "; the database is damaged: stop writing, and restore a backup"

T = TypeVar("T")


@contextmanager
def connected(engine: Engine) -> Iterator[Connection]:
    """Open a connection of the engine for the duration of a block."""
    with reach(engine.connect) as connection, translated("use"):
        yield connection


def reach(connect: Callable[[], T]) -> T:
    """Return the result of `connect`; translate the errors that it may raise, including the drivers'."""
    try:
        return connect()
    except FAILURES as error:
        failure = failure_of(error, "reach")
        raise failure from failure.__cause__


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Translate SQLAlchemy's errors that a block raises."""
    try:
        yield
    except SQLAlchemyError as error:
        raise failure_of(error, doing) from error


def could_not(doing: str) -> str:
    """Return the beginning of a message about a failed step (see `failure_of`)."""
    return f"could not {doing} the {'transaction' if doing == 'commit' else 'database'}: "


def failure_of(
    error: BaseException, doing: str, *, unknown: bool = False, lost: bool = False
) -> SessionRepositoryError:
    """Return this package's error for an error of SQLAlchemy or a driver.

    The original error becomes its cause, unless the original contains data.

    :param doing: the step that failed: "reach", "use" or "commit".
    :param unknown: the write may have been committed.
    :param lost: the caller's transaction is lost.
    :raises ValueError: the driver could not decode a stored value.
    """
    text = could_not(doing)
    if isinstance(error, DBAPIError) and str(error.orig).startswith("Could not decode to UTF-8"):  # SQLite's driver
        raise ValueError("a stored string is not valid UTF-8") from None
    if isinstance(error, OSError):  # raised by asyncpg; its message contains an address
        return StorageError(text + type(error).__name__)
    if not isinstance(error, SQLAlchemyError):  # the driver itself raised it, for options that it does not know
        return ConfigurationError(
            f"{text}the driver raised {type(error).__name__}: check the options in the URL and in connect_args"
        )
    _hide_values(error)
    lost = lost or isinstance(error, PendingRollbackError)
    text += failure_name(error)
    if any(failure_code(error) in each.corruption_codes for each in DATABASE_DIALECTS):
        text += _DAMAGED
    failure: SessionRepositoryError = OutcomeUnknownError(text)
    if not unknown:
        failure = StorageError(text + (LOST if lost else ""), transaction_lost=lost)
    failure.__cause__ = error
    return failure


def _hide_values(error: SQLAlchemyError) -> None:
    """Remove values, which a caller's engine might not hide, from an error before it is chained and thus logged."""
    if not isinstance(error, StatementError):
        return
    error.hide_parameters = True
    _keep_first_lines(error)
    raised: Any = error.orig
    while raised is not None:  # the cause of `error.orig` can be asyncpg's own error
        _keep_first_lines(raised)
        if hasattr(raised, "detail"):
            raised.detail = None
        raised = raised.__cause__


def _keep_first_lines(error: BaseException) -> None:
    """Remove the later lines of PostgreSQL's messages, because they quote whole rows."""
    error.args = tuple(arg.split("\n")[0] if isinstance(arg, str) else arg for arg in error.args)


def failure_name(error: BaseException) -> str:
    """Return the class and code of a failure, such as ``OperationalError SQLITE_BUSY``; never the driver's text."""
    code = failure_code(error)
    return f"{type(error).__name__} {code}" if code else type(error).__name__


def has_wrong_schema(error: StorageError) -> bool:
    """Return whether a statement may have failed because a table or column is missing.

    The function compares the codes of all databases, because reading the dialect of a caller's session could fail as
    well. No two databases have a code in common.
    """
    return any(failure_code(error.__cause__) in each.missing_schema_codes for each in DATABASE_DIALECTS)
