"""Units of work: plain functions on a connection whose transaction somebody else begins and ends.

Each does one call of the contract. The first statement of every one that writes is a write, so that on a host's
plain SQLite engine no transaction has to turn from a reader into a writer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Insert, Row, Update
from sqlalchemy.exc import IntegrityError

from vibeforge_sessions import codec
from vibeforge_sessions.codec import ARTIFACTS, DOCUMENTS, Record, Write
from vibeforge_sessions.errors import (
    CorruptSessionError,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
)
from vibeforge_sessions.model import Content, ErrorEntry
from vibeforge_sessions.query import Query, SessionFilter, SessionSummary
from vibeforge_sessions.sql import statements as sql
from vibeforge_sessions.sql.databases import database_of
from vibeforge_sessions.sql.transaction import failure_code


def create(connection: Connection, write: Write) -> Record:
    """Insert a session and what it brings along."""
    record = dataclasses.replace(codec.first_record(write), error_count=len(write.errors), log_count=len(write.logs))
    try:
        connection.execute(
            sql.insert_session,
            {
                **_hot(write),
                "session_id": record.session_id,
                "created_at": record.created_at,
                "updated_at": record.updated_at,
                "version": record.version,
                "error_count": record.error_count,
                "log_count": record.log_count,
            },
        )
    except IntegrityError as error:
        if failure_code(error) not in database_of(connection.dialect).duplicate:
            raise  # a constraint of the DBA's own
        raise SessionExistsError(write.session_id) from None
    _store(connection, sql.insert_documents, [{"session_id": record.session_id, **write.documents}])
    _insert_entries(connection, write, record)
    return record


def update(connection: Connection, write: Write) -> Record:
    """Store a change if the version it was made from is still there; otherwise tell why not."""
    row = _update_counters(
        connection,
        sql.update_session,
        {
            **_hot(write),
            sql.ID: write.session_id,
            sql.VERSION: write.version,
            sql.WRITE_ID: write.replaces,
            sql.NOW: write.updated_at,
            "new_errors": len(write.errors),
            "new_logs": len(write.logs),
        },
    )
    if row is None:
        raise _missed(connection, write.session_id, write.version)
    record = dataclasses.replace(
        codec.first_record(write),
        version=write.version + 1,
        updated_at=row.updated_at,
        error_count=row.error_count,
        log_count=row.log_count,
    )
    if write.documents:
        names = tuple(name for name in DOCUMENTS if name in write.documents)
        if not _store(connection, sql.update_documents(names), [{sql.ID: write.session_id, **write.documents}]):
            raise CorruptSessionError(write.session_id, "its documents are missing")
    _insert_entries(connection, write, record)
    return record


def delete(connection: Connection, session_id: str) -> bool:
    """Delete a session and its history, whether or not the database cascades."""
    if not connection.execute(sql.delete_session, {sql.ID: session_id}).rowcount:
        return False
    for statement in sql.delete_children:
        connection.execute(statement, {sql.ID: session_id})
    return True


def append_error(
    connection: Connection, session_id: str, entry: ErrorEntry, write_id: str, *, of_phase: bool
) -> tuple[int, str]:
    """Append an entry; return its position and phase (the stored one unless `of_phase`)."""
    row = _error_row(session_id, entry, str(entry.phase) if of_phase else None, write_id)
    return _append(connection, sql.ERRORS, row, entry.timestamp)


def append_log(connection: Connection, session_id: str, line: str, now: datetime, write_id: str) -> None:
    """Append a log line."""
    _append(connection, sql.LOGS, _log_row(session_id, None, line, write_id), now)


def get(
    connection: Connection, session_id: str, recent: int | None
) -> tuple[Record, Sequence[Row[Any]], Sequence[Row[Any]]] | None:
    """Read a session's record and the last entries of its histories, up to the counts of that record."""
    record = get_record(connection, session_id)
    if record is None:
        return None
    found: list[Sequence[Row[Any]]] = []
    for statement, count in ((sql.select_errors, record.error_count), (sql.select_logs, record.log_count)):
        after = 0 if recent is None else max(0, count - recent)
        rows: Sequence[Row[Any]] = ()
        if after < count:
            rows = connection.execute(statement, {sql.ID: session_id, sql.AFTER: after, sql.UNTIL: count}).all()
        if len(rows) != count - after:
            raise CorruptSessionError(session_id, "its histories have other lengths than its row says")
        found.append(rows)
    return record, found[0], found[1]


def get_record(connection: Connection, session_id: str) -> Record | None:
    """Read a session without its histories."""
    row = connection.execute(sql.select_session, {sql.ID: session_id}).one_or_none()
    if row is None:
        return None
    values = row._mapping  # noqa: SLF001 (public in spite of its name)
    if values["answers"] is None:
        raise CorruptSessionError(session_id, "its documents are missing")
    return Record(
        session_id=values["session_id"],
        created_at=values["created_at"],
        updated_at=values["updated_at"],
        version=values["version"],
        write_id=values["write_id"],
        error_count=values["error_count"],
        log_count=values["log_count"],
        content=Content(
            phase=values["phase"],
            current_question_index=values["current_question_index"],
            active_task_id=values["active_task_id"],
            documents={name: values[name] for name in DOCUMENTS},
        ),
    )


def get_current_record(connection: Connection, session_id: str, version: int, write_id: str) -> Record:
    """Read a session's record if it is still the one of that version and write."""
    record = get_record(connection, session_id)
    if record is None or (record.version, record.write_id) != (version, write_id):
        raise _missed(connection, session_id, version)
    return record


