"""Asynchronous repositories as thin shells: each call is one of a synchronous repository, run somewhere else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from vibeforge_sessions.model import ErrorEntry, S
from vibeforge_sessions.query import SessionFilter, SessionOrder, SessionPage
from vibeforge_sessions.repository import AsyncSessionRepository, SessionRepository

T = TypeVar("T")


class AsyncShell(AsyncSessionRepository[S]):
    """Passes every call on to a synchronous repository; a subclass says how it is run.

    :param repository: keeps the contract.
    """

    def __init__(self, repository: SessionRepository[S]) -> None:
        self._repository = repository

    @abstractmethod
    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a call of the synchronous repository without keeping the event loop waiting."""

    async def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        return await self._run(self._repository.create_session, session, session_id=session_id)

    async def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        return await self._run(self._repository.get_session, session_id, recent=recent)

    async def update_session(self, session: S) -> None:
        await self._run(self._repository.update_session, session)

    async def delete_session(self, session_id: str) -> bool:
        return await self._run(self._repository.delete_session, session_id)

    async def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002
        return await self._run(self._repository.list_sessions, filter)

    async def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        return await self._run(self._repository.find_sessions, filter, order=order, limit=limit, cursor=cursor)

    async def append_error(
        self, session_id: str, task_id: str, error_message: str, phase: str | None = None
    ) -> ErrorEntry:
        return await self._run(self._repository.append_error, session_id, task_id, error_message, phase)

    async def append_log(self, session_id: str, message: str) -> str:
        return await self._run(self._repository.append_log, session_id, message)

    async def list_errors(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int = 100,
        task_id: str | None = None,
        phase: str | None = None,
    ) -> list[ErrorEntry]:
        return await self._run(
            self._repository.list_errors, session_id, after=after, limit=limit, task_id=task_id, phase=phase
        )

    async def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        return await self._run(self._repository.list_logs, session_id, after=after, limit=limit)
