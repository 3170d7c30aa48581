"""${message}

Revision: ${up_revision}, after ${down_revision | comma,n}
Made: ${create_date}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}  # with --rev-id vibeforge_0003, or what the number is
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# See `vibeforge_sessions.sql.migrations.scripts.Revision`.
locks: dict[str, dict[str, str]] = {"postgresql": {}, "mariadb": {}, "sqlite": {"the file": "for writers"}}
rewrites: tuple[str, ...] = ()
online = ("postgresql", "mariadb")
loses = None

FLOOR = "the oldest revision whose code may go on with this schema"
COMPATIBILITY = sa.table("vibeforge_sessions_compatibility", sa.column("revision"), sa.column("floor"))


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
    op.execute(COMPATIBILITY.update().values(revision=revision, floor=FLOOR))


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
    op.execute(COMPATIBILITY.update().values(revision=down_revision, floor="the one of that revision"))
