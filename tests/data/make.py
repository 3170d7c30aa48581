"""Creation of the SQLite test file of a revision: run ``python -m tests.data.make`` after adding a revision.

A file is created by the code of its own revision and never created again: tests check what later code does with it. The
first two files were created by the same code, because their tables are the same. ``sessions.json`` contains the
sessions that are stored in every file.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vibeforge_sessions import ErrorEntry, Session, SessionPhase, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate

FOLDER = Path(__file__).parent
EXPECTED = FOLDER / "sessions.json"
TIME = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def sessions() -> list[Session]:
    """Return a session in each phase, with values that a database could change in storage."""
    made = []
    for number, phase in enumerate(SessionPhase):
        session = Session(
            session_id=f"old-{number}",
            created_at=TIME.replace(minute=number),
            updated_at=TIME.replace(minute=number),
            phase=phase,
            current_question_index=number,
            answers={"z": 1, "a": [1.0, -0.0, 2**70, 1e22, None, True], "nul": "\x00", "surrogate": "\ud800"},
            concept={"title": "Ünïcode ☃ 😀"} if number % 2 else None,
            completed_task_ids=["t1"] * number,
            active_task_id="t2" if number % 3 else None,
            logs=[f"[{TIME.isoformat()}] line {line}" for line in range(number)],
            error_history=[ErrorEntry(TIME, "t1", f"it broke ␀ {line}\n", phase) for line in range(number * 2)],
        )
        made.append(session)
    return made


def shape(session: Session) -> dict[str, Any]:
    """Return a session as JSON, without the fields that every write changes."""
    return {name: value for name, value in session.to_dict().items() if name not in {"write_id", "version"}}


def make(revision: str) -> Path:
    """Create the file of a revision, which must not exist yet."""
    path = FOLDER / f"{revision}.db"
    assert not path.exists(), f"{path} exists already; test files are never created again"
    engine = create_engine(f"sqlite:///{path}")
    migrate.upgrade(engine, revision)
    repository = SQLAlchemySessionRepository(engine)
    for session in sessions():
        repository.create_session(session)
    engine.dispose()
    return path


if __name__ == "__main__":
    requested = sys.argv[1:] or [
        each.revision for each in migrate.history() if not (FOLDER / f"{each.revision}.db").exists()
    ]
    for name in requested:
        sys.stdout.write(f"{make(name)}\n")
    if not EXPECTED.exists():
        EXPECTED.write_text(json.dumps([shape(session) for session in sessions()], indent=1) + "\n")
