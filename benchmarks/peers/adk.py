"""`DatabaseSessionService` of Google's Agent Development Kit."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from google.adk.errors import StaleSessionError
from google.adk.events import Event, EventActions
from google.adk.sessions import DatabaseSessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.schemas.shared import timestamp_to_utc_datetime
from google.adk.sessions.schemas.v1 import StorageEvent, StorageSession, StorageUserState
from google.genai import types
from sqlalchemy import func, insert, select, text, update

from benchmarks.contender import DOCUMENTS, LOG_LINES, MESSAGE, PAGE, RECENT, ConflictError, Contender

APP, USER = "benchmark", "user"
PHASES = itertools.cycle(["execution", "verification"])
STATE: dict[str, Any] = {
    **DOCUMENTS,
    "phase": "execution",
    "log": [f"task-{n} has been started by worker 3" for n in range(LOG_LINES)],
}
NOTE = (
    "An error is an event; documents, phase and log are the session's state. "
    "Only an event changes the state, so each update also stores an event, and rewrites the complete state (19 KB). "
    "append and update get a session that was loaded before, without events. If another process has written the "
    "session since, the store raises StaleSessionError; the session is reloaded, and the conflict is counted. "
    "list_page lists the sessions of a user who has 50, because there are no pages. "
    "list_errors reads the last N events, because events have no pages."
)
Result = TypeVar("Result")


def user_of(number: int) -> str:
    """Return the user of a session that `fill` stores."""
    return f"user-{number // PAGE}"


def event_of(task: str | None = None, state: dict[str, Any] | None = None, **fields: Any) -> Event:
    """Return an event, with an error message if it has a task."""
    return Event(
        invocation_id="invocation-1",
        author=task or "system",
        content=types.Content(role="model", parts=[types.Part(text=MESSAGE)]) if task else None,
        actions=EventActions(state_delta=state or {}),
        **fields,
    )


class ADK(Contender):
    """`DatabaseSessionService` on a SQLite file."""

    name = "google-adk"
    durability: ClassVar[Mapping[str, str]] = {
        "journal_mode": "PRAGMA journal_mode",
        "synchronous": "PRAGMA synchronous",
    }

    def __init__(self, place: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._service = DatabaseSessionService(self.url_of(place))
        self._held: dict[str, Session] = {}
        self._run(self._service.prepare_tables())

    def url_of(self, place: str) -> str:
        """Return the URL with an asynchronous driver."""
        return f"sqlite+aiosqlite:///{Path(place) / 'adk.db'}"

    def about(self) -> Mapping[str, str]:
        async def ask() -> str:
            async with self._service.db_engine.connect() as connection:
                return ", ".join(
                    [f"{name}={await connection.scalar(text(asked))}" for name, asked in self.durability.items()]
                )

        return {
            "version": version("google-adk"),
            "durability": f"{self._run(ask())} (the store sets neither)",
            "note": NOTE,
        }

    def calls(self) -> Mapping[str, Callable[..., object]]:
        return {
            "create": self._create,
            "append": lambda session_id: self._append(session_id, "task-7"),
            "get": self._get,
            "get_recent": lambda session_id: self._get(session_id, RECENT),
            "update_phase": lambda session_id: self._append(session_id, state={"phase": next(PHASES)}),
            "update_artifact": self._update_artifact,
            "update_phase_and_error": lambda session_id: self._append(session_id, "task-7", {"phase": next(PHASES)}),
            "list_page": lambda: self._run(self._service.list_sessions(app_name=APP, user_id=user_of(0))),
            "delete": lambda session_id: self._run(
                self._service.delete_session(app_name=APP, user_id=USER, session_id=session_id)
            ),
        }

    def prepare(self, entries: int) -> str:
        session_id: str = self._create(None).id
        self._run(self._store_events(session_id, entries))
        self.hold(session_id)
        return session_id

    def fill(self, sessions: int) -> None:
        self._create(None)  # stores the rows of the app and of the user
        self._run(self._store_sessions(sessions))

    def hold(self, session_id: str) -> None:
        self._held[session_id] = self._get(session_id, 0)

    def count(self, session_id: str) -> int:
        return len(self._get(session_id).events)

    def close(self) -> None:
        self._run(self._service.close())
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._loop.run_until_complete(work)

    def _create(self, session_id: str | None) -> Session:
        return self._run(self._service.create_session(app_name=APP, user_id=USER, session_id=session_id, state=STATE))

    def _get(self, session_id: str, recent: int | None = None) -> Session:
        config = None if recent is None else GetSessionConfig(num_recent_events=recent)
        session = self._run(self._service.get_session(app_name=APP, user_id=USER, session_id=session_id, config=config))
        assert session is not None
        return session

    def _append(self, session_id: str, task: str | None = None, state: dict[str, Any] | None = None) -> None:
        if session_id not in self._held:
            self.hold(session_id)
        try:
            self._run(self._service.append_event(self._held[session_id], event_of(task, state)))
        except StaleSessionError as error:
            self.hold(session_id)
            raise ConflictError from error

    def _update_artifact(self, session_id: str) -> None:
        self._append(session_id, state={"concept": {**DOCUMENTS["concept"], "version": time.time_ns()}})

    async def _store_events(self, session_id: str, entries: int) -> None:
        """Store the rows that calls of `append_event` would store, in one transaction."""
        session = Session(id=session_id, app_name=APP, user_id=USER)
        start = time.time() - entries / 1000
        events = [event_of(f"task-{n % 50}", timestamp=start + n / 1000) for n in range(entries)]
        async with self._service.database_session_factory.begin() as database:
            database.add_all([StorageEvent.from_event(session, event) for event in events])
            if events:
                last = timestamp_to_utc_datetime(events[-1].timestamp)
                await database.execute(
                    update(StorageSession).where(StorageSession.id == session_id).values(update_time=last)
                )

    async def _store_sessions(self, sessions: int) -> None:
        """Store the rows that `create_session` would store, many in one transaction; `PAGE` sessions for each user."""
        others = select(func.count()).select_from(StorageSession).where(StorageSession.user_id != USER)
        async with self._service.database_session_factory.begin() as database:
            there = await database.scalar(select(func.count()).select_from(StorageSession)) or 0
            copied = await database.scalar(others) or 0
        while there < sessions or copied < PAGE:
            numbers = range(copied, copied + min(10_000, max(sessions - there, PAGE - copied)))
            now = timestamp_to_utc_datetime(time.time())
            each = {"app_name": APP, "create_time": now, "update_time": now, "state": {"audience": "general"}}
            rows = [{**each, "user_id": user_of(n), "id": f"copy-{n:08}"} for n in numbers]
            users = [{"app_name": APP, "user_id": user_of(n), "state": {}} for n in numbers if n % PAGE == 0]
            async with self._service.database_session_factory.begin() as database:
                if users:
                    await database.execute(insert(StorageUserState), users)
                await database.execute(insert(StorageSession), rows)
            there, copied = there + len(rows), copied + len(rows)


class ADKPostgreSQL(ADK):
    """`DatabaseSessionService` on PostgreSQL."""

    name = "google-adk PostgreSQL"
    durability: ClassVar[Mapping[str, str]] = {
        "fsync": "SHOW fsync",
        "synchronous_commit": "SHOW synchronous_commit",
    }

    def url_of(self, place: str) -> str:
        return place.replace("postgresql://", "postgresql+asyncpg://", 1)
