"""Alembic environment, for Alembic's command line and for `vibeforge_sessions.sql.migrate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alembic import command, context
from alembic.util import CommandError
from sqlalchemy import URL, Connection

from vibeforge_sessions.errors import SessionRepositoryError
from vibeforge_sessions.settings import Settings
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.dialects import database_dialect_named, database_dialect_of
from vibeforge_sessions.sql.dialects.base import quoted
from vibeforge_sessions.sql.engine import engine_on, parse_url
from vibeforge_sessions.sql.migrations.schema_status import comparison, inspect_schema, metadata_in
from vibeforge_sessions.sql.tables import VERSION_TABLE, schema_of

DEFAULT_URL = "sqlite:///vibeforge_sessions.db"


def main() -> None:
    """Migrate on the connection of the caller or on the database of the URL, or print SQL."""
    config = context.config
    command_line = getattr(config.cmd_opts, "cmd", None)  # set on the command line: the function and its argument names
    if command_line is None:
        run(**config.attributes)
        return
    try:
        run_from_command_line(upgrading=command_line[0] is command.upgrade)
    except SessionRepositoryError as error:  # one line without a traceback
        raise CommandError(str(error)) from None


def run_from_command_line(*, upgrading: bool) -> None:
    """Migrate the database of the URL from the options or the environment variables, or of `DEFAULT_URL`."""
    settings = Settings.read()
    url = parse_url(context.get_x_argument(as_dictionary=True).get("url") or settings.url() or DEFAULT_URL)
    if context.is_offline_mode():
        run(url, upgrading=upgrading, schema=settings.db_schema)
        return
    with engine_on(url, schema=settings.db_schema) as engine, migrate.migrating(engine) as connection:
        run(connection, upgrading=upgrading)


def run(
    bind: Connection | URL,
    *,
    upgrading: bool,
    schema: str | None = None,
    timeouts: migrate.MigrationTimeouts = migrate.MigrationTimeouts(),  # noqa: B008 (a tuple)
    report: Callable[[str], None] | None = None,
) -> None:
    """Run migrations on a connection, or print their SQL for the kind of database of a URL.

    :param upgrading: reject a database that is ahead or foreign. The check runs under the migration lock.
    :param schema: the schema for printed SQL. On a connection, the schema of the connection is used.
    :param report: called with each revision that was reached or undone.
    """
    options: dict[str, Any]
    if isinstance(bind, URL):
        database_dialect = database_dialect_named(bind.get_backend_name())
        options = {"url": bind, "literal_binds": True}
        settings = database_dialect.migration_settings(timeouts, of_session=True)
        if schema is not None:  # a database client runs the SQL, so its session needs the search path
            settings += (f"SET search_path = {quoted(schema)}",)
    else:
        database_dialect, schema, is_joined = database_dialect_of(bind.dialect), schema_of(bind), bind.in_transaction()
        if upgrading:
            migrate.check_migratable(inspect_schema(bind))
            if not is_joined:
                bind.rollback()  # Alembic begins and commits its own transactions
        options = {"connection": bind, "version_table_schema": schema, **comparison(schema)}
        settings = () if is_joined else database_dialect.migration_settings(timeouts, of_session=False)
    context.configure(
        **options,
        target_metadata=metadata_in(schema),
        version_table=VERSION_TABLE,
        # Alembic's default on SQLite is False, as the driver begins no transaction for DDL; the migration lock does
        transactional_ddl=database_dialect.transactional_ddl,
        render_as_batch=True,
        on_version_apply=(lambda *, step, **_: report(str(step.up_revision_id))) if report else None,
    )
    with context.begin_transaction():
        for setting in settings:
            context.execute(setting)
        context.run_migrations()


main()