def list_errors(
    connection: Connection, session_id: str, after: int, limit: int, task_id: str | None, phase: str | None
) -> Sequence[Row[Any]]:
    """Read a slice of the error history, in one statement."""
    statement = sql.list_errors(of_task=task_id is not None, of_phase=phase is not None)
    parameters = {"task_id": task_id, "phase": phase}
    return _listing(connection, statement, session_id, after, limit, parameters)


def list_logs(connection: Connection, session_id: str, after: int, limit: int) -> list[str]:
    """Read a slice of the logs, in one statement."""
    rows = _listing(connection, sql.list_logs, session_id, after, limit, {})
    return [row.message for row in rows]


def list_ids(connection: Connection, asked: SessionFilter) -> list[str]:
    """Read the ids of what matches, oldest first."""
    return list(connection.execute(sql.list_ids(asked)).scalars())


def find(connection: Connection, query: Query) -> list[SessionSummary]:
    """Read the summaries of a page, and of one session more."""
    return [
        SessionSummary(
            session_id=row.session_id,
            phase=row.phase,
            created_at=row.created_at,
            updated_at=row.updated_at,
            version=row.version,
            error_count=row.error_count,
            log_count=row.log_count,
            active_task_id=row.active_task_id,
            artifacts=frozenset(name for name in ARTIFACTS if getattr(row, name)),
        )
        for row in connection.execute(sql.find(query))
    ]


def _update_counters(connection: Connection, statement: Update, parameters: Mapping[str, Any]) -> Row[Any] | None:
    """Run an update of one session's row; return its counters afterwards, None if no row was hit."""
    if connection.dialect.update_returning:
        return connection.execute(sql.returning_counters(statement), parameters).one_or_none()
    if not connection.execute(statement, parameters).rowcount:
        return None
    return connection.execute(sql.select_counters, {sql.ID: parameters[sql.ID]}).one()


def _append(connection: Connection, history: sql.History, row: dict[str, Any], now: datetime) -> tuple[int, Any]:
    """Count one more entry of a history and insert it there; return its position, and its phase if it has one.

    The row of the session is locked by the count until the end of the transaction, so positions are gapless and in
    the order of commits.
    """
    database = database_of(connection.dialect)
    database.batches(connection, [row])
    counting = {sql.ID: row["session_id"], sql.NOW: now}
    if database.writable_cte:
        entry = {sql.ENTRY + name: value for name, value in row.items()}
        placed = connection.execute(history.append, {**entry, **counting}).one_or_none()
        if placed is None:
            raise SessionNotFoundError(row["session_id"])
        return placed.position, getattr(placed, "phase", None)
    counted = _update_counters(connection, history.counting, counting)
    if counted is None:
        raise SessionNotFoundError(row["session_id"])
    row["position"] = getattr(counted, history.counter)
    if "phase" in row and row["phase"] is None:
        row["phase"] = counted.phase
    connection.execute(history.insert, row)
    return row["position"], row.get("phase")


def _store(connection: Connection, statement: Insert | Update, rows: list[dict[str, Any]]) -> int:
    """Run a statement that holds texts of any length, in parts that this database takes; return the rows it hit."""
    hit = 0
    for batch in database_of(connection.dialect).batches(connection, rows):
        hit += connection.execute(statement, batch if len(batch) > 1 else batch[0]).rowcount
    return hit


def _missed(connection: Connection, session_id: str, version: int) -> SessionNotFoundError | StaleSessionError:
    stored = connection.execute(sql.select_version, {sql.ID: session_id}).scalar_one_or_none()
    if stored is None:
        return SessionNotFoundError(session_id)
    return StaleSessionError(session_id, version, stored)


def _listing(
    connection: Connection, statement: Any, session_id: str, after: int, limit: int, parameters: Mapping[str, Any]
) -> Sequence[Row[Any]]:
    rows = connection.execute(statement, {sql.ID: session_id, sql.AFTER: after, sql.LIMIT: limit, **parameters}).all()
    if not rows:
        raise SessionNotFoundError(session_id)
    return rows if rows[0].position is not None else ()


def _hot(write: Write) -> dict[str, Any]:
    return {
        "phase": write.content.phase,
        "current_question_index": write.content.current_question_index,
        "active_task_id": write.content.active_task_id,
        "write_id": write.write_id,
    }


def _insert_entries(connection: Connection, write: Write, record: Record) -> None:
    if write.errors:
        placed = codec.place(write.errors, record.error_count)
        rows = [_error_row(write.session_id, entry, entry["phase"], write.write_id) for entry in placed]
        _store(connection, sql.ERRORS.insert, rows)
    if write.logs:
        first = record.log_count - len(write.logs) + 1
        rows = [_log_row(write.session_id, at, line, write.write_id) for at, line in enumerate(write.logs, first)]
        _store(connection, sql.LOGS.insert, rows)


def _error_row(session_id: str, entry: ErrorEntry, phase: str | None, write_id: str) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "position": entry.position,
        "timestamp": entry.timestamp,
        "task_id": entry.task_id,
        "error_message": entry.error_message,
        "phase": phase,
        "write_id": write_id,
    }


def _log_row(session_id: str, position: int | None, line: str, write_id: str) -> dict[str, Any]:
    return {"session_id": session_id, "position": position, "message": line, "write_id": write_id}
