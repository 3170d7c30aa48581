"""Units of work that write: plain functions that run statements, in a transaction that somebody else begins and ends.

The first statement of every one is a write, so that on a host's plain SQLite engine no transaction has to turn from a
reader into a writer. Where a database can do each write as one statement, there need be no transaction either.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Executable, Update

from vibeforge_sessions import changes
from vibeforge_sessions.changes import Write
from vibeforge_sessions.codec import DOCUMENTS, Record
from vibeforge_sessions.errors import SessionExistsError, SessionNotFoundError
from vibeforge_sessions.sql import at_once
from vibeforge_sessions.sql import statements as sql
from vibeforge_sessions.sql.execution import Executor
from vibeforge_sessions.sql.reads import missed, no_documents


def create(executor: Executor, write: Write) -> Record:
    """Insert a session and what it brings along."""
    record = changes.record_of(
        write, version=1, updated_at=write.updated_at, error_count=len(write.errors), log_count=len(write.logs)
    )
    row = {
        **_hot(write),
        "session_id": record.session_id,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "version": record.version,
        "error_count": record.error_count,
        "log_count": record.log_count,
    }
    try:
        if executor.database.writes_at_once:
            statement = at_once.create(with_errors=bool(write.errors), with_logs=bool(write.logs))
            executor.rows(statement, {**at_once.of_session(row), **_all_at_once(executor, write)})
            return record
        executor.write(sql.insert_session, [row])
    except Exception as error:
        if executor.is_duplicate(error):
            raise SessionExistsError(write.session_id) from None
        raise
    _store(executor, sql.insert_documents, [{"session_id": record.session_id, **write.documents}])
    _insert(executor, _entry_rows(write, record.error_count, record.log_count))
    return record


def update(executor: Executor, write: Write) -> Record:
    """Store a change if the version it was made from is still there; otherwise tell why not."""
    parameters = {
        **_hot(write),
        sql.ID: write.session_id,
        sql.VERSION: write.version,
        sql.WRITE_ID: write.replaces,
        sql.NOW: write.updated_at,
        "new_errors": len(write.errors),
        "new_logs": len(write.logs),
    }
    names = tuple([name for name in DOCUMENTS if name in write.documents]) if write.documents else ()
    if executor.database.writes_at_once:
        statement = at_once.update_session(names, with_errors=bool(write.errors), with_logs=bool(write.logs))
        counters = executor.row(statement, {**parameters, **_all_at_once(executor, write)})
        if counters is None:
            raise missed(executor, write.session_id, write.version, write.replaces)
        return _updated(write, counters)
    counters = _update_counters(executor, sql.update_session, parameters)
    if counters is None:
        raise missed(executor, write.session_id, write.version, write.replaces)
    record = _updated(write, counters)
    if names and not _store(executor, sql.update_documents(names), [{sql.ID: write.session_id, **write.documents}]):
        raise no_documents(write.session_id)
    if write.errors or write.logs:
        _insert(executor, _entry_rows(write, record.error_count, record.log_count))
    return record


class Deleted(NamedTuple):
    """The session that a deletion has hit."""

    version: int
    write_id: str
    created_at: datetime


@dataclasses.dataclass(slots=True)
class Deletion:
    """What is to be deleted; and what was, at the last attempt."""

    session_id: str
    deleted: Deleted | None = None


def delete(executor: Executor, deletion: Deletion) -> bool:
    """Delete a session and its history, whether or not the database cascades."""
    parameters = {sql.ID: deletion.session_id}
    if executor.dialect.delete_returning:
        row = executor.row(sql.deleted, parameters)
    else:
        row = executor.row(sql.select_for_update, parameters)
        executor.write(sql.delete_session, [parameters])
    deletion.deleted = None if row is None else Deleted(*row[:3])
    if row is None:
        return False
    for statement in sql.delete_children:
        executor.write(statement, [parameters])
    return True


def append_error(executor: Executor, row: dict[str, Any]) -> tuple[int, str]:
    """Append an entry, given without its position; return position and phase (the stored one where it has none)."""
    position, phase = _append(executor, sql.ERRORS, row, row["timestamp"])
    return position, str(phase)


def append_log(executor: Executor, row: dict[str, Any], now: datetime) -> None:
    """Append a log line."""
    _append(executor, sql.LOGS, row, now)


def _update_counters(executor: Executor, statement: Update, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
    """Run an update of one session's row; return its counters afterwards, None if no row was hit."""
    if executor.dialect.update_returning:
        return executor.row(sql.returning_counters(statement), parameters)
    if not executor.write(statement, [parameters]):
        return None
    return executor.row(sql.select_counters, {sql.ID: parameters[sql.ID]})


