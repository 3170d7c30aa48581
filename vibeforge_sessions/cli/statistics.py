"""Command ``sessions stats``. Each part of its output is one query of `sql.admin.statistics`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import typer
from rich.console import Console

from vibeforge_sessions.cli import options
from vibeforge_sessions.cli.output import show
from vibeforge_sessions.cli.sessions import sessions
from vibeforge_sessions.cli.tables import Listing, bar, cell, console, number, phase, size, spark
from vibeforge_sessions.cli.terminal import safe
from vibeforge_sessions.cli.times import clock, format_age
from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.model import validation
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.admin.statistics import (
    AgeCount,
    ErrorCount,
    PhaseCount,
    TableSize,
    count_ages,
    count_errors,
    count_phases,
    table_sizes,
)
from vibeforge_sessions.sql.engine import engine_on

_BAR: Final = 20
_SPARK: Final = 48
_PERIODS: Final = 1_000
_UNITS: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


@sessions.command()
def stats(
    url: options.Url,
    window: options.Window = timedelta(days=7),
    by: options.Unit = "day",
    top: options.Top = 10,
    timeout: options.QueryTimeout = 30.0,
    schema: options.Schema = None,
    as_json: options.Json = False,
) -> None:
    """Show sessions by phase and age, errors by time, task and phase, and the size of each table on disk.

    Each part is one query, which the database ends after --timeout. If a query fails, the other parts are shown.
    """
    now = validation.utc_now()
    if window // _UNITS[by] >= _PERIODS:
        raise typer.BadParameter(f"is longer than {_PERIODS:,} times one {by}", param_hint="--window")
    since = (now - window).replace(minute=0, second=0, microsecond=0)
    if by == "day":
        since = since.replace(hour=0)
    found: dict[str, Any] = {}
    with engine_on(url, schema=schema) as engine:
        migrate.check_schema(engine)
        queries: dict[str, Callable[[], Any]] = {
            "phases": lambda: count_phases(engine, timeout=timeout),
            "errors": lambda: count_errors(engine, since=since, every=by, top=top, timeout=timeout),
            "touched": lambda: count_ages(engine, of="updated_at", timeout=timeout),
            "created": lambda: count_ages(engine, of="created_at", timeout=timeout),
            "tables": lambda: table_sizes(engine, timeout=timeout),
        }
        for part, query in queries.items():
            try:
                found[part] = query()
            except StorageError as error:
                found[part] = None
                typer.echo(f"error: {part}: {safe(str(error))}", err=True)
    if as_json:
        show({"errors_since": since, **found})
    else:
        _show(console(), found, since, now, by)
    if None in found.values():
        raise typer.Exit(1)


def _show(out: Console, found: dict[str, Any], since: datetime, now: datetime, unit: str) -> None:
    if found["phases"] is not None:
        _show_phases(out, found["phases"])
    if found["errors"] is not None:
        periods = (now - since) // _UNITS[unit] + 1
        _show_errors(out, found["errors"], [since + index * _UNITS[unit] for index in range(periods)], unit)
    for part, title in (("touched", "last touched"), ("created", "created")):
        if found[part] is not None:
            _show_ages(out, found[part], title)
    if found["tables"] is not None:
        _show_tables(out, found["tables"])


def _show_phases(out: Console, counts: Sequence[PhaseCount]) -> None:
    most = max((each.sessions for each in counts), default=0)
    out.print(f"{sum(each.sessions for each in counts):,} sessions by phase", style="bold underline")
    titles = ("phase", "sessions", "", "errors", "held", "last touched", "oldest", "logs")
    Listing(out, *titles, needed=6).add(
        [
            phase(each.phase),
            number(each.sessions),
            cell(bar(each.sessions, most, _BAR, out), "cyan"),
            number(each.errors, "red"),
            number(each.held, "magenta"),
            cell(clock(each.touched)),
            cell(clock(each.oldest)),
            number(each.logs),
        ]
        for each in counts
    )


def _show_errors(out: Console, counts: Sequence[ErrorCount], periods: Sequence[datetime], unit: str) -> None:
    by_time: Counter[datetime] = Counter()
    by_task: dict[tuple[str, str], Counter[datetime]] = defaultdict(Counter)
    for each in counts:
        if each.begins <= periods[-1]:  # later ones were stored by a machine whose clock is ahead
            by_time[each.begins] += each.errors
            by_task[each.task_id or "(all others)", each.phase or ""][each.begins] += each.errors
    out.print(f"\n{by_time.total():,} errors by {unit}, since {clock(periods[0])}", style="bold underline")
    if not by_time:
        return
    most, digits = max(by_time.values()), 10 if unit == "day" else 16
    Listing(out, unit, "errors", "").add(
        [cell(clock(time)[:digits]), number(by_time[time]), cell(bar(by_time[time], most, _BAR, out), "red")]
        for time in periods
    )
    out.print()
    Listing(out, "task", "phase", "errors", "over that time").add(
        [
            cell(task, "bold"),
            phase(of),
            number(series.total()),
            cell(spark([series[time] for time in periods], _SPARK, out), "red"),
        ]
        for (task, of), series in sorted(by_task.items(), key=lambda item: (not item[0][1], -item[1].total()))
    )


def _show_ages(out: Console, counts: Sequence[AgeCount], title: str) -> None:
    most = max(each.sessions for each in counts)
    out.print(f"\nsessions by the time since they were {title}", style="bold underline")
    Listing(out, "ago", "sessions", "").add(
        [
            cell(f"under {format_age(each.most)}" if each.most else f"{format_age(each.least)} or more"),
            number(each.sessions),
            cell(bar(each.sessions, most, _BAR, out), "cyan"),
        ]
        for each in counts
    )


def _show_tables(out: Console, tables: Sequence[TableSize]) -> None:
    sizes = {each: each.data + each.indexes for each in sorted(tables, key=lambda each: -each.data - each.indexes)}
    out.print(f"\n{size(sum(sizes.values()))} on disk", style="bold underline")
    Listing(out, "table", "data", "indexes", "").add(
        [
            cell(each.table or "the whole file"),
            number(size(each.data)),
            number(size(each.indexes)),
            cell(bar(total, max(sizes.values()), _BAR, out), "cyan"),
        ]
        for each, total in sizes.items()
    )
