"""Command ``sessions stats``. Each part of its output is one query of `sql.admin.statistics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import typer
from rich.console import Console

from vibeforge_sessions.cli.options import Json, QueryTimeout, Schema, Top, Unit, Url, Window
from vibeforge_sessions.cli.output import report_errors
from vibeforge_sessions.cli.sessions import sessions
from vibeforge_sessions.cli.tables import Cell, Column, Listing, bar, phase, size, spark
from vibeforge_sessions.cli.tables import console as new_console
from vibeforge_sessions.cli.terminal import safe, safe_json
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

_BAR: Final = 24
_SPARK: Final = 48
_PERIODS: Final = 1_000
_UNITS: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1)}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Statistics:
    """The results. A part is None if its query failed."""

    since: datetime
    unit: timedelta
    now: datetime
    phases: list[PhaseCount] | None
    errors: list[ErrorCount] | None
    touched: list[AgeCount] | None
    created: list[AgeCount] | None
    tables: list[TableSize] | None


@sessions.command()
def stats(
    url: Url,
    window: Window = timedelta(days=7),
    by: Unit = "day",
    top: Top = 10,
    timeout: QueryTimeout = 30.0,
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show sessions by phase and age, errors by time, task and phase, and the size of each table on disk.

    Each part is one query, which the database ends after --timeout. If a query fails, the other parts are shown.
    """
    now, unit = validation.utc_now(), _UNITS[by]
    if window // unit >= _PERIODS:
        raise typer.BadParameter(f"is longer than {_PERIODS:,} times one {by}", param_hint="--window")
    try:
        midnight = (now - window).replace(hour=0, minute=0, second=0, microsecond=0)
        since = midnight + (now - window - midnight) // unit * unit
    except OverflowError:
        raise typer.BadParameter("begins before the year 1", param_hint="--window") from None
    failed: list[str] = []

    def query(part: str, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except StorageError as error:
            failed.append(part)
            typer.echo(f"error: {part}: {safe(str(error))}", err=True)
            return None

    with report_errors(), engine_on(url, schema=schema) as engine:
        migrate.check_schema(engine)
        found = Statistics(
            since=since,
            unit=unit,
            now=now,
            phases=query("phases", lambda: count_phases(engine, timeout=timeout)),
            errors=query("errors", lambda: count_errors(engine, since=since, every=by, top=top, timeout=timeout)),
            touched=query("last touched", lambda: count_ages(engine, of="updated_at", timeout=timeout)),
            created=query("created", lambda: count_ages(engine, of="created_at", timeout=timeout)),
            tables=query("sizes", lambda: table_sizes(engine, timeout=timeout)),
        )
    if as_json:
        typer.echo(safe_json(_as_json(found), indent=2))
    else:
        _show(new_console(), found)
    if failed:
        raise typer.Exit(1)


def _as_json(found: Statistics) -> dict[str, Any]:
    def plain(items: Sequence[Any] | None) -> list[dict[str, Any]] | None:
        return (
            None if items is None else [{name: _plain(value) for name, value in asdict(each).items()} for each in items]
        )

    return {
        "phases": plain(found.phases),
        "errors_since": found.since.isoformat(),
        "errors": plain(found.errors),
        "touched": plain(found.touched),
        "created": plain(found.created),
        "tables": plain(found.tables),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else value


def _show(out: Console, found: Statistics) -> None:
    if found.phases is not None:
        _show_phases(out, found.phases)
    if found.errors is not None:
        _show_errors(out, found, found.errors)
    _show_ages(out, found.touched, found.created)
    if found.tables is not None:
        _show_tables(out, found.tables)


def _title(out: Console, text: str) -> None:
    out.print(text, style="bold underline")


def _show_phases(out: Console, counts: Sequence[PhaseCount]) -> None:
    most = max((each.sessions for each in counts), default=0)
    total = sum(each.sessions for each in counts)
    _title(out, f"{total:,} sessions by phase")
    listing = Listing(
        out,
        Column("phase"),
        Column("sessions", right=True),
        Column("", needed=False),
        Column("errors", right=True),
        Column("held", right=True),
        Column("last touched"),
        Column("oldest", needed=False),
        Column("logs", right=True, needed=False),
    )
    listing.add(
        [
            phase(each.phase),
            Cell(f"{each.sessions:,}"),
            Cell(bar(each.sessions, most, _BAR, out), "cyan"),
            Cell(f"{each.errors:,}", "red" if each.errors else "dim"),
            Cell(f"{each.held:,}", "magenta" if each.held else "dim"),
            Cell(clock(each.touched)),
            Cell(clock(each.oldest)),
            Cell(f"{each.logs:,}"),
        ]
        for each in counts
    )


def _show_errors(out: Console, found: Statistics, counts: Sequence[ErrorCount]) -> None:
    periods = range((found.now - found.since) // found.unit + 1)
    place = {found.since + found.unit * index: index for index in periods}
    by_time: Counter[int] = Counter()
    by_task: dict[tuple[str, str], Counter[int]] = {}
    for each in counts:
        index = place.get(each.begins)
        if index is None:  # stored by a machine whose clock is ahead
            continue
        by_time[index] += each.errors
        pair = ("(all others)", "") if each.task_id is None else (each.task_id, each.phase or "")
        by_task.setdefault(pair, Counter())[index] += each.errors
    unit = "day" if found.unit == _UNITS["day"] else "hour"
    out.print()
    _title(out, f"{sum(by_time.values()):,} errors by {unit}, since {clock(found.since)}")
    if not by_time:
        return
    most = max(by_time.values())
    digits = 10 if unit == "day" else 16
    listing = Listing(out, Column(unit), Column("errors", right=True), Column(""))
    listing.add(
        [Cell(clock(time)[:digits]), Cell(f"{by_time[index]:,}"), Cell(bar(by_time[index], most, _BAR, out), "red")]
        for time, index in place.items()
    )
    out.print()
    listing = Listing(out, Column("task"), Column("phase"), Column("errors", right=True), Column("over that time"))
    listing.add(
        [
            Cell(task, "bold" if of else "dim"),
            phase(of),
            Cell(f"{sum(series.values()):,}"),
            Cell(spark([series[index] for index in periods], _SPARK, out), "red"),
        ]
        for (task, of), series in sorted(by_task.items(), key=lambda item: (not item[0][1], -sum(item[1].values())))
    )


def _show_ages(out: Console, touched: Sequence[AgeCount] | None, created: Sequence[AgeCount] | None) -> None:
    shown = {"last touched": touched, "created": created}
    known = {title: counts for title, counts in shown.items() if counts is not None}
    if not known:
        return
    out.print()
    _title(out, "sessions by age")
    columns = [Column("ago")]
    for title in known:
        columns += [Column(title, right=True), Column("")]
    rows = []
    for bands in zip(*known.values(), strict=True):
        most = bands[0].most
        row = [Cell(f"under {format_age(most)}" if most else f"{format_age(bands[0].least)} or more")]
        for band, counts in zip(bands, known.values(), strict=True):
            row.append(Cell(f"{band.sessions:,}"))
            row.append(Cell(bar(band.sessions, max(each.sessions for each in counts), _BAR // 2, out), "cyan"))
        rows.append(row)
    Listing(out, *columns).add(rows)


def _show_tables(out: Console, tables: Sequence[TableSize]) -> None:
    out.print()
    total = sum(each.data + each.indexes for each in tables)
    _title(out, f"{size(total)} on disk")
    most = max((each.data + each.indexes for each in tables), default=0)
    listing = Listing(out, Column("table"), Column("data", right=True), Column("indexes", right=True), Column(""))
    listing.add(
        [
            Cell(each.table or "the whole file"),
            Cell(size(each.data)),
            Cell(size(each.indexes) if each.table else ""),
            Cell(bar(each.data + each.indexes, most, _BAR, out), "cyan"),
        ]
        for each in sorted(tables, key=lambda each: -each.data - each.indexes)
    )
