"""Since when a session is held, so that nothing deletes it for its age.

Revision: vibeforge_0003, after vibeforge_0002

A column and not a table of its own: whoever prunes says ``held_at IS NULL`` in the deletion itself, and a new table
would need new rights. It has no index: nobody looks for held sessions but an operator. No row is written anew on any
database. PostgreSQL's lock lasts for the change of its catalogue, once it has it: who comes after waits with it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "vibeforge_0003"
down_revision = "vibeforge_0002"
branch_labels = None
depends_on = None

# See `vibeforge_sessions.sql.migrations.scripts.Revision`.
locks: dict[str, dict[str, str]] = {
    "postgresql": {"vibeforge_sessions": "AccessExclusiveLock"},
    "mariadb": {"vibeforge_sessions": "LOCK=NONE"},
    "sqlite": {"the file": "for writers"},
}
rewrites: tuple[str, ...] = ()
online = ("mariadb",)
loses = "which sessions are held"

FLOOR = "vibeforge_0001"  # nothing that older code uses is changed
TIME = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the column."""
    if op.get_context().dialect.name in {"mysql", "mariadb"}:  # a try that was interrupted can be repeated
        alter("ADD COLUMN IF NOT EXISTS held_at DATETIME(6) NULL")
    else:
        op.add_column("vibeforge_sessions", sa.Column("held_at", TIME, nullable=True), schema=schema())
    set_floor(revision)


def downgrade() -> None:
    """Drop it."""
    if op.get_context().dialect.name in {"mysql", "mariadb"}:
        alter("DROP COLUMN IF EXISTS held_at")
    else:
        op.drop_column("vibeforge_sessions", "held_at", schema=schema())
    set_floor(down_revision)


def set_floor(current: str) -> None:
    """Say which code may go on with the schema of a revision."""
    compatibility = sa.table(
        "vibeforge_sessions_compatibility",
        sa.column("revision", sa.String),
        sa.column("floor", sa.String),
        schema=schema(),
    )
    op.execute(compatibility.delete())
    op.execute(compatibility.insert().values(revision=current, floor=FLOOR))


def schema() -> str | None:
    """Return the schema that statements are sent to; new columns, and tables made up here, do not go there alone."""
    context = op.get_context()
    if context.as_sql or context.connection is None:
        return None  # nobody is asked, and a search path is set
    found: str | None = context.connection.get_execution_options().get("schema_translate_map", {}).get(None)
    return found


def alter(change: str) -> None:
    """Change the table while others write; on a Galera cluster, where nobody can meanwhile, alone."""
    context = op.get_context()
    alone = not context.as_sql and op.get_bind().execute(sa.text("SHOW VARIABLES LIKE 'wsrep_on'")).first()
    lock = "EXCLUSIVE" if alone and alone[1] == "ON" else "NONE"
    op.execute(f"ALTER TABLE vibeforge_sessions {change}, LOCK={lock}")
