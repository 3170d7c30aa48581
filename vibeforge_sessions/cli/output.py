"""Groups of commands, their output and their exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import typer
from typer.models import CommandFunctionType

from vibeforge_sessions.cli.terminal import safe_json
from vibeforge_sessions.errors import SchemaState

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
        settings.setdefault("context_settings", {"auto_envvar_prefix": "VIBEFORGE_SESSIONS"})
        return super().command(name, **settings)


def ask_confirmation() -> bool:
    """Ask for confirmation; return whether the user gave it."""
    typer.echo("Go on? [y/N] ", nl=False, err=True)  # the prompt of typer writes to stdout
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def show(value: Any) -> None:
    """Print JSON."""
    typer.echo(safe_json(value, indent=2))
