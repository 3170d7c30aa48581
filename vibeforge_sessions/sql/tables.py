"""The schema, in one place. The migrations make it; ``alembic check`` holds them to it."""

from __future__ import annotations

import functools
from typing import Any, Final

from sqlalchemy import Column, Connection, Engine, ForeignKey, Index, MetaData, PrimaryKeyConstraint, Table

from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.serialization import DOCUMENTS, REQUIRED
from vibeforge_sessions.sql.types import BigInt, LongText, UTCDateTime, identifier

VERSION_TABLE: Final = "vibeforge_sessions_alembic_version"
"""Alembic's table for this package: the host's database may have an ``alembic_version`` of its own."""

HOSTS_VERSION_TABLE: Final = "alembic_version"
"""Where the revision stands if a host's own Alembic runs our scripts as a branch."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# Whatever a MariaDB server's defaults are (latin1, MyISAM), these tables are the same.
_OPTIONS: Final[dict[str, Any]] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {
        "engine": "InnoDB",
        "default_charset": "utf8mb4",
        "collate": "utf8mb4_nopad_bin",
    }.items()
}


def _session_id(*constraints: ForeignKey) -> Column[str]:
    return Column("session_id", identifier(64), *constraints, nullable=False)


def _of_session() -> Column[str]:
    return _session_id(ForeignKey("vibeforge_sessions.session_id", ondelete="CASCADE"))


def _write_id() -> Column[str]:
    return Column("write_id", identifier(32), nullable=False)


# A narrow row for what changes often and what listings read, so that a phase change rewrites no artifact.
sessions = Table(
    "vibeforge_sessions",
    metadata,
    _session_id(),
    Column("phase", identifier(validation.MAX_PHASE), nullable=False),
    Column("created_at", UTCDateTime(), nullable=False),
    Column("updated_at", UTCDateTime(), nullable=False),
    Column("version", BigInt(), nullable=False),
    _write_id(),
    Column("current_question_index", BigInt(), nullable=False),
    Column("active_task_id", identifier(validation.MAX_TASK_ID), nullable=True),
    Column("error_count", BigInt(), nullable=False),
    Column("log_count", BigInt(), nullable=False),
    Column("held_at", UTCDateTime(), nullable=True),
    PrimaryKeyConstraint("session_id"),
    # Listings by creation, and "what was running when we stopped?".
    Index(None, "created_at", "session_id"),
    Index(None, "phase", "created_at", "session_id"),
    # Listings by what was touched last. The only one that an append writes: revision vibeforge_0002 has the figures.
    Index(None, "updated_at", "session_id"),
    **_OPTIONS,
)

documents = Table(
    "vibeforge_session_documents",
    metadata,
    _of_session(),
    *(Column(name, LongText, nullable=name not in REQUIRED) for name in DOCUMENTS),
    PrimaryKeyConstraint("session_id"),
    **_OPTIONS,
)

# Histories are keyed by (session, position): a read is one range of one index, an append touches one page.
errors = Table(
    "vibeforge_session_errors",
    metadata,
    _of_session(),
    Column("position", BigInt(), nullable=False),
    Column("timestamp", UTCDateTime(), nullable=False),
    Column("task_id", identifier(validation.MAX_TASK_ID), nullable=False),
    Column("error_message", LongText, nullable=False),
    Column("phase", identifier(validation.MAX_PHASE), nullable=False),
    _write_id(),
    PrimaryKeyConstraint("session_id", "position"),
    **_OPTIONS,
)

logs = Table(
    "vibeforge_session_logs",
    metadata,
    _of_session(),
    Column("position", BigInt(), nullable=False),
    Column("message", LongText, nullable=False),
    _write_id(),
    PrimaryKeyConstraint("session_id", "position"),
    **_OPTIONS,
)

# One row, set by each migration: the oldest revision whose code may go on with the schema of this one. So a database
# that is ahead of a replica need not stop it, and a deployment can expand first and contract later. A migration that
# forgets it leaves the revision of another one there, and lets nobody go on.
compatibility = Table(
    "vibeforge_sessions_compatibility",
    metadata,
    Column("revision", identifier(32), nullable=False),
    Column("floor", identifier(32), nullable=False),
    PrimaryKeyConstraint("revision"),
    **_OPTIONS,
)


_ALL: Final = "SELECT, INSERT, UPDATE, DELETE"
_APPENDED: Final = "SELECT, INSERT, DELETE"
APPLICATION_RIGHTS: Final = {
    sessions.name: _ALL,
    documents.name: _ALL,
    errors.name: _APPENDED,
    logs.name: _APPENDED,
    VERSION_TABLE: "SELECT",
    compatibility.name: "SELECT",
}
"""The least that a service needs on each table, in the order in which migrations brought them; the last two are for its
check at the start."""


@functools.cache
def metadata_in(schema: str | None) -> MetaData:
    """Return the tables as they are in a schema of PostgreSQL's, for comparing."""
    if schema is None:
        return metadata
    copy = MetaData(schema=schema, naming_convention=metadata.naming_convention)
    for table in metadata.sorted_tables:
        table.to_metadata(copy, schema=schema)
    return copy


def schema_of(bind: Engine | Connection) -> str | None:
    """Return the schema that an engine's statements are sent to, None for the database's default one."""
    schema: str | None = bind.get_execution_options().get("schema_translate_map", {}).get(None)
    return schema
