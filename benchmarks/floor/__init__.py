"""Floor of the benchmarks: hand-written driver code on the same tables, with the same durability.

Each call is one transaction and creates the same objects. A write is guarded by version and write id, and returns the
stored values. There are no other checks, no error translation, one connection and no pool.
"""

from __future__ import annotations

import itertools
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from benchmarks.contender import DOCUMENTS, MESSAGE, PAGE, RECENT, Contender
from benchmarks.ours import other_phase, realistic
from vibeforge_sessions import ErrorEntry, Session, SessionPhase
from vibeforge_sessions.model.record import Baseline, Content
from vibeforge_sessions.repository.query import SessionSummary

TEXTS: Final = (
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
ARTIFACTS: Final = TEXTS[1:5]
HOT: Final = (
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
COLUMNS: Final = {
    "vibeforge_sessions": len(HOT),
    "vibeforge_session_documents": 1 + len(TEXTS),
    "vibeforge_session_errors": 7,
    "vibeforge_session_logs": 4,
}
PHASES: Final = {phase.value: phase for phase in SessionPhase}

SELECT_SESSION: Final = (
    f"SELECT {', '.join(f's.{name}' for name in HOT)}, {', '.join(TEXTS)} FROM vibeforge_sessions s"
    " JOIN vibeforge_session_documents d ON d.session_id = s.session_id WHERE s.session_id = ?"
)
SELECT_ERRORS: Final = (
    "SELECT position, timestamp, task_id, error_message, phase FROM vibeforge_session_errors"
    " WHERE session_id = ? AND position > ? AND position <= ? ORDER BY position"
)
SELECT_LOGS: Final = (
    "SELECT message FROM vibeforge_session_logs"
    " WHERE session_id = ? AND position > ? AND position <= ? ORDER BY position"
)
SELECT_PAGE: Final = (
    "SELECT s.session_id, phase, created_at, updated_at, version, error_count, log_count, active_task_id, "
    + ", ".join(f"{name} IS NOT NULL" for name in ARTIFACTS)
    + " FROM vibeforge_sessions s LEFT JOIN vibeforge_session_documents d ON d.session_id = s.session_id"
    + f" ORDER BY created_at DESC, s.session_id DESC LIMIT {PAGE + 1}"
)
DELETE: Final = "DELETE FROM vibeforge_sessions WHERE session_id = ?"
"""Foreign keys delete the other rows."""

encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
decode = json.loads


class Floor(Contender):
    """Common part of both drivers."""

    _connection: Any

    def __init__(self, place: str) -> None:
        self._drafts: dict[str, Session] = {}
        self._held: dict[str, Session] = {}
        self._length: dict[str, int] = {}

    @abstractmethod
    def get(self, session_id: str, recent: int | None = None) -> Session:
        """Return the session."""

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
        """Store a change; return the stored time."""

    @abstractmethod
    def page(self) -> list[SessionSummary]:
        """Return the newest sessions."""

    @abstractmethod
    def slice(self, session_id: str, after: int) -> list[ErrorEntry]:
        """Return a page of errors."""

    @abstractmethod
    def delete(self, session_id: str) -> None:
        """Delete a session."""

    def calls(self) -> Mapping[str, Callable[..., object]]:
        def listing(share: float) -> Callable[[str], object]:
            return lambda session_id: self.slice(session_id, max(0, int(self._length[session_id] * share) - RECENT))

        return {
            "create": lambda session_id: self.create(self._drafts.pop(session_id)),
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
            session.current_question_index,
            session.active_task_id,
            len(session.error_history),
            len(session.logs),
            *texts,
        )
        return build(row, session.error_history, session.logs)

    def prepare(self, entries: int) -> str:
        session = self.create(realistic(entries=entries))
        self._length[session.session_id] = entries
        return session.session_id

    def fill(self, sessions: int) -> None:
        """Do nothing: the contender of this package has filled the same database."""

    def draft(self, session_id: str) -> None:
        self._drafts[session_id] = realistic(session_id)

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


def write_id_of(session: Session) -> str:
    """Return the write id that the session was read with."""
    baseline = session._baseline
    assert baseline is not None
    return baseline.write_id


def build(row: Sequence[Any], errors: list[ErrorEntry], logs: list[str]) -> Session:
    """Return the session of a row, without checks."""
    session_id, phase, created_at, updated_at, version, write_id, question, task_id, error_count, log_count, *texts = (
        row
    )
    documents = dict(zip(TEXTS, texts, strict=True))
    values: dict[str, Any] = {name: None if text is None else decode(text) for name, text in documents.items()}
    del values["extension"]
    session = Session.model_construct(
        session_id=session_id,
        phase=PHASES[phase],
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
        version=version,
        write_id=write_id,
        created_at=created_at,
        updated_at=updated_at,
        errors=tuple(errors),
        logs=tuple(logs),
        omitted_errors=error_count - len(errors),
        omitted_logs=log_count - len(logs),
        content=Content(phase, question, task_id, documents),
    )
    return session


def summary_of(
    session_id: str,
    phase: str,
    created_at: datetime,
    updated_at: datetime,
    version: int,
    errors: int,
    logs: int,
    task_id: str | None,
    *artifacts: int,
) -> SessionSummary:
    """Return the summary of a row of a listing."""
    there = frozenset(itertools.compress(ARTIFACTS, artifacts))
    return SessionSummary(session_id, phase, created_at, updated_at, version, errors, logs, task_id, there)
