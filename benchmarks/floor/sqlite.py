"""Floor on SQLite: the driver of Python's standard library, which caches prepared statements by itself."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

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

_INSERT: Final = {
    table: f"INSERT INTO {table} VALUES ({', '.join('?' * count)}{', NULL' if table == 'vibeforge_sessions' else ''})"
    for table, count in COLUMNS.items()
}
"""An inserted session is not held."""
_COUNT: Final = (
    "UPDATE vibeforge_sessions SET error_count = error_count + 1, updated_at = max(updated_at, ?)"
    " WHERE session_id = ? RETURNING error_count, phase"
)
_UPDATE: Final = (
    "UPDATE vibeforge_sessions SET phase = ?, updated_at = max(updated_at, ?), version = version + 1,"
    " write_id = ?, current_question_index = ?, active_task_id = ?, error_count = error_count + ?"
    " WHERE session_id = ? AND version = ? AND write_id = ? RETURNING error_count, updated_at"
)


def text_of(moment: datetime) -> str:
    """Return a time as text for its column."""
    return moment.isoformat(" ", "microseconds")[:-6]


def moment_of(text: str) -> datetime:
    """Return the time of a column's text."""
    return datetime.fromisoformat(text + "+00:00")


class SQLite(Floor):
    """SQLite with FULL: acknowledged writes survive a power loss."""

    name = "floor SQLite FULL"
    synchronous: ClassVar[str] = "FULL"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._connection = sqlite3.connect(Path(place) / "sessions.db", isolation_level=None, timeout=30)
        for pragma in ("journal_mode = WAL", f"synchronous = {self.synchronous}", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")

    def about(self) -> Mapping[str, str]:
        return {"version": f"sqlite3 {sqlite3.sqlite_version}", "durability": f"WAL, synchronous={self.synchronous}"}

    def get(self, session_id: str, recent: int | None = None) -> Session:
        execute = self._connection.execute
        execute("BEGIN")
        row = execute(SELECT_SESSION, (session_id,)).fetchone()
        errors, logs = row[8:10]
        after = (0, 0) if recent is None else (max(0, errors - recent), max(0, logs - recent))
        entries = execute(SELECT_ERRORS, (session_id, after[0], errors)).fetchall()
        lines = execute(SELECT_LOGS, (session_id, after[1], logs)).fetchall()
        execute("COMMIT")
        return build(
            (*row[:2], moment_of(row[2]), moment_of(row[3]), *row[4:]),
            _entries(entries),
            [line for (line,) in lines],
        )

    def insert(self, session: Session, texts: list[str | None], write_id: str) -> None:
        execute = self._connection.execute
        session_id, lines = session.session_id, enumerate(session.logs, 1)
        hot = (session_id, session.phase.value, text_of(session.created_at), text_of(session.updated_at), 1, write_id)
        state = (session.current_question_index, session.active_task_id)
        execute("BEGIN IMMEDIATE")
        execute(_INSERT["vibeforge_sessions"], (*hot, *state, len(session.error_history), len(session.logs)))
        execute(_INSERT["vibeforge_session_documents"], (session_id, *texts))
        self._insert_errors(session_id, session.error_history, 0, write_id)
        self._connection.executemany(
            _INSERT["vibeforge_session_logs"], [(session_id, position, line, write_id) for position, line in lines]
        )
        execute("COMMIT")

    def append(self, session_id: str) -> ErrorEntry:
        execute = self._connection.execute
        now = datetime.now(UTC)
        time = text_of(now)
        execute("BEGIN IMMEDIATE")
        position, phase = execute(_COUNT, (time, session_id)).fetchone()
        row = (session_id, position, time, "task-7", MESSAGE, phase, os.urandom(16).hex())
        execute(_INSERT["vibeforge_session_errors"], row)
        execute("COMMIT")
        return ErrorEntry(now, "task-7", MESSAGE, PHASES[phase], position)

    def update(
        self, session: Session, write_id: str, documents: Mapping[str, str], errors: list[ErrorEntry]
    ) -> datetime:
        execute = self._connection.execute
        new = (session.phase.value, text_of(session.updated_at), write_id, session.current_question_index)
        guard = (session.session_id, session.version, write_id_of(session))
        execute("BEGIN IMMEDIATE")
        count, updated_at = execute(_UPDATE, (*new, session.active_task_id, len(errors), *guard)).fetchone()
        for name, text in documents.items():
            execute(
                f"UPDATE vibeforge_session_documents SET {name} = ? WHERE session_id = ?", (text, session.session_id)
            )
        if errors:
            self._insert_errors(session.session_id, errors, count - len(errors), write_id)
        execute("COMMIT")
        return moment_of(updated_at)

    def page(self) -> list[SessionSummary]:
        rows = self._connection.execute(SELECT_PAGE).fetchall()
        return [
            summary_of(session_id, phase, moment_of(created_at), moment_of(updated_at), *rest)
            for session_id, phase, created_at, updated_at, *rest in rows[:PAGE]
        ]

    def slice(self, session_id: str, after: int) -> list[ErrorEntry]:
        return _entries(self._connection.execute(SELECT_ERRORS, (session_id, after, after + RECENT)).fetchall())

    def delete(self, session_id: str) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(DELETE, (session_id,))
        self._connection.execute("COMMIT")

    def _insert_errors(self, session_id: str, errors: list[ErrorEntry], before: int, write_id: str) -> None:
        self._connection.executemany(
            _INSERT["vibeforge_session_errors"],
            [
                (session_id, n, text_of(e.timestamp), e.task_id, e.error_message, str(e.phase), write_id)
                for n, e in enumerate(errors, before + 1)
            ],
        )


class SQLiteNormal(SQLite):
    """SQLite with NORMAL: acknowledged writes survive a crash of the process."""

    name = "floor SQLite NORMAL"
    synchronous = "NORMAL"


def _entries(rows: list[Any]) -> list[ErrorEntry]:
    return [
        ErrorEntry(datetime.fromisoformat(time + "+00:00"), task_id, message, PHASES[phase], position)
        for position, time, task_id, message, phase in rows
    ]
