"""Migrations for hosts: where the scripts are, and running them from Python under a lock.

`upgrade`, `downgrade`, `current` and `check` take an `Engine`, or a `Connection`: one that is in a transaction
stays in it, and the host commits. On a command line, ``alembic`` with the shipped ``alembic.ini`` does the same.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine

from vibeforge_sessions.errors import SchemaError, SchemaState
from vibeforge_sessions.sql.databases import database_named, database_of
from vibeforge_sessions.sql.tables import VERSION_TABLE, metadata
from vibeforge_sessions.sql.transaction import connected, translated

__all__ = ["check", "current", "downgrade", "inspect_schema", "migrating", "script_folder", "upgrade"]

LOCK_TIMEOUT: Final = 60.0
"""Seconds that a migration waits for another one."""

# Alembic hands its scripts their context through a module-level proxy: one migration at a time in a process.
_one_at_a_time = threading.RLock()


def upgrade(bind: Engine | Connection, revision: str = "head", *, lock_timeout: float = LOCK_TIMEOUT) -> None:
    """Bring the database up to `revision`; does nothing where it is there already.

    On SQLite and PostgreSQL all revisions run in one transaction: one that fails leaves nothing behind. (MariaDB
    commits with every CREATE and ALTER.) Several processes may do this at once: one migrates, the others wait.

    :param lock_timeout: seconds to wait for another migration.
    :raises SchemaError: the tables are not ours, or of a newer version; the revision is unknown; or somebody else is
        migrating still after `lock_timeout`: then nothing is done.
    :raises StorageError: the database failed.
    """
    if _usable(_look(bind, lock_timeout)).state == "current" and revision == "head":
        return  # without the lock: whoever starts an application does not wait for its writers
    _run(bind, lock_timeout, command.upgrade, revision)


def downgrade(bind: Engine | Connection, revision: str, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
    """Take the database back to `revision`; ``"base"`` removes the tables, and every session with them.

    :raises SchemaError: the revision is unknown; see also `upgrade` and, for SQLite, `migrating`.
    :raises StorageError: the database failed.
    """
    if revision == "base" and _look(bind, lock_timeout).state == "missing":
        return  # Alembic would make its version table first
    _run(bind, lock_timeout, command.downgrade, revision)


def current(bind: Engine | Connection) -> str | None:
    """Return the revision the database is at, None where there is none."""
    with _reading(bind) as connection:
        return _current(connection)


def check(bind: Engine | Connection) -> None:
    """Return if the database is what this version of the package works with.

    :raises SchemaError: it is missing, behind, ahead or not ours; the error names the command to run.
    """
    found = _look(bind, LOCK_TIMEOUT)
    if found.state != "current":
        raise found


def inspect_schema(connection: Connection) -> SchemaError:
    """Return where the database stands, as the error that says so (unless its ``state`` is "current")."""
    with translated("inspect"):
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        at = _current(connection) if VERSION_TABLE in tables else None
    ours, there = set(metadata.tables), tables & set(metadata.tables)
    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    state: SchemaState
    if at is None:
        state, reason = "missing", "this database has no tables of vibeforge_sessions yet"
        if there:
            state = "not ours"
            reason = (
                f"this database has tables of these names already, and no revision in {VERSION_TABLE} says that "
                f"our migrations made them: {', '.join(sorted(there))}; use another database or schema, or rename them"
            )
    elif at not in known:
        state = "ahead"
        reason = f"this database is at revision {at}, of a newer version of vibeforge_sessions: upgrade the package"
    elif at != head:
        state, reason = "behind", f"this database is at revision {at}, this version needs {head}"
    elif there != ours:
        state = "not ours"
        missing = ", ".join(sorted(ours - there))
        reason = (
            f"this database is said to be at revision {at}, but lacks tables: {missing}; restore them from a backup"
        )
    else:
        state, reason = "current", f"this database is at revision {at}"
    if state in {"missing", "behind"}:
        reason += (
            f'; run: alembic -c "{script_folder() / "alembic.ini"}" upgrade head (with VIBEFORGE_SESSIONS_DATABASE_URL '
            "set), or set VIBEFORGE_SESSIONS_MIGRATE=1"
        )
    return SchemaError(reason, state)


def script_folder() -> Path:
    """Return the folder that holds ``alembic.ini`` and ``migrations``: the installed package, or a checkout."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent
    if (package / "alembic.ini").is_file():
        return package
    if (checkout / "pyproject.toml").is_file() and (checkout / "alembic.ini").is_file():
        return checkout
    raise SchemaError("the migration scripts were not installed with vibeforge_sessions")


