"""Options that several commands share.

Each is also an environment variable: `vibeforge_sessions.cli.output.Commands` derives its name from the parameter's. An
option names its variable only if the names differ.
"""

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
Role = Annotated[str | None, typer.Option(help="The role of the application; on MariaDB user or user@host.")]
Migrator = Annotated[str | None, typer.Option(help="The role that runs the migrations.")]
Batch = Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of ids that are read at once.")]

# --- filters ---

Phases = Annotated[
    list[str] | None, typer.Option("--phase", metavar="PHASE", help="Sessions in this phase. Repeatable.")
]
CreatedFrom = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_time,
        metavar="TIME",
        help="Created at this time or later. ISO 8601, in UTC without a zone; or an age: 2d means two days ago.",
    ),
]
CreatedBefore = Annotated[
    datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="Created before this time.")
]
UpdatedFrom = Annotated[
    datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="Last updated at this time or later.")
]
UpdatedBefore = Annotated[
    datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="Last updated before this time.")
]
HasErrors = Annotated[
    bool | None, typer.Option("--has-errors/--no-errors", help="Sessions with errors, or without errors.")
]
Limit = Annotated[
    int, typer.Option(min=1, help="Maximum number to show. The option that continues the list is printed on stderr.")
]
All = Annotated[
    bool, typer.Option("--all", envvar="VIBEFORGE_SESSIONS_ALL", help="Show all, page by page, without a limit.")
]
Cursor = Annotated[str | None, typer.Option(help="Start of the page, as printed after the page before.")]
Order = Annotated[SessionOrder, typer.Option(help="Sort key: oldest first, or with a minus newest first.")]

# --- parts of a session ---

SessionId = Annotated[str, typer.Argument(metavar="ID", help="Id of the session.")]
SessionIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the sessions.")]
After = Annotated[int, typer.Option(min=0, help="Only entries after this position; 0 for the beginning.")]
_LAST: Final = typer.Option(min=1, max=100_000, help="Show only this number of entries at the end.")
Last = Annotated[int | None, _LAST]
Recent = Annotated[int, _LAST]
Task = Annotated[str | None, typer.Option(help="Only entries of this task.")]
OfPhase = Annotated[str | None, typer.Option(help="Only entries of this phase.")]
Full = Annotated[bool, typer.Option("--full", help="Do not shorten long texts. With --json they are never shortened.")]
Every = Annotated[float, typer.Option(min=0.05, max=3_600, callback=_finite, help="Seconds between two polls.")]

# --- statistics ---

Window = Annotated[timedelta, typer.Option(parser=parse_age, metavar="AGE", help="Period of the errors: 24h, 7d, 4w.")]
Unit = Annotated[Literal["hour", "day"], typer.Option(help="Count errors by hour or by day.")]
Top = Annotated[int, typer.Option(min=1, max=100, help="Number of tasks with the most errors to show.")]
QueryTimeout = Annotated[
    float, typer.Option("--timeout", min=0.001, max=86_400, help="Time limit of each query in seconds.")
]
