"""Detection of unsaved changes: sessions that were read and changed, but never stored.

A session that a repository returns is a copy. A change to it is stored only by `update_session`; without that call it
is lost, and no error is raised. `track_unsaved_changes` reports such changes in development and in tests.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Final, TypeVar, cast, overload

from vibeforge_sessions.errors import ConfigurationError, InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.record import Baseline
from vibeforge_sessions.model.session import S, Session
from vibeforge_sessions.repository import serialization
from vibeforge_sessions.repository.aio import AsyncRepositoryAdapter, AsyncSessionRepository
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.delegating import DelegatingSessionRepository
from vibeforge_sessions.repository.serialization import Record

__all__ = ["AsyncTrackedSessionRepository", "TrackedSessionRepository", "UnsavedChanges", "track_unsaved_changes"]

T = TypeVar("T")

_MAX_DROPPED: Final = 1000
"""Maximum number of dropped sessions that `TrackedSessionRepository.unsaved_changes` returns; all are logged."""

_logger: Final = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class UnsavedChanges:
    """Unsaved changes of one session. It contains the names of the fields and none of their values."""

    session_id: str
    fields: tuple[str, ...]
    """Names of the changed fields; ``updated_at`` is included only if no other field was changed."""
    call_site: str
    """File and line of the call that got the session from the repository."""

    def __str__(self) -> str:
        return (
            f"session {self.session_id!r} was changed ({', '.join(self.fields)}) and never stored; "
            f"it was read at {self.call_site}"
        )


@overload
def track_unsaved_changes(repository: SessionRepository[S]) -> TrackedSessionRepository[S]: ...


@overload
def track_unsaved_changes(repository: AsyncSessionRepository[S]) -> AsyncTrackedSessionRepository[S]: ...


def track_unsaved_changes(
    repository: SessionRepository[S] | AsyncSessionRepository[S],
) -> TrackedSessionRepository[S] | AsyncTrackedSessionRepository[S]:
    """Return a repository that forwards every call to `repository` and detects unsaved changes.

    In development, use it instead of `repository`: unsaved changes are logged as a warning when the session is garbage
    collected. A test calls `TrackedSessionRepository.unsaved_changes` at its end.
    """
    if isinstance(repository, AsyncSessionRepository):
        return AsyncTrackedSessionRepository(repository)
    return TrackedSessionRepository(repository)


class TrackedSessionRepository(DelegatingSessionRepository[S]):
    """Repository that detects unsaved changes; `track_unsaved_changes` creates it.

    It tracks each session that it returns or stores, without keeping it alive. When the caller drops the session, or
    the process ends, the session is compared with its last stored state. If they differ, the logger
    ``vibeforge_sessions.testing.unsaved_changes`` logs a warning.

    These changes are not reported:

    - changes whose `update_session` raised, because the caller got the error; a session that is stored later is tracked
      again;
    - changes of a session that this repository deleted;
    - changes within a `modify_session` that raised;
    - changes of a session that was passed to `forget`;
    - changes of a copy that the caller made of a session.

    A session class with pydantic's ``validate_assignment`` cannot be tracked and is rejected.

    The cost is one comparison of each session with its stored state, when the session is dropped.
    """

    def __init__(self, repository: SessionRepository[S]) -> None:
        self._repository = repository
        self._tracker = Tracker()

    @property
    def repository(self) -> SessionRepository[S]:
        """The underlying repository."""
        return self._repository

    def unsaved_changes(self) -> list[UnsavedChanges]:
        """Return the unsaved changes of the last 1000 dropped sessions that had any, then those of the sessions in use.

        The changes of a session in use might be stored later, so call this method when all work is done.
        """
        return self._tracker.unsaved_changes()

    def forget(self, session: S) -> None:
        """Stop tracking this session, because its changes are not meant to be stored."""
        self._tracker.forget(session)

    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        """Do what `SessionRepository.create_session` does, and track the given session and the copy."""
        created = super().create_session(session, session_id=session_id)
        self._tracker.track(session)
        self._tracker.track(created)
        return created

    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        """Do what `SessionRepository.get_session` does, and track the session."""
        session = super().get_session(session_id, recent=recent)
        self._tracker.track(session)
        return session

    def update_session(self, session: S) -> None:
        """Do what `SessionRepository.update_session` does; track the session, or stop tracking it after an error."""
        try:
            super().update_session(session)
        except Exception:
            self._tracker.forget(session)
            raise
        self._tracker.track(session)

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        """Do what `SessionRepository.delete_session` does, and stop tracking the copies of this session."""
        deleted = super().delete_session(session_id, unchanged_since=unchanged_since)
        self._tracker.forget_all(session_id)
        return deleted

    def modify_session(self, session_id: str, change: Callable[[S], object], *, attempts: int = 10) -> S:
        """Do what `SessionRepository.modify_session` does, and track the session that it returns."""
        session = super().modify_session(session_id, change, attempts=attempts)
        self._tracker.track(session)
        return session


class AsyncTrackedSessionRepository(AsyncRepositoryAdapter[S]):
    """`TrackedSessionRepository` for asyncio; it detects the same unsaved changes."""

    def __init__(self, repository: AsyncSessionRepository[S]) -> None:
        super().__init__(
            cast("SessionRepository[S]", repository)
        )  # the methods have the same names; `_run` awaits their results
        self.repository = repository
        """The underlying repository."""
        self._tracker = Tracker()

    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await cast("Awaitable[T]", call(*args, **kwargs))

    def unsaved_changes(self) -> list[UnsavedChanges]:
        """Do what `TrackedSessionRepository.unsaved_changes` does."""
        return self._tracker.unsaved_changes()

    def forget(self, session: S) -> None:
        """Do what `TrackedSessionRepository.forget` does."""
        self._tracker.forget(session)

    async def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        """Do what `TrackedSessionRepository.create_session` does."""
        created = await super().create_session(session, session_id=session_id)
        self._tracker.track(session)
        self._tracker.track(created)
        return created

    async def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        """Do what `TrackedSessionRepository.get_session` does."""
        session = await super().get_session(session_id, recent=recent)
        self._tracker.track(session)
        return session

    async def update_session(self, session: S) -> None:
        """Do what `TrackedSessionRepository.update_session` does."""
        try:
            await super().update_session(session)
        except Exception:
            self._tracker.forget(session)
            raise
        self._tracker.track(session)

    async def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        """Do what `TrackedSessionRepository.delete_session` does."""
        deleted = await super().delete_session(session_id, unchanged_since=unchanged_since)
        self._tracker.forget_all(session_id)
        return deleted

    async def modify_session(
        self, session_id: str, change: Callable[[S], Awaitable[object] | object], *, attempts: int = 10
    ) -> S:
        """Do what `TrackedSessionRepository.modify_session` does."""
        session = await self.repository.modify_session(session_id, change, attempts=attempts)
        self._tracker.track(session)
        return session

    async def close(self) -> None:
        """Do what `AsyncSessionRepository.close` does."""
        await self.repository.close()


class Tracker:
    """Tracker of sessions of synchronous and asynchronous repositories.

    The garbage collector may finalize a session at any time and in any thread, even during a call of this class. A lock
    could therefore deadlock, so every step is a single atomic operation on a dict or a deque.
    """

    def __init__(self) -> None:
        self._tracked: dict[int, _TrackedSession] = {}
        self._dropped: deque[UnsavedChanges] = deque(maxlen=_MAX_DROPPED)

    def track(self, session: Session | None) -> None:
        """Track a session that was just read or stored; tracking it twice has no effect."""
        if session is None or id(session) in self._tracked:
            return
        if type(session).model_config.get("validate_assignment"):
            # pydantic then replaces the object's attribute dict at each assignment, so the tracked dict is outdated
            raise ConfigurationError(
                f"{type(session).__name__} cannot be tracked, because it has validate_assignment: store it in a "
                "repository without tracking",
                "session_type",
            )
        key = id(session)
        end = weakref.finalize(session, self._on_finalize, key)
        private: Any = session.__pydantic_private__
        self._tracked[key] = _TrackedSession(
            type(session), session.__dict__, private, session.session_id, _call_site(), end
        )

    def forget(self, session: Session) -> None:
        """Stop tracking a session."""
        tracked = self._tracked.pop(id(session), None)
        if tracked is not None:
            tracked.end.detach()

    def forget_all(self, session_id: str) -> None:
        """Stop tracking all copies of a session."""
        for key, tracked in self._tracked.copy().items():
            if tracked.session_id == session_id and tracked.end.detach():
                self._tracked.pop(key, None)

    def unsaved_changes(self) -> list[UnsavedChanges]:
        """Return the unsaved changes of dropped sessions, then those of the sessions in use."""
        in_use = [tracked.unsaved_changes() for tracked in self._tracked.copy().values()]
        return [*self._dropped.copy(), *(changes for changes in in_use if changes is not None)]

    def _on_finalize(self, key: int) -> None:
        changes = self._tracked.pop(key).unsaved_changes()
        if changes is not None:
            self._dropped.append(changes)
            _logger.warning("%s", changes)


@dataclasses.dataclass(frozen=True, slots=True)
class _TrackedSession:
    """Attributes of a tracked session, kept without a reference to the session, so that it can be garbage collected."""

    session_type: type[Session]
    fields: dict[str, Any]
    private: dict[str, Any]
    session_id: str
    call_site: str
    end: weakref.finalize[[int], Any]

    def unsaved_changes(self) -> UnsavedChanges | None:
        """Return the unsaved changes of the session, or None if it has none."""
        changed = self._changed_fields()
        return UnsavedChanges(self.session_id, changed, self.call_site) if changed else None

    def _changed_fields(self) -> tuple[str, ...]:
        baseline: Baseline | None = self.private["_baseline"]
        if baseline is None or baseline.content is None or baseline.errors is None or baseline.logs is None:
            return ()  # never stored, or made by `from_dict` and not yet compared with the stored state
        record = serialization.Record(
            session_id=self.session_id,
            created_at=baseline.created_at,
            updated_at=baseline.updated_at,
            version=1,  # any valid version, because it is not compared
            write_id=baseline.write_id,
            error_count=baseline.omitted_errors + len(baseline.errors),
            log_count=baseline.omitted_logs + len(baseline.logs),
            content=baseline.content,
        )
        stored = serialization.decode_session(self.session_type, record, baseline.errors, baseline.logs).__dict__
        names = [name for name in self.session_type.model_fields if name != "version"]
        changed = tuple(name for name in names if not _same(self.fields.get(name), stored[name]))
        return tuple(name for name in changed if name != "updated_at") or changed


def _same(value: object, stored: object) -> bool:
    """Return whether a field has exactly the stored value; 1 differs from 1.0, and key order is significant."""
    try:
        texts = _text(value), _text(stored)
    except RuntimeError:  # another thread is changing the value, so the session is still in use
        return True
    return value == stored if texts == (None, None) else texts[0] == texts[1]


def _text(value: object) -> str | None:
    try:
        return validation.encode_json(value, "")
    except InvalidSessionError:  # not JSON: a time, an entry, or an invalid value
        return None


def _call_site() -> str:
    """Return the file and line of the first caller outside this package."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 (`inspect` is slower)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("vibeforge_sessions."):
        frame = frame.f_back
    return "unknown" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
