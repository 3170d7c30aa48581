"""The in-memory implementation: for tests, and for services that may forget when they stop."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from vibeforge_sessions import changes, codec, values
from vibeforge_sessions.aio import AsyncShell
from vibeforge_sessions.changes import Write
from vibeforge_sessions.codec import Record
from vibeforge_sessions.errors import (
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
)
from vibeforge_sessions.history import log_line, phase_or_text
from vibeforge_sessions.model import ErrorEntry, S, Session, phases_of
from vibeforge_sessions.query import (
    Query,
    SessionFilter,
    SessionOrder,
    SessionPage,
    SessionSummary,
    check_limit,
    check_recent,
)
from vibeforge_sessions.repository import SessionRepository

__all__ = ["AsyncInMemorySessionRepository", "InMemorySessionRepository"]

T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class _Stored:
    """A session as it is kept: its values encoded like a database's, so that nobody holds a part of it."""

    record: Record
    errors: list[ErrorEntry]
    logs: list[str]


class InMemorySessionRepository(SessionRepository[S]):
    """Sessions in this process's memory, under the whole contract of `SessionRepository`.

    :param session_type: the class of session it stores, `Session` or a subclass.
    """

    def __init__(self, *, session_type: type[S] = Session) -> None:  # type: ignore[assignment]
        self._session_type = codec.check_session_type(session_type)
        self._sessions: dict[str, _Stored] = {}
        self._lock = threading.Lock()

    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        session = changes.new_session(session, session_id, self._session_type)
        write = changes.plan_create(session)
        with self._lock:
            if write.session_id in self._sessions:
                raise SessionExistsError(write.session_id)
            record = changes.record_of(write, version=1, updated_at=write.updated_at, error_count=0, log_count=0)
            stored = _Stored(record, [], [])
            _append(stored, write)
            self._sessions[write.session_id] = stored
            record = stored.record
        changes.mark_stored(session, write, record)
        return codec.decode_session(self._session_type, record, session.error_history, session.logs)

    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        session_id, recent = values.check_session_id(session_id), check_recent(recent)
        with self._lock:
            stored = self._sessions.get(session_id)
            if stored is None:
                return None
            record = stored.record
            errors = stored.errors[_start(record.error_count, recent) :]
            logs = stored.logs[_start(record.log_count, recent) :]
        return codec.decode_session(self._session_type, record, errors, logs)

    def update_session(self, session: S) -> None:
        changes.check_session(session, self._session_type)
        if not session.version:
            self.create_session(session)
            return
        if changes.needs_content(session):
            with self._lock:
                changes.adopt_content(session, self._current(session).record.content)
        write = changes.plan_update(session)
        if write is None:
            return
        with self._lock:
            stored = self._current(session)
            stored.record = dataclasses.replace(
                stored.record,
                updated_at=max(stored.record.updated_at, write.updated_at),
                version=stored.record.version + 1,
                write_id=write.write_id,
                content=write.content,
            )
            _append(stored, write)
            record = stored.record
        changes.mark_stored(session, write, record)

    def delete_session(self, session_id: str) -> bool:
        session_id = values.check_session_id(session_id)
        with self._lock:
            return self._sessions.pop(session_id, None) is not None

    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002
        query = Query.of(filter, "created_at", 1, None)
        return [record.session_id for record in self._find(query)]

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        query = Query.of(filter, order, limit, cursor)
        return query.page([_summary(record) for record in self._find(query)[: limit + 1]])

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        session_id = values.check_session_id(session_id)
        task_id, error_message = values.storable_task_id(task_id), values.storable_text(error_message)
        phases = phases_of(self._session_type)
        with self._lock:
            stored = self._get(session_id)
            now = values.utc_now()
            text = stored.record.content.phase if phase is None else phase
            entry = ErrorEntry(now, task_id, error_message, phase_or_text(text, phases), stored.record.error_count + 1)
            stored.errors.append(entry)
            _count(stored, now)
        return entry

    def append_log(self, session_id: str, message: str) -> str:
        session_id, line = values.check_session_id(session_id), log_line(message)
        with self._lock:
            stored = self._get(session_id)
            stored.logs.append(line)
            _count(stored, values.utc_now())
        return line

    def list_errors(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int = 100,
        task_id: str | None = None,
        phase: str | None = None,
    ) -> list[ErrorEntry]:
        session_id = values.check_session_id(session_id)
        after, limit = values.check_integer(after, "after", least=0), check_limit(limit)
        with self._lock:
            errors = self._get(session_id).errors[after : None if (task_id, phase) != (None, None) else after + limit]
        if task_id is not None:
            task_id = values.storable_task_id(task_id)
            errors = [entry for entry in errors if entry.task_id == task_id]
        if phase is not None:
            phase = values.storable_phase(phase)
            errors = [entry for entry in errors if entry.phase == phase]
        return errors[:limit]

    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        session_id = values.check_session_id(session_id)
        after, limit = values.check_integer(after, "after", least=0), check_limit(limit)
        with self._lock:
            return self._get(session_id).logs[after : after + limit]

    def _get(self, session_id: str) -> _Stored:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise SessionNotFoundError(session_id) from None

    def _current(self, session: Session) -> _Stored:
        """Return what is stored, if it is still what the session was read from."""
        stored = self._get(session.session_id)
        if (stored.record.version, stored.record.write_id) != (session.version, changes.baseline_of(session).write_id):
            raise StaleSessionError(session.session_id, session.version, stored.record.version)
        return stored

    def _find(self, query: Query) -> list[Record]:
        with self._lock:
            records = [stored.record for stored in self._sessions.values()]

        def key(record: Record) -> tuple[datetime, str]:
            return (record.updated_at if query.column == "updated_at" else record.created_at), record.session_id

        found = [record for record in records if _matches(record, query.filter)]
        if query.after is not None:
            after = query.after
            found = [record for record in found if (key(record) < after if query.descending else key(record) > after)]
        return sorted(found, key=key, reverse=query.descending)


