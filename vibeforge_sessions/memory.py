"""In-memory implementation, for tests and for services whose sessions may be lost when the process ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from vibeforge_sessions.errors import SessionExistsError, SessionNotFoundError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.session import ErrorEntry, S, Session
from vibeforge_sessions.repository import changeset, restoration, serialization
from vibeforge_sessions.repository.aio import AsyncRepositoryAdapter
from vibeforge_sessions.repository.arguments import check_after, check_limit, check_recent, check_session_id
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.fork_locks import fork_lock
from vibeforge_sessions.repository.query import Query, SessionFilter, SessionOrder, SessionPage
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.repository.stored_session import StoredSession, select, summary_of

__all__ = ["AsyncInMemorySessionRepository", "InMemorySessionRepository"]

T = TypeVar("T")


class InMemorySessionRepository(SessionRepository[S]):
    """Repository in the memory of the process; it fulfills the complete contract of `SessionRepository`.

    :param session_type: the class of the stored sessions, `Session` or a subclass.
    """

    def __init__(self, *, session_type: type[S] = Session) -> None:  # type: ignore[assignment]
        self._session_type = serialization.check_session_type(session_type)
        self._sessions: dict[str, StoredSession] = {}
        self._lock = fork_lock()

    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        session = changeset.new_session(session, session_id, self._session_type)
        write = changeset.changeset_for_create(session)
        with self._lock:
            if write.session_id in self._sessions:
                raise SessionExistsError(write.session_id)
            stored = self._sessions[write.session_id] = StoredSession.from_changeset(write)
            record = stored.record
        changeset.mark_stored(session, write, record)
        return serialization.decode_session(self._session_type, record, session.error_history, session.logs)

    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        session_id, recent = check_session_id(session_id), check_recent(recent)
        with self._lock:
            stored = self._sessions.get(session_id)
            if stored is None:
                return None
            recent_part = stored.with_recent(recent)
        return recent_part.to_session(self._session_type)  # decoded outside the lock, because decoding takes time

    def update_session(self, session: S) -> None:
        changeset.check_session(session, self._session_type)
        if not session.version:
            self.create_session(session)
            return
        if changeset.needs_content(session):
            with self._lock:
                current = self._current(session).record
            changeset.adopt_content(session, current)
        write = changeset.changeset_for_update(session)
        if write is None:
            return
        with self._lock:
            stored = self._current(session)
            stored.update(write)
            record = stored.record
        changeset.mark_stored(session, write, record)

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        session_id = check_session_id(session_id)
        expected = restoration.check_expected_record(unchanged_since, "unchanged_since")
        with self._lock:
            stored = self._sessions.get(session_id)
            if stored is None or (expected is not None and not stored.is_deletable(expected)):
                return False
            del self._sessions[session_id]
            return True

    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002
        query = Query.of(filter, "created_at", 1, None)
        return [record.session_id for record in select(query, self._records())]

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        query = Query.of(filter, order, limit, cursor)
        return query.page([summary_of(record) for record in select(query, self._records())[: query.limit + 1]])

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        session_id = check_session_id(session_id)
        # converted outside the lock, because a caller's __str__ may take time
        task_id, error_message = validation.storable_task_id(task_id), validation.storable_text(error_message)
        phase = None if phase is None else validation.storable_phase(phase)
        with self._lock:
            return self._get(session_id).append_error(task_id, error_message, phase, self._session_type)

    def append_log(self, session_id: str, message: str) -> str:
        session_id, message = check_session_id(session_id), validation.storable_text(message)
        with self._lock:
            return self._get(session_id).append_log(message)

    def list_errors(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int = 100,
        task_id: str | None = None,
        phase: str | None = None,
    ) -> list[ErrorEntry]:
        session_id = check_session_id(session_id)
        after, limit = check_after(after), check_limit(limit)
        with self._lock:
            stored = self._get(session_id)
        # outside the lock, because a caller's __str__ may take time; this is safe, because entries are only appended
        return stored.list_errors(after=after, limit=limit, task_id=task_id, phase=phase)

    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        session_id = check_session_id(session_id)
        after, limit = check_after(after), check_limit(limit)
        with self._lock:
            return self._get(session_id).list_logs(after=after, limit=limit)

    def hold_session(self, session_id: str) -> None:
        session_id = check_session_id(session_id)
        with self._lock:
            self._get(session_id).hold(held=True)

    def release_session(self, session_id: str) -> None:
        session_id = check_session_id(session_id)
        with self._lock:
            self._get(session_id).hold(held=False)

    def get_record(self, session_id: str) -> Record | None:
        session_id = check_session_id(session_id)
        with self._lock:
            stored = self._sessions.get(session_id)
        if stored is None:
            return None
        content = stored.record.content
        content = dataclasses.replace(content, documents=dict(content.documents))
        return dataclasses.replace(stored.record, content=content)

    def restore_record(
        self,
        record: Record,
        errors: Iterable[ErrorEntry] = (),
        logs: Iterable[str] = (),
        *,
        replacing: Record | None = None,
    ) -> None:
        restored = StoredSession.from_record(record, errors, logs)
        session_id = restored.record.session_id
        with self._lock:
            stored = self._sessions.get(session_id)
            restoration.check_replacing(session_id, None if stored is None else stored.record, replacing)
            self._sessions[session_id] = restored

    def _get(self, session_id: str) -> StoredSession:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise SessionNotFoundError(session_id) from None

    def _current(self, session: Session) -> StoredSession:
        """Return the stored session if it is in the state that `session` was read from."""
        stored = self._get(session.session_id)
        stored.check_unchanged(session)
        return stored

    def _records(self) -> list[Record]:
        with self._lock:
            return [stored.record for stored in self._sessions.values()]


class AsyncInMemorySessionRepository(AsyncRepositoryAdapter[S]):
    """`InMemorySessionRepository` for asyncio; it fulfills the complete contract of `AsyncSessionRepository`.

    :param session_type: the class of the stored sessions, `Session` or a subclass.
    """

    def __init__(self, *, session_type: type[S] = Session) -> None:  # type: ignore[assignment]
        super().__init__(InMemorySessionRepository(session_type=session_type))

    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return call(*args, **kwargs)  # no I/O, so the event loop is not blocked
