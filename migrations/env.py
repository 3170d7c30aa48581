"""What ``alembic`` runs, from the command line and from `vibeforge_sessions.sql.migrate`: thin, on purpose."""

from __future__ import annotations

from alembic import command, context
from alembic.util import CommandError

from vibeforge_sessions.errors import SessionRepositoryError
from vibeforge_sessions.settings import Settings
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.engine import create_engine, parse_url

DEFAULT_URL = "sqlite:///vibeforge_sessions.db"


def main() -> None:
    """Migrate on the connection that a host has handed over, or on the database of the URL, or as SQL."""
    config = context.config
    asked = getattr(config.cmd_opts, "cmd", None)  # on a command line: the function, and its arguments' names
    if asked is None:
        given = config.attributes
        migrate.run_in_environment(
            given["connection"],
            context,
            upgrading=given["upgrading"],
            schema=given.get("schema"),
            timeouts=given["timeouts"],
        )
        return
    try:
        run_from_command_line(upgrading=asked[0] is command.upgrade)
    except SessionRepositoryError as error:  # one line, and no traceback
        raise CommandError(str(error)) from None


def run_from_command_line(*, upgrading: bool) -> None:
    """Find the database's URL, and run on it."""
    settings = Settings.read()
    url = parse_url(context.get_x_argument(as_dictionary=True).get("url") or settings.url() or DEFAULT_URL)
    if context.is_offline_mode():
        migrate.run_in_environment(url, context, upgrading=upgrading, schema=settings.db_schema)
        return
    engine = create_engine(url, schema=settings.db_schema)
    try:
        with migrate.migrating(engine) as connection:
            migrate.run_in_environment(connection, context, upgrading=upgrading)
    finally:
        engine.dispose()


main()
