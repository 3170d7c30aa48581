"""The writing calls, checks of their effects, and dumps of the tables, for tests of failing calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, select

from vibeforge_sessions import OutcomeUnknownError, Session, SessionRepository, StorageError
from vibeforge_sessions.sql.tables import metadata
from vibeforge_sessions.testing.base import stored

LONG = "x" * 60_000
Dump = dict[str, list[tuple[Any, ...]]]


def dump(engine: Engine) -> Dump:
    """Return every row of the package's tables, ordered by key."""
    with engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }


def create(repository: SessionRepository, session_id: str) -> None:
    """Create another session."""
    repository.create_session(full(f"{session_id}.new"))


def update(repository: SessionRepository, session_id: str) -> None:
    """Update with documents and entries."""
    session = stored(repository, session_id)
    session.concept = {"new": LONG}
    session.add_error("new", LONG)
    session.add_log("new")
    repository.update_session(session)


def append_error(repository: SessionRepository, session_id: str) -> None:
    """Append an error."""
    repository.append_error(session_id, "new", LONG)


def append_log(repository: SessionRepository, session_id: str) -> None:
    """Append a log line."""
    repository.append_log(session_id, f"new {LONG}")


def delete(repository: SessionRepository, session_id: str) -> None:
    """Delete the session."""
    assert repository.delete_session(session_id)


def rejection_of(call: Callable[[], object]) -> StorageError | OutcomeUnknownError | None:
    """Make a call; return the error with which the database rejected it, or None."""
    try:
        call()
    except (StorageError, OutcomeUnknownError) as error:
        return error
    return None


Write = Callable[[SessionRepository, str], None]
WRITES: list[Write] = [create, update, append_error, append_log, delete]


def is_done(call: Write, repository: SessionRepository, session_id: str) -> bool:
    """Return whether the call was applied completely and exactly once."""
    session = repository.get_session(session_id)
    if call is create:
        return stored(repository, f"{session_id}.new").answers == full(session_id).answers
    if session is None:
        return call is delete
    errors = [entry.task_id for entry in session.error_history].count("new")
    logs = sum("] new" in line for line in session.logs)
    if call is update:
        return (session.concept, errors, logs) == ({"new": LONG}, 1, 1)
    return (errors, logs) == ((1, 0) if call is append_error else (0, 1))


def full(session_id: str) -> Session:
    """Return a session that occupies many pages."""
    session = Session(session_id=session_id, answers={"text": LONG})
    for number in range(20):
        session.add_error(f"t{number}", "x" * 2000)
        session.add_log("x" * 2000)
    return session
