"""Command group ``sessions``. Other modules import it and add their commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from vibeforge_sessions.cli.output import EXITS, report_errors
from vibeforge_sessions.model.session import Session
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.engine import engine_on
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository

sessions = typer.Typer(help=f"Sessions in the database. {EXITS}", no_args_is_help=True)


@contextmanager
def repository_on(url: str, schema: str | None) -> Iterator[SQLAlchemySessionRepository[Session]]:
    """Provide the repository of a database, after a check of its schema. Errors are printed in one line."""
    with report_errors(), engine_on(url, schema=schema) as engine:
        migrate.check_schema(engine)
        yield SQLAlchemySessionRepository(engine)
