"""The floor: the same tables by hand, as somebody writes it who knows the driver, with the same durability.

Each call is one transaction and makes the same objects. A write is guarded by version and write id, too, and tells what
was stored; nothing else is checked, nothing is translated, and there is one connection and no pool.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from benchmarks.contender import DOCUMENTS, MESSAGE, PAGE, RECENT, Contender
from benchmarks.ours import other_phase, realistic
from vibeforge_sessions import ErrorEntry, Session, SessionPhase
from vibeforge_sessions.model import Baseline, Content
from vibeforge_sessions.query import SessionSummary

TEXTS = (
    "answers",
    "intent_profile",
    "build_spec",
    "concept",
    "task_graph",
    "completed_task_ids",
    "failed_task_ids",
    "pending_clarification",
    "clarification_answer",
    "extension",
)
ARTIFACTS = TEXTS[1:5]
HOT = (
    "session_id",
    "phase",
    "created_at",
    "updated_at",
    "version",
    "write_id",
    "current_question_index",
    "active_task_id",
    "error_count",
    "log_count",
)
KNOWN = {phase.value: phase for phase in SessionPhase}
encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
decode = json.loads


class Floor(Contender):
    """What both drivers have in common."""

    _connection: Any

    def __init__(self, place: str) -> None:
        self._held: dict[str, Session] = {}
        self._length: dict[str, int] = {}

    @abstractmethod
    def read(self, session_id: str, recent: int | None) -> tuple[Sequence[Any], list[Any], list[Any]]:
        """Return the row with its documents, the errors and the logs."""

    @abstractmethod
    def insert(self, session: Session, texts: list[str | None], write_id: str) -> None:
        """Store a new session."""

    @abstractmethod
    def append(self, session_id: str) -> ErrorEntry:
        """Append an error."""

    @abstractmethod
    def update(
        self, session: Session, write_id: str, documents: Mapping[str, str], errors: list[ErrorEntry]
    ) -> datetime:
        """Store a change."""

    @abstractmethod
    def page(self) -> list[SessionSummary]:
        """Return the newest sessions."""

    @abstractmethod
    def slice(self, session_id: str, after: int) -> list[ErrorEntry]:
        """Return some errors."""

    @abstractmethod
    def delete(self, session_id: str) -> None:
        """Delete a session."""

    def calls(self) -> Mapping[str, Callable[..., object]]:
        def listing(share: float) -> Callable[[str], object]:
            return lambda session_id: self.slice(session_id, max(0, int(self._length[session_id] * share) - RECENT))

        return {
            "create": lambda session_id: self.create(realistic(session_id)),
            "append": self.append,
            "get": self.get,
            "get_recent": lambda session_id: self.get(session_id, RECENT),
            "update_phase": self._update_phase,
            "update_artifact": self._update_artifact,
            "update_phase_and_error": self._update_phase_and_error,
            "list_page": self.page,
            "list_errors_start": listing(0),
            "list_errors_middle": listing(0.5),
            "list_errors_end": listing(1),
            "delete": self.delete,
        }

    def create(self, session: Session) -> Session:
        """Store the session; return a copy."""
        texts = [encode(value) if (value := getattr(session, name, None)) is not None else None for name in TEXTS]
        write_id = os.urandom(16).hex()
        self.insert(session, texts, write_id)
        row = (
            session.session_id,
            session.phase.value,
            session.created_at,
            session.updated_at,
            1,
            write_id,
            0,
            None,
            len(session.error_history),
            len(session.logs),
            *texts,
        )
        return build(row, session.error_history, session.logs)

    def get(self, session_id: str, recent: int | None = None) -> Session:
        """Return the session."""
        row, errors, logs = self.read(session_id, recent)
        return build(row, [entry_of(error) for error in errors], [message for (message,) in logs])

    def prepare(self, entries: int) -> str:
        session = self.create(realistic(entries=entries))
        self._length[session.session_id] = entries
        return session.session_id

    def fill(self, sessions: int) -> None:
        """Ours has filled the same database."""

    def hold(self, session_id: str) -> None:
        self._held[session_id] = self.get(session_id)

    def close(self) -> None:
        self._connection.close()

    def _update_phase(self, session_id: str) -> None:
        session = self._held[session_id]
        session.update_phase(other_phase(session))
        self._store(session, {}, [])

    def _update_artifact(self, session_id: str) -> None:
        session = self._held[session_id]
        session.concept = {**DOCUMENTS["concept"], "version": session.version}
        self._store(session, {"concept": encode(session.concept)}, [])

    def _update_phase_and_error(self, session_id: str) -> None:
        session = self._held[session_id]
        session.update_phase(other_phase(session))
        self._store(session, {}, [session.add_error("task-7", MESSAGE)])

    def _store(self, session: Session, documents: Mapping[str, str], errors: list[ErrorEntry]) -> None:
        write_id = os.urandom(16).hex()
        session.updated_at = self.update(session, write_id, documents, errors)
        session.version += 1
        baseline = session._baseline
        object.__setattr__(baseline, "write_id", write_id)


def entry_of(row: Sequence[Any]) -> ErrorEntry:
    """Return an entry from position, time, task, message and phase."""
    position, timestamp, task_id, message, phase = row
    return ErrorEntry(timestamp, task_id, message, KNOWN[phase], position)


def build(row: Sequence[Any], errors: list[ErrorEntry], logs: list[str]) -> Session:
    """Return the session that a row stands for, without checking anything."""
    session_id, phase, created_at, updated_at, version, write_id, question, task_id, error_count, log_count, *texts = (
        row
    )
    values: dict[str, Any] = {
        name: decode(text) if text is not None else None for name, text in zip(TEXTS, texts, strict=True)
    }
    values.pop("extension")
    session = Session.model_construct(
        session_id=session_id,
        phase=KNOWN[phase],
        created_at=created_at,
        updated_at=updated_at,
        current_question_index=question,
        active_task_id=task_id,
        version=version,
        error_history=list(errors),
        logs=list(logs),
        **values,
    )
    session._baseline = Baseline(
        write_id=write_id,
        created_at=created_at,
        updated_at=updated_at,
        errors=tuple(errors),
        logs=tuple(logs),
        omitted_errors=error_count - len(errors),
        omitted_logs=log_count - len(logs),
        content=Content(phase, question, task_id, dict(zip(TEXTS, texts, strict=True))),
    )
    return session


def summary_of(row: Sequence[Any]) -> SessionSummary:
    """Return the summary that a row of a listing is."""
    session_id, phase, created_at, updated_at, version, errors, logs, task_id, *there = row
    return SessionSummary(
        session_id=session_id,
        phase=phase,
        created_at=created_at,
        updated_at=updated_at,
        version=version,
        error_count=errors,
        log_count=logs,
        active_task_id=task_id,
        artifacts=frozenset(itertools.compress(ARTIFACTS, there)),
    )


_PAGE_STATEMENT = (
    "SELECT s.session_id, phase, created_at, updated_at, version, error_count, log_count, active_task_id, "
    + ", ".join(f"{name} IS NOT NULL" for name in ARTIFACTS)
    + " FROM vibeforge_sessions s LEFT JOIN vibeforge_session_documents d ON d.session_id = s.session_id"
    + f" ORDER BY created_at DESC, s.session_id DESC LIMIT {PAGE + 1}"
)


def text_of(moment: datetime) -> str:
    """Return a time as SQLite's column holds it."""
    return moment.isoformat(" ", "microseconds")[:-6]


