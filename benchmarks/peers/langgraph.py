"""Checkpointers of LangGraph: a thread is a session, and each step is a checkpoint with the whole state.

https://docs.langchain.com/oss/python/langgraph/persistence
"""

from __future__ import annotations

import itertools
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from psycopg import Connection
from psycopg.rows import dict_row

from benchmarks.contender import DOCUMENTS, LOG_LINES, MESSAGE, PAGE, Contender

PHASES = itertools.cycle(["execution", "verification"])
SMALL = {"answers": {"audience": "general"}, "phase": "questionnaire"}
LOG = [f"task-{n} has been started by worker 3" for n in range(LOG_LINES)]
NOTE = (
    "The state is that of a graph by default: documents, phase, log and history are channels. Each step stores a"
    " checkpoint with complete lists. append reads the state and stores a checkpoint; updates store the state that was"
    " read before. Concurrent writes are not detected, and one of them is lost. All earlier checkpoints are kept, but a"
    " prepared session has only its last one. list_page reads the newest 50 checkpoints with their complete state:"
    " there is no list of sessions, and no page of a history."
)

COPY = """
WITH numbers AS (SELECT n, lpad(n::text, 12, '0') AS digits FROM generate_series(%(first)s::int, %(last)s::int) AS n),
blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT 'filled-' || digits, checkpoint_ns, channel, version, type, blob
    FROM checkpoint_blobs, numbers WHERE thread_id = 'filled'
)
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT 'filled-' || digits, checkpoint_ns, left(checkpoint_id, 24) || digits,
    jsonb_set(checkpoint, '{id}', to_jsonb(left(checkpoint_id, 24) || digits)), metadata
FROM checkpoints, numbers WHERE thread_id = 'filled'
"""
"""Copies of the rows of a stored session: 100,000 calls of ``put`` would take minutes."""


class Checkpoints(Contender):
    """Common part of both checkpointers."""

    saver: Any
    _connection: Any

    def __init__(self, place: str) -> None:
        self._held: dict[str, CheckpointTuple] = {}

    def calls(self) -> Mapping[str, Callable[..., object]]:
        return {
            "create": lambda session_id: self._create(session_id, self._state(0)),
            "append": self._append,
            "get": lambda session_id: self.saver.get_tuple(self._config(session_id)),
            "update_phase": lambda session_id: self._step_held(session_id, phase=next(PHASES)),
            "update_artifact": self._update_artifact,
            "update_phase_and_error": self._update_phase_and_error,
            "list_page": lambda: list(self.saver.list(None, limit=PAGE)),
            "delete": self.saver.delete_thread,
        }

    def prepare(self, entries: int) -> str:
        session_id = uuid.uuid4().hex
        self._create(session_id, self._state(entries))
        return session_id

    def there(self) -> int:
        """Return the number of sessions."""
        return int(self.first("SELECT count(DISTINCT thread_id) FROM checkpoints"))

    def first(self, statement: str) -> Any:
        """Return the first value of a query on the peer's connection."""
        row = self._connection.execute(statement).fetchone()
        return row[0] if isinstance(row, tuple) else next(iter(row.values()))

    def close(self) -> None:
        self._connection.close()

    def hold(self, session_id: str) -> None:
        self._held[session_id] = self.saver.get_tuple(self._config(session_id))

    def count(self, session_id: str) -> int:
        return len(self.saver.get_tuple(self._config(session_id)).checkpoint["channel_values"]["errors"])

    @staticmethod
    def _config(session_id: str) -> Any:
        return {"configurable": {"thread_id": session_id, "checkpoint_ns": ""}}

    @staticmethod
    def _entry(number: int) -> dict[str, str]:
        return {"task_id": f"task-{number}", "phase": "execution", "message": MESSAGE}

    def _state(self, entries: int) -> dict[str, Any]:
        errors = [self._entry(n % 50) for n in range(entries)]
        return {**DOCUMENTS, "phase": "execution", "log": LOG, "errors": errors}

    def _create(self, session_id: str, state: dict[str, Any]) -> None:
        self._step(CheckpointTuple(self._config(session_id), empty_checkpoint(), {"step": -1}), state)

    def _step(self, last: CheckpointTuple, changes: dict[str, Any]) -> CheckpointTuple:
        """Store the next checkpoint as the loop of a graph does: only changed channels get a new version."""
        step = last.metadata["step"] + 1
        before = last.checkpoint["channel_versions"]
        changed = {channel: self.saver.get_next_version(before.get(channel), None) for channel in changes}
        checkpoint: Any = {
            **last.checkpoint,
            "v": 4,  # the version of current checkpoints; older ones are migrated at each read
            "ts": datetime.now(UTC).isoformat(),
            "id": str(uuid6(clock_seq=step)),
            "channel_values": {**last.checkpoint["channel_values"], **changes},
            "channel_versions": {**before, **changed},
            "updated_channels": sorted(changed),
        }
        metadata = {"source": "loop", "step": step, "parents": {}}
        config = self.saver.put(last.config, checkpoint, metadata, changed)
        return CheckpointTuple(config, checkpoint, metadata)

    def _append(self, session_id: str) -> None:
        last = self.saver.get_tuple(self._config(session_id))
        self._step(last, {"errors": [*last.checkpoint["channel_values"]["errors"], self._entry(7)]})

    def _step_held(self, session_id: str, **changes: Any) -> None:
        self._held[session_id] = self._step(self._held[session_id], changes)

    def _update_artifact(self, session_id: str) -> None:
        step = self._held[session_id].metadata["step"]
        self._step_held(session_id, concept={**DOCUMENTS["concept"], "version": step})

    def _update_phase_and_error(self, session_id: str) -> None:
        errors = self._held[session_id].checkpoint["channel_values"]["errors"]
        self._step_held(session_id, phase=next(PHASES), errors=[*errors, self._entry(7)])


