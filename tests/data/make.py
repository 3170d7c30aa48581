"""Makes the SQLite file of a revision, with data: ``python -m tests.data.make`` once a revision has been added.

A file is made by the code of its own time and never again: what later code makes of it is the test's question. The
first two were made by the same code, for which the tables are the same in both. ``sessions.json`` says what is in all
of them.
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
    """Return a session in each phase, with values that a database could change on the way."""
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
    """Return a session as JSON, without what every write makes anew."""
    return {name: value for name, value in session.to_dict().items() if name not in {"write_id", "version"}}


def make(revision: str) -> Path:
    """Make the file of a revision; it must not be there yet."""
    path = FOLDER / f"{revision}.db"
    assert not path.exists(), f"{path} is there already, and never made anew"
    engine = create_engine(f"sqlite:///{path}")
    migrate.upgrade(engine, revision)
    repository = SQLAlchemySessionRepository(engine)
    for session in sessions():
        repository.create_session(session)
    engine.dispose()
    return path


if __name__ == "__main__":
    asked = sys.argv[1:] or [
        each.revision for each in migrate.history() if not (FOLDER / f"{each.revision}.db").exists()
    ]
    for name in asked:
        sys.stdout.write(f"{make(name)}\n")
    if not EXPECTED.exists():
        EXPECTED.write_text(json.dumps([shape(session) for session in sessions()], indent=1) + "\n")
