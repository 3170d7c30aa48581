"""Options that several commands share, and the parsing of their values.

Each option can also be set by an environment variable. `vibeforge_sessions.cli.groups.Commands` derives the name of the
variable from the name of the parameter. An option states the name of its variable only if the name is different.
"""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from vibeforge_sessions.cli.output import UNIT_SECONDS
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.query import SessionFilter, SessionOrder

_AGE: Final = re.compile(r"\s*(\d{1,6})([smhdw])\s*")


def parse_age(text: str | timedelta) -> timedelta:
    """Parse an age such as ``90s``, ``15m``, ``6h``, ``2d`` or ``3w``; return a timedelta unchanged."""
    if isinstance(text, timedelta):
        return text
    match = _AGE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not an age such as 90s, 15m, 6h, 2d or 3w")
    return timedelta(seconds=int(match[1]) * UNIT_SECONDS[match[2]])


def parse_time(text: str) -> datetime:
    """Parse a time in ISO 8601, which is in UTC if it has no zone, or an age, which is counted back from now."""
    try:
        time = validation.utc_now() - parse_age(text) if _AGE.fullmatch(text) else datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither a time, such as 2026-11-25 or 2026-11-25T13:00Z, nor an age, such as 2d"
        ) from None


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):  # inf and nan pass every check of a minimum
        raise typer.BadParameter("must be a number of seconds")
    return value


Url = Annotated[
    str,
    typer.Option(
        envvar="VIBEFORGE_SESSIONS_DATABASE_URL",
        help="The database. Prefer the variable: other users can see the arguments of a command, such as a password.",
    ),
]
Schema = Annotated[str | None, typer.Option(help="PostgreSQL only: the schema that contains the tables.")]
Json = Annotated[bool, typer.Option("--json", envvar="VIBEFORGE_SESSIONS_JSON", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]

# --- migrations and maintenance ---

Revision = Annotated[
    str, typer.Argument(envvar="VIBEFORGE_SESSIONS_REVISION", help="An id, head, base, or a number of steps as in -1.")
]
Sql = Annotated[bool, typer.Option("--sql", help="Print the SQL only, without a connection or a driver.")]
Since = Annotated[str | None, typer.Option(help="With --sql: the current revision of the database.")]
LockTimeout = Annotated[
    float | None,
    typer.Option(
        min=0,
        callback=_finite,
        help="Seconds to wait for another migration (default 60) and for a table lock (default 10).",
    ),
]
StatementTimeout = Annotated[
    float | None,
    typer.Option(min=0, callback=_finite, help="Time limit of a statement in seconds, 0 for no limit; not on SQLite."),
]
WaitTimeout = Annotated[float, typer.Option("--timeout", min=0, callback=_finite, help="Seconds to wait.")]

# --- filters ---


def _time(text: str) -> Any:
    text = f"{text} ISO 8601, in UTC without a zone; or an age: 2d means two days ago."
    return typer.Option(parser=parse_time, metavar="TIME", help=text)


_PHASE: Final = typer.Option(metavar="PHASE", help="Sessions in this phase. Repeatable.")
_HAS_ERRORS: Final = typer.Option("--has-errors/--no-errors", help="Sessions with errors, or without errors.")


def session_filter(
    phase: Annotated[list[str] | None, _PHASE] = None,
    created_from: Annotated[datetime | None, _time("Created at this time or later.")] = None,
    created_before: Annotated[datetime | None, _time("Created before this time.")] = None,
    updated_from: Annotated[datetime | None, _time("Last updated at this time or later.")] = None,
    updated_before: Annotated[datetime | None, _time("Last updated before this time.")] = None,
    has_errors: Annotated[bool | None, _HAS_ERRORS] = None,
) -> AbstractContextManager[SessionFilter]:
    """Provide the filter that the options describe."""
    asked = SessionFilter(
        phases=phase or None,
        created_from=created_from,
        created_before=created_before,
        updated_from=updated_from,
        updated_before=updated_before,
        has_errors=has_errors,
    )
    return nullcontext(asked)


# --- pages ---

Limit = Annotated[
    int, typer.Option(min=1, help="Maximum number to show. The option that continues the list is printed on stderr.")
]
All = Annotated[
    bool, typer.Option("--all", envvar="VIBEFORGE_SESSIONS_ALL", help="Show all, page by page, without a limit.")
]
Order = Annotated[SessionOrder, typer.Option(help="Sort key: oldest first, or with a minus newest first.")]

# --- parts of a session ---

SessionId = Annotated[str, typer.Argument(metavar="ID", help="Id of the session.")]
SessionIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the sessions.")]
After = Annotated[int, typer.Option(min=0, help="Only entries after this position; 0 for the beginning.")]
LAST: Final = typer.Option(min=1, max=100_000, help="Show only this number of entries at the end.")
Last = Annotated[int | None, LAST]
Full = Annotated[bool, typer.Option("--full", help="Do not shorten long texts. With --json they are never shortened.")]
Every = Annotated[float, typer.Option(min=0.05, max=3_600, callback=_finite, help="Seconds between two polls.")]

# --- statistics ---

Window = Annotated[timedelta, typer.Option(parser=parse_age, metavar="AGE", help="Period of the errors: 24h, 7d, 4w.")]
