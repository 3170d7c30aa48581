"""The workers: each process of the service has one, and any of them may die at any moment.

A worker takes a session by writing its name and a lease into it: of two that try, `update_session` refuses the second
as stale. The same guard ends the work on a session that was aborted meanwhile: an abort is an update, so the worker's
next one is stale. What a worker has to say in between is appended, which is never in anybody's way; that a task is done
is said in the update that makes it so, or somebody who was killed between the two would have said it for nothing.
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
"""How many sessions a worker has in hand."""

logger = logging.getLogger(__name__)


class Worker:
    """Takes sessions that are under way and free, and does their tasks until it is cancelled."""

    def __init__(self, repository: AsyncSessionRepository[ForgeSession]) -> None:
        self._repository = repository
        self._name = uuid.uuid4().hex
        self._working: dict[str, asyncio.Task[None]] = {}
        self._unreadable: set[str] = set()

    async def run(self) -> None:
        """Look for sessions again and again."""
        try:
            while True:
                try:
                    await self._take()
                except SessionRepositoryError as error:  # it comes back; a service without workers would not
                    logger.warning("the sessions cannot be reached: %s", error)
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
        except CorruptSessionError:  # is for people to look at, and must not stop the others
            logger.exception("session %s is left alone", session_id)
            self._unreadable.add(session_id)
            return None
        if session is None or session.phase not in UNDER_WAY or not session.is_free():
            return None
        session.lease_to(self._name)
        try:
            await self._repository.update_session(session)
        except (StaleSessionError, SessionNotFoundError):  # another worker's, or aborted
            return None
        return session

    async def _work(self, session: ForgeSession) -> None:
        try:
            while await self._step(session):
                pass
        except (StaleSessionError, SessionNotFoundError):
            logger.info("session %s is no longer this worker's", session.session_id)
        except SessionRepositoryError as error:  # the lease runs out, and somebody takes it up again
            logger.warning("session %s is left alone: %s", session.session_id, error)
        finally:
            del self._working[session.session_id]

    async def _step(self, session: ForgeSession) -> bool:
        """Do one task; return whether to go on."""
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
        await asyncio.sleep(TASK_SECONDS)  # the work itself
        if task.get("fails_first") and not await self._repository.list_errors(
            session.session_id, limit=1, task_id=task["id"]
        ):
            await self._repository.append_error(session.session_id, task["id"], "SyntaxError: invalid syntax")
            return True  # and once more
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
    """Have a worker as long as the block runs."""
    task = asyncio.create_task(Worker(repository).run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
