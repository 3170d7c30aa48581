"""${message}

Revision: ${up_revision}, after ${down_revision | comma,n}
Created: ${create_date}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}  # pass --rev-id vibeforge_NNNN with the next number
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# See `vibeforge_sessions.sql.migrations.scripts.Revision`.
locks: dict[str, dict[str, str]] = {"postgresql": {}, "mariadb": {}, "sqlite": {"the file": "for writers"}}
rewrites: tuple[str, ...] = ()
online = ("postgresql", "mariadb")
loses = None

MINIMUM_COMPATIBLE = "the oldest revision whose code may use this schema"
COMPATIBILITY = sa.table("vibeforge_sessions_compatibility", sa.column("revision"), sa.column("floor"))


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
    op.execute(COMPATIBILITY.update().values(revision=revision, floor=MINIMUM_COMPATIBLE))


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
    op.execute(COMPATIBILITY.update().values(revision=down_revision, floor="the minimum compatible revision of that revision"))
