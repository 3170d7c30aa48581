"""`vibeforge-sessions sessions`: the group, whose commands stand here and in the files that import it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from vibeforge_sessions.cli.output import EXITS, explained
from vibeforge_sessions.model.session import Session
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.engine import engine_on
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository

sessions = typer.Typer(help=f"The sessions in it. {EXITS}", no_args_is_help=True)


@contextmanager
def repository_on(url: str, schema: str | None) -> Iterator[SQLAlchemySessionRepository[Session]]:
    """Give the repository of a database whose tables are right, and say in one line what fails; nothing is migrated."""
    with explained(), engine_on(url, schema=schema) as engine:
        migrate.check_schema(engine)
        yield SQLAlchemySessionRepository(engine)
