"""Asynchronous SQLAlchemy repository, which runs the calls of the synchronous one from an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Engine, QueuePool
from sqlalchemy.util import greenlet_spawn

from vibeforge_sessions.errors import ConfigurationError
from vibeforge_sessions.model.session import S, Session
from vibeforge_sessions.repository.aio import AsyncRepositoryAdapter, await_completion
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.sql import migrate as migrations
from vibeforge_sessions.sql.engine import create_async_engine, create_engine, is_asynchronous
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

_DEFAULT: Final = RetryPolicy()
_THREADS: Final = 5
"""Number of threads for an engine whose pool has no size."""

T = TypeVar("T")


class AsyncSQLAlchemySessionRepository(AsyncRepositoryAdapter[S]):
    """Repository that stores sessions in a database and fulfills the complete contract of `AsyncSessionRepository`.

    The constructor neither connects nor creates tables; see `SQLAlchemySessionRepository`.

    :param bind: an `AsyncEngine` (with psycopg, asyncpg, asyncmy or aiosqlite); an `Engine`, for SQLite and for drivers
        without asyncio support; or an `AsyncConnection` or `AsyncSession`, whose transaction the repository joins. On
        an `Engine`, each call runs in a thread of the repository, which has one thread for each connection that the
        engine's pool keeps; call `close` to end the threads.
    :param session_type: the class of the stored sessions, `Session` or a subclass.
    :param fast_path: see `SQLAlchemySessionRepository`.
    :param retry: see `SQLAlchemySessionRepository`.
    :raises ImportError: the extra ``async`` is not installed.
    """

    def __init__(
        self,
        bind: AsyncEngine | Engine | AsyncConnection | AsyncSession,
        *,
        session_type: type[S] = Session,  # type: ignore[assignment]
        fast_path: bool = True,
        retry: RetryPolicy = _DEFAULT,
    ) -> None:
        super().__init__(
            SQLAlchemySessionRepository(_sync(bind), session_type=session_type, fast_path=fast_path, retry=retry)
        )
        self._threads_of: Engine | None = bind if isinstance(bind, Engine) else None
        self._threads: dict[int, ThreadPoolExecutor] = {}
        """Thread pools by process id, because a fork does not copy threads."""
        self._owned: AsyncEngine | Engine | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}{str(self._repository).partition('Repository')[2]}"

    async def close(self) -> None:
        threads = self._threads.pop(os.getpid(), None)
        if threads is not None:
            threads.shutdown(wait=False)  # a thread is in use only while its call is awaited
        if self._owned is not None:
            await greenlet_spawn(_sync(self._owned).dispose)

    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        engine, process = self._threads_of, os.getpid()
        if engine is None:
            return await greenlet_spawn(call, *args, **kwargs)
        if process not in self._threads:
            size = max(1, engine.pool.size()) if isinstance(engine.pool, QueuePool) else _THREADS
            self._threads[process] = ThreadPoolExecutor(size, "vibeforge_sessions")
        working = self._threads[process].submit(contextvars.copy_context().run, call, *args, **kwargs)
        return await await_completion(asyncio.wrap_future(working), working.cancel)


def _sync(bind: object) -> Any:
    """Return the synchronous object that an asynchronous object of SQLAlchemy wraps.

    :raises ImportError: greenlet is not installed.
    """
    try:
        import greenlet  # noqa: F401, PLC0415 (an extra; SQLAlchemy reports that it is missing only at the first use)
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "AsyncSQLAlchemySessionRepository needs greenlet: pip install 'vibeforge-sessions[async]'"
        ) from error
    if isinstance(bind, AsyncEngine):
        return bind.sync_engine
    if isinstance(bind, AsyncSession):
        return bind.sync_session
    if isinstance(bind, AsyncConnection):
        if bind.sync_connection is None:
            raise ConfigurationError(
                "the AsyncConnection has not been started: await it, or use it in an async with statement", "bind"
            )
        return bind.sync_connection
    if isinstance(bind, Engine):
        return bind
    raise ConfigurationError(
        f"must be an AsyncEngine, Engine, AsyncConnection or AsyncSession, not {type(bind).__name__}", "bind"
    )


async def open_async_database(
    url: str, *, migrate: bool, session_type: type[S], schema: str | None = None, retry: RetryPolicy | None = None
) -> AsyncSQLAlchemySessionRepository[S]:
    """Check or upgrade the schema, and return a repository with its own engine (see `open_async_repository`)."""
    check = migrations.upgrade if migrate else migrations.check  # `upgrade` checks the schema as well
    engine = create_async_engine(url, schema=schema) if is_asynchronous(url) else create_engine(url, schema=schema)
    repository = AsyncSQLAlchemySessionRepository(engine, session_type=session_type, retry=retry or _DEFAULT)
    repository._owned = engine  # noqa: SLF001 (this function made the repository)
    try:
        await repository._run(check, _sync(engine))  # noqa: SLF001 (runs like a call of the repository)
    except BaseException:
        await repository.close()
        raise
    return repository
