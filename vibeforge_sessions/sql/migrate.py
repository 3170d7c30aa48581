"""Migrations and schema status from Python.

`upgrade`, `downgrade`, `stamp`, `status`, `check_schema` and the other functions take an `Engine` or a `Connection`. A
connection that is in a transaction stays in it, and the caller commits. On the command line, ``vibeforge-sessions db``
does the same, and so does ``alembic`` with the installed ``alembic.ini``.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from alembic import command
from sqlalchemy import Connection, Engine

from vibeforge_sessions.errors import InvalidArgumentError, SchemaError
from vibeforge_sessions.sql.dialects import database_dialect_of
from vibeforge_sessions.sql.dialects.base import MigrationTimeouts
from vibeforge_sessions.sql.migrations import scripts
from vibeforge_sessions.sql.migrations.schema_status import UPGRADE, SchemaStatus, connection_of, inspect_schema
from vibeforge_sessions.sql.migrations.scripts import Revision, history, render, script_folder
from vibeforge_sessions.sql.transactions.error_translation import translated

__all__ = [
    "MigrationTimeouts",
    "OnRevision",
    "Revision",
    "SchemaStatus",
    "check",
    "check_schema",
    "current",
    "downgrade",
    "history",
    "inspect_schema",
    "migrating",
    "plan",
    "plan_downgrade",
    "render",
    "script_folder",
    "stamp",
    "status",
    "upgrade",
    "wait",
]

OnRevision = Callable[[str], object]
"""Callback for each revision that was reached or undone."""

_POLL_INTERVAL: Final = 0.2

# Alembic passes the context to its scripts in a module-level proxy, so a process runs one migration at a time.
_process_lock = threading.RLock()

if hasattr(os, "register_at_fork"):  # reset the lock in a child, where the thread that held it does not exist
    os.register_at_fork(after_in_child=_process_lock._at_fork_reinit)  # type: ignore[attr-defined]  # noqa: SLF001


def upgrade(
    bind: Engine | Connection,
    revision: str = "head",
    *,
    lock_timeout: float | None = None,
    statement_timeout: float | None = None,
    report: OnRevision | None = None,
) -> None:
    """Upgrade the database to `revision`.

    Nothing is done if the database is at that revision, or at a newer one that is compatible with this version.

    On SQLite, all revisions run in one transaction, so a failure leaves the schema unchanged. The same holds on
    PostgreSQL for revisions that build no index CONCURRENTLY. MariaDB commits with every CREATE and ALTER. After a
    failure, the next upgrade completes an incomplete revision. Several processes may upgrade at the same time: one
    migrates, the others wait.

    :param lock_timeout: seconds to wait for another migration (by default 60) and for a table lock (by default 10).
    :param statement_timeout: time limit of a statement in seconds, 0 for no limit; by default the setting of the
        server. Like `lock_timeout`, it changes settings of the database session, so do not use it through PgBouncer in
        transaction mode.
    :param report: called with each revision that was reached.
    :raises SchemaError: the tables are foreign, drifted, or of a newer version; the revision is unknown; or another
        migration still runs after `lock_timeout`. In each case, nothing was changed.
    :raises InvalidArgumentError: `revision` is malformed, or SQLite is given a `statement_timeout`.
    :raises StorageError: the database failed.
    """
    timeouts = MigrationTimeouts(lock_timeout, statement_timeout)
    found = _inspect(bind, timeouts)
    if found.usable and revision == "head":
        return  # takes no migration lock, so that the start of an application does not wait for writers
    check_migratable(found)
    _run(bind, timeouts, report, command.upgrade, revision)


def downgrade(
    bind: Engine | Connection,
    revision: str,
    *,
    lock_timeout: float | None = None,
    statement_timeout: float | None = None,
    report: OnRevision | None = None,
) -> None:
    """Downgrade the database to `revision`; ``"base"`` drops the tables, and every session with them.

    `history` reports the data that a downgrade of each revision loses. The parameters are those of `upgrade`. `report`
    is called with each revision that was undone.

    :raises SchemaError: the revision is unknown. `upgrade` and, for SQLite, `migrating` describe further causes.
    :raises InvalidArgumentError: `revision` is malformed.
    :raises StorageError: the database failed.
    """
    timeouts = MigrationTimeouts(lock_timeout, statement_timeout)
    found = _inspect(bind, timeouts)
    if revision == "base" and found.state == "empty":
        return  # Alembic would first create its version table
    if found.of_host:
        raise _host_alembic_error()
    _run(bind, timeouts, report, command.downgrade, revision)


def stamp(bind: Engine | Connection, revision: str, *, lock_timeout: float | None = None) -> None:
    """Record `revision` without running a migration, for example after a restore without the version table.

    :raises SchemaError: the revision is unknown, or another migration is running.
    :raises InvalidArgumentError: `revision` is malformed.
    """
    _run(bind, MigrationTimeouts(lock_timeout), None, command.stamp, revision)


def current(bind: Engine | Connection) -> str | None:
    """Return the revision of the database; None if it has none."""
    with connection_of(bind) as connection:
        return inspect_schema(connection).revision


def status(bind: Engine | Connection) -> SchemaStatus:
    """Return the schema status, with every difference from the models. Nothing is changed.

    :raises StorageError: the database failed.
    """
    return _inspect(bind, MigrationTimeouts(), exact=True)


def check_schema(bind: Engine | Connection, *, exact: bool = False) -> SchemaStatus:
    """Return the schema status if this version of the package can use the database. Call it at the start of a service.

    :param exact: require a database that is at the head and equals the models. A newer compatible schema is then
        rejected, and so is a schema with a missing or an additional index.
    :raises SchemaError: the database is empty, behind, ahead, foreign or drifted. The error names the command to run.
    :raises StorageError: the database failed.
    """
    found = _inspect(bind, MigrationTimeouts(), exact=exact)
    if found.state == "current" or (found.usable and not exact):
        return found
    raise found.error()


def check(bind: Engine | Connection) -> None:
    """Check that this version of the package can use the database; see `check_schema`."""
    check_schema(bind)


def plan(bind: Engine | Connection) -> list[Revision]:
    """Return the revisions that an upgrade would run, with the locks, rewrites and data losses of each.

    :raises SchemaError: the database is ahead or foreign.
    """
    found = _inspect(bind, MigrationTimeouts())
    if found.state in {"ahead", "foreign"}:
        raise found.error()
    return [each for each in history() if each.revision in found.pending]


def plan_downgrade(bind: Engine | Connection, revision: str) -> list[Revision]:
    """Return the revisions that a downgrade would undo, newest first, with the data losses of each.

    :param revision: an id, ``base``, or ``-1`` for one step back, ``-2`` for two, and so on.
    :raises SchemaError: the revision is unknown, or not older than the revision of the database.
    """
    at, chain = current(bind), history()
    known = ["base", *(each.revision for each in chain)]
    there = known.index(at) if at in known else 0
    if re.fullmatch(r"-[0-9]{1,9}", revision):
        to = there - int(revision[1:])
    else:
        to = known.index(revision) if revision in known else -1
    if not 0 <= to <= there:
        raise SchemaError(
            f"there is no revision {revision} below the current revision {at}: see vibeforge-sessions db history"
        )
    return chain[to:there][::-1]


def wait(bind: Engine | Connection, timeout: float) -> SchemaStatus:
    """Wait until another process has migrated the database to a schema that this version of the package can use.

    The status is read five times per second. No lock is held, and no transaction stays open between the reads.

    :raises SchemaError: `timeout` seconds have passed, or the schema is ahead and unusable, so waiting cannot help.
    :raises InvalidArgumentError: `timeout` is not a number.
    """
    if math.isnan(timeout):
        raise InvalidArgumentError("must be a number of seconds", "timeout")
    deadline = time.monotonic() + timeout
    while True:
        with connection_of(bind) as connection:
            found = inspect_schema(connection)
        if found.usable:
            return found
        if found.state == "ahead" or time.monotonic() >= deadline:
            # inspect again under the migration lock: in the middle of a migration, the tables look foreign
            found = _inspect(bind, MigrationTimeouts(lock=0.0))
            if not found.usable:
                raise found.error()
            return found
        time.sleep(min(_POLL_INTERVAL, max(0.0, deadline - time.monotonic())))


@contextmanager
def migrating(bind: Engine | Connection, timeouts: MigrationTimeouts = MigrationTimeouts()) -> Iterator[Connection]:  # noqa: B008 (a tuple)
    """Provide a connection that holds the migration lock.

    A connection that is in a transaction stays in it, and the caller ends the transaction. On SQLite, such a
    transaction is rejected if foreign keys are on and tables of this package exist, because a migration could delete
    rows.

    :raises SchemaError: another migration still runs after ``timeouts.migration`` seconds. On SQLite also: the
        transaction was rejected, or rows refer to missing sessions.
    """
    lock = database_dialect_of(bind.dialect).migration_lock
    with _process_lock, connection_of(bind) as connection, translated("migrate"), lock(connection, timeouts):
        yield connection


def check_migratable(found: SchemaStatus) -> None:
    """Check that this version of the package can upgrade a database.

    :raises SchemaError: the database is ahead, foreign or unusable, or the Alembic of the application migrates it.
    """
    if found.of_host:
        raise _host_alembic_error()
    no_schema = found.state == "empty" and found.command != UPGRADE
    if no_schema or found.state in {"ahead", "foreign"} or (found.state == "drifted" and not found.usable):
        raise found.error()


def _run(
    bind: Engine | Connection,
    timeouts: MigrationTimeouts,
    report: OnRevision | None,
    migrate: Callable[..., object],
    revision: str,
) -> None:
    with migrating(bind, timeouts) as connection:
        scripts.run(migrate, scripts.check_revision(revision), bind=connection, timeouts=timeouts, report=report)


def _inspect(bind: Engine | Connection, timeouts: MigrationTimeouts, *, exact: bool = False) -> SchemaStatus:
    with connection_of(bind) as connection:
        found = inspect_schema(connection, exact=exact)
    is_in_doubt = found.state == "foreign" or (found.state == "drifted" and not found.usable)
    if is_in_doubt and not (isinstance(bind, Connection) and bind.in_transaction()):
        # a migration may have run between the reads of the tables and the revision: read again under its lock
        with migrating(bind, timeouts) as connection, connection_of(connection):
            return inspect_schema(connection, exact=exact)
    return found


def _host_alembic_error() -> SchemaError:
    return SchemaError(
        "the Alembic of the application runs the migrations of this database: use that Alembic, with the revision "
        "vibeforge_sessions@head"
    )
