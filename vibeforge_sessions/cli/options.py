"""The options that several commands share, each also an environment variable."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

import typer

from vibeforge_sessions.cli.times import age, moment
from vibeforge_sessions.repository.query import SessionOrder


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):  # neither of which is less than any least value
        raise typer.BadParameter("must be a number of seconds")
    return value


_PREFIX: Final = "VIBEFORGE_SESSIONS_"

Url = Annotated[
    str,
    typer.Option(
        envvar=f"{_PREFIX}DATABASE_URL",
        help="The database. Better by the variable: others can see a command's arguments, and a password in them.",
    ),
]
Schema = Annotated[
    str | None, typer.Option(envvar=f"{_PREFIX}SCHEMA", help="PostgreSQL's schema in which the tables stand.")
]
Json = Annotated[bool, typer.Option("--json", envvar=f"{_PREFIX}JSON", help="Print JSON, for machines.")]
Sql = Annotated[
    bool,
    typer.Option("--sql", envvar=f"{_PREFIX}SQL", help="Print the SQL instead, without connecting or a driver."),
]
Since = Annotated[
    str | None,
    typer.Option(envvar=f"{_PREFIX}SINCE", help="With --sql: the revision that the database is at."),
]
LockTimeout = Annotated[
    float | None,
    typer.Option(
        envvar=f"{_PREFIX}LOCK_TIMEOUT",
        min=0,
        callback=_finite,
        help="Seconds to wait for another migration (60), and for a table's lock (10).",
    ),
]
StatementTimeout = Annotated[
    float | None,
    typer.Option(
        envvar=f"{_PREFIX}STATEMENT_TIMEOUT",
        min=0,
        callback=_finite,
        help="Seconds that a statement may take, 0 for no limit; not on SQLite.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", envvar=f"{_PREFIX}YES", help="Do not ask.")]
WaitTimeout = Annotated[
    float,
    typer.Option("--timeout", envvar=f"{_PREFIX}WAIT_TIMEOUT", min=0, callback=_finite, help="Seconds to wait."),
]
Role = Annotated[
    str | None,
    typer.Option(envvar=f"{_PREFIX}ROLE", help="Who the application connects as; on MariaDB user or user@host."),
]
Migrator = Annotated[str | None, typer.Option(envvar=f"{_PREFIX}MIGRATOR", help="Who runs the migrations.")]
SessionType = Annotated[
    str | None,
    typer.Option(
        envvar=f"{_PREFIX}SESSION_TYPE", help="The application's own class of session, as package.module:Class."
    ),
]
Batch = Annotated[int, typer.Option(envvar=f"{_PREFIX}BATCH", min=1, max=1_000_000, help="Ids that are read at once.")]

# --- which sessions ---

_TIME: Final = "ISO 8601, in UTC where it names no zone; or an age: 2d is two days ago."

Phases = Annotated[
    list[str] | None,
    typer.Option("--phase", envvar=f"{_PREFIX}PHASE", metavar="PHASE", help="In this phase; may be given repeatedly."),
]
CreatedFrom = Annotated[
    datetime | None,
    typer.Option(
        envvar=f"{_PREFIX}CREATED_FROM", parser=moment, metavar="TIME", help=f"Created at this time or later. {_TIME}"
    ),
]
CreatedBefore = Annotated[
    datetime | None,
    typer.Option(envvar=f"{_PREFIX}CREATED_BEFORE", parser=moment, metavar="TIME", help="Created before this time."),
]
UpdatedFrom = Annotated[
    datetime | None,
    typer.Option(
        envvar=f"{_PREFIX}UPDATED_FROM", parser=moment, metavar="TIME", help="Last touched at this time or later."
    ),
]
UpdatedBefore = Annotated[
    datetime | None,
    typer.Option(
        envvar=f"{_PREFIX}UPDATED_BEFORE", parser=moment, metavar="TIME", help="Last touched before this time."
    ),
]
HasErrors = Annotated[
    bool | None,
    typer.Option("--has-errors/--no-errors", envvar=f"{_PREFIX}HAS_ERRORS", help="With errors, or without any."),
]
Limit = Annotated[
    int, typer.Option(envvar=f"{_PREFIX}LIMIT", min=1, help="How many to show; on stderr it says where to go on.")
]
All = Annotated[bool, typer.Option("--all", envvar=f"{_PREFIX}ALL", help="Show all, page by page, without a limit.")]
Cursor = Annotated[
    str | None, typer.Option(envvar=f"{_PREFIX}CURSOR", help="Where the page before has said that this one begins.")
]
Order = Annotated[
    SessionOrder,
    typer.Option(
        envvar=f"{_PREFIX}ORDER",
        help="By which time: oldest first, or with a minus newest first.",
    ),
]

# --- what of a session ---

SessionId = Annotated[str, typer.Argument(metavar="ID", help="Of the session.")]
SessionIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Of the sessions.")]
After = Annotated[
    int, typer.Option(envvar=f"{_PREFIX}AFTER", min=0, help="Only entries after this position; 0 for the beginning.")
]
Last = Annotated[int | None, typer.Option(envvar=f"{_PREFIX}LAST", min=1, max=100_000, help="Only the last so many.")]
Task = Annotated[str | None, typer.Option(envvar=f"{_PREFIX}TASK", help="Only of this task.")]
OfPhase = Annotated[
    str | None, typer.Option("--phase", envvar=f"{_PREFIX}PHASE", help="Only of what happened in this phase.")
]
Full = Annotated[
    bool, typer.Option("--full", envvar=f"{_PREFIX}FULL", help="Show long texts whole; --json always does.")
]
Every = Annotated[float, typer.Option(envvar=f"{_PREFIX}EVERY", min=0.05, max=3_600, help="Seconds between two looks.")]

# --- in numbers ---

Window = Annotated[
    timedelta,
    typer.Option(
        "--window", envvar=f"{_PREFIX}WINDOW", parser=age, metavar="AGE", help="Errors of how long: 24h, 7d, 4w."
    ),
]
Unit = Annotated[
    Literal["hour", "day"], typer.Option("--by", envvar=f"{_PREFIX}BY", help="Errors by the hour or by the day.")
]
Top = Annotated[
    int, typer.Option(envvar=f"{_PREFIX}TOP", min=1, max=100, help="How many tasks with the most errors are shown.")
]
QueryTimeout = Annotated[
    float,
    typer.Option("--timeout", envvar=f"{_PREFIX}QUERY_TIMEOUT", min=0.001, max=86_400, help="Seconds for each query."),
]
