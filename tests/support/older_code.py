"""A client of any revision, written in the SQL of the first revision, and the code of an older revision."""

from __future__ import annotations

import tarfile
from collections.abc import Container
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, text

from tests.support import ROOT
from vibeforge_sessions.sql.tables import DEFAULT_VERSION_TABLE, VERSION_TABLE

SESSION_ID = "session-1"

_CREATE = """
    INSERT INTO vibeforge_sessions
    (session_id, phase, created_at, updated_at, version, write_id, current_question_index, error_count, log_count)
    VALUES (:id, 'IDEA', '2026-11-23 12:00:00.123456', '2026-11-23 12:00:00.123456', 1, 'w', 3, 0, 0)
"""
_DOCUMENTS = """
    INSERT INTO vibeforge_session_documents (session_id, answers, completed_task_ids, failed_task_ids)
    VALUES (:id, '{"a": 1}', '[]', '[]')
"""
_COUNT = "UPDATE vibeforge_sessions SET log_count = log_count + 1 WHERE session_id = :id"
_APPEND = """
    INSERT INTO vibeforge_session_logs (session_id, position, message, write_id)
    SELECT session_id, log_count, 'meanwhile', 'w' FROM vibeforge_sessions WHERE session_id = :id
"""


def older_code(folder: Path) -> Path:
    """Extract the package as of revision vibeforge_0002 and return the folder, which belongs into PYTHONPATH."""
    with tarfile.open(ROOT / "tests" / "data" / "vibeforge_0002_code.tar.xz") as code:
        code.extractall(folder, filter="data")
    return folder


class OlderClient:
    """A client that writes and reads at any revision of the database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def create(self, session_id: str = SESSION_ID) -> None:
        """Insert a session."""
        self._run(_CREATE, _DOCUMENTS, session_id=session_id)

    def append_log(self, session_id: str = SESSION_ID) -> None:
        """Append a log line."""
        self._run(_COUNT, _APPEND, session_id=session_id)

    def count_logs(self, session_id: str = SESSION_ID) -> int:
        """Return the number of log lines."""
        statement = "SELECT count(*) FROM vibeforge_session_logs WHERE session_id = :id"
        with self.engine.connect() as connection:
            return int(connection.execute(text(statement), {"id": session_id}).scalar_one())

    def everything(self) -> dict[str, list[dict[str, Any]]]:
        """Return all rows of all tables of the package, except those that contain the revision."""
        found = {}
        with self.engine.connect() as connection:
            for table in sqlalchemy.inspect(connection).get_table_names():
                of_revision = table in {VERSION_TABLE, DEFAULT_VERSION_TABLE, "vibeforge_sessions_compatibility"}
                if table.startswith("vibeforge") and not of_revision:
                    rows = connection.execute(text(f"SELECT * FROM {table}")).mappings().all()
                    found[table] = [dict(row) for row in rows]
        return found

    def fill(self, earlier: Container[str]) -> None:
        """Fill each nullable time column that a later revision has added.

        :param earlier: the names of the columns that existed before.
        """
        inspector = sqlalchemy.inspect(self.engine)
        for column in inspector.get_columns("vibeforge_sessions"):
            if column["nullable"] and column["name"].endswith("_at") and column["name"] not in earlier:
                self._run(f"UPDATE vibeforge_sessions SET {column['name']} = created_at", session_id="")

    def _run(self, *statements: str, session_id: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement), {"id": session_id} if ":id" in statement else {})
