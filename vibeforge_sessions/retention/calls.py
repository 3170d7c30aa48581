"""What a prune asks a repository and an archive for: of both kinds as coroutines, so that it stands there once."""

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


class Direct:
    """Calls of a synchronous repository. None of them waits for an event loop: see `run`."""

    def __init__(self, repository: SessionRepository[Any]) -> None:
        self._repository = repository

    async def find(self, asked: SessionFilter, limit: int, cursor: str | None) -> SessionPage:
        # an index has the sessions of a phase in this order: none but those of the page are read
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
        time.sleep(seconds)  # noqa: ASYNC251 (there is no loop)


class Awaited:
    """The same calls of a repository of asyncio."""

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
    """Run a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    raise AssertionError("unreachable")
