"""Contenders of this package, through its public API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

from sqlalchemy import Engine, RowMapping, insert, select

from benchmarks.contender import DOCUMENTS, LOG_LINES, MESSAGE, PAGE, RECENT, Contender
from vibeforge_sessions import (
    InMemorySessionRepository,
    Session,
    SessionPhase,
    SessionRepository,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.sql import create_engine, metadata


def other_phase(session: Session) -> SessionPhase:
    """Return a phase other than the session's."""
    return SessionPhase.VERIFICATION if session.phase == SessionPhase.EXECUTION else SessionPhase.EXECUTION


def realistic(session_id: str | None = None, entries: int = 0) -> Session:
    """Return a session that is not stored."""
    session = Session(session_id=session_id) if session_id else Session()
    for name, value in DOCUMENTS.items():
        setattr(session, name, value)
    session.phase = SessionPhase.EXECUTION
    session.completed_task_ids = [f"task-{n}" for n in range(20)]
    for n in range(LOG_LINES):
        session.add_log(f"task-{n} has been started by worker 3")
    for n in range(entries):
        session.add_error(f"task-{n % 50}", MESSAGE)
    return session


class Ours(Contender):
    """Common part of the repositories."""

    repository: SessionRepository

    def __init__(self, place: str) -> None:
        self._drafts: dict[str, Session] = {}
        self._held: dict[str, Session] = {}
        self._length: dict[str, int] = {}

    def calls(self) -> Mapping[str, Callable[..., object]]:
        repository = self.repository

        def listing(share: float) -> Callable[[str], object]:
            return lambda session_id: repository.list_errors(
                session_id, after=max(0, int(self._length[session_id] * share) - RECENT), limit=RECENT
            )

        return {
            "create": lambda session_id: repository.create_session(self._drafts.pop(session_id)),
            "append": lambda session_id: repository.append_error(session_id, "task-7", MESSAGE),
            "get": repository.get_session,
            "get_recent": lambda session_id: repository.get_session(session_id, recent=RECENT),
            "update_phase": self._update_phase,
            "update_artifact": self._update_artifact,
            "update_phase_and_error": self._update_phase_and_error,
            "list_page": lambda: repository.find_sessions(limit=PAGE),
            "list_errors_start": listing(0),
            "list_errors_middle": listing(0.5),
            "list_errors_end": listing(1),
            "delete": repository.delete_session,
            "walk": self._walk,
        }

    def prepare(self, entries: int) -> str:
        session = self.repository.create_session(realistic(entries=entries))
        self._length[session.session_id] = entries
        return session.session_id

    def fill(self, sessions: int) -> None:
        there = len(self.repository.list_sessions())
        for _ in range(sessions - there):
            self.repository.create_session(Session(answers={"audience": "general"}))

    def draft(self, session_id: str) -> None:
        self._drafts[session_id] = realistic(session_id)

    def hold(self, session_id: str) -> None:
        session = self.repository.get_session(session_id)
        assert session is not None
        self._held[session_id] = session

    def count(self, session_id: str) -> int:
        session = self.repository.get_session(session_id)
        assert session is not None
        positions = [entry.position for entry in session.error_history]
        assert positions == list(range(1, len(positions) + 1))
        return len(positions)

    def close(self) -> None:
        self.repository.close()

    def _update_phase(self, session_id: str) -> None:
        session = self._held[session_id]
        session.update_phase(other_phase(session))
        self.repository.update_session(session)

    def _update_artifact(self, session_id: str) -> None:
        session = self._held[session_id]
        session.concept = {**DOCUMENTS["concept"], "version": session.version}
        self.repository.update_session(session)

    def _update_phase_and_error(self, session_id: str) -> None:
        session = self._held[session_id]
        session.update_phase(other_phase(session))
        session.add_error("task-7", MESSAGE)
        self.repository.update_session(session)

    def _walk(self) -> None:
        cursor = None
        while True:
            page = self.repository.find_sessions(limit=1000, cursor=cursor)
            cursor = page.next_cursor
            if cursor is None:
                return


class InMemory(Ours):
    """Repository in memory, without durability."""

    name = "in memory"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.repository = InMemorySessionRepository()

    def about(self) -> Mapping[str, str]:
        return {"version": version("vibeforge-sessions"), "durability": "none"}


class InDatabase(Ours):
    """Repository in a database, with an engine of `create_engine`."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.engine = self.new_engine(place)
        self.repository = SQLAlchemySessionRepository(self.engine)

    def new_engine(self, place: str) -> Engine:
        """Return the engine of a database with tables."""
        return create_engine(place)

    def fill(self, sessions: int) -> None:
        # The sessions are copied by SQL: 100,000 calls of create_session would take longer than the measurement.
        there = len(self.repository.list_sessions())
        one = self.repository.create_session(Session(answers={"audience": "general"}))
        with self.engine.begin() as connection:
            for table in (metadata.tables[name] for name in ("vibeforge_sessions", "vibeforge_session_documents")):
                row = connection.execute(select(table).where(table.c.session_id == one.session_id)).mappings().one()
                for first in range(there + 1, sessions, 10_000):
                    numbers = range(first, min(first + 10_000, sessions))
                    connection.execute(insert(table), [_copy(row, number) for number in numbers])

    def durability(self) -> str:
        """Return the durability that the database promises for acknowledged writes."""
        with self.engine.connect() as connection:
            return ", ".join(
                f"{setting}={connection.exec_driver_sql(asked).scalar_one()}"
                for setting, asked in DURABILITY[self.engine.dialect.name].items()
            )

    def about(self) -> Mapping[str, str]:
        with self.engine.connect() as connection:
            server = connection.dialect.server_version_info
        return {
            "version": version("vibeforge-sessions"),
            "durability": self.durability(),
            "database": ".".join(map(str, server or ())),
        }


DURABILITY = {
    "sqlite": {"journal_mode": "PRAGMA journal_mode", "synchronous": "PRAGMA synchronous"},
    "postgresql": {"fsync": "SHOW fsync", "synchronous_commit": "SHOW synchronous_commit"},
    "mysql": {"innodb_flush_log_at_trx_commit": "SELECT @@innodb_flush_log_at_trx_commit"},
}


def _copy(row: RowMapping, number: int) -> dict[str, Any]:
    """Return the row of another session, created one second after the previous one."""
    copy: dict[str, Any] = {**row, "session_id": f"copy-{number:08}"}
    if "created_at" in copy:
        copy["created_at"] += timedelta(seconds=number)
    return copy


class SQLite(InDatabase):
    """SQLite with FULL: acknowledged writes survive a power loss."""

    name = "SQLite FULL"
    synchronous: ClassVar[Literal["FULL", "NORMAL"]] = "FULL"

    def new_engine(self, place: str) -> Engine:
        return create_engine(f"sqlite:///{Path(place) / 'sessions.db'}", synchronous=self.synchronous)


class SQLiteNormal(SQLite):
    """SQLite with NORMAL: acknowledged writes survive a crash of the process."""

    name = "SQLite NORMAL"
    synchronous = "NORMAL"


class PostgreSQL(InDatabase):
    """PostgreSQL with fsync on."""

    name = "PostgreSQL"


class MariaDB(InDatabase):
    """MariaDB with a sync of each commit."""

    name = "MariaDB"
