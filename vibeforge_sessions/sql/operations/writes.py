"""Units of work that write: plain functions that run statements, in a transaction that somebody else begins and ends.

The first statement of every one is a write, so that on a host's plain SQLite engine no transaction has to turn from a
reader into a writer. Where a database can do each write as one statement, there need be no transaction either.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Delete, Executable, Update

from vibeforge_sessions.errors import SessionExistsError, SessionNotFoundError, StaleSessionError
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository import changeset
from vibeforge_sessions.repository.changeset import Write
from vibeforge_sessions.repository.restoration import check_history, check_logs
from vibeforge_sessions.repository.serialization import DOCUMENTS, Record
from vibeforge_sessions.sql.operations import statements as sql
from vibeforge_sessions.sql.operations import writable_ctes
from vibeforge_sessions.sql.operations.reads import missed, no_documents
from vibeforge_sessions.sql.transactions.executor import Executor

_BATCH: Final = 1_000
"""How many entries of a restored history are sent at once."""


def create(executor: Executor, write: Write) -> Record:
    """Insert a session and what it brings along."""
    record = changeset.record_of(
        write, version=1, updated_at=write.updated_at, error_count=len(write.errors), log_count=len(write.logs)
    )
    row = _row(record)
    try:
        if executor.database.writes_at_once:
            statement = writable_ctes.create(with_errors=bool(write.errors), with_logs=bool(write.logs))
            executor.rows(statement, {**writable_ctes.of_session(row), **_all_at_once(executor, write)})
            executor.wrote(write.session_id)
            return record
        executor.write(sql.insert_session, [row])
    except Exception as error:
        if executor.is_duplicate(error):
            raise SessionExistsError(write.session_id) from None
        raise
    _store(executor, sql.insert_documents, [{"session_id": record.session_id, **write.documents}])
    _insert(executor, _entry_rows(write, record.error_count, record.log_count))
    executor.wrote(write.session_id)
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
        statement = writable_ctes.update_session(names, with_errors=bool(write.errors), with_logs=bool(write.logs))
        counters = executor.row(statement, {**parameters, **_all_at_once(executor, write)})
        if counters is None:
            raise missed(executor, write.session_id, write.version, write.replaces)
        executor.wrote(write.session_id)
        return _updated(write, counters)
    counters = _update_counters(executor, sql.update_session, parameters)
    if counters is None:
        raise missed(executor, write.session_id, write.version, write.replaces)
    record = _updated(write, counters)
    if names and not _store(executor, sql.update_documents(names), [{sql.ID: write.session_id, **write.documents}]):
        raise no_documents(write.session_id)
    if write.errors or write.logs:
        _insert(executor, _entry_rows(write, record.error_count, record.log_count))
    executor.wrote(write.session_id)
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
    unchanged_since: Record | None = None
    """Delete it only if it is this still, and not held."""
    deleted: Deleted | None = None


def delete(executor: Executor, deletion: Deletion) -> bool:
    """Delete a session and its history, whether or not the database cascades."""
    parameters = {sql.ID: deletion.session_id}
    if deletion.unchanged_since is None:
        deletion.deleted = _delete(executor, sql.delete_session, parameters)
    else:
        parameters |= _seen(deletion.unchanged_since)
        deletion.deleted = _delete(executor, sql.delete_unheld, parameters)
    return deletion.deleted is not None


def _delete(executor: Executor, statement: Delete, parameters: dict[str, Any]) -> Deleted | None:
    this = {sql.ID: parameters[sql.ID]}
    if executor.dialect.delete_returning:
        row = executor.row(sql.returning_identity(statement), parameters)
    else:
        row = executor.row(sql.select_for_update, this)
        if not executor.write(statement, [parameters]):
            row = None
    if row is None:
        return None
    for each in sql.delete_children:
        executor.write(each, [this])
    executor.wrote(this[sql.ID], deleted=True)
    return Deleted(*row[:3])


def _seen(record: Record) -> dict[str, Any]:
    return {
        sql.VERSION: record.version,
        sql.WRITE_ID: record.write_id,
        "read_error_count": record.error_count,
        "read_log_count": record.log_count,
    }


def hold(executor: Executor, session_id: str, now: datetime | None) -> None:
    """Hold a session since a time, or release it."""
    statement, times = (sql.release, {}) if now is None else (sql.hold, {sql.NOW: now})
    if not executor.write(statement, [{sql.ID: session_id, **times}]):
        raise SessionNotFoundError(session_id)
    executor.wrote(session_id)


@dataclasses.dataclass(frozen=True, slots=True)
class Restoring:
    """A session that is to be stored as it was elsewhere."""

    record: Record
    errors: Iterable[ErrorEntry]
    logs: Iterable[str]
    replacing: Record | None


def restore(executor: Executor, restoring: Restoring) -> None:
    """Insert a session whole, with its versions and times, in the place of another where one is to be replaced."""
    record, replacing = restoring.record, restoring.replacing
    if replacing is not None:
        parameters = {sql.ID: record.session_id, **_seen(replacing)}
        if _delete(executor, sql.delete_unchanged, parameters) is None:
            stored = executor.row(sql.select_version, {sql.ID: record.session_id})
            if stored is None:
                raise SessionNotFoundError(record.session_id)
            raise StaleSessionError(record.session_id, replacing.version, stored[0])
    try:
        executor.write(sql.insert_session, [_row(record)])
    except Exception as error:
        if executor.is_duplicate(error):
            raise SessionExistsError(record.session_id) from None
        raise
    _store(executor, sql.insert_documents, [{"session_id": record.session_id, **record.content.documents}])
    errors = _error_rows(record.session_id, check_history(record, restoring.errors), record.write_id)
    logs = _log_rows(record.session_id, check_logs(record, restoring.logs), 1, record.write_id)
    for history, rows in ((sql.ERRORS, errors), (sql.LOGS, logs)):
        while batch := list(itertools.islice(rows, _BATCH)):
            _store(executor, history.insert, batch)
    executor.wrote(record.session_id)


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
    return changeset.record_of(
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
        placed = executor.row(writable_ctes.append(history), {**writable_ctes.of_entry(history, row), **counting})
        if placed is None:
            raise SessionNotFoundError(session_id)
        executor.wrote(session_id)
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
    executor.wrote(session_id)
    return position, phase


def _store(executor: Executor, statement: Executable, rows: list[dict[str, Any]]) -> int:
    """Run a statement that holds texts of any length, in parts that this database takes; return the rows it hit."""
    return sum(executor.write(statement, batch) for batch in executor.batches(rows))


def _row(record: Record) -> dict[str, Any]:
    return {
        "session_id": record.session_id,
        "phase": record.content.phase,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "version": record.version,
        "write_id": record.write_id,
        "current_question_index": record.content.current_question_index,
        "active_task_id": record.content.active_task_id,
        "error_count": record.error_count,
        "log_count": record.log_count,
        "held_at": record.held_at,
    }


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
    parameters = writable_ctes.of_documents(write.documents)
    for history, rows in entries.items():
        parameters |= writable_ctes.of_entries(history, rows)
    return parameters


def _insert(executor: Executor, entries: Mapping[sql.History, list[dict[str, Any]]]) -> None:
    for history, rows in entries.items():
        if rows:
            _store(executor, history.insert, rows)


def _entry_rows(write: Write, error_count: int, log_count: int) -> dict[sql.History, list[dict[str, Any]]]:
    """Return the rows of a write's new entries, in the last positions of histories that are so long afterwards."""
    placed = changeset.place(write.errors, error_count)
    first = log_count - len(write.logs) + 1
    return {
        sql.ERRORS: list(_error_rows(write.session_id, placed, write.write_id)),
        sql.LOGS: list(_log_rows(write.session_id, write.logs, first, write.write_id)),
    }


def _error_rows(session_id: str, entries: Iterable[ErrorEntry], write_id: str) -> Iterator[dict[str, Any]]:
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


def _log_rows(session_id: str, lines: Iterable[str], first: int, write_id: str) -> Iterator[dict[str, Any]]:
    for position, line in enumerate(lines, first):
        yield {"session_id": session_id, "position": position, "message": line, "write_id": write_id}
