"""Workers of the service: each process runs one, and each may be killed at any time.

A worker claims a session by storing its name and a lease in it. If two workers claim one session, `update_session`
rejects the second claim as stale. An abort is an update too, so the worker's next update is stale and its work ends.

A worker appends log lines and errors, which never conflicts with updates. The log line about a completed task is part
of the update that completes the task. A worker that is killed between two calls would otherwise leave a line about a
task that is not complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import AsyncIterator

from examples.service.forge import UNDER_WAY, ForgeSession
from vibeforge_sessions import (
    AsyncSessionRepository,
    CorruptSessionError,
    SessionFilter,
    SessionNotFoundError,
    SessionPhase,
    SessionRepositoryError,
    StaleSessionError,
)

TASK_SECONDS = float(os.environ.get("FORGE_TASK_SECONDS", "0.5"))
IDLE_SECONDS = 0.1
AT_ONCE = 20
"""Maximum number of sessions that a worker has claimed at the same time."""

logger = logging.getLogger(__name__)


class Worker:
    """Worker that claims free sessions in progress and runs their tasks until it is cancelled."""

    def __init__(self, repository: AsyncSessionRepository[ForgeSession]) -> None:
        self._repository = repository
        self._name = uuid.uuid4().hex
        self._working: dict[str, asyncio.Task[None]] = {}
        self._unreadable: set[str] = set()

    async def run(self) -> None:
        """Claim sessions in a loop."""
        try:
            while True:
                try:
                    await self._take()
                except SessionRepositoryError as error:  # transient; the process is useless without its worker
                    logger.warning("the session store is unavailable: %s", error)
                await asyncio.sleep(IDLE_SECONDS)
        finally:
            tasks = list(self._working.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self) -> None:
        cursor: str | None = None
        under_way = SessionFilter(phases=UNDER_WAY)
        while len(self._working) < AT_ONCE:
            page = await self._repository.find_sessions(under_way, order="created_at", limit=100, cursor=cursor)
            for item in page.items:
                if len(self._working) < AT_ONCE and item.session_id not in self._working.keys() | self._unreadable:
                    session = await self._claim(item.session_id)
                    if session is not None:
                        self._working[session.session_id] = asyncio.create_task(self._work(session))
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _claim(self, session_id: str) -> ForgeSession | None:
        try:
            session = await self._repository.get_session(session_id, recent=0)
        except CorruptSessionError:  # the session needs an operator, and must not stop the work on other sessions
            logger.exception("session %s is skipped", session_id)
            self._unreadable.add(session_id)
            return None
        if session is None or session.phase not in UNDER_WAY or not session.is_free():
            return None
        session.lease_to(self._name)
        try:
            await self._repository.update_session(session)
        except (StaleSessionError, SessionNotFoundError):  # claimed by another worker, or aborted
            return None
        return session

    async def _work(self, session: ForgeSession) -> None:
        try:
            while await self._step(session):
                pass
        except (StaleSessionError, SessionNotFoundError):
            logger.info("session %s was claimed by another worker, aborted or deleted", session.session_id)
        except SessionRepositoryError as error:  # another worker claims the session when the lease has expired
            logger.warning("the work on session %s has stopped: %s", session.session_id, error)
        finally:
            del self._working[session.session_id]

    async def _step(self, session: ForgeSession) -> bool:
        """Run one task; return whether to continue."""
        task = session.next_task()
        if task is None:
            return await self._finish(session)
        if "asks" in task and session.clarification_answer is None:
            session.pending_clarification = {"task_id": task["id"], "question": task["asks"]}
            session.update_phase(SessionPhase.CLARIFICATION)
            session.release()
            await self._repository.update_session(session)
            return False
        session.active_task_id = task["id"]
        await self._store(session)
        await self._repository.append_log(session.session_id, f"begins: {task['title']}")
        await asyncio.sleep(TASK_SECONDS)  # simulates the work
        if task.get("fails_first") and not await self._repository.list_errors(
            session.session_id, limit=1, task_id=task["id"]
        ):
            await self._repository.append_error(session.session_id, task["id"], "SyntaxError: invalid syntax")
            return True  # the next step repeats the task
        session.add_log(f"done: {task['title']}")
        session.completed_task_ids.append(task["id"])
        session.active_task_id = None
        await self._store(session)
        return True

    async def _finish(self, session: ForgeSession) -> bool:
        if session.phase == SessionPhase.EXECUTION:
            session.update_phase(SessionPhase.VERIFICATION)
            await self._store(session)
            return True
        session.update_phase(SessionPhase.COMPLETE)
        session.release()
        await self._repository.update_session(session)
        return False

    async def _store(self, session: ForgeSession) -> None:
        session.lease_to(self._name)
        await self._repository.update_session(session)


@contextlib.asynccontextmanager
async def working(repository: AsyncSessionRepository[ForgeSession]) -> AsyncIterator[None]:
    """Run a worker until the end of the block."""
    task = asyncio.create_task(Worker(repository).run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