class SQLite(Checkpoints):
    """`SqliteSaver` on a connection like that of `from_conn_string`."""

    name = "langgraph SQLite"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._connection = sqlite3.connect(Path(place) / "checkpoints.db", check_same_thread=False)
        # No modules are allowed, as the README recommends: a manipulated database must not cause an import.
        self.saver = SqliteSaver(self._connection, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        self.saver.setup()

    def fill(self, sessions: int) -> None:
        synchronous = self.first("PRAGMA synchronous")
        self._connection.execute("PRAGMA synchronous = OFF")  # no sync for each row
        for _ in range(sessions - self.there()):
            self._create(uuid.uuid4().hex, SMALL)
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")

    def about(self) -> Mapping[str, str]:
        settings = [f"{name}={self.first(f'PRAGMA {name}')}" for name in ("journal_mode", "synchronous")]
        return {
            "version": version("langgraph-checkpoint-sqlite"),
            "durability": ", ".join(settings) + " (as it comes)",
            "note": NOTE,
        }


class PostgreSQL(Checkpoints):
    """`PostgresSaver` on a connection like that of `from_conn_string`."""

    name = "langgraph PostgreSQL"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self._connection = Connection.connect(place, autocommit=True, prepare_threshold=0, row_factory=dict_row)
        self.saver = PostgresSaver(self._connection, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        self.saver.setup()

    def fill(self, sessions: int) -> None:
        self.saver.delete_thread("filled")
        self._create("filled", SMALL)
        self._connection.execute(COPY, {"first": self.there(), "last": sessions - 1})

    def about(self) -> Mapping[str, str]:
        settings = [f"{name}={self.first(f'SHOW {name}')}" for name in ("fsync", "synchronous_commit")]
        return {
            "version": version("langgraph-checkpoint-postgres"),
            "durability": ", ".join(settings) + " (as it comes)",
            "note": NOTE + " Unchanged channels are not stored again: each version of a channel is a row.",
        }
