"""What else a DBA asks for: rights, a check of every row, a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Engine, func, select

from vibeforge_sessions.errors import CorruptSessionError, StorageError
from vibeforge_sessions.model.session import Session
from vibeforge_sessions.sql.dialects import database_named, database_of
from vibeforge_sessions.sql.engine import parse_url
from vibeforge_sessions.sql.migrations.schema_status import reading
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository
from vibeforge_sessions.sql.tables import sessions

__all__ = ["UnreadableSession", "backup", "grants", "verify_data"]

Progress = Callable[[int, int], object]
"""Is told how many sessions were read, of how many."""


@dataclass(frozen=True, slots=True)
class UnreadableSession:
    """A stored session that this code cannot read."""

    session_id: str
    reason: str
    """Why, without any value of it."""


def grants(url: str | URL, role: str | None = None, *, migrator: str | None = None, schema: str | None = None) -> str:
    """Return SQL that gives the application's role, and the migrator's, the least rights; without connecting.

    :param role: who the service connects as; on MariaDB a user, of any host unless it is ``user@host``. These rights
        are of tables, so they are given after the migrations.
    :param migrator: who runs the migrations, if that is somebody else; given before them.
    :raises StorageError: the URL is not supported, or names no database where that is needed.
    """
    parsed = parse_url(url)
    database = database_named(parsed.get_backend_name())
    return "\n".join(database.grants(role, migrator, database=parsed.database, schema=schema)) + "\n"


def verify_data(
    engine: Engine, *, session_type: type[Session] = Session, batch: int = 500, progress: Progress | None = None
) -> Iterator[UnreadableSession]:
    """Read every stored session as this code does, and yield those that cannot be read; writes nothing.

    Sessions that come or go meanwhile may be read or not. At any moment no more than one session and `batch` ids are
    in memory, and no transaction is open for longer than it takes to read one of them.

    :raises StorageError: the database failed.
    :raises SchemaError: its tables are not those that this version reads.
    """
    repository = SQLAlchemySessionRepository(engine, session_type=session_type)
    with reading(engine) as connection:
        total = connection.execute(select(func.count()).select_from(sessions)).scalar_one()
    done, last = 0, ""
    while ids := _ids(engine, last, batch):
        for session_id in ids:
            try:
                repository.get_session(session_id)
            except CorruptSessionError as error:
                yield UnreadableSession(session_id, error.reason)
        done, last = done + len(ids), ids[-1]
        if progress is not None:
            progress(done, max(done, total))


def backup(engine: Engine, path: Path) -> None:
    """Write a consistent copy of a live SQLite database into a new file.

    :raises StorageError: the file is there already or cannot be written; or the database is another one, which has a
        tool of its own: the error names the command.
    """
    with reading(engine) as connection:
        try:
            database_of(engine.dialect).backup(connection, path)
        except (OSError, ValueError):  # a name that is too long, or is no text
            raise StorageError("could not write the copy: no file can have this name") from None


def _ids(engine: Engine, after: str, limit: int) -> list[str]:
    key = sessions.c.session_id
    with reading(engine) as connection:
        return list(connection.execute(select(key).where(key > after).order_by(key).limit(limit)).scalars())
