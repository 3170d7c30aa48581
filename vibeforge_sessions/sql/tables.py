"""Tables of the package. ``alembic check`` compares the migrations with them."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Column, Connection, Engine, ForeignKey, Index, MetaData, Table

from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.serialization import DOCUMENTS, REQUIRED
from vibeforge_sessions.sql.types import LongText, UTCDateTime, identifier

VERSION_TABLE: Final = "vibeforge_sessions_alembic_version"
"""Version table of this package. The application may have its own ``alembic_version`` in the same database."""

DEFAULT_VERSION_TABLE: Final = "alembic_version"
"""Version table of an application whose own Alembic runs the migrations of this package as a branch."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)
"""Tables of this package, without the version table."""

# These options override the defaults of a MariaDB server, such as latin1 and MyISAM.
_MARIADB_OPTIONS: Final[dict[str, Any]] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("default_charset", "utf8mb4"), ("collate", "utf8mb4_nopad_bin"))
}


def _session_id(*constraints: ForeignKey) -> Column[str]:
    return Column("session_id", identifier(64), *constraints, primary_key=True)


def _of_session() -> Column[str]:
    return _session_id(ForeignKey("vibeforge_sessions.session_id", ondelete="CASCADE"))


def _write_id() -> Column[str]:
    return Column("write_id", identifier(32), nullable=False)


# Fields that change often or that listings read are kept apart, so that a phase change does not rewrite artifacts.
sessions = Table(
    "vibeforge_sessions",
    metadata,
    _session_id(),
    Column("phase", identifier(validation.MAX_PHASE), nullable=False),
    Column("created_at", UTCDateTime(), nullable=False),
    Column("updated_at", UTCDateTime(), nullable=False),
    Column("version", BigInteger(), nullable=False),
    _write_id(),
    Column("current_question_index", BigInteger(), nullable=False),
    Column("active_task_id", identifier(validation.MAX_TASK_ID), nullable=True),
    Column("error_count", BigInteger(), nullable=False),
    Column("log_count", BigInteger(), nullable=False),
    Column("held_at", UTCDateTime(), nullable=True),
    # For listings by creation time, of all sessions or of the sessions in a phase.
    Index(None, "created_at", "session_id"),
    Index(None, "phase", "created_at", "session_id"),
    # For listings by the last update. An append changes the key of this index only: see vibeforge_0002.
    Index(None, "updated_at", "session_id"),
    **_MARIADB_OPTIONS,
)

documents = Table(
    "vibeforge_session_documents",
    metadata,
    _of_session(),
    *(Column(name, LongText, nullable=name not in REQUIRED) for name in DOCUMENTS),
    **_MARIADB_OPTIONS,
)

# Histories are keyed by (session, position): a read is one range of one index, an append touches one page.
errors = Table(
    "vibeforge_session_errors",
    metadata,
    _of_session(),
    Column("position", BigInteger(), primary_key=True),
    Column("timestamp", UTCDateTime(), nullable=False),
    Column("task_id", identifier(validation.MAX_TASK_ID), nullable=False),
    Column("error_message", LongText, nullable=False),
    Column("phase", identifier(validation.MAX_PHASE), nullable=False),
    _write_id(),
    **_MARIADB_OPTIONS,
)

logs = Table(
    "vibeforge_session_logs",
    metadata,
    _of_session(),
    Column("position", BigInteger(), primary_key=True),
    Column("message", LongText, nullable=False),
    _write_id(),
    **_MARIADB_OPTIONS,
)

# Each migration sets the only row to its own revision and to the minimum compatible revision, which is the oldest
# revision whose code may use the schema. So a replica can keep working with a newer database, and a deployment can
# first expand the schema and later contract it. Without a row for the current revision, no older code is accepted.
compatibility = Table(
    "vibeforge_sessions_compatibility",
    metadata,
    Column("revision", identifier(32), primary_key=True),
    Column("floor", identifier(32), nullable=False),
    **_MARIADB_OPTIONS,
)


_READ_AND_WRITE: Final = "SELECT, INSERT, UPDATE, DELETE"
_READ_AND_APPEND: Final = "SELECT, INSERT, DELETE"
APPLICATION_PRIVILEGES: Final = {
    sessions.name: _READ_AND_WRITE,
    documents.name: _READ_AND_WRITE,
    errors.name: _READ_AND_APPEND,
    logs.name: _READ_AND_APPEND,
    VERSION_TABLE: "SELECT",
    compatibility.name: "SELECT",
}
"""Least privileges of a service on each table, in the order in which migrations created the tables.

A service reads the last two tables when it checks the schema.
"""


def schema_of(bind: Engine | Connection) -> str | None:
    """Return the schema that the execution option ``schema_translate_map`` selects; None for the default schema."""
    schema: str | None = bind.get_execution_options().get("schema_translate_map", {}).get(None)
    return schema
