"""Index for listings by the last update, and the minimum compatible revision.

Revision: vibeforge_0002, after vibeforge_0001

Operators usually look first at the sessions that were updated last. Without an index, the database reads all sessions
to find them. ``python -m benchmarks.listing_index`` measured these milliseconds without and with the index, for 100,000
sessions and a page of 50::

                              SQLite          PostgreSQL 18   MariaDB 10.11
    last touched              149.2    1.1    50.5    1.8      57.0    3.9
    last touched of a phase    96.7   93.1    17.9    2.0     100.1    3.5
    an append                   1.3    1.3     0.96   0.93      2.7    3.2
    … bytes of the log                        636    1061      526    722

An append changes ``updated_at`` and therefore the index: it writes more bytes to the database log, and on PostgreSQL it
is no longer a heap-only update. With or without the index, it takes as long as the sync of the log. The other listings
(by phase, by errors, stuck sessions) took 0.4 to 12 ms without an index of their own, so they have none.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "vibeforge_0002"
down_revision = "vibeforge_0001"
branch_labels = None
depends_on = None

# See `vibeforge_sessions.sql.migrations.scripts.Revision`.
locks: dict[str, dict[str, str]] = {
    "postgresql": {"vibeforge_sessions": "ShareUpdateExclusiveLock"},
    "mariadb": {"vibeforge_sessions": "LOCK=NONE"},
    "sqlite": {"the file": "for writers"},
}
rewrites: tuple[str, ...] = ()
online = ("postgresql", "mariadb")
loses = None

MINIMUM_COMPATIBLE = "vibeforge_0001"  # the change affects nothing that older code uses
INDEX = "ix_vibeforge_sessions_updated_at_session_id"
COLUMNS = ["updated_at", "session_id"]
IDENTIFIER = sa.String(32).with_variant(sa.Text(collation="C"), "postgresql")
OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {
        "engine": "InnoDB",
        "default_charset": "utf8mb4",
        "collate": "utf8mb4_nopad_bin",
    }.items()
}


def upgrade() -> None:
    """Create the index and the compatibility table. An interrupted upgrade can be repeated on every database."""
    dialect = op.get_context().dialect.name
    if dialect == "postgresql" and owns_transaction():
        with op.get_context().autocommit_block():
            # an interrupted upgrade leaves an invalid index of this name: writes maintain it, and no query uses it
            op.drop_index(INDEX, "vibeforge_sessions", postgresql_concurrently=True, if_exists=True)
            op.create_index(INDEX, "vibeforge_sessions", COLUMNS, postgresql_concurrently=True, if_not_exists=True)
    elif dialect in {"mysql", "mariadb"}:
        alter(f"ADD INDEX IF NOT EXISTS {INDEX} ({', '.join(COLUMNS)})")
    else:
        op.create_index(INDEX, "vibeforge_sessions", COLUMNS)
    compatibility = op.create_table(
        "vibeforge_sessions_compatibility",
        sa.Column("revision", IDENTIFIER, nullable=False),
        sa.Column("floor", IDENTIFIER, nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_vibeforge_sessions_compatibility"),
        if_not_exists=dialect in {"mysql", "mariadb"},
        **OPTIONS,
    )
    op.execute(compatibility.delete())
    op.execute(compatibility.insert().values(revision=revision, floor=MINIMUM_COMPATIBLE))


def downgrade() -> None:
    """Drop the index and the compatibility table."""
    dialect = op.get_context().dialect.name
    op.drop_table("vibeforge_sessions_compatibility", if_exists=dialect in {"mysql", "mariadb"})
    if dialect == "postgresql" and owns_transaction():
        with op.get_context().autocommit_block():
            op.drop_index(INDEX, "vibeforge_sessions", postgresql_concurrently=True, if_exists=True)
    elif dialect in {"mysql", "mariadb"}:
        alter(f"DROP INDEX IF EXISTS {INDEX}")
    else:
        op.drop_index(INDEX, "vibeforge_sessions")


def owns_transaction() -> bool:
    """Return whether Alembic owns the transaction.

    CONCURRENTLY works only outside a transaction, and a transaction of the caller must not be ended.
    """
    context = op.get_context()
    return context.as_sql or not context._in_external_transaction  # noqa: SLF001 (there is no public attribute)


def alter(change: str) -> None:
    """Change the table while applications write.

    On a Galera cluster, where CREATE INDEX has hung all nodes, the change takes an exclusive lock.
    """
    context = op.get_context()
    galera = not context.as_sql and op.get_bind().execute(sa.text("SHOW VARIABLES LIKE 'wsrep_on'")).first()
    lock = "EXCLUSIVE" if galera and galera[1] == "ON" else "NONE"
    op.execute(f"ALTER TABLE vibeforge_sessions {change}, LOCK={lock}")
