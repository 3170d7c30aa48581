"""Broken repositories that the checker must detect. Each of them is correct most of the time."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar

from vibeforge_sessions import ErrorEntry, OutcomeUnknownError, Session, SQLAlchemySessionRepository, StorageError
from vibeforge_sessions.repository.serialization import Record

T = TypeVar("T")


class IgnoresVersion(SQLAlchemySessionRepository):
    """A repository where the last writer wins: it replaces the read version by the stored one."""

    def update_session(self, session: Session) -> None:
        stored = self.get_session(session.session_id, recent=0)
        if stored is not None and stored._baseline is not None and session._baseline is not None:
            session.version = stored.version
            session._baseline = dataclasses.replace(
                session._baseline, write_id=stored._baseline.write_id, created_at=stored.created_at
            )
            session.created_at = stored.created_at
        super().update_session(session)


class RetriesBlindly(SQLAlchemySessionRepository):
    """A repository that repeats a write with an unknown outcome without resolving the outcome.

    It must be created with ``RetryPolicy(attempts=1)``.
    """

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        return _retried(lambda: super(RetriesBlindly, self).append_error(session_id, task_id, error_message, phase))

    def append_log(self, session_id: str, message: str) -> str:
        return _retried(lambda: super(RetriesBlindly, self).append_log(session_id, message))

    def update_session(self, session: Session) -> None:
        return _retried(lambda: super(RetriesBlindly, self).update_session(session))

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        return _retried(lambda: super(RetriesBlindly, self).delete_session(session_id, unchanged_since=unchanged_since))


def _retried(call: Callable[[], T]) -> T:
    for _ in range(20):
        try:
            return call()
        except (StorageError, OutcomeUnknownError):
            time.sleep(0.01)
    return call()


class ReportsPositionsFromARead(SQLAlchemySessionRepository):
    """A repository that computes the position of an entry before it appends the entry."""

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        counted = self.get_session(session_id, recent=0)
        entry = super().append_error(session_id, task_id, error_message, phase)
        return entry if counted is None else entry.at(counted.omitted_errors + 1)


class Sometimes(SQLAlchemySessionRepository):
    """A repository that misbehaves at every tenth call of `is_due`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._calls = 0

    def is_due(self) -> bool:
        self._calls += 1
        return self._calls % 10 == 0


class ReturnsStaleReads(Sometimes):
    """A cache that is not invalidated by writes of other clients."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kept: dict[str, Session] = {}

    def get_session(self, session_id: str, *, recent: int | None = None) -> Session | None:
        if recent is not None:
            return super().get_session(session_id, recent=recent)
        kept = self._kept.get(session_id)
        if kept is not None and self.is_due():
            return copy.deepcopy(kept)
        session = super().get_session(session_id)
        if session is not None and not self._calls % 10:
            self._kept[session_id] = copy.deepcopy(session)
        return session


class MixesTwoSnapshots(SQLAlchemySessionRepository):
    """A repository that reads the row and the documents of a session from different snapshots."""

    def get_session(self, session_id: str, *, recent: int | None = None) -> Session | None:
        before = super().get_session(session_id, recent=0)
        session = super().get_session(session_id, recent=recent)
        if session is not None and before is not None:
            session.answers, session.concept = before.answers, before.concept
        return session


class LosesWrites(Sometimes):
    """A repository that acknowledges some appends without writing them."""

    def append_log(self, session_id: str, message: str) -> str:
        if self.is_due() and self.get_session(session_id, recent=0) is not None:
            return f"[now] {message}"
        return super().append_log(session_id, message)


class WritesTwice(Sometimes):
    """A repository that appends some entries twice, as if the first answer had been lost."""

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        if self.is_due():
            super().append_error(session_id, task_id, error_message, phase)
        return super().append_error(session_id, task_id, error_message, phase)


class DeletesTwice(SQLAlchemySessionRepository):
    """A repository that repeats a delete as if its answer had been lost, and deletes another client's new session."""

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        deleted = super().delete_session(session_id, unchanged_since=unchanged_since)
        time.sleep(0.02)
        return super().delete_session(session_id) or deleted


class ReportsWriteAsFailed(Sometimes):
    """A repository that raises an error after some successful appends."""

    def append_log(self, session_id: str, message: str) -> str:
        line = super().append_log(session_id, message)
        if self.is_due():
            raise StorageError("the connection was lost while the server acknowledged the append")
        return line


ALWAYS_WRONG: list[type[SQLAlchemySessionRepository]] = [
    IgnoresVersion,
    ReportsPositionsFromARead,
    ReturnsStaleReads,
    MixesTwoSnapshots,
    LosesWrites,
    WritesTwice,
    DeletesTwice,
    ReportsWriteAsFailed,
]
"""Repositories that are wrong without any fault."""
