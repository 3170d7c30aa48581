"""Replacements for the names of the application's module ``core/session.py``.

That module then contains only ``from vibeforge_sessions.compat import *``, and its callers need no change. One behavior
differs: a session that was read is a copy, so a change is stored only when `update_session` is called.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from vibeforge_sessions.memory import InMemorySessionRepository
from vibeforge_sessions.model.session import Session, SessionPhase
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.delegating import DelegatingSessionRepository
from vibeforge_sessions.repository.fork_locks import fork_lock
from vibeforge_sessions.settings import open_repository

__all__ = ["Session", "SessionPhase", "SessionStore", "SessionStoreInterface", "session_store"]


@runtime_checkable
class SessionStoreInterface(Protocol):
    """Protocol with the five methods of the application's stores; every `SessionRepository` has them."""

    @abstractmethod
    def create_session(self) -> Session:
        """Store a new session and return it."""

    @abstractmethod
    def get_session(self, session_id: str) -> Session | None:
        """Return the session, or None if it does not exist."""

    @abstractmethod
    def update_session(self, session: Session) -> None:
        """Store the changes of the session; a session that was never stored is created."""

    @abstractmethod
    def delete_session(self, session_id: str) -> Any:
        """Delete the session; an unknown id is not an error."""

    @abstractmethod
    def list_sessions(self) -> list[str]:
        """Return the ids of all sessions."""


class SessionStore(DelegatingSessionRepository, SessionStoreInterface):
    """Store with the interface of the application; ``SessionStore()`` keeps sessions in memory.

    :param open_store: a function that opens the underlying repository; it is called at the first use.
    """

    def __init__(self, open_store: Callable[[], SessionRepository] = InMemorySessionRepository) -> None:
        self._open_store = open_store
        self._opened: SessionRepository | None = None
        self._lock = fork_lock()

    @property
    def repository(self) -> SessionRepository:
        """The underlying repository, opened at the first use and at the first use after `close`."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open_store()
            return self._opened

    def close(self) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


session_store = SessionStore(open_repository)
"""The application's store: the database of ``VIBEFORGE_SESSIONS_DATABASE_URL``, or memory if that is not set."""
