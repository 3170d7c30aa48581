"""First tables: sessions, documents, errors and logs.

Revision: vibeforge_0001, after nothing
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision = "vibeforge_0001"
down_revision = None
branch_labels = ("vibeforge_sessions",)
depends_on = None

# See `vibeforge_sessions.sql.migrations.scripts.Revision`.
locks: dict[str, dict[str, str]] = {"postgresql": {}, "mariadb": {}, "sqlite": {"the file": "for writers"}}
rewrites: tuple[str, ...] = ()
online = ("postgresql", "mariadb")
loses = "every session, with its documents, errors and logs"

# These are copies, because a revision must not change when the tables of the package change.
TIME = (
    sa.DateTime()
    .with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
    .with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
)
LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {
        "engine": "InnoDB",
        "default_charset": "utf8mb4",
        "collate": "utf8mb4_nopad_bin",
    }.items()
}


def identifier(length: int) -> sa.types.TypeEngine[str]:
    """Return a text type that is compared byte by byte."""
    return sa.String(length).with_variant(sa.Text(collation="C"), "postgresql")


def of_session(table: str) -> sa.ForeignKeyConstraint:
    """Return the foreign key of a child row to its session."""
    return sa.ForeignKeyConstraint(
        ["session_id"], ["vibeforge_sessions.session_id"], name=f"fk_{table}_session_id", ondelete="CASCADE"
    )


def upgrade() -> None:
    """Create the four tables."""
    op.create_table(
        "vibeforge_sessions",
        sa.Column("session_id", identifier(64), nullable=False),
        sa.Column("phase", identifier(64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("write_id", identifier(32), nullable=False),
        sa.Column("current_question_index", sa.BigInteger(), nullable=False),
        sa.Column("active_task_id", identifier(255), nullable=True),
        sa.Column("error_count", sa.BigInteger(), nullable=False),
        sa.Column("log_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_vibeforge_sessions"),
        **OPTIONS,
    )
    # created before any child table: with a child table and concurrent inserts, CREATE INDEX can hang a Galera cluster
    op.create_index("ix_vibeforge_sessions_created_at_session_id", "vibeforge_sessions", ["created_at", "session_id"])
    op.create_index(
        "ix_vibeforge_sessions_phase_created_at_session_id", "vibeforge_sessions", ["phase", "created_at", "session_id"]
    )
    op.create_table(
        "vibeforge_session_documents",
        sa.Column("session_id", identifier(64), nullable=False),
        sa.Column("answers", LONG_TEXT, nullable=False),
        sa.Column("intent_profile", LONG_TEXT, nullable=True),
        sa.Column("build_spec", LONG_TEXT, nullable=True),
        sa.Column("concept", LONG_TEXT, nullable=True),
        sa.Column("task_graph", LONG_TEXT, nullable=True),
        sa.Column("completed_task_ids", LONG_TEXT, nullable=False),
        sa.Column("failed_task_ids", LONG_TEXT, nullable=False),
        sa.Column("pending_clarification", LONG_TEXT, nullable=True),
        sa.Column("clarification_answer", LONG_TEXT, nullable=True),
        sa.Column("extension", LONG_TEXT, nullable=True),
        sa.PrimaryKeyConstraint("session_id", name="pk_vibeforge_session_documents"),
        of_session("vibeforge_session_documents"),
        **OPTIONS,
    )
    op.create_table(
        "vibeforge_session_errors",
        sa.Column("session_id", identifier(64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
        sa.Column("task_id", identifier(255), nullable=False),
        sa.Column("error_message", LONG_TEXT, nullable=False),
        sa.Column("phase", identifier(64), nullable=False),
        sa.Column("write_id", identifier(32), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "position", name="pk_vibeforge_session_errors"),
        of_session("vibeforge_session_errors"),
        **OPTIONS,
    )
    op.create_table(
        "vibeforge_session_logs",
        sa.Column("session_id", identifier(64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("message", LONG_TEXT, nullable=False),
        sa.Column("write_id", identifier(32), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "position", name="pk_vibeforge_session_logs"),
        of_session("vibeforge_session_logs"),
        **OPTIONS,
    )


def downgrade() -> None:
    """Drop the tables, children first, and every session with them."""
    op.drop_table("vibeforge_session_logs")
    op.drop_table("vibeforge_session_errors")
    op.drop_table("vibeforge_session_documents")
    op.drop_table("vibeforge_sessions")
