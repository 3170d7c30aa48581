"""What the commands print, and the codes that they exit with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import typer

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
    "Exit codes: 0 done, or current; 1 it failed; 2 wrong usage; and where the database stands: 3 empty, 4 behind, "
    "5 ahead, 6 foreign, 7 drifted; 8 sessions that cannot be read."
)


@contextmanager
def explained() -> Iterator[None]:
    """Turn our errors into one line on stderr and an exit code."""
    try:
        yield
    except SessionRepositoryError as error:
        typer.echo(f"error: {error}", err=True)
        state = error.state if isinstance(error, SchemaError) else None
        raise typer.Exit(1 if state is None else EXIT_CODES[state] or 1) from None
    except UnicodeError:  # bytes that are no text in the system's encoding reach Python as surrogates
        typer.echo("error: an argument is no text", err=True)
        raise typer.Exit(2) from None


def show(value: Any) -> None:
    """Print JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_status(status: SchemaStatus, *, as_json: bool) -> None:
    """Print where a database stands."""
    if as_json:
        show(asdict(status))
        return
    typer.echo(f"{status.state}: {status.reason}")
    for revision in status.pending:
        typer.echo(f"pending: {revision}")
    if status.command is not None:
        typer.echo(f"run: {status.command}")


def show_revisions(revisions: Sequence[Revision], *, as_json: bool) -> None:
    """Print what revisions say of themselves."""
    if as_json:
        show([asdict(each) for each in revisions])
        return
    for each in revisions:
        locks = [f"{on}: {name} {how}" for on, tables in each.locks.items() for name, how in tables.items()]
        typer.echo(f"{each.revision}: {each.summary}")
        for title, told in (
            ("locks", ", ".join(locks)),
            ("rewrites", ", ".join(each.rewrites)),
            ("others may write on", ", ".join(each.online)),
            ("a downgrade loses", each.loses),
        ):
            typer.echo(f"    {title}: {told or 'nothing'}")
