"""Statistics of the stored sessions: aggregate queries with a time limit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, Executable, case, cast, func, select
from sqlalchemy.exc import DBAPIError

from vibeforge_sessions.errors import InvalidArgumentError, StorageError
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.arguments import check_datetime, check_integer
from vibeforge_sessions.sql.dialects import database_dialect_of
from vibeforge_sessions.sql.dialects.base import failure_code
from vibeforge_sessions.sql.migrations.schema_status import connection_of
from vibeforge_sessions.sql.tables import documents, errors, logs, schema_of, sessions

__all__ = [
    "AGES",
    "AgeCount",
    "ErrorCount",
    "Period",
    "PhaseCount",
    "TableSize",
    "count_ages",
    "count_errors",
    "count_phases",
    "table_sizes",
]

AGES: Final = tuple(timedelta(hours=hours) for hours in (1, 24, 7 * 24, 30 * 24, 90 * 24, 365 * 24))
"""Default boundaries of ages: an hour, a day, a week, 30, 90 and 365 days."""
_MAX_TIMEOUT: Final = 86_400
_MAX_ITEMS: Final = 1_000

_BEGIN: Final = datetime.min.replace(tzinfo=UTC)

Period = Literal["hour", "day"]
"""Length of the time spans in which errors are counted."""


@dataclass(frozen=True, slots=True)
class PhaseCount:
    """Counts and times of the sessions in a phase."""

    phase: str
    sessions: int
    oldest: datetime
    """Time of the earliest creation."""
    newest: datetime
    """Time of the latest creation."""
    touched: datetime
    """Time of the last write to any of the sessions."""
    errors: int
    """Number of entries in their error histories."""
    logs: int
    held: int
    """Number of held sessions."""


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """The errors of a task in a phase, in an hour or a day."""

    begins: datetime
    """Start of the hour or day, in UTC."""
    task_id: str | None
    """None, as is `phase`, for the combined count of all pairs outside the `top` of `count_errors`."""
    phase: str | None
    errors: int


@dataclass(frozen=True, slots=True)
class AgeCount:
    """The sessions whose age is at least `least` and less than `most`."""

    least: timedelta
    most: timedelta | None
    """None for the group of the oldest sessions."""
    sessions: int


@dataclass(frozen=True, slots=True)
class TableSize:
    """Size of a table on disk in bytes, as reported by the database."""

    table: str | None
    """None for the whole file, if SQLite cannot report sizes of tables."""
    data: int
    indexes: int


def count_phases(engine: Engine, *, timeout: float = 30.0) -> list[PhaseCount]:
    """Count the sessions by phase, largest count first. Documents and histories are not read.

    :param timeout: seconds after which the database ends the statement.
    :raises StorageError: the statement exceeded the timeout, or the database failed.
    """
    return [PhaseCount(*row) for row in _query(engine, _phases, timeout)]


def count_errors(
    engine: Engine,
    *,
    since: datetime | None = None,
    before: datetime | None = None,
    every: Period = "day",
    top: int = 10,
    timeout: float = 30.0,
) -> list[ErrorCount]:
    """Count the errors by hour or day, task and phase, ordered by time. Pairs outside the `top` are combined.

    With `since`, only the histories of sessions that were updated at or after that time are read, because an entry is
    never newer than the last update of its session, unless a caller has set the entry's timestamp. Without `since`, all
    errors are read.

    :param top: number of pairs of a task and a phase to count separately, those with the most errors first; 0 to 1000.
    :param timeout: seconds after which the database ends the statement.
    :raises StorageError: the statement exceeded the timeout, or the database failed.
    :raises InvalidArgumentError: an argument is out of range, or a time is not timezone-aware.
    """
    if every not in {"hour", "day"}:
        raise InvalidArgumentError("must be hour or day", "every")
    check_integer(top, "top", least=0, most=_MAX_ITEMS)
    begins = database_dialect_of(engine.dialect).period_start(errors.c.timestamp, every).label("begins")
    found = select(begins, errors.c.task_id, errors.c.phase, func.count().label("errors"))
    if since is not None:
        since = check_datetime(since, "since")
        # not a join: without table statistics, SQLite would read all errors first
        touched = select(sessions.c.session_id).where(sessions.c.updated_at >= since)
        found = found.where(errors.c.session_id.in_(touched), errors.c.timestamp >= since)
    if before is not None:
        found = found.where(errors.c.timestamp < check_datetime(before, "before"))
    counted = found.group_by("begins", errors.c.task_id, errors.c.phase).subquery()
    pair = (counted.c.task_id, counted.c.phase)
    totals = select(counted, func.sum(counted.c.errors).over(partition_by=pair).label("total")).subquery()
    order = (totals.c.total.desc(), totals.c.task_id, totals.c.phase)
    placed = select(totals, func.dense_rank().over(order_by=order).label("place")).subquery()
    is_first = placed.c.place <= top
    # a subquery, because GROUP BY expressions must not contain parameters
    named = select(
        placed.c.begins,
        case((is_first, placed.c.task_id)).label("task_id"),
        case((is_first, placed.c.phase)).label("phase"),
        placed.c.errors,
    ).subquery()
    groups = (named.c.begins, named.c.task_id, named.c.phase)
    rows = _query(engine, select(*groups, _sum(named.c.errors)).group_by(*groups), timeout)
    counts = [ErrorCount(datetime.fromisoformat(str(begins)).replace(tzinfo=UTC), *rest) for begins, *rest in rows]
    return sorted(counts, key=lambda each: (each.begins, -each.errors, each.task_id is None, each.task_id, each.phase))


def count_ages(
    engine: Engine,
    *,
    of: Literal["created_at", "updated_at"] = "updated_at",
    edges: Sequence[timedelta] = AGES,
    timeout: float = 30.0,
) -> list[AgeCount]:
    """Count the sessions by the time since their creation or last update, youngest first.

    :param edges: ascending boundaries of the ages.
    :param timeout: seconds after which the database ends the statement.
    :raises StorageError: the statement exceeded the timeout, or the database failed.
    :raises InvalidArgumentError: an argument is out of range.
    """
    if of not in {"created_at", "updated_at"}:
        raise InvalidArgumentError("must be created_at or updated_at", "of")
    if not 1 <= len(edges) <= _MAX_ITEMS or sorted(set(edges)) != list(edges) or edges[0] <= timedelta():
        raise InvalidArgumentError(f"must be 1 to {_MAX_ITEMS} positive timedeltas in ascending order", "edges")
    now, time = validation.utc_now(), sessions.c[of]
    younger = [func.count(case((time >= now - min(edge, now - _BEGIN), 1))) for edge in edges]
    (counts,) = _query(engine, select(*younger, func.count()).select_from(sessions), timeout)
    bounds = zip([timedelta(), *edges], [*edges, None], itertools.pairwise([0, *counts]), strict=True)
    return [AgeCount(least, most, upto - below) for least, most, (below, upto) in bounds]


def table_sizes(engine: Engine, *, timeout: float = 30.0) -> list[TableSize]:
    """Return the size on disk of each table of this package.

    SQLite must read its whole file to find the sizes, and needs ``dbstat``. Without ``dbstat``, or if reading exceeds
    `timeout`, the result has one item for the whole file.

    :raises StorageError: the database failed.
    """
    names = [table.name for table in (sessions, documents, errors, logs)]
    with _limited(engine, timeout) as connection:
        rows = database_dialect_of(engine.dialect).table_sizes(connection, names, schema_of(engine))
    return [TableSize(name, int(data), int(indexes)) for name, data, indexes in rows]


def _sum(numbers: ColumnElement[int]) -> ColumnElement[int]:
    """Return a sum as an integer, because PostgreSQL and MariaDB return a decimal."""
    return cast(func.sum(numbers), BigInteger)


_phases: Final = (
    select(
        sessions.c.phase,
        func.count().label("sessions"),
        func.min(sessions.c.created_at),
        func.max(sessions.c.created_at),
        func.max(sessions.c.updated_at),
        _sum(sessions.c.error_count),
        _sum(sessions.c.log_count),
        func.count(sessions.c.held_at),
    )
    .group_by(sessions.c.phase)
    .order_by(func.count().desc(), sessions.c.phase)
)


def _query(engine: Engine, statement: Executable, timeout: float) -> Sequence[Any]:
    with _limited(engine, timeout) as connection:
        return connection.execute(statement).all()


@contextmanager
def _limited(engine: Engine, timeout: float) -> Iterator[Connection]:
    """Provide a connection in a read transaction. The database ends each statement after `timeout` seconds."""
    if not 0 < timeout <= _MAX_TIMEOUT:
        raise InvalidArgumentError(f"must be a number of seconds, more than 0 and at most {_MAX_TIMEOUT:,}", "timeout")
    database = database_dialect_of(engine.dialect)
    try:
        with connection_of(engine) as connection:
            database.begin(connection, write=False, single_statement=False)
            with database.statement_time_limit(connection.connection.driver_connection, timeout):
                yield connection
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, DBAPIError) and failure_code(cause) in database.statement_timeout_codes:
            raise StorageError(f"the query exceeded the limit of {timeout:g} s: raise the timeout") from cause
        raise
