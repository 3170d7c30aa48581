"""Calls of synchronous and asynchronous repositories as coroutines, so that `prune` has one implementation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from vibeforge_sessions.archive.writer import ArchiveWriter
from vibeforge_sessions.repository.aio import AsyncSessionRepository, await_completion
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import SessionFilter, SessionPage
from vibeforge_sessions.repository.serialization import Record

T = TypeVar("T")


class SynchronousCalls:
    """Calls of a synchronous repository. They never wait for an event loop: see `run`."""

    def __init__(self, repository: SessionRepository[Any]) -> None:
        self._repository = repository

    async def find(self, asked: SessionFilter, limit: int, cursor: str | None) -> SessionPage:
        # an index contains the sessions of a phase in this order, so only the sessions of the page are read
        return self._repository.find_sessions(asked, order="created_at", limit=limit, cursor=cursor)

    async def get(self, session_id: str) -> Record | None:
        return self._repository.get_record(session_id)

    async def delete(self, record: Record) -> bool:
        return self._repository.delete_session(record.session_id, unchanged_since=record)

    async def add(self, archive: ArchiveWriter, record: Record) -> None:
        archive.add(self._repository, record)

    async def on_disk(self, call: Callable[[], T]) -> T:
        return call()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 (no event loop is running)


class AsynchronousCalls:
    """The same calls of an asynchronous repository."""

    def __init__(self, repository: AsyncSessionRepository[Any]) -> None:
        self._repository = repository

    async def find(self, asked: SessionFilter, limit: int, cursor: str | None) -> SessionPage:
        return await self._repository.find_sessions(asked, order="created_at", limit=limit, cursor=cursor)

    async def get(self, session_id: str) -> Record | None:
        return await self._repository.get_record(session_id)

    async def delete(self, record: Record) -> bool:
        return await self._repository.delete_session(record.session_id, unchanged_since=record)

    async def add(self, archive: ArchiveWriter, record: Record) -> None:
        await await_completion(archive.add_async(self._repository, record))

    async def on_disk(self, call: Callable[[], T]) -> T:
        return await await_completion(asyncio.to_thread(call))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    raise AssertionError("unreachable")
