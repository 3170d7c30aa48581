"""What ``alembic`` runs, from the command line and from `vibeforge_sessions.sql.migrate`: thin, on purpose."""

from __future__ import annotations

from alembic import command, context
from alembic.util import CommandError
from sqlalchemy import URL, Connection

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
        run(config.attributes["connection"], upgrading=config.attributes["upgrading"])
        return
    try:
        run_from_command_line(upgrading=asked[0] is command.upgrade)
    except SessionRepositoryError as error:  # one line, and no traceback
        raise CommandError(str(error)) from None


def run_from_command_line(*, upgrading: bool) -> None:
    """Find the database's URL, and run on it."""
    url = parse_url(context.get_x_argument(as_dictionary=True).get("url") or Settings.read().url() or DEFAULT_URL)
    if context.is_offline_mode():
        run(url, upgrading=upgrading)
        return
    engine = create_engine(url)
    try:
        with migrate.migrating(engine) as connection:
            run(connection, upgrading=upgrading)
    finally:
        engine.dispose()


def run(bind: Connection | URL, *, upgrading: bool) -> None:
    """Run what alembic was asked for."""
    migrate.run_in_environment(bind, context, upgrading=upgrading)


main()
