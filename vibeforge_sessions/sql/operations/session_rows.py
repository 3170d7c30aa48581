"""Parameters, statements and rows that several operations share.

Every operation writes a session's row before its child rows, because the other order deadlocks on MariaDB.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Delete,
    Executable,
    Insert,
    Integer,
    Select,
    Table,
    Update,
    bindparam,
    case,
    delete,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from vibeforge_sessions.errors import CorruptSessionError, SessionExistsError, SessionNotFoundError, StaleSessionError
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository import changeset
from vibeforge_sessions.repository.changeset import Changeset
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql.dialects.base import failure_code
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions
from vibeforge_sessions.sql.transactions.executor import Executor

# These parameter names differ from the column names, which SQLAlchemy reserves for the values to be set.
ID: Final = "of_session_id"
VERSION: Final = "read_version"
WRITE_ID: Final = "read_write_id"
NOW: Final = "now"
AFTER: Final = "after_position"
UNTIL: Final = "until_position"

_BATCH: Final = 1_000
"""Maximum number of history entries that are sent at once."""

this_session: Final = sessions.c.session_id == bindparam(ID)
now: Final[BindParameter[Any]] = bindparam(NOW, type_=sessions.c.updated_at.type)
later_updated_at: Final = case((sessions.c.updated_at < now, now), else_=sessions.c.updated_at)
"""The later of the stored and the given time, so that ``updated_at`` never decreases."""

insert_session: Final[Insert] = insert(sessions)
delete_session: Final[Delete] = delete(sessions).where(this_session)
_insert_documents: Final[Insert] = insert(documents)
counters: Final = (sessions.c.error_count, sessions.c.log_count, sessions.c.updated_at, sessions.c.phase)
"""Columns of the session's row that updates and appends return."""
select_counters: Final[Select[Any]] = select(*counters).where(this_session)
select_version: Final[Select[Any]] = select(sessions.c.version, sessions.c.write_id).where(this_session)


@functools.cache
def committed(statement: Select[Any]) -> Select[Any]:
    """Return a query for the latest committed rows, whatever snapshot the transaction has."""
    return statement.with_for_update(read=True)


def inline(limit: int) -> ColumnElement[int]:
    """Return a number as part of the statement's text.

    PostgreSQL assumes that a LIMIT parameter selects a tenth of the table. It therefore rejects the generic plan as too
    expensive, and plans again at each call, which doubles the time.
    """
    return literal_column(str(int(limit)), Integer)


class History(NamedTuple):
    """The statements of one history."""

    table: Table
    prefix: str
    """Prefix of the parameters for the columns of the table."""
    counter: str
    """The column of the session's row that counts the entries."""
    text: str
    """The column whose strings may have any length."""
    count_one: Update
    """Increases the count by one. The new count is the position of the new entry."""
    insert: Insert
    last_of_write: Select[Any]
    """Selects the position of the last entry of a write, and its phase if the history has phases."""


def _history(table: Table, prefix: str, text: str) -> History:
    counter = f"{prefix}count"
    count_one = (
        update(sessions).where(this_session).values({"updated_at": later_updated_at, counter: sessions.c[counter] + 1})
    )
    last_of_write = (
        select(*(table.c[name] for name in ("position", "phase") if name in table.c))
        .where(table.c.session_id == bindparam(ID), table.c.write_id == bindparam(WRITE_ID))
        .order_by(table.c.position.desc())
        .limit(inline(1))
    )
    return History(table, prefix, counter, text, count_one, insert(table), last_of_write)


ERRORS: Final = _history(errors, "error_", "error_message")
LOGS: Final = _history(logs, "log_", "message")


_IN_CONTENT: Final = {"phase", "current_question_index", "active_task_id"}


def session_row(record: Record) -> dict[str, Any]:
    """Return the row of a session."""
    names = sessions.columns.keys()
    return {name: getattr(record.content if name in _IN_CONTENT else record, name) for name in names}


def error_rows(session_id: str, entries: Iterable[ErrorEntry], write_id: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of error entries whose positions are set."""
    for entry in entries:
        yield {
            "session_id": session_id,
            "position": entry.position,
            "timestamp": entry.timestamp,
            "task_id": entry.task_id,
            "error_message": entry.error_message,
            "phase": entry["phase"],
            "write_id": write_id,
        }


def log_rows(session_id: str, lines: Iterable[str], first: int, write_id: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of log lines. The first line has the position `first`."""
    for position, line in enumerate(lines, first):
        yield {"session_id": session_id, "position": position, "message": line, "write_id": write_id}


def entry_rows(write: Changeset, error_count: int, log_count: int) -> dict[History, list[dict[str, Any]]]:
    """Return the rows of a changeset's new entries. The counts are those of the histories with the new entries."""
    rows: dict[History, list[dict[str, Any]]] = {}
    if write.errors:
        placed = changeset.assign_positions(write.errors, error_count)
        rows[ERRORS] = list(error_rows(write.session_id, placed, write.write_id))
    if write.logs:
        rows[LOGS] = list(log_rows(write.session_id, write.logs, log_count - len(write.logs) + 1, write.write_id))
    return rows


@contextlib.contextmanager
def duplicate_raises(executor: Executor, error: Exception) -> Iterator[None]:
    """Raise the error if the block violates a primary key, but not for a constraint that the DBA has added."""
    try:
        yield
    except Exception as raised:
        failure = executor.failed(raised)
        if isinstance(failure, IntegrityError) and failure_code(failure) in executor.database.duplicate_key_codes:
            raise error from None
        raise


def store_rows(executor: Executor, statement: Executable, rows: list[dict[str, Any]]) -> int:
    """Execute a statement for rows with strings of any length.

    :returns: the number of rows that it matched.
    """
    executor.check_rows(rows)
    return executor.write(statement, rows)


def store_entries(executor: Executor, entries: Mapping[History, Iterable[dict[str, Any]]]) -> None:
    """Insert the rows of new entries."""
    for history, rows in entries.items():
        remaining = iter(rows)
        while batch := list(itertools.islice(remaining, _BATCH)):
            store_rows(executor, history.insert, batch)


def store_session(executor: Executor, record: Record, entries: Mapping[History, Iterable[dict[str, Any]]]) -> None:
    """Insert a session with its documents and histories.

    :raises SessionExistsError: a session with this id exists.
    """
    with duplicate_raises(executor, SessionExistsError(record.session_id)):
        executor.write(insert_session, [session_row(record)])
    store_rows(executor, _insert_documents, [{"session_id": record.session_id, **record.content.documents}])
    store_entries(executor, entries)


def missed(executor: Executor, session_id: str, version: int, write_id: str) -> Exception:
    """Return the error for an update that matched no row with the expected version and write id."""
    # the update has read the latest row; the snapshot of a joined transaction may be older, so read the committed row
    stored = executor.row(committed(select_version) if executor.joined else select_version, {ID: session_id})
    if stored is None:
        return SessionNotFoundError(session_id)
    if tuple(stored) == (version, write_id):  # the version matches, so the documents are missing
        return no_documents(session_id)
    return StaleSessionError(session_id, version, stored[0])


def no_documents(session_id: str) -> CorruptSessionError:
    """Return the error for a session whose documents were deleted."""
    return CorruptSessionError(session_id, "its documents are missing")
