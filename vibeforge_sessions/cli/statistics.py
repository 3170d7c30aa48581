"""Command ``sessions stats``. Each part of the output is the result of one query of `sql.admin.statistics`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.filesize import decimal

from vibeforge_sessions.cli import options
from vibeforge_sessions.cli.groups import Engine, sessions
from vibeforge_sessions.cli.output import clock, format_age, safe, show
from vibeforge_sessions.cli.rendering import Listing, bar, cell, console, phase, spark
from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.model import validation
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.admin import statistics as queries

_BAR: Final = 20
_SPARK: Final = 48
_PERIODS: Final = 1_000
_UNITS: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


@sessions.command()
def stats(
    engine: Engine,
    window: options.Window = timedelta(days=7),
    by: Annotated[Literal["hour", "day"], typer.Option(help="Count errors by hour or by day.")] = "day",
    top: Annotated[int, typer.Option(min=1, max=100, help="Number of tasks with the most errors to show.")] = 10,
    query_timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, max=86_400, help="Time limit of each query in seconds.")
    ] = 30.0,
    as_json: options.Json = False,
) -> None:
    """Show sessions by phase and age, errors by time, task and phase, and the size of each table on disk.

    Each part is one query, which the database ends after --timeout. If a query fails, the other parts are shown.
    """
    now = validation.utc_now()
    if window // _UNITS[by] >= _PERIODS:
        raise typer.BadParameter(f"must be shorter than {_PERIODS:,} {by}s", param_hint="--window")
    since = (now - window).replace(minute=0, second=0, microsecond=0)
    if by == "day":
        since = since.replace(hour=0)
    found: dict[str, Any] = {}
    migrate.check_schema(engine)
    parts: dict[str, Callable[[], Any]] = {
        "phases": lambda: queries.count_phases(engine, timeout=query_timeout),
        "errors": lambda: queries.count_errors(engine, since=since, every=by, top=top, timeout=query_timeout),
        "touched": lambda: queries.count_ages(engine, of="updated_at", timeout=query_timeout),
        "created": lambda: queries.count_ages(engine, of="created_at", timeout=query_timeout),
        "tables": lambda: queries.table_sizes(engine, timeout=query_timeout),
    }
    for part, query in parts.items():
        try:
            found[part] = query()
        except StorageError as error:
            found[part] = None
            typer.echo(f"error: {part}: {safe(str(error))}", err=True)
    if as_json:
        show({"errors_since": since, **found})
    else:
        periods = [since + index * _UNITS[by] for index in range((now - since) // _UNITS[by] + 1)]
        _show(console(), found, periods, by)
    if None in found.values():
        raise typer.Exit(1)


def _show(out: Console, found: dict[str, Any], periods: Sequence[datetime], unit: str) -> None:
    if (phases := found["phases"]) is not None:
        counts = [each.sessions for each in phases]
        titles = ("phase", "sessions", "errors", "held", "last touched")
        rows = [[phase(each.phase), each.sessions, each.errors, each.held, each.touched] for each in phases]
        _print(out, f"{sum(counts):,} sessions by phase", titles, rows, counts)
    if (errors := found["errors"]) is not None:
        _show_errors(out, errors, periods, unit)
    for part, title in (("touched", "since their last write"), ("created", "since their creation")):
        if (ages := found[part]) is not None:
            counts = [each.sessions for each in ages]
            rows = [[f"under {format_age(each.most)}" if each.most else "longer", each.sessions] for each in ages]
            _print(out, f"sessions by the time {title}", ("time", "sessions"), rows, counts)
    if (tables := found["tables"]) is not None:
        tables = sorted(tables, key=lambda each: -each.data - each.indexes)
        totals = [each.data + each.indexes for each in tables]
        rows = [[each.table or "the whole file", decimal(each.data), decimal(each.indexes)] for each in tables]
        _print(out, f"{decimal(sum(totals))} on disk", ("table", "data", "indexes"), rows, totals)


def _show_errors(out: Console, counts: Sequence[queries.ErrorCount], periods: Sequence[datetime], unit: str) -> None:
    by_time = dict.fromkeys(periods if counts else (), 0)
    by_task: dict[tuple[str, str], Counter[datetime]] = defaultdict(Counter)
    for each in counts:
        if each.begins in by_time:  # errors of later periods were stored by a machine whose clock is ahead
            by_time[each.begins] += each.errors
            by_task[each.task_id or "(all others)", each.phase or ""][each.begins] += each.errors
    title = f"{sum(by_time.values()):,} errors by {unit}, since {clock(periods[0])}"
    rows = [[clock(time)[: 10 if unit == "day" else 16], count] for time, count in by_time.items()]
    _print(out, title, (unit, "errors"), rows, list(by_time.values()))
    if by_task:
        Listing(out, "task", "phase", "errors", "over that time").add(
            [task, phase(of), series.total(), spark([series[time] for time in periods], _SPARK, out)]
            for (task, of), series in sorted(by_task.items(), key=lambda item: (not item[0][1], -item[1].total()))
        )
        out.print()


def _print(
    out: Console, title: str, titles: Sequence[str], rows: Iterable[Sequence[object]], values: Sequence[int]
) -> None:
    """Print a table, with a bar for the value of each row if the terminal is wide enough."""
    out.print(title, style="bold underline")
    bars = [cell(bar(value, max(values), _BAR, out), "cyan") for value in values]
    Listing(out, *titles, "", needed=len(titles)).add([*row, each] for row, each in zip(rows, bars, strict=True))
    out.print()
