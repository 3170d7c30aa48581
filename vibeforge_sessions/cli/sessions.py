"""Command group ``sessions``. Other modules import it and add their commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vibeforge_sessions.cli.output import EXITS, Commands
from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.model.session import Session
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.engine import engine_on
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository

sessions = Commands(help=f"Sessions in the database. {EXITS}", no_args_is_help=True)


@contextmanager
def repository_on(url: str, schema: str | None) -> Iterator[SQLAlchemySessionRepository[Session]]:
    """Provide the repository of a database, after a check of its schema."""
    with engine_on(url, schema=schema) as engine:
        migrate.check_schema(engine)
        yield SQLAlchemySessionRepository(engine)


def record_of(repository: SessionRepository[Any], session_id: str) -> Record:
    """Return the record of a session.

    :raises SessionNotFoundError: the session does not exist.
    """
    record = repository.get_record(session_id)
    if record is None:
        raise SessionNotFoundError(session_id)
    return record
