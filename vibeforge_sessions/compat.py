"""The names that the application's ``core/session.py`` has always offered.

That module becomes ``from vibeforge_sessions.compat import *`` and its callers stay as they are. What changes is
what the contract says: a session that was read is a copy, so a change counts once `update_session` was called.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from vibeforge_sessions.memory import InMemorySessionRepository
from vibeforge_sessions.model.session import Session, SessionPhase
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.delegating import ForwardingSessionRepository
from vibeforge_sessions.repository.fork_locks import fork_lock
from vibeforge_sessions.settings import open_repository

__all__ = ["Session", "SessionPhase", "SessionStore", "SessionStoreInterface", "session_store"]


@runtime_checkable
class SessionStoreInterface(Protocol):
    """The five calls that the application's stores have. Every `SessionRepository` is one, by having them."""

    @abstractmethod
    def create_session(self) -> Session:
        """Store a new session and return it."""

    @abstractmethod
    def get_session(self, session_id: str) -> Session | None:
        """Return the session, None if there is none."""

    @abstractmethod
    def update_session(self, session: Session) -> None:
        """Store what was changed; a session that was never stored is created."""

    @abstractmethod
    def delete_session(self, session_id: str) -> Any:
        """Delete the session; an unknown id is no error."""

    @abstractmethod
    def list_sessions(self) -> list[str]:
        """Return all ids."""


class SessionStore(ForwardingSessionRepository, SessionStoreInterface):
    """A store of the application's own shape: ``SessionStore()`` keeps sessions in memory.

    :param open_store: called once, at the first use, for the repository that does the work.
    """

    def __init__(self, open_store: Callable[[], SessionRepository] = InMemorySessionRepository) -> None:
        self._open_store = open_store
        self._opened: SessionRepository | None = None
        self._lock = fork_lock()

    @property
    def repository(self) -> SessionRepository:
        """The repository that does the work; opened at the first use, and again after `close`."""
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
"""The application's one store: what ``VIBEFORGE_SESSIONS_DATABASE_URL`` says, in memory without it."""
