"""Groups of commands, and the providers of values that commands receive as parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final, TypeAlias

import typer
from typer.models import CommandFunctionType

from vibeforge_sessions.cli import options
from vibeforge_sessions.cli.output import EXITS
from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.model.session import Session
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.engine import engine_on
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository

Engine: TypeAlias = Any
"""An SQLAlchemy engine, typed as Any because only `vibeforge_sessions.sql` imports SQLAlchemy."""
Repository: TypeAlias = SQLAlchemySessionRepository[Session]


def _engine_on(url: options.Url, schema: options.Schema = None) -> AbstractContextManager[Engine]:
    return engine_on(url, schema=schema)


@contextmanager
def repository_on(url: options.Url, schema: options.Schema = None) -> Iterator[Repository]:
    """Provide the repository of a database, after a check of its schema."""
    with engine_on(url, schema=schema) as engine:
        migrate.check_schema(engine)
        yield SQLAlchemySessionRepository(engine)


_PROVIDERS: Final[dict[str, Callable[..., AbstractContextManager[Any]]]] = {
    "asked": options.session_filter,
    "engine": _engine_on,
    "repository": repository_on,
}
"""Functions that create the value of a parameter from options, by the name of the parameter."""


def _provided(command: Callable[..., None]) -> Any:
    """Return the command with the options of a provider in place of each parameter that has a provider."""
    parameters = inspect.signature(command, eval_str=True).parameters
    providers = {name: _PROVIDERS[name] for name in parameters if name in _PROVIDERS}
    options_of = {name: inspect.signature(make, eval_str=True).parameters for name, make in providers.items()}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        with ExitStack() as stack:
            for name, provide in providers.items():
                value = provide(**{option: given.pop(option) for option in options_of[name]})
                given[name] = stack.enter_context(value)
            command(**given)

    shown = [each for name in parameters for each in options_of.get(name, {name: parameters[name]}).values()]
    signature = inspect.Signature([each.replace(kind=each.KEYWORD_ONLY) for each in shown])
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


class Commands(typer.Typer):
    """A group of commands.

    A command with a parameter ``engine`` or ``repository`` gets the options of a database instead, and one with a
    parameter ``asked`` those of a filter. Each option can also be set by an environment variable: ``--limit`` by
    ``VIBEFORGE_SESSIONS_LIMIT``.
    """

    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Register a command; see `typer.Typer.command`."""
        register = super().command(name, context_settings={"auto_envvar_prefix": "VIBEFORGE_SESSIONS"}, **settings)
        return lambda command: register(_provided(command))


sessions = Commands(help=f"Sessions in the database. {EXITS}", no_args_is_help=True)


def record_of(repository: SessionRepository[Any], session_id: str) -> Record:
    """Return the record of a session.

    :raises SessionNotFoundError: the session does not exist.
    """
    record = repository.get_record(session_id)
    if record is None:
        raise SessionNotFoundError(session_id)
    return record
