"""The schema, in one place. The migrations make it; ``alembic check`` holds them to it."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, ForeignKey, Index, MetaData, PrimaryKeyConstraint, Table

from vibeforge_sessions import values
from vibeforge_sessions.codec import DOCUMENTS
from vibeforge_sessions.sql.types import BigInt, LongText, UTCDateTime, identifier

VERSION_TABLE: Final = "vibeforge_sessions_alembic_version"
"""Alembic's table for this package: the host's database may have an ``alembic_version`` of its own."""

_REQUIRED_DOCUMENTS: Final = {"answers", "completed_task_ids", "failed_task_ids"}

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
    Column("phase", identifier(values.MAX_PHASE), nullable=False),
    Column("created_at", UTCDateTime(), nullable=False),
    Column("updated_at", UTCDateTime(), nullable=False),
    Column("version", BigInt(), nullable=False),
    _write_id(),
    Column("current_question_index", BigInt(), nullable=False),
    Column("active_task_id", identifier(values.MAX_TASK_ID), nullable=True),
    Column("error_count", BigInt(), nullable=False),
    Column("log_count", BigInt(), nullable=False),
    PrimaryKeyConstraint("session_id"),
    # Listings by creation, and "what was running when we stopped?". Neither column changes at an append, so an
    # append writes no index of this table; one on updated_at would be written by every one.
    Index(None, "created_at", "session_id"),
    Index(None, "phase", "created_at", "session_id"),
    **_OPTIONS,
)

documents = Table(
    "vibeforge_session_documents",
    metadata,
    _of_session(),
    *(Column(name, LongText, nullable=name not in _REQUIRED_DOCUMENTS) for name in DOCUMENTS),
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
    Column("task_id", identifier(values.MAX_TASK_ID), nullable=False),
    Column("error_message", LongText, nullable=False),
    Column("phase", identifier(values.MAX_PHASE), nullable=False),
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
