"""${message.rstrip(".")}.

Revision: ${up_revision}, after ${down_revision | comma,n}

Replace this with the reason for the change, and with the figures if there is an index.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
% if imports:
${imports}
% endif

revision = "${up_revision}"
down_revision = "${down_revision}"
branch_labels = None
depends_on = None

# Replace: see `vibeforge_sessions.sql.migrations.scripts.Revision`.
locks: dict[str, dict[str, str]] = {"postgresql": {}, "mariadb": {}, "sqlite": {"the file": "for writers"}}
rewrites: tuple[str, ...] = ()
online = ("postgresql", "mariadb")
loses = None

MINIMUM_COMPATIBLE = "vibeforge_0001"  # replace: the oldest revision whose code can use the new schema
PREVIOUS_MINIMUM = "vibeforge_0001"  # replace: the minimum compatible revision of the previous revision


def upgrade() -> None:
    """Replace this with what the upgrade does. MariaDB must be able to repeat each step: IF NOT EXISTS."""
% if upgrades:
    ${upgrades}
% endif
    set_minimum_compatible(revision, MINIMUM_COMPATIBLE)


def downgrade() -> None:
    """Replace this with what the downgrade does. MariaDB must be able to repeat each step: IF EXISTS."""
% if downgrades:
    ${downgrades}
% endif
    set_minimum_compatible(down_revision, PREVIOUS_MINIMUM)


def set_minimum_compatible(current: str, minimum: str) -> None:
    """Record the minimum compatible revision for the schema of a revision."""
    compatibility = sa.table(
        "vibeforge_sessions_compatibility",
        sa.column("revision", sa.String),
        sa.column("floor", sa.String),
        schema=schema(),
    )
    op.execute(compatibility.delete())
    op.execute(compatibility.insert().values(revision=current, floor=minimum))


def schema() -> str | None:
    """Return the schema of the statements. SQLAlchemy does not translate it for new columns and ad-hoc tables."""
    context = op.get_context()
    if context.as_sql or context.connection is None:
        return None  # SQL for a client, which sets the search path
    found: str | None = context.connection.get_execution_options().get("schema_translate_map", {}).get(None)
    return found
