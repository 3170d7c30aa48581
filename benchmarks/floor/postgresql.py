"""Floor on PostgreSQL: psycopg 3 in autocommit mode, one statement for each write.

psycopg prepares repeated statements by itself. A session is read with binary results and separate statements, which is
the fastest way that was found: pipeline mode costs more than the round trip that it saves, and the result of one UNION
ALL for both histories must be split and sorted. Entries never change, so they match the row with their number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import psycopg

from benchmarks.contender import MESSAGE, PAGE, RECENT
from benchmarks.floor import (
    COLUMNS,
    DELETE,
    PHASES,
    SELECT_ERRORS,
    SELECT_LOGS,
    SELECT_PAGE,
    SELECT_SESSION,
    Floor,
    build,
    summary_of,
    write_id_of,
)
from vibeforge_sessions import ErrorEntry, Session
from vibeforge_sessions.repository.query import SessionSummary


def _statement(text: str) -> bytes:
    return text.replace("?", "%s").encode()


_SESSION: Final = _statement(SELECT_SESSION)
_ERRORS: Final = _statement(SELECT_ERRORS)
_LOGS: Final = _statement(SELECT_LOGS)
_PAGE: Final = _statement(SELECT_PAGE)
_DELETE: Final = _statement(DELETE)
_CREATE: Final = _statement(
    f"WITH s AS (INSERT INTO vibeforge_sessions VALUES ({', '.join('?' * COLUMNS['vibeforge_sessions'])})),"
    " d AS (INSERT INTO vibeforge_session_documents VALUES"
    f" ({', '.join('?' * COLUMNS['vibeforge_session_documents'])})),"
    " e AS (INSERT INTO vibeforge_session_errors SELECT ?, n, t, i, m, p, ? FROM"
    " unnest(?::timestamptz[], ?::text[], ?::text[], ?::text[]) WITH ORDINALITY AS x(t, i, m, p, n))"
    " INSERT INTO vibeforge_session_logs SELECT ?, n, m, ? FROM unnest(?::text[]) WITH ORDINALITY AS x(m, n)"
)
_APPEND: Final = _statement(
    "WITH hot AS (UPDATE vibeforge_sessions SET error_count = error_count + 1, updated_at = greatest(updated_at, ?)"
    " WHERE session_id = ? RETURNING session_id, error_count, phase)"
    " INSERT INTO vibeforge_session_errors SELECT session_id, error_count, ?, ?, ?, phase, ? FROM hot"
    " RETURNING position, phase"
)
_UPDATE: Final = (
    "WITH hot AS (UPDATE vibeforge_sessions SET phase = ?, updated_at = greatest(updated_at, ?),"
    " version = version + 1, write_id = ?, current_question_index = ?, active_task_id = ?,"
    " error_count = error_count + ? WHERE session_id = ? AND version = ? AND write_id = ?"
    " RETURNING session_id, error_count, updated_at)"
)


class PostgreSQL(Floor):
    """PostgreSQL with fsync on."""

    name = "floor PostgreSQL"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        url = place.replace("postgresql+psycopg", "postgresql")
        self._connection = psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC")

    def about(self) -> Mapping[str, str]:
        ((fsync, commit),) = self._rows(b"SELECT current_setting('fsync'), current_setting('synchronous_commit')", ())
        return {
            "version": f"psycopg {psycopg.__version__}",
            "durability": f"fsync={fsync}, synchronous_commit={commit}",
        }

    def get(self, session_id: str, recent: int | None = None) -> Session:
        with self._connection.cursor(binary=True) as cursor:
            row = cursor.execute(_SESSION, (session_id,)).fetchone()
            errors, logs = row[8:10]
            after = (0, 0) if recent is None else (max(0, errors - recent), max(0, logs - recent))
            entries = cursor.execute(_ERRORS, (session_id, after[0], errors)).fetchall()
            lines = cursor.execute(_LOGS, (session_id, after[1], logs)).fetchall()
        return build(row, _entries(entries), [line for (line,) in lines])

    def insert(self, session: Session, texts: list[str | None], write_id: str) -> None:
        session_id, errors, logs = session.session_id, session.error_history, session.logs
        hot = (session_id, session.phase.value, session.created_at, session.updated_at, 1, write_id)
        state = (session.current_question_index, session.active_task_id, len(errors), len(logs))
        columns = (
            [entry.timestamp for entry in errors],
            [entry.task_id for entry in errors],
            [entry.error_message for entry in errors],
            [str(entry.phase) for entry in errors],
        )
        documents, history = (session_id, *texts), (session_id, write_id, *columns)
        with self._connection.cursor() as cursor:
            cursor.execute(_CREATE, (*hot, *state, *documents, *history, session_id, write_id, logs))

    def append(self, session_id: str) -> ErrorEntry:
        now = datetime.now(UTC)
        ((position, phase),) = self._rows(_APPEND, (now, session_id, now, "task-7", MESSAGE, os.urandom(16).hex()))
        return ErrorEntry(now, "task-7", MESSAGE, PHASES[phase], position)

    def update(
        self, session: Session, write_id: str, documents: Mapping[str, str], errors: list[ErrorEntry]
    ) -> datetime:
        parts = [_UPDATE]
        new = (session.phase.value, session.updated_at, write_id, session.current_question_index)
        guard = (session.session_id, session.version, write_id_of(session))
        parameters: list[Any] = [*new, session.active_task_id, len(errors), *guard]
        for name, text in documents.items():
            parts.append(
                f", d AS (UPDATE vibeforge_session_documents d SET {name} = ? FROM hot"
                " WHERE d.session_id = hot.session_id)"
            )
            parameters.append(text)
        for entry in errors:
            parts.append(
                ", e AS (INSERT INTO vibeforge_session_errors SELECT session_id, error_count, ?, ?, ?, ?, ? FROM hot)"
            )
            parameters += [entry.timestamp, entry.task_id, entry.error_message, str(entry.phase), write_id]
        ((updated_at,),) = self._rows(_statement("".join([*parts, " SELECT updated_at FROM hot"])), parameters)
        return updated_at  # type: ignore[no-any-return]

    def page(self) -> list[SessionSummary]:
        return [summary_of(*row) for row in self._rows(_PAGE, ())[:PAGE]]

    def slice(self, session_id: str, after: int) -> list[ErrorEntry]:
        return _entries(self._rows(_ERRORS, (session_id, after, after + RECENT)))

    def delete(self, session_id: str) -> None:
        self._connection.execute(_DELETE, (session_id,))

    def _rows(self, statement: bytes, parameters: Sequence[Any]) -> list[Any]:
        with self._connection.cursor(binary=True) as cursor:
            rows: list[Any] = cursor.execute(statement, parameters).fetchall()
            return rows


def _entries(rows: list[Any]) -> list[ErrorEntry]:
    return [
        ErrorEntry(time, task_id, message, PHASES[phase], position) for position, time, task_id, message, phase in rows
    ]
