"""Abstract asynchronous repository, and adapters between synchronous and asynchronous repositories."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, Self, TypeVar, cast

from vibeforge_sessions.errors import SessionNotFoundError, StaleSessionError
from vibeforge_sessions.model.session import ErrorEntry, S
from vibeforge_sessions.repository import instrumentation
from vibeforge_sessions.repository.arguments import check_attempts
from vibeforge_sessions.repository.base import STALE_RETRY_POLICY, SessionRepository
from vibeforge_sessions.repository.instrumentation import Instrumented
from vibeforge_sessions.repository.query import SessionFilter, SessionOrder, SessionPage
from vibeforge_sessions.repository.serialization import Record

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class AsyncSessionRepository(Instrumented, ABC, Generic[S]):
    """`SessionRepository` for asyncio: the same names and guarantees; each call is a coroutine.

    **Tasks.** All tasks of an event loop can share one repository. They must not share a `Session`: each task reads its
    own copy, and must not change it while it awaits a call to which it passed the copy.

    **Cancellation.** A canceled call has written everything or nothing, and has returned its connection. The session
    that was passed to the call might not be marked as stored, so the caller must read it again.
    """

    # --- sessions ---

    @abstractmethod
    async def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        """Do what `SessionRepository.create_session` does."""

    @abstractmethod
    async def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        """Do what `SessionRepository.get_session` does."""

    @abstractmethod
    async def update_session(self, session: S) -> None:
        """Do what `SessionRepository.update_session` does."""

    @abstractmethod
    async def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        """Do what `SessionRepository.delete_session` does."""

    async def modify_session(
        self, session_id: str, change: Callable[[S], Awaitable[object] | object], *, attempts: int = 10
    ) -> S:
        """Do what `SessionRepository.modify_session` does.

        :param change: a function or a coroutine function; an awaitable result is awaited.
        """
        attempts = check_attempts(attempts)
        for attempt in range(1, attempts + 1):
            session = await self.get_session(session_id)
            if session is None:
                raise SessionNotFoundError(session_id)
            result = change(session)
            if inspect.isawaitable(result):
                await result
            try:
                await self.update_session(session)
            except StaleSessionError:
                if attempt == attempts:
                    raise
                instrumentation.report_retry("StaleSessionError")
                await asyncio.sleep(STALE_RETRY_POLICY.delay(attempt))
            else:
                return session
        raise AssertionError("unreachable")

    # --- listings ---

    @abstractmethod
    async def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002
        """Do what `SessionRepository.list_sessions` does."""

    @abstractmethod
    async def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        """Do what `SessionRepository.find_sessions` does."""

    # --- histories ---

    @abstractmethod
    async def append_error(
        self, session_id: str, task_id: str, error_message: str, phase: str | None = None
    ) -> ErrorEntry:
        """Do what `SessionRepository.append_error` does."""

    @abstractmethod
    async def append_log(self, session_id: str, message: str) -> str:
        """Do what `SessionRepository.append_log` does."""

    @abstractmethod
    async def list_errors(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int = 100,
        task_id: str | None = None,
        phase: str | None = None,
    ) -> list[ErrorEntry]:
        """Do what `SessionRepository.list_errors` does."""

    @abstractmethod
    async def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        """Do what `SessionRepository.list_logs` does."""

    # --- holds, export and restore ---

    @abstractmethod
    async def hold_session(self, session_id: str) -> None:
        """Do what `SessionRepository.hold_session` does."""

    @abstractmethod
    async def release_session(self, session_id: str) -> None:
        """Do what `SessionRepository.release_session` does."""

    @abstractmethod
    async def get_record(self, session_id: str) -> Record | None:
        """Do what `SessionRepository.get_record` does."""

    @abstractmethod
    async def restore_record(
        self,
        record: Record,
        errors: Iterable[ErrorEntry] = (),
        logs: Iterable[str] = (),
        *,
        replacing: Record | None = None,
    ) -> None:
        """Do what `SessionRepository.restore_record` does."""

    # --- resources ---

    async def close(self) -> None:
        """Do what `SessionRepository.close` does."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _forwarded(method: F) -> F:
    """Return a coroutine function that calls the method of the same name on the synchronous repository."""
    name = method.__name__

    @functools.wraps(method, updated=())  # does not copy the mark of an abstract method
    async def forward(self: AsyncRepositoryAdapter[Any], *args: Any, **kwargs: Any) -> Any:
        return await self._run(getattr(self._repository, name), *args, **kwargs)

    return cast("F", forward)


class AsyncRepositoryAdapter(AsyncSessionRepository[S]):
    """Adapter that forwards every call to a synchronous repository; a subclass implements `_run`.

    :param repository: the synchronous repository.
    """

    def __init__(self, repository: SessionRepository[S]) -> None:
        self._repository = repository

    @abstractmethod
    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a call of the synchronous repository without blocking the event loop."""

    create_session = _forwarded(AsyncSessionRepository[S].create_session)
    get_session = _forwarded(AsyncSessionRepository[S].get_session)
    update_session = _forwarded(AsyncSessionRepository[S].update_session)
    delete_session = _forwarded(AsyncSessionRepository[S].delete_session)
    list_sessions = _forwarded(AsyncSessionRepository[S].list_sessions)
    find_sessions = _forwarded(AsyncSessionRepository[S].find_sessions)
    append_error = _forwarded(AsyncSessionRepository[S].append_error)
    append_log = _forwarded(AsyncSessionRepository[S].append_log)
    list_errors = _forwarded(AsyncSessionRepository[S].list_errors)
    list_logs = _forwarded(AsyncSessionRepository[S].list_logs)
    hold_session = _forwarded(AsyncSessionRepository[S].hold_session)
    release_session = _forwarded(AsyncSessionRepository[S].release_session)
    get_record = _forwarded(AsyncSessionRepository[S].get_record)
    restore_record = _forwarded(AsyncSessionRepository[S].restore_record)


class BlockingRepository:
    """The methods of an asynchronous repository as blocking calls, for a thread that does not run its event loop.

    Create it in a coroutine: its calls run on the event loop of this coroutine.
    """

    def __init__(self, repository: AsyncSessionRepository[Any]) -> None:
        self._repository = repository
        self._loop = asyncio.get_running_loop()
        self._call: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._repository, name)
        return lambda *args, **kwargs: self.wait_for(method, *args, **kwargs)

    def wait_for(self, call: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Return the result of a coroutine function that runs on the event loop."""
        return asyncio.run_coroutine_threadsafe(self._run(call, *args, **kwargs), self._loop).result()

    def cancel(self) -> bool:
        """Cancel the current and later calls; to be called on the event loop. Return False: the thread still runs."""
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()
        return False

    async def _run(self, call: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        if self._is_cancelled:
            raise asyncio.CancelledError
        self._call = asyncio.current_task()
        return await call(*args, **kwargs)


async def await_completion(work: Awaitable[T], cancel: Callable[[], bool] = lambda: False) -> T:
    """Await work that cannot be interrupted, such as a thread; if canceled, wait for the end of the work, then raise.

    :param cancel: called after a cancellation; it returns True if the work had not started and will not start.
    """
    waiting = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        while not cancel() and not waiting.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([waiting])
        if waiting.done() and not waiting.cancelled():
            waiting.exception()  # retrieved, because asyncio logs exceptions that are never retrieved
        raise
