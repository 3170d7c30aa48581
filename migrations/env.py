"""Environment of Alembic, for its command line and for `vibeforge_sessions.sql.migrate`."""

from __future__ import annotations

from alembic import command, context
from alembic.util import CommandError

from vibeforge_sessions.errors import SessionRepositoryError
from vibeforge_sessions.settings import Settings
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.engine import create_engine, parse_url

DEFAULT_URL = "sqlite:///vibeforge_sessions.db"


def main() -> None:
    """Migrate on the connection of the caller or on the database of the URL, or print SQL."""
    config = context.config
    command_line = getattr(config.cmd_opts, "cmd", None)  # on the command line: the function and its argument names
    if command_line is None:
        attributes = config.attributes
        migrate.run_in_environment(
            attributes["connection"],
            context,
            upgrading=attributes["upgrading"],
            schema=attributes.get("schema"),
            timeouts=attributes["timeouts"],
        )
        return
    try:
        run_from_command_line(upgrading=command_line[0] is command.upgrade)
    except SessionRepositoryError as error:  # one line without a traceback
        raise CommandError(str(error)) from None


def run_from_command_line(*, upgrading: bool) -> None:
    """Migrate the database of the URL that the options or the environment name."""
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
