"""Sessions of the OpenAI Agents SDK, which store the items of a conversation.

https://openai.github.io/openai-agents-python/sessions/
"""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agents import SQLiteSession, set_tracing_disabled
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.contender import MESSAGE, RECENT, Contender

ITEM = {"role": "user", "content": MESSAGE}
"""Error entry as an item of a conversation."""
OPEN = 64
"""Maximum number of open sessions; each `SQLiteSession` has its own connection."""
PRAGMAS = ("journal_mode", "synchronous")
NOTE = (
    "It stores a list of items only: no documents, no phase and no log, so get reads the history alone. No call"
    " creates a session: create appends the first item. There is no list of sessions, and no page of a history but"
    " its end."
)

set_tracing_disabled(disabled=True)


class Sessions(Contender):
    """Common part of both kinds of sessions: the protocol of the SDK."""

    def __init__(self, place: str) -> None:
        self.path = Path(place) / "conversations.db"
        self._loop = asyncio.new_event_loop()
        self._open: dict[str, Any] = {}

    @abstractmethod
    def new(self, session_id: str) -> Any:
        """Return the SDK's object of a session."""

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a call on an event loop that all calls share, as in an application."""
        return self._loop.run_until_complete(work)

    def calls(self) -> Mapping[str, Callable[..., object]]:
        return {
            "create": self._append,
            "append": self._append,
            "get": lambda session_id: self.do(self._session(session_id).get_items()),
            "get_recent": lambda session_id: self.do(self._session(session_id).get_items(limit=RECENT)),
            "delete": lambda session_id: self.do(self._session(session_id).clear_session()),
        }

    def prepare(self, entries: int) -> str:
        session_id = uuid.uuid4().hex
        self.do(self._session(session_id).add_items([ITEM] * entries))
        return session_id

    def fill(self, sessions: int) -> None:
        # The rows that add_items stores for one item (SQLAlchemySession writes JSON without spaces); the other
        # values are the tables' defaults.
        connection = sqlite3.connect(self.path)
        (there,) = connection.execute("SELECT count(*) FROM agent_sessions").fetchone()
        ids = [(f"filled-{n:08}",) for n in range(there, sessions)]
        connection.executemany("INSERT INTO agent_sessions (session_id) VALUES (?)", ids)
        connection.executemany(
            """INSERT INTO agent_messages (session_id, message_data) VALUES (?, '{"role": "user", "content": "hi"}')""",
            ids,
        )
        connection.commit()
        connection.close()

    def count(self, session_id: str) -> int:
        return len(self.do(self._session(session_id).get_items()))

    def close(self) -> None:
        for session in self._open.values():
            self.release(session)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def release(self, session: Any) -> None:
        """Release the resources of a session."""

    def _session(self, session_id: str) -> Any:
        if session_id not in self._open:
            if len(self._open) >= OPEN:
                self.release(self._open.pop(next(iter(self._open))))
            self._open[session_id] = self.new(session_id)
        return self._open[session_id]

    def _append(self, session_id: str) -> None:
        self.do(self._session(session_id).add_items([ITEM]))


class SQLite(Sessions):
    """`SQLiteSession`: the sqlite3 module in a thread."""

    name = "openai-agents SQLite"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._any = self.new("any")  # creates the tables

    def new(self, session_id: str) -> SQLiteSession:
        return SQLiteSession(session_id, self.path)

    def release(self, session: SQLiteSession) -> None:
        session.close()

    def about(self) -> Mapping[str, str]:
        connection = self._any._get_connection()
        durability = [f"{name}={connection.execute(f'PRAGMA {name}').fetchone()[0]}" for name in PRAGMAS]
        return {
            "version": version("openai-agents"),
            "durability": ", ".join(durability) + " (as it comes)",
            "note": NOTE + " Each session opens a connection of its own, which create includes.",
        }

    def close(self) -> None:
        super().close()
        self._any.close()


class SQLAlchemy(Sessions):
    """`SQLAlchemySession` on SQLite, with one engine for all sessions, as in an application."""

    name = "openai-agents SQLAlchemy"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{self.path}")
        # Only this session creates the tables: the others would check for them at their first call.
        self.do(SQLAlchemySession("any", engine=self._engine, create_tables=True).get_items())

    def new(self, session_id: str) -> SQLAlchemySession:
        return SQLAlchemySession(session_id, engine=self._engine)

    def about(self) -> Mapping[str, str]:
        async def ask() -> list[str]:
            async with self._engine.connect() as connection:
                answers = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in PRAGMAS]
            return [f"{name}={answer}" for name, answer in zip(PRAGMAS, answers, strict=True)]

        return {
            "version": version("openai-agents"),
            "durability": ", ".join(self.do(ask())) + " (as it comes)",
            "note": NOTE + f" SQLAlchemy {version('sqlalchemy')}, aiosqlite {version('aiosqlite')}.",
        }

    def close(self) -> None:
        self.do(self._engine.dispose())
        super().close()
