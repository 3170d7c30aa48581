"""Base class of repositories that add behavior to another repository."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable

from vibeforge_sessions.model.session import ErrorEntry, S
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import SessionFilter, SessionOrder, SessionPage
from vibeforge_sessions.repository.serialization import Record


class DelegatingSessionRepository(SessionRepository[S]):
    """Repository that forwards every call unchanged to `repository`."""

    @property
    @abstractmethod
    def repository(self) -> SessionRepository[S]:
        """The repository that the calls are forwarded to."""

    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        return self.repository.create_session(session, session_id=session_id)

    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        return self.repository.get_session(session_id, recent=recent)

    def update_session(self, session: S) -> None:
        self.repository.update_session(session)

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        return self.repository.delete_session(session_id, unchanged_since=unchanged_since)

    def modify_session(self, session_id: str, change: Callable[[S], object], *, attempts: int = 10) -> S:
        return self.repository.modify_session(session_id, change, attempts=attempts)

    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002 (the contract's name)
        return self.repository.list_sessions(filter)

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002 (the contract's name)
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        return self.repository.find_sessions(filter, order=order, limit=limit, cursor=cursor)

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        return self.repository.append_error(session_id, task_id, error_message, phase)

    def append_log(self, session_id: str, message: str) -> str:
        return self.repository.append_log(session_id, message)

    def list_errors(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int = 100,
        task_id: str | None = None,
        phase: str | None = None,
    ) -> list[ErrorEntry]:
        return self.repository.list_errors(session_id, after=after, limit=limit, task_id=task_id, phase=phase)

    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        return self.repository.list_logs(session_id, after=after, limit=limit)

    def hold_session(self, session_id: str) -> None:
        self.repository.hold_session(session_id)

    def release_session(self, session_id: str) -> None:
        self.repository.release_session(session_id)

    def get_record(self, session_id: str) -> Record | None:
        return self.repository.get_record(session_id)

    def restore_record(
        self,
        record: Record,
        errors: Iterable[ErrorEntry] = (),
        logs: Iterable[str] = (),
        *,
        replacing: Record | None = None,
    ) -> None:
        self.repository.restore_record(record, errors, logs, replacing=replacing)

    def close(self) -> None:
        self.repository.close()