def _append(stored: _Stored, write: Write) -> None:
    """Append a write's entries and count them."""
    record = stored.record
    stored.record = dataclasses.replace(
        record,
        error_count=record.error_count + len(write.errors),
        log_count=record.log_count + len(write.logs),
    )
    stored.errors.extend(changes.place(write.errors, stored.record.error_count))
    stored.logs.extend(write.logs)


def _count(stored: _Stored, now: datetime) -> None:
    """Bring the record up to date after an append: counts and time, never the version."""
    stored.record = dataclasses.replace(
        stored.record,
        updated_at=max(stored.record.updated_at, now),
        error_count=len(stored.errors),
        log_count=len(stored.logs),
    )


def _start(count: int, recent: int | None) -> int:
    return 0 if recent is None else max(0, count - recent)


def _matches(record: Record, asked: SessionFilter) -> bool:
    return (
        (asked.phases is None or record.content.phase in asked.phases)
        and (asked.created_from is None or record.created_at >= asked.created_from)
        and (asked.created_before is None or record.created_at < asked.created_before)
        and (asked.updated_from is None or record.updated_at >= asked.updated_from)
        and (asked.updated_before is None or record.updated_at < asked.updated_before)
        and (asked.has_errors is None or asked.has_errors is (record.error_count > 0))
    )


def _summary(record: Record) -> SessionSummary:
    documents = record.content.documents
    return SessionSummary(
        session_id=record.session_id,
        phase=record.content.phase,
        created_at=record.created_at,
        updated_at=record.updated_at,
        version=record.version,
        error_count=record.error_count,
        log_count=record.log_count,
        active_task_id=record.content.active_task_id,
        artifacts=frozenset(name for name in codec.ARTIFACTS if documents[name] is not None),
    )


class AsyncInMemorySessionRepository(AsyncShell[S]):
    """`InMemorySessionRepository` for asyncio, under the contract of `AsyncSessionRepository`.

    :param session_type: the class of session it stores, `Session` or a subclass.
    """

    def __init__(self, *, session_type: type[S] = Session) -> None:  # type: ignore[assignment]
        super().__init__(InMemorySessionRepository(session_type=session_type))

    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return call(*args, **kwargs)  # nothing to wait for
