"""`SqliteDb` of agno."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agno.db.base import SessionType
from agno.db.sqlite import SqliteDb
from agno.db.utils import build_single_run_row
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session import AgentSession

from benchmarks.contender import DOCUMENTS, LOG_LINES, MESSAGE, PAGE, RECENT, Contender

AGENT, USER = "agent", "user"
PHASES = itertools.cycle(["execution", "verification"])
LOG = [f"task-{n} has been started by worker 3" for n in range(LOG_LINES)]
NOTE = (
    "An error is a completed run without messages; documents, phase and log are the session's state. "
    "An update rewrites the complete data of the session (19 KB). Stale updates are not rejected: the last one wins. "
    "update_phase_and_error takes two transactions, one for the session and one for the run. "
    "append gets no index, so the store counts the runs itself. "
    "get does not parse runs again that the process has read before. "
    "list_errors uses a page number: an offset, and a count each time. "
    "list_page returns no runs, and counts all sessions each time."
)


def session_of(session_id: str, state: dict[str, Any]) -> AgentSession:
    """Return a session that is not stored."""
    return AgentSession(
        session_id=session_id,
        agent_id=AGENT,
        user_id=USER,
        session_data={"session_state": state},
        created_at=int(time.time()),
    )


def realistic(session_id: str) -> AgentSession:
    """Return a session with `DOCUMENTS` that is not stored."""
    return session_of(session_id, {**DOCUMENTS, "phase": "execution", "log": LOG})


def run_of(session_id: str, task: str) -> RunOutput:
    """Return a run with an error message."""
    return RunOutput(
        run_id=str(uuid.uuid4()),
        agent_id=AGENT,
        agent_name=task,
        session_id=session_id,
        user_id=USER,
        content=MESSAGE,
        status=RunStatus.completed,  # the last N runs without failed ones would read all runs
    )


class Agno(Contender):
    """`SqliteDb` on a SQLite file."""

    name = "agno"

    def __init__(self, place: str) -> None:
        os.environ["AGNO_TELEMETRY"] = "false"  # only agents send telemetry; the benchmark has no agent
        self._db = SqliteDb(db_file=str(Path(place) / "agno.db"))
        self._held: dict[str, AgentSession] = {}
        self._length: dict[str, int] = {}

    def about(self) -> Mapping[str, str]:
        with self._db.db_engine.connect() as connection:
            durability = ", ".join(
                f"{name}={connection.exec_driver_sql(f'PRAGMA {name}').scalar_one()}"
                for name in ("journal_mode", "synchronous")
            )
        return {"version": version("agno"), "durability": f"{durability} (its default)", "note": NOTE}

    def calls(self) -> Mapping[str, Callable[..., object]]:
        def listing(share: float) -> Callable[[str], object]:
            return lambda session_id: self._db.get_runs(
                session_id=session_id, limit=RECENT, page=max(1, int(self._length[session_id] * share) // RECENT)
            )

        return {
            "create": lambda session_id: self._db.upsert_session(realistic(session_id)),
            "append": self._append,
            "get": self._get,
            "get_recent": lambda session_id: self._get(session_id, RECENT),
            "update_phase": lambda session_id: self._update(session_id, phase=next(PHASES)),
            "update_artifact": self._update_artifact,
            "update_phase_and_error": self._update_phase_and_error,
            "list_page": lambda: self._db.get_sessions(
                session_type=SessionType.AGENT, limit=PAGE, page=1, sort_by="created_at", include_runs=False
            ),
            "list_errors_start": listing(0),
            "list_errors_middle": listing(0.5),
            "list_errors_end": listing(1),
            "delete": lambda session_id: self._db.delete_session(session_id, user_id=USER),
        }

    def prepare(self, entries: int) -> str:
        session_id = str(uuid.uuid4())
        self._db.upsert_session(realistic(session_id))
        self._length[session_id] = entries
        if entries:
            self._append(session_id)  # through the API: the first call creates the table
            self._store_runs(session_id, range(1, entries))
        return session_id

    def fill(self, sessions: int) -> None:
        there = self._db.get_sessions(limit=1, deserialize=False, include_runs=False)[1]
        while there < sessions:
            batch = [
                session_of(str(uuid.uuid4()), {"audience": "general"}) for _ in range(min(5_000, sessions - there))
            ]
            self._db.upsert_sessions(batch)
            there += len(batch)

    def hold(self, session_id: str) -> None:
        self._held[session_id] = self._get(session_id, RECENT)

    def count(self, session_id: str) -> int:
        stored: int = self._db.get_runs(session_id=session_id, limit=1, deserialize=False)[1]
        return stored

    def close(self) -> None:
        self._db.close()

    def _get(self, session_id: str, recent: int | None = None) -> AgentSession:
        session = self._db.get_session(session_id, SessionType.AGENT, USER, runs_limit=recent)
        assert isinstance(session, AgentSession)
        return session

    def _append(self, session_id: str) -> None:
        self._db.upsert_run(run_of(session_id, "task-7"), session_id, USER)

    def _update(self, session_id: str, **changes: Any) -> None:
        session = self._held[session_id]
        assert session.session_data is not None
        session.session_data["session_state"].update(changes)
        assert self._db.upsert_session(session) is not None

    def _update_artifact(self, session_id: str) -> None:
        self._update(session_id, concept={**DOCUMENTS["concept"], "version": time.time_ns()})

    def _update_phase_and_error(self, session_id: str) -> None:
        self._update(session_id, phase=next(PHASES))
        self._append(session_id)

    def _store_runs(self, session_id: str, numbers: range) -> None:
        """Store the rows that calls of `upsert_run` would store, in one transaction."""
        table = self._db._get_table("runs")
        assert table is not None
        rows = [build_single_run_row(run_of(session_id, f"task-{n % 50}"), session_id, USER, n) for n in numbers]
        if rows:
            with self._db.db_engine.begin() as connection:
                connection.execute(table.insert(), rows)