def moment_of(text: str) -> datetime:
    """Return the time that a text of SQLite's stands for."""
    return datetime.fromisoformat(text + "+00:00")


class SQLite(Floor):
    """The driver of Python's standard library."""

    name = "floor SQLite FULL"
    synchronous: ClassVar[str] = "FULL"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._connection = sqlite3.connect(Path(place) / "sessions.db", isolation_level=None, timeout=30)
        for pragma in ("journal_mode = WAL", f"synchronous = {self.synchronous}", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")

    def about(self) -> Mapping[str, str]:
        return {"version": f"sqlite3 {sqlite3.sqlite_version}", "durability": f"WAL, synchronous={self.synchronous}"}

    def read(self, session_id: str, recent: int | None) -> tuple[Sequence[Any], list[Any], list[Any]]:
        execute = self._connection.execute
        execute("BEGIN")
        row = execute(_READ_SQLITE, (session_id,)).fetchone()
        error_count, log_count = row[8:10]
        after = [0 if recent is None else max(0, count - recent) for count in (error_count, log_count)]
        errors = execute(_ERRORS_SQLITE, (session_id, after[0], error_count)).fetchall()
        logs = execute(
            "SELECT message FROM vibeforge_session_logs WHERE session_id = ? AND position > ? AND position <= ?"
            " ORDER BY position",
            (session_id, after[1], log_count),
        ).fetchall()
        execute("COMMIT")
        row = (*row[:2], moment_of(row[2]), moment_of(row[3]), *row[4:])
        return row, [(n, moment_of(time), task, message, phase) for n, time, task, message, phase in errors], logs

    def insert(self, session: Session, texts: list[str | None], write_id: str) -> None:
        execute, many = self._connection.execute, self._connection.executemany
        session_id = session.session_id
        hot = (session_id, session.phase.value, text_of(session.created_at), text_of(session.updated_at), 1, write_id)
        counts = (0, None, len(session.error_history), len(session.logs))
        execute("BEGIN IMMEDIATE")
        execute(_INSERT_SQLITE["vibeforge_sessions"], (*hot, *counts))
        execute(_INSERT_SQLITE["vibeforge_session_documents"], (session_id, *texts))
        self._insert_errors(session_id, session.error_history, 0, write_id)
        many(
            _INSERT_SQLITE["vibeforge_session_logs"],
            [(session_id, n, line, write_id) for n, line in enumerate(session.logs, 1)],
        )
        execute("COMMIT")

    def _insert_errors(self, session_id: str, errors: list[ErrorEntry], before: int, write_id: str) -> None:
        self._connection.executemany(
            _INSERT_SQLITE["vibeforge_session_errors"],
            [
                (session_id, n, text_of(e.timestamp), e.task_id, e.error_message, str(e.phase), write_id)
                for n, e in enumerate(errors, before + 1)
            ],
        )

    def append(self, session_id: str) -> ErrorEntry:
        execute = self._connection.execute
        now = datetime.now(UTC)
        time = text_of(now)
        execute("BEGIN IMMEDIATE")
        position, phase = execute(
            "UPDATE vibeforge_sessions SET error_count = error_count + 1, updated_at = max(updated_at, ?)"
            " WHERE session_id = ? RETURNING error_count, phase",
            (time, session_id),
        ).fetchone()
        execute(
            _INSERT_SQLITE["vibeforge_session_errors"],
            (session_id, position, time, "task-7", MESSAGE, phase, os.urandom(16).hex()),
        )
        execute("COMMIT")
        return ErrorEntry(now, "task-7", MESSAGE, KNOWN[phase], position)

    def update(
        self, session: Session, write_id: str, documents: Mapping[str, str], errors: list[ErrorEntry]
    ) -> datetime:
        execute = self._connection.execute
        baseline = session._baseline
        assert baseline is not None
        execute("BEGIN IMMEDIATE")
        count, updated_at = execute(
            "UPDATE vibeforge_sessions SET phase = ?, updated_at = max(updated_at, ?), version = version + 1,"
            " write_id = ?, current_question_index = ?, active_task_id = ?, error_count = error_count + ?"
            " WHERE session_id = ? AND version = ? AND write_id = ? RETURNING error_count, updated_at",
            (
                session.phase.value,
                text_of(session.updated_at),
                write_id,
                session.current_question_index,
                session.active_task_id,
                len(errors),
                session.session_id,
                session.version,
                baseline.write_id,
            ),
        ).fetchone()
        for name, text in documents.items():
            execute(
                f"UPDATE vibeforge_session_documents SET {name} = ? WHERE session_id = ?",
                (text, session.session_id),
            )
        if errors:
            self._insert_errors(session.session_id, errors, count - len(errors), write_id)
        execute("COMMIT")
        return moment_of(updated_at)

    def page(self) -> list[SessionSummary]:
        rows = self._connection.execute(_PAGE_STATEMENT).fetchall()
        return [summary_of((*row[:2], moment_of(row[2]), moment_of(row[3]), *row[4:])) for row in rows[:PAGE]]

    def slice(self, session_id: str, after: int) -> list[ErrorEntry]:
        rows = self._connection.execute(_ERRORS_SQLITE, (session_id, after, after + RECENT)).fetchall()
        return [entry_of((n, moment_of(time), *rest)) for n, time, *rest in rows]

    def delete(self, session_id: str) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for table in ("vibeforge_sessions", *(f"vibeforge_session_{name}" for name in ("documents", "errors", "logs"))):
            self._connection.execute(f"DELETE FROM {table} WHERE session_id = ?", (session_id,))
        self._connection.execute("COMMIT")


_READ_SQLITE = (
    f"SELECT {', '.join(f's.{name}' for name in HOT)}, {', '.join(TEXTS)} FROM vibeforge_sessions s"
    " JOIN vibeforge_session_documents d ON d.session_id = s.session_id WHERE s.session_id = ?"
)
_ERRORS_SQLITE = (
    "SELECT position, timestamp, task_id, error_message, phase FROM vibeforge_session_errors"
    " WHERE session_id = ? AND position > ? AND position <= ? ORDER BY position"
)
_COLUMNS = {
    "vibeforge_sessions": len(HOT),
    "vibeforge_session_documents": 1 + len(TEXTS),
    "vibeforge_session_errors": 7,
    "vibeforge_session_logs": 4,
}
_INSERT_SQLITE = {table: f"INSERT INTO {table} VALUES ({', '.join('?' * count)})" for table, count in _COLUMNS.items()}


class SQLiteNormal(SQLite):
    """The same with the other durability."""

    name = "floor SQLite NORMAL"
    synchronous = "NORMAL"


class PostgreSQL(Floor):
    """psycopg 3 in autocommit, one statement for each write."""

    name = "floor PostgreSQL"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        url = place.replace("postgresql+psycopg", "postgresql")
        self._connection = psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC")

    def about(self) -> Mapping[str, str]:
        row = self._connection.execute("SELECT current_setting('fsync')").fetchone()
        return {"version": f"psycopg {psycopg.__version__}", "durability": f"fsync={row and row[0]}"}

    def _rows(self, statement: bytes, parameters: Sequence[Any]) -> list[Any]:
        with self._connection.cursor() as cursor:
            rows: list[Any] = cursor.execute(statement, parameters).fetchall()
            return rows

    def read(self, session_id: str, recent: int | None) -> tuple[Sequence[Any], list[Any], list[Any]]:
        (row,) = self._rows(_READ_POSTGRESQL, (session_id,))
        error_count, log_count = row[8:10]
        after = [0 if recent is None else max(0, count - recent) for count in (error_count, log_count)]
        with self._connection.pipeline(), self._connection.cursor() as errors, self._connection.cursor() as logs:
            errors.execute(_ERRORS_POSTGRESQL, (session_id, after[0], error_count))
            logs.execute(
                "SELECT message FROM vibeforge_session_logs WHERE session_id = %s AND position > %s AND position <= %s"
                " ORDER BY position",
                (session_id, after[1], log_count),
            )
            return row, errors.fetchall(), logs.fetchall()

    def insert(self, session: Session, texts: list[str | None], write_id: str) -> None:
        hot = (session.session_id, session.phase.value, session.created_at, session.updated_at, 1, write_id)
        counts = (0, None, len(session.error_history), len(session.logs))
        errors = session.error_history
        with self._connection.cursor() as cursor:
            cursor.execute(
                _CREATE,
                (
                    *(*hot, *counts),
                    *(session.session_id, *texts),
                    *(session.session_id, write_id, [e.timestamp for e in errors], [e.task_id for e in errors]),
                    *([e.error_message for e in errors], [str(e.phase) for e in errors]),
                    *(session.session_id, write_id, session.logs),
                ),
            )

    def append(self, session_id: str) -> ErrorEntry:
        now = datetime.now(UTC)
        ((position, phase),) = self._rows(_APPEND, (now, session_id, now, "task-7", MESSAGE, os.urandom(16).hex()))
        return ErrorEntry(now, "task-7", MESSAGE, KNOWN[phase], position)

    def update(
        self, session: Session, write_id: str, documents: Mapping[str, str], errors: list[ErrorEntry]
    ) -> datetime:
        baseline = session._baseline
        assert baseline is not None
        parts = [_UPDATE]
        parameters: list[Any] = [
            session.phase.value,
            session.updated_at,
            write_id,
            session.current_question_index,
            session.active_task_id,
            len(errors),
            session.session_id,
            session.version,
            baseline.write_id,
        ]
        for name, text in documents.items():
            parts.append(
                f", d AS (UPDATE vibeforge_session_documents SET {name} = %s FROM hot WHERE "
                "vibeforge_session_documents.session_id = hot.session_id)"
            )
            parameters.append(text)
        for entry in errors:
            parts.append(
                ", e AS (INSERT INTO vibeforge_session_errors"
                " SELECT session_id, error_count, %s, %s, %s, %s, %s FROM hot)"
            )
            parameters += [entry.timestamp, entry.task_id, entry.error_message, str(entry.phase), write_id]
        ((updated_at,),) = self._rows("".join([*parts, " SELECT updated_at FROM hot"]).encode(), parameters)
        return updated_at  # type: ignore[no-any-return]

    def page(self) -> list[SessionSummary]:
        return [summary_of(row) for row in self._rows(_PAGE_STATEMENT.encode(), ())[:PAGE]]

    def slice(self, session_id: str, after: int) -> list[ErrorEntry]:
        rows = self._rows(_ERRORS_POSTGRESQL, (session_id, after, after + RECENT))
        return [entry_of(row) for row in rows]

    def delete(self, session_id: str) -> None:
        with self._connection.transaction():
            for table in _COLUMNS:
                self._connection.execute(f"DELETE FROM {table} WHERE session_id = %s".encode(), (session_id,))


_READ_POSTGRESQL = _READ_SQLITE.replace("?", "%s").encode()
_ERRORS_POSTGRESQL = _ERRORS_SQLITE.replace("?", "%s").encode()
_CREATE = (
    f"WITH s AS (INSERT INTO vibeforge_sessions VALUES ({', '.join(['%s'] * 10)})),"
    f" d AS (INSERT INTO vibeforge_session_documents VALUES ({', '.join(['%s'] * 11)})),"
    " e AS (INSERT INTO vibeforge_session_errors SELECT %s, n, t, i, m, p, %s FROM"
    " unnest(%s::timestamptz[], %s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS x(t, i, m, p, n))"
    " INSERT INTO vibeforge_session_logs SELECT %s, n, m, %s FROM unnest(%s::text[]) WITH ORDINALITY AS x(m, n)"
).encode()
_APPEND = (
    b"WITH hot AS (UPDATE vibeforge_sessions SET error_count = error_count + 1, updated_at = greatest(updated_at, %s)"
    b" WHERE session_id = %s RETURNING session_id, error_count, phase)"
    b" INSERT INTO vibeforge_session_errors SELECT session_id, error_count, %s, %s, %s, phase, %s FROM hot"
    b" RETURNING position, phase"
)
_UPDATE = (
    "WITH hot AS (UPDATE vibeforge_sessions SET phase = %s, updated_at = greatest(updated_at, %s),"
    " version = version + 1, write_id = %s, current_question_index = %s, active_task_id = %s,"
    " error_count = error_count + %s WHERE session_id = %s AND version = %s AND write_id = %s"
    " RETURNING session_id, error_count, updated_at)"
)
