"""The options that several commands share, each also an environment variable."""

from __future__ import annotations

import math
from typing import Annotated, Final

import typer


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
