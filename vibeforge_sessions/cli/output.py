"""Groups of commands, their output and their exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import typer
from typer.models import CommandFunctionType

from vibeforge_sessions.cli.terminal import safe, safe_json
from vibeforge_sessions.errors import SchemaError, SchemaState, SessionRepositoryError
from vibeforge_sessions.sql.migrate import Revision, SchemaStatus

EXIT_CODES: Final[dict[SchemaState, int]] = {
    "current": 0,
    "empty": 3,
    "behind": 4,
    "ahead": 5,
    "foreign": 6,
    "drifted": 7,
}
UNREADABLE: Final = 8
EXITS: Final = (
    "Exit codes: 0 success, or current schema; 1 failure; 2 wrong usage; schema status: 3 empty, 4 behind, 5 ahead, "
    "6 foreign, 7 drifted; 8 unreadable sessions."
)


class Commands(typer.Typer):
    """A group of commands whose options are also environment variables: ``--limit`` is ``VIBEFORGE_SESSIONS_LIMIT``."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Register a command; see `typer.Typer.command`."""
        return super().command(name, context_settings={"auto_envvar_prefix": "VIBEFORGE_SESSIONS"}, **settings)


@contextmanager
def report_errors() -> Iterator[None]:
    """Translate errors of this package to one line on stderr and an exit code."""
    try:
        yield
    except SessionRepositoryError as error:
        typer.echo(f"error: {safe(str(error))}", err=True)
        state = error.state if isinstance(error, SchemaError) else None
        raise typer.Exit(1 if state is None else EXIT_CODES[state] or 1) from None
    except UnicodeError:  # Python represents undecodable bytes of an argument as surrogates
        typer.echo("error: an argument is not text in the encoding of the system", err=True)
        raise typer.Exit(2) from None


def ask_confirmation() -> bool:
    """Ask for confirmation; return whether the user gave it."""
    typer.echo("Go on? [y/N] ", nl=False, err=True)  # the prompt of typer writes to stdout
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def show(value: Any) -> None:
    """Print JSON."""
    typer.echo(safe_json(value, indent=2))


def show_status(status: SchemaStatus, *, as_json: bool) -> None:
    """Print the status of a schema."""
    if as_json:
        show(status)
        return
    typer.echo(f"{status.state}: {status.reason}")
    for revision in status.pending:
        typer.echo(f"pending: {revision}")
    if status.command is not None:
        typer.echo(f"run: {status.command}")


def show_revisions(revisions: Sequence[Revision], *, as_json: bool) -> None:
    """Print the properties of revisions."""
    if as_json:
        show(revisions)
        return
    for each in revisions:
        locks = [f"{on}: {name} {how}" for on, tables in each.locks.items() for name, how in tables.items()]
        typer.echo(f"{each.revision}: {each.summary}")
        for title, text in (
            ("locks", ", ".join(locks)),
            ("rewrites", ", ".join(each.rewrites)),
            ("others may write on", ", ".join(each.online)),
            ("a downgrade loses", each.loses),
        ):
            typer.echo(f"    {title}: {text or 'nothing'}")
