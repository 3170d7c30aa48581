"""Synchronous calls of an asynchronous repository, for a thread beside its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from vibeforge_sessions.repository.aio import AsyncSessionRepository

T = TypeVar("T")


class BlockingRepository:
    """The methods of an asynchronous repository, to be called in another thread than its event loop.

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
        """Cancel the current call and all later ones, from the event loop. Return False: the thread still runs."""
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()
        return False

    async def _run(self, call: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        if self._is_cancelled:
            raise asyncio.CancelledError
        self._call = asyncio.current_task()
        return await call(*args, **kwargs)