def _updated(write: Write, counters: Sequence[Any]) -> Record:
    errors, logs, updated_at, _ = counters
    return changes.record_of(
        write, version=write.version + 1, updated_at=updated_at, error_count=errors, log_count=logs
    )


def _append(executor: Executor, history: sql.History, row: dict[str, Any], now: datetime) -> tuple[int, Any]:
    """Count one more entry of a history and insert it there; return its position, and its phase if it has one.

    The row of the session is locked by the count until the end of the transaction, so positions are gapless and in
    the order of commits.
    """
    session_id = row["session_id"]
    executor.batches([row])
    counting = {sql.ID: session_id, sql.NOW: now}
    if executor.database.writes_at_once:
        placed = executor.row(at_once.append(history), {**at_once.of_entry(history, row), **counting})
        if placed is None:
            raise SessionNotFoundError(session_id)
        position, *phase = placed
        return position, phase[0] if phase else None
    counters = _update_counters(executor, history.counting, counting)
    if counters is None:
        raise SessionNotFoundError(session_id)
    errors, logs, _, phase = counters
    position = errors if history is sql.ERRORS else logs
    if row.get("phase") is not None:
        phase = row["phase"]
    executor.write(history.insert, [{**row, "position": position, "phase": phase}])
    return position, phase


def _store(executor: Executor, statement: Executable, rows: list[dict[str, Any]]) -> int:
    """Run a statement that holds texts of any length, in parts that this database takes; return the rows it hit."""
    return sum(executor.write(statement, batch) for batch in executor.batches(rows))


def _hot(write: Write) -> dict[str, Any]:
    return {
        "phase": write.content.phase,
        "current_question_index": write.content.current_question_index,
        "active_task_id": write.content.active_task_id,
        "write_id": write.write_id,
    }


def _all_at_once(executor: Executor, write: Write) -> dict[str, Any]:
    """Return the parameters of a write's documents and new entries, whose positions the database gives."""
    if not (write.documents or write.errors or write.logs):
        return {}
    entries = _entry_rows(write, len(write.errors), len(write.logs))
    executor.batches([dict(write.documents), *itertools.chain(*entries.values())])
    parameters = at_once.of_documents(write.documents)
    for history, rows in entries.items():
        parameters |= at_once.of_entries(history, rows)
    return parameters


def _insert(executor: Executor, entries: Mapping[sql.History, list[dict[str, Any]]]) -> None:
    for history, rows in entries.items():
        if rows:
            _store(executor, history.insert, rows)


def _entry_rows(write: Write, error_count: int, log_count: int) -> dict[sql.History, list[dict[str, Any]]]:
    """Return the rows of a write's new entries, in the last positions of histories that are so long afterwards."""
    placed = changes.place(write.errors, error_count)
    first = log_count - len(write.logs) + 1
    return {
        sql.ERRORS: [
            {
                "session_id": write.session_id,
                "position": entry.position,
                "timestamp": entry.timestamp,
                "task_id": entry.task_id,
                "error_message": entry.error_message,
                "phase": entry["phase"],
                "write_id": write.write_id,
            }
            for entry in placed
        ],
        sql.LOGS: [
            {"session_id": write.session_id, "position": position, "message": line, "write_id": write.write_id}
            for position, line in enumerate(write.logs, first)
        ],
    }