@contextmanager
def migrating(bind: Engine | Connection, *, lock_timeout: float = LOCK_TIMEOUT) -> Iterator[Connection]:
    """Give a connection that may migrate, alone.

    A connection that is in a transaction already is given back as it is, and left to the host. On SQLite such a
    transaction is refused where foreign keys are on and there is something to lose: see `SchemaError`'s message.

    :raises SchemaError: somebody else is migrating still after `lock_timeout` seconds; or on SQLite, see above, or
        because rows refer to sessions that are not there.
    """
    database = database_of(bind.dialect)
    with _one_at_a_time, translated("migrate"):
        if isinstance(bind, Engine):
            with connected(bind) as connection, database.migrating_alone(connection, lock_timeout):
                yield connection
        elif bind.in_transaction():
            with database.migrating_inside(bind, lock_timeout):
                yield bind
        else:
            with database.migrating_alone(bind, lock_timeout):
                yield bind


def run_in_environment(bind: Connection | URL, context: Any, *, upgrading: bool) -> None:
    """Run migrations as ``migrations/env.py`` is asked to: on a connection, or as SQL for a URL's database.

    :param context: Alembic's ``alembic.context``.
    :param upgrading: then a database that is ahead or not ours is refused, now that nobody else can change it.
    """
    of_host = isinstance(bind, Connection) and bind.in_transaction()
    if upgrading and isinstance(bind, Connection):
        _usable(inspect_schema(bind))
        if not of_host:
            bind.rollback()  # Alembic begins and commits by itself
    offline = isinstance(bind, URL)
    database = database_named(bind.get_backend_name() if isinstance(bind, URL) else bind.dialect.name)
    context.configure(
        **({"url": bind, "literal_binds": True} if offline else {"connection": bind}),
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=_is_ours,
        # Alembic itself would not trust SQLite's driver with it; we begin for real
        transactional_ddl=database.transactional_ddl,
        render_as_batch=True,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        for setting in () if of_host else database.migration_settings:
            context.execute(setting)
        context.run_migrations()


def _run(bind: Engine | Connection, lock_timeout: float, migrate: Callable[[Config, str], None], revision: str) -> None:
    config = _config()
    try:
        with migrating(bind, lock_timeout=lock_timeout) as connection:
            config.attributes["connection"] = connection
            config.attributes["upgrading"] = migrate is command.upgrade
            migrate(config, revision)
    except CommandError as error:  # an unknown revision: the text names it, and nothing else
        raise SchemaError(str(error)) from error


def _config() -> Config:
    folder = script_folder()
    return Config(folder / "alembic.ini", stdout=io.StringIO())


def _look(bind: Engine | Connection, lock_timeout: float) -> SchemaError:
    with _reading(bind) as connection:
        found = inspect_schema(connection)
    if found.state != "not ours" or (isinstance(bind, Connection) and bind.in_transaction()):
        return found
    # the tables and the revision are read one after the other, and somebody may be migrating: once more, alone
    with migrating(bind, lock_timeout=lock_timeout) as connection, _reading(connection):
        return inspect_schema(connection)


def _usable(found: SchemaError) -> SchemaError:
    if found.state in {"ahead", "not ours"}:
        raise found
    return found


@contextmanager
def _reading(bind: Engine | Connection) -> Iterator[Connection]:
    """Give a connection for looking; a host's is afterwards in a transaction only if it was before."""
    with translated("reach"):
        if isinstance(bind, Engine):
            with connected(bind) as connection:
                yield connection
            return
        begun = bind.in_transaction()
        try:
            yield bind
        finally:
            if not begun:
                bind.rollback()


def _current(connection: Connection) -> str | None:
    with translated("inspect"):
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        heads = context.get_current_heads()
    if len(heads) > 1:
        raise SchemaError(f"{VERSION_TABLE} names several revisions at once: {', '.join(sorted(heads))}", "not ours")
    return heads[0] if heads else None


def _is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Leave out the host's tables when models and database are compared."""
    return kind != "table" or name in metadata.tables
