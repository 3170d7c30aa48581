"""Options that several commands share. Each is also an environment variable."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

import typer

from vibeforge_sessions.cli.times import parse_age, parse_time
from vibeforge_sessions.repository.query import SessionOrder


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):  # inf and nan pass every check of a minimum
        raise typer.BadParameter("must be a number of seconds")
    return value


_PREFIX: Final = "VIBEFORGE_SESSIONS_"

Url = Annotated[
    str,
    typer.Option(
        envvar=f"{_PREFIX}DATABASE_URL",
        help="The database. Prefer the variable: other users can see the arguments of a command, such as a password.",
    ),
]
Schema = Annotated[
    str | None, typer.Option(envvar=f"{_PREFIX}SCHEMA", help="PostgreSQL only: the schema that contains the tables.")
]
Json = Annotated[bool, typer.Option("--json", envvar=f"{_PREFIX}JSON", help="Print JSON.")]
Sql = Annotated[
    bool,
    typer.Option("--sql", envvar=f"{_PREFIX}SQL", help="Print the SQL only, without a connection or a driver."),
]
Since = Annotated[
    str | None,
    typer.Option(envvar=f"{_PREFIX}SINCE", help="With --sql: the current revision of the database."),
]
LockTimeout = Annotated[
    float | None,
    typer.Option(
        envvar=f"{_PREFIX}LOCK_TIMEOUT",
        min=0,
        callback=_finite,
        help="Seconds to wait for another migration (default 60) and for a table lock (default 10).",
    ),
]
StatementTimeout = Annotated[
    float | None,
    typer.Option(
        envvar=f"{_PREFIX}STATEMENT_TIMEOUT",
        min=0,
        callback=_finite,
        help="Time limit of a statement in seconds, 0 for no limit; not on SQLite.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", envvar=f"{_PREFIX}YES", help="Do not ask for confirmation.")]
WaitTimeout = Annotated[
    float,
    typer.Option("--timeout", envvar=f"{_PREFIX}WAIT_TIMEOUT", min=0, callback=_finite, help="Seconds to wait."),
]
Role = Annotated[
    str | None,
    typer.Option(envvar=f"{_PREFIX}ROLE", help="The role of the application; on MariaDB user or user@host."),
]
Migrator = Annotated[str | None, typer.Option(envvar=f"{_PREFIX}MIGRATOR", help="The role that runs the migrations.")]
SessionType = Annotated[
    str | None,
    typer.Option(
        envvar=f"{_PREFIX}SESSION_TYPE", help="The session class of the application, as package.module:Class."
    ),
]
Batch = Annotated[
    int, typer.Option(envvar=f"{_PREFIX}BATCH", min=1, max=1_000_000, help="Number of ids that are read at once.")
]

# --- filters ---

_TIME: Final = "ISO 8601, in UTC without a zone; or an age: 2d means two days ago."

Phases = Annotated[
    list[str] | None,
    typer.Option("--phase", envvar=f"{_PREFIX}PHASE", metavar="PHASE", help="Sessions in this phase. Repeatable."),
]
CreatedFrom = Annotated[
    datetime | None,
    typer.Option(
        envvar=f"{_PREFIX}CREATED_FROM",
        parser=parse_time,
        metavar="TIME",
        help=f"Created at this time or later. {_TIME}",
    ),
]
CreatedBefore = Annotated[
    datetime | None,
    typer.Option(
        envvar=f"{_PREFIX}CREATED_BEFORE", parser=parse_time, metavar="TIME", help="Created before this time."
    ),
]
UpdatedFrom = Annotated[
    datetime | None,
    typer.Option(
        envvar=f"{_PREFIX}UPDATED_FROM", parser=parse_time, metavar="TIME", help="Last updated at this time or later."
    ),
]
UpdatedBefore = Annotated[
    datetime | None,
    typer.Option(
        envvar=f"{_PREFIX}UPDATED_BEFORE", parser=parse_time, metavar="TIME", help="Last updated before this time."
    ),
]
HasErrors = Annotated[
    bool | None,
    typer.Option(
        "--has-errors/--no-errors", envvar=f"{_PREFIX}HAS_ERRORS", help="Sessions with errors, or without errors."
    ),
]
Limit = Annotated[
    int,
    typer.Option(
        envvar=f"{_PREFIX}LIMIT",
        min=1,
        help="Maximum number to show. The option that continues the list is printed on stderr.",
    ),
]
All = Annotated[bool, typer.Option("--all", envvar=f"{_PREFIX}ALL", help="Show all, page by page, without a limit.")]
Cursor = Annotated[
    str | None, typer.Option(envvar=f"{_PREFIX}CURSOR", help="Start of the page, as printed after the page before.")
]
Order = Annotated[
    SessionOrder,
    typer.Option(
        envvar=f"{_PREFIX}ORDER",
        help="Sort key: oldest first, or with a minus newest first.",
    ),
]

# --- parts of a session ---

SessionId = Annotated[str, typer.Argument(metavar="ID", help="Id of the session.")]
SessionIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the sessions.")]
After = Annotated[
    int, typer.Option(envvar=f"{_PREFIX}AFTER", min=0, help="Only entries after this position; 0 for the beginning.")
]
Last = Annotated[
    int | None,
    typer.Option(envvar=f"{_PREFIX}LAST", min=1, max=100_000, help="Show only this number of entries at the end."),
]
Task = Annotated[str | None, typer.Option(envvar=f"{_PREFIX}TASK", help="Only entries of this task.")]
OfPhase = Annotated[str | None, typer.Option("--phase", envvar=f"{_PREFIX}PHASE", help="Only entries of this phase.")]
Full = Annotated[
    bool,
    typer.Option(
        "--full", envvar=f"{_PREFIX}FULL", help="Do not shorten long texts. With --json they are never shortened."
    ),
]
Every = Annotated[float, typer.Option(envvar=f"{_PREFIX}EVERY", min=0.05, max=3_600, help="Seconds between two polls.")]

# --- statistics ---

Window = Annotated[
    timedelta,
    typer.Option(
        "--window",
        envvar=f"{_PREFIX}WINDOW",
        parser=parse_age,
        metavar="AGE",
        help="Period of the errors: 24h, 7d, 4w.",
    ),
]
Unit = Annotated[
    Literal["hour", "day"], typer.Option("--by", envvar=f"{_PREFIX}BY", help="Count errors by hour or by day.")
]
Top = Annotated[
    int, typer.Option(envvar=f"{_PREFIX}TOP", min=1, max=100, help="Number of tasks with the most errors to show.")
]
QueryTimeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        envvar=f"{_PREFIX}QUERY_TIMEOUT",
        min=0.001,
        max=86_400,
        help="Time limit of each query in seconds.",
    ),
]
