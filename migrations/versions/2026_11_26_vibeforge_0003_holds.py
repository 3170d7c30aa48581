"""Column for the time of a hold, which protects a session from pruning.

Revision: vibeforge_0003, after vibeforge_0002

The time is stored in a column and not in a table of its own, because a prune checks ``held_at IS NULL`` in the DELETE
statement itself, and because a new table would need new privileges. The column has no index, because only operators
search for held sessions. No database rewrites rows. PostgreSQL locks the table only while it changes its catalog, but
while the migration waits for this lock, later statements on the table wait as well.
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

MINIMUM_COMPATIBLE = "vibeforge_0001"  # the change affects nothing that older code uses
TIME = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the column."""
    if op.get_context().dialect.name in {"mysql", "mariadb"}:  # an interrupted upgrade can be repeated
        alter("ADD COLUMN IF NOT EXISTS held_at DATETIME(6) NULL")
    else:
        op.add_column("vibeforge_sessions", sa.Column("held_at", TIME, nullable=True), schema=schema())
    set_minimum_compatible(revision)


def downgrade() -> None:
    """Drop the column."""
    if op.get_context().dialect.name in {"mysql", "mariadb"}:
        alter("DROP COLUMN IF EXISTS held_at")
    else:
        op.drop_column("vibeforge_sessions", "held_at", schema=schema())
    set_minimum_compatible(down_revision)


def set_minimum_compatible(current: str) -> None:
    """Record the minimum compatible revision for the schema of a revision."""
    compatibility = sa.table(
        "vibeforge_sessions_compatibility",
        sa.column("revision", sa.String),
        sa.column("floor", sa.String),
        schema=schema(),
    )
    op.execute(compatibility.delete())
    op.execute(compatibility.insert().values(revision=current, floor=MINIMUM_COMPATIBLE))


def schema() -> str | None:
    """Return the schema of the statements. SQLAlchemy does not translate it for new columns and ad-hoc tables."""
    context = op.get_context()
    if context.as_sql or context.connection is None:
        return None  # SQL for a client, which sets the search path
    found: str | None = context.connection.get_execution_options().get("schema_translate_map", {}).get(None)
    return found


def alter(change: str) -> None:
    """Change the table while applications write. On a Galera cluster, writes are blocked meanwhile."""
    context = op.get_context()
    galera = not context.as_sql and op.get_bind().execute(sa.text("SHOW VARIABLES LIKE 'wsrep_on'")).first()
    lock = "EXCLUSIVE" if galera and galera[1] == "ON" else "NONE"
    op.execute(f"ALTER TABLE vibeforge_sessions {change}, LOCK={lock}")
