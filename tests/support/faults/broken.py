"""Repositories that do not keep their promises: what the checker is to notice. Each is right most of the time."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar

from vibeforge_sessions import ErrorEntry, OutcomeUnknownError, Session, SQLAlchemySessionRepository, StorageError
from vibeforge_sessions.repository.serialization import Record

T = TypeVar("T")


class LooksAtNoVersion(SQLAlchemySessionRepository):
    """The last writer wins: whatever is stored is taken for what was read."""

    def update_session(self, session: Session) -> None:
        stored = self.get_session(session.session_id, recent=0)
        if stored is not None and stored._baseline is not None and session._baseline is not None:
            session.version = stored.version
            session._baseline = dataclasses.replace(
                session._baseline, write_id=stored._baseline.write_id, created_at=stored.created_at
            )
            session.created_at = stored.created_at
        super().update_session(session)


class TriesAgainBlindly(SQLAlchemySessionRepository):
    """What may not have been done is done again, without a look at what has become of it.

    To be made with ``RetryPolicy(attempts=1)``.
    """

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        return _again(lambda: super(TriesAgainBlindly, self).append_error(session_id, task_id, error_message, phase))

    def append_log(self, session_id: str, message: str) -> str:
        return _again(lambda: super(TriesAgainBlindly, self).append_log(session_id, message))

    def update_session(self, session: Session) -> None:
        return _again(lambda: super(TriesAgainBlindly, self).update_session(session))

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        return _again(
            lambda: super(TriesAgainBlindly, self).delete_session(session_id, unchanged_since=unchanged_since)
        )


def _again(call: Callable[[], T]) -> T:
    for _ in range(20):
        try:
            return call()
        except (StorageError, OutcomeUnknownError):
            time.sleep(0.01)
    return call()


class TakesPositionsFromARead(SQLAlchemySessionRepository):
    """An entry's position is counted before it is appended."""

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        counted = self.get_session(session_id, recent=0)
        entry = super().append_error(session_id, task_id, error_message, phase)
        return entry if counted is None else entry.at(counted.omitted_errors + 1)


class Sometimes(SQLAlchemySessionRepository):
    """Goes wrong at each tenth call of `is_due`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._calls = 0

    def is_due(self) -> bool:
        self._calls += 1
        return self._calls % 10 == 0


class ReadsWhatWas(Sometimes):
    """A cache that does not hear of others' writes."""

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


class ReadsTwoMoments(SQLAlchemySessionRepository):
    """The row of one moment with the documents of another."""

    def get_session(self, session_id: str, *, recent: int | None = None) -> Session | None:
        before = super().get_session(session_id, recent=0)
        session = super().get_session(session_id, recent=recent)
        if session is not None and before is not None:
            session.answers, session.concept = before.answers, before.concept
        return session


class LosesAWrite(Sometimes):
    """It is acknowledged before it is written, and then something comes in between."""

    def append_log(self, session_id: str, message: str) -> str:
        if self.is_due() and self.get_session(session_id, recent=0) is not None:
            return f"[now] {message}"
        return super().append_log(session_id, message)


class WritesTwice(Sometimes):
    """As if the answer to the first had been lost."""

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        if self.is_due():
            super().append_error(session_id, task_id, error_message, phase)
        return super().append_error(session_id, task_id, error_message, phase)


class DeletesTwice(SQLAlchemySessionRepository):
    """As if the answer to the first had been lost; somebody else's new session goes, too."""

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        deleted = super().delete_session(session_id, unchanged_since=unchanged_since)
        time.sleep(0.02)
        return super().delete_session(session_id) or deleted


class SaysNotDone(Sometimes):
    """It fails when it has written."""

    def append_log(self, session_id: str, message: str) -> str:
        line = super().append_log(session_id, message)
        if self.is_due():
            raise StorageError("the connection was lost while it said that it is done")
        return line


ALWAYS_WRONG: list[type[SQLAlchemySessionRepository]] = [
    LooksAtNoVersion,
    TakesPositionsFromARead,
    ReadsWhatWas,
    ReadsTwoMoments,
    LosesAWrite,
    WritesTwice,
    DeletesTwice,
    SaysNotDone,
]
"""What needs no fault to go wrong."""
