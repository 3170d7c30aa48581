"""Migrations for hosts: running them from Python under a lock, and asking where a database stands.

`upgrade`, `downgrade`, `stamp`, `status`, `check_schema` and their like take an `Engine`, or a `Connection`: one that
is in a transaction stays in it, and the host commits. On a command line, ``vibeforge-sessions db`` does the same, and
so does ``alembic`` with the shipped ``alembic.ini``.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine

from vibeforge_sessions.errors import SchemaError
from vibeforge_sessions.sql.dialects import Timeouts, database_named, database_of
from vibeforge_sessions.sql.migrations import scripts
from vibeforge_sessions.sql.migrations.schema_status import (
    UPGRADE,
    SchemaStatus,
    comparison,
    inspect_schema,
    reading,
    revision_of,
)
from vibeforge_sessions.sql.migrations.scripts import Revision, history, render, script_folder
from vibeforge_sessions.sql.tables import VERSION_TABLE, metadata_in, schema_of
from vibeforge_sessions.sql.transactions.error_translation import connected, translated

__all__ = [
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

Report = Callable[[str], object]
"""Is told each revision when it has been gone through."""

_POLL: Final = 0.2

# Alembic hands its scripts their context through a module-level proxy: one migration at a time in a process.
_one_at_a_time = threading.RLock()


def _begin_anew() -> None:
    global _one_at_a_time  # noqa: PLW0603 (a thread that migrates at a fork does not exist in the child)
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def upgrade(
    bind: Engine | Connection,
    revision: str = "head",
    *,
    lock_timeout: float | None = None,
    statement_timeout: float | None = None,
    report: Report | None = None,
) -> None:
    """Bring the database up to `revision`; does nothing where it is there already, or ahead and lets us go on.

    On SQLite all revisions run in one transaction: one that fails leaves nothing behind. So do those on PostgreSQL
    that make no index CONCURRENTLY; MariaDB commits with every CREATE and ALTER. What is left half done there is put
    right by the next try. Several processes may do this at once: one migrates, the others wait.

    :param lock_timeout: seconds to wait for another migration (60 by default) and for a table's lock (10).
    :param statement_timeout: seconds that a statement may take, 0 for no limit; as the server has it by default. Like
        a `lock_timeout`, it sets the session's, so not through PgBouncer in transaction mode.
    :param report: is called with each revision that was reached.
    :raises SchemaError: the tables are not ours, drifted, or of a newer version; the revision is unknown; or somebody
        else is migrating still after `lock_timeout`: then nothing is done.
    :raises StorageError: the database failed.
    """
    timeouts = Timeouts(lock_timeout, statement_timeout)
    found = _look(bind, timeouts)
    if found.usable and revision == "head":
        return  # without the lock: whoever starts an application does not wait for its writers
    _refuse_to_migrate(found)
    _run(bind, timeouts, report, command.upgrade, revision)


def downgrade(
    bind: Engine | Connection,
    revision: str,
    *,
    lock_timeout: float | None = None,
    statement_timeout: float | None = None,
    report: Report | None = None,
) -> None:
    """Take the database back to `revision`; ``"base"`` removes the tables, and every session with them.

    What else is lost is told by `history`. The parameters are those of `upgrade`; `report` is called with each
    revision that was undone.

    :raises SchemaError: the revision is unknown; see also `upgrade` and, for SQLite, `migrating`.
    :raises StorageError: the database failed.
    """
    timeouts = Timeouts(lock_timeout, statement_timeout)
    found = _look(bind, timeouts)
    if revision == "base" and found.state == "empty":
        return  # Alembic would make its version table first
    if found.of_host:
        raise _migrated_by_host()
    _run(bind, timeouts, report, command.downgrade, revision)


def stamp(bind: Engine | Connection, revision: str, *, lock_timeout: float | None = None) -> None:
    """Write down that the database is at `revision`, and do nothing else: after a restore without the version table.

    :raises SchemaError: the revision is unknown, or somebody else is migrating.
    """
    _run(bind, Timeouts(lock_timeout), None, command.stamp, revision)


def current(bind: Engine | Connection) -> str | None:
    """Return the revision the database is at, None where there is none."""
    with reading(bind) as connection:
        return revision_of(connection)


def status(bind: Engine | Connection) -> SchemaStatus:
    """Return where the database stands, with every difference from the models; changes nothing.

    :raises StorageError: the database failed.
    """
    return _look(bind, Timeouts(), exact=True)


def check_schema(bind: Engine | Connection, *, exact: bool = False) -> SchemaStatus:
    """Return where the database stands if this version of the package can work with it: for the start of a service.

    :param exact: the database must be at the head and equal the models; one that is ahead is refused even if it
        lets older code go on, as is one with an index more or less.
    :raises SchemaError: it is empty, behind, ahead, foreign or drifted; the error names the command to run.
    :raises StorageError: the database failed.
    """
    found = _look(bind, Timeouts(), exact=exact)
    if found.state == "current" or (found.usable and not exact):
        return found
    raise found.error()


def check(bind: Engine | Connection) -> None:
    """Return if this version of the package can work with the database; see `check_schema`."""
    check_schema(bind)


def plan(bind: Engine | Connection) -> list[Revision]:
    """Return the revisions that an upgrade would run, with what each of them locks, rewrites and loses.

    :raises SchemaError: the database is ahead or foreign.
    """
    found = _look(bind, Timeouts())
    if found.state in {"ahead", "foreign"}:
        raise found.error()
    return [each for each in history() if each.revision in found.pending]


def plan_downgrade(bind: Engine | Connection, revision: str) -> list[Revision]:
    """Return the revisions that a downgrade would undo, in this order, with what each of them loses.

    :param revision: an id, ``base``, or ``-1`` for one step back and so on.
    :raises SchemaError: there is no such revision below the database's.
    """
    at, chain = current(bind), history()
    known = [each.revision for each in chain]
    there = known.index(at) + 1 if at in known else 0
    if revision == "base":
        to = 0
    elif re.fullmatch(r"-[0-9]{1,9}", revision):
        to = there - int(revision[1:])
    else:
        to = known.index(revision) + 1 if revision in known else -1
    if not 0 <= to <= there:
        raise SchemaError(f"there is no revision {revision} below the database's, which is {at}")
    return chain[to:there][::-1]


def wait(bind: Engine | Connection, timeout: float) -> SchemaStatus:
    """Return once this version of the package can work with the database: when somebody else has migrated it.

    It looks five times a second, and holds neither a lock nor a transaction between.

    :raises SchemaError: it cannot after `timeout` seconds, or it is ahead, for which no waiting helps.
    """
    if math.isnan(timeout):
        raise SchemaError("the timeout is not a number")
    deadline = time.monotonic() + timeout
    while True:
        with reading(bind) as connection:
            found = inspect_schema(connection)
        if found.usable:
            return found
        if found.state == "ahead" or time.monotonic() >= deadline:
            # alone, for half of a migration looks like somebody else's tables
            found = _look(bind, Timeouts(lock=0.0))
            if not found.usable:
                raise found.error()
            return found
        time.sleep(min(_POLL, max(0.0, deadline - time.monotonic())))


@contextmanager
def migrating(bind: Engine | Connection, timeouts: Timeouts = Timeouts()) -> Iterator[Connection]:  # noqa: B008 (a tuple)
    """Give a connection that may migrate, alone.

    A connection that is in a transaction already is given back as it is, and left to the host. On SQLite such a
    transaction is refused where foreign keys are on and there is something to lose: see `SchemaError`'s message.

    :raises SchemaError: somebody else is migrating still after ``timeouts.migration`` seconds; or on SQLite, see
        above, or because rows refer to sessions that are not there.
    """
    database = database_of(bind.dialect)
    with _one_at_a_time, translated("migrate"):
        if isinstance(bind, Engine):
            with connected(bind) as connection, database.migrating_alone(connection, timeouts):
                yield connection
        elif bind.in_transaction():
            with database.migrating_inside(bind, timeouts):
                yield bind
        else:
            with database.migrating_alone(bind, timeouts):
                yield bind


def run_in_environment(
    bind: Connection | URL,
    context: Any,
    *,
    upgrading: bool,
    schema: str | None = None,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 (a tuple)
) -> None:
    """Run migrations as ``migrations/env.py`` is asked to: on a connection, or as SQL for a URL's database.

    :param context: Alembic's ``alembic.context``.
    :param upgrading: then a database that is ahead or not ours is refused, now that nobody else can change it.
    :param schema: of the SQL; a connection has its own.
    """
    of_host = isinstance(bind, Connection) and bind.in_transaction()
    if upgrading and isinstance(bind, Connection):
        _refuse_to_migrate(inspect_schema(bind))
        if not of_host:
            bind.rollback()  # Alembic begins and commits by itself
    options: dict[str, Any]
    if isinstance(bind, URL):
        database = database_named(bind.get_backend_name())
        options = {"url": bind, "literal_binds": True}
        settings = database.migration_settings(timeouts, of_session=True)
        if schema is not None:  # SQL that somebody feeds to the database's client: the path is its session's
            quoted = schema.replace('"', '""')
            settings += (f'SET search_path = "{quoted}"',)
    else:
        database, schema = database_of(bind.dialect), schema_of(bind)
        options = {"connection": bind, "version_table_schema": schema, **comparison(schema)}
        settings = () if of_host else database.migration_settings(timeouts, of_session=False)
    report = context.config.attributes.get("report")
    context.configure(
        **options,
        target_metadata=metadata_in(schema),
        version_table=VERSION_TABLE,
        # Alembic itself would not trust SQLite's driver with it; we begin for real
        transactional_ddl=database.transactional_ddl,
        render_as_batch=True,
        on_version_apply=_telling(report) if report else None,
    )
    with context.begin_transaction():
        for setting in settings:
            context.execute(setting)
        context.run_migrations()


def _telling(report: Report) -> Callable[..., None]:
    def tell(*, step: Any, **_: Any) -> None:
        report(str(step.up_revision_id))

    return tell


def _run(
    bind: Engine | Connection,
    timeouts: Timeouts,
    report: Report | None,
    migrate: Callable[[Config, str], None],
    revision: str,
) -> None:
    config = scripts.config()
    try:
        with migrating(bind, timeouts) as connection:
            config.attributes.update(
                connection=connection, upgrading=migrate is command.upgrade, timeouts=timeouts, report=report
            )
            migrate(config, scripts.check_revision(revision))
    except CommandError as error:  # an unknown revision: the text names it, and nothing else
        raise SchemaError(str(error)) from error


def _look(bind: Engine | Connection, timeouts: Timeouts, *, exact: bool = False) -> SchemaStatus:
    with reading(bind) as connection:
        found = inspect_schema(connection, exact=exact)
    if (found.state != "foreign" and not (found.state == "drifted" and not found.usable)) or (
        isinstance(bind, Connection) and bind.in_transaction()
    ):
        return found
    # the tables and the revision are read one after the other, and somebody may be migrating: once more, alone
    with migrating(bind, timeouts) as connection, reading(connection):
        return inspect_schema(connection, exact=exact)


def _refuse_to_migrate(found: SchemaStatus) -> None:
    if found.of_host:
        raise _migrated_by_host()
    no_schema = found.state == "empty" and found.command != UPGRADE
    if no_schema or found.state in {"ahead", "foreign"} or (found.state == "drifted" and not found.usable):
        raise found.error()


def _migrated_by_host() -> SchemaError:
    return SchemaError(
        "the host's own Alembic runs our migrations here: use that one, with vibeforge_sessions@head for the revision"
    )
