"""Maintenance: privileges, verification of every session, and backup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import URL, Engine, func, select

from vibeforge_sessions.errors import CorruptSessionError
from vibeforge_sessions.model.session import Session
from vibeforge_sessions.sql.dialects import database_dialect_named, database_dialect_of
from vibeforge_sessions.sql.engine import parse_url
from vibeforge_sessions.sql.migrations.schema_status import connection_of
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository
from vibeforge_sessions.sql.tables import sessions

__all__ = ["Progress", "backup", "grants", "verify_data"]

Progress = Callable[[int, int], object]
"""Callback with the number of sessions that were read, and the number of all sessions."""


def grants(url: str | URL, role: str | None = None, *, migrator: str | None = None, schema: str | None = None) -> str:
    """Return SQL that grants the least privileges to the roles of the application and the migrator.

    No connection is opened.

    :param role: the role of the service. On MariaDB, it is a user from any host, unless it is given as ``user@host``.
        Its privileges are granted on tables, so the tables must exist first.
    :param migrator: the role that runs the migrations, if it differs from `role`. Grant its privileges before the first
        migration.
    :raises ConfigurationError: the URL is not supported, or is for MariaDB and lacks the name of the database.
    """
    parsed = parse_url(url)
    database_dialect = database_dialect_named(parsed.get_backend_name())
    return "\n".join(database_dialect.grants(role, migrator, database=parsed.database, schema=schema)) + "\n"


def verify_data(
    engine: Engine, *, session_type: type[Session] = Session, batch: int = 500, progress: Progress | None = None
) -> Iterator[CorruptSessionError]:
    """Read every stored session, and yield the errors of the unreadable ones. Nothing is written.

    Sessions that are created or deleted meanwhile may or may not be read. At most one session and `batch` ids are in
    memory at a time. No transaction lasts longer than the reading of one session.

    :raises StorageError: the database failed.
    :raises SchemaError: this version of the package cannot read the tables.
    """
    repository = SQLAlchemySessionRepository(engine, session_type=session_type)
    with connection_of(engine) as connection:
        total = connection.execute(select(func.count()).select_from(sessions)).scalar_one()
    done, last = 0, ""
    while ids := _session_ids(engine, last, batch):
        for session_id in ids:
            try:
                repository.get_session(session_id)
            except CorruptSessionError as error:
                yield error
        done, last = done + len(ids), ids[-1]
        if progress is not None:
            progress(done, max(done, total))


def backup(engine: Engine, path: Path) -> None:
    """Write a consistent copy of a live SQLite database into a new file.

    :raises StorageError: the file exists or cannot be written.
    :raises ConfigurationError: the database is not SQLite. The error names the command of its own backup tool.
    """
    with connection_of(engine) as connection:
        database_dialect_of(engine.dialect).backup(connection, path)


def _session_ids(engine: Engine, after: str, limit: int) -> list[str]:
    key = sessions.c.session_id
    with connection_of(engine) as connection:
        return list(connection.execute(select(key).where(key > after).order_by(key).limit(limit)).scalars())
