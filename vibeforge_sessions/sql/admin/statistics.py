"""Statistics of the stored sessions: aggregate queries with a time limit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, Literal, TypeVar

from sqlalchemy import (
    BindParameter,
    Engine,
    Executable,
    Integer,
    Select,
    bindparam,
    case,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from vibeforge_sessions.errors import InvalidArgumentError, StorageError
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.arguments import check_datetime, check_integer
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.sql.dialects import database_dialect_of, failure_code
from vibeforge_sessions.sql.tables import documents, errors, logs, schema_of, sessions
from vibeforge_sessions.sql.transactions import transactions_on
from vibeforge_sessions.sql.transactions.connection_executor import ConnectionExecutor
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import Operation

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
_ANSWER_TIME: Final = 5.0
"""Seconds after the time limit of a statement in which the server must report that it has ended the statement."""
_MAX_TIMEOUT: Final = 86_400
_MAX_ITEMS: Final = 1_000

Period = Literal["hour", "day"]
"""Length of the time spans in which errors are counted."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PhaseCount:
    """The sessions of a phase."""

    phase: str
    sessions: int
    oldest: datetime
    """Time of the earliest creation."""
    newest: datetime
    """Time of the latest creation."""
    touched: datetime
    """Time of the last write to any of them."""
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
    """None, like `phase`, for all pairs that are not among those with the most errors."""
    phase: str | None
    errors: int


@dataclass(frozen=True, slots=True)
class AgeCount:
    """The sessions of an age, of at least `least` and less than `most`."""

    least: timedelta
    most: timedelta | None
    """None for the oldest."""
    sessions: int


@dataclass(frozen=True, slots=True)
class TableSize:
    """Size of a table on disk in bytes, as reported by the database."""

    table: str | None
    """None for the whole file, if SQLite cannot report sizes of tables."""
    data: int
    indexes: int


def count_phases(engine: Engine, *, timeout: float = 30.0) -> list[PhaseCount]:
    """Count the sessions by phase, in descending order. Documents and histories are not read.

    :param timeout: seconds after which the database ends the statement.
    :raises StorageError: the statement exceeded the timeout, or the database failed.
    """
    rows = _query(engine, _phases, {}, timeout)
    return [
        PhaseCount(phase, count, oldest, newest, touched, int(errors), int(logs), held)
        for phase, count, oldest, newest, touched, errors, logs, held in rows
    ]


def count_errors(
    engine: Engine,
    *,
    since: datetime | None = None,
    before: datetime | None = None,
    every: Period = "day",
    top: int = 10,
    timeout: float = 30.0,
) -> list[ErrorCount]:
    """Count the errors by hour or day, task and phase, ordered by time. Rare tasks are combined.

    With `since`, only the histories of sessions that were updated since are read: an entry is never newer than the last
    update of its session, unless a caller has set its timestamp. Without `since`, all errors are read.

    :param top: number of pairs of a task and a phase with the most errors that are counted separately; 0 to 1000.
    :param timeout: seconds after which the database ends the statement.
    :raises StorageError: the statement exceeded the timeout, or the database failed.
    :raises InvalidArgumentError: an argument is out of range, or a time is not timezone-aware.
    """
    if every not in {"hour", "day"}:
        raise InvalidArgumentError("must be hour or day", "every")
    check_integer(top, "top", least=0, most=_MAX_ITEMS)
    given = {"since": since, "before": before}
    times = {name: check_datetime(time, name) for name, time in given.items() if time is not None}
    rows = _query(engine, _errors(every, tuple(times)), {**times, "top": top}, timeout)
    counts = [ErrorCount(_utc(begins), task, phase, int(count)) for begins, task, phase, count in rows]
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
    now = validation.utc_now()
    times = {f"edge_{index}": _before(now, edge) for index, edge in enumerate(edges)}
    found: dict[int, int] = dict(_query(engine, _ages(of, len(edges)), times, timeout))
    bounds = [timedelta(), *edges, None]
    return [
        AgeCount(least or timedelta(), most, found.get(index, 0))
        for index, (least, most) in enumerate(itertools.pairwise(bounds))
    ]


def table_sizes(engine: Engine, *, timeout: float = 30.0) -> list[TableSize]:
    """Return the size on disk of each table of this package.

    SQLite reads its whole file for that, if it was built with ``dbstat``. Otherwise, or if that exceeds `timeout`, the
    result has one item for the whole file.

    :raises StorageError: the database failed.
    """
    names = [table.name for table in (sessions, documents, errors, logs)]
    schema = schema_of(engine)

    def read(executor: ConnectionExecutor) -> list[TableSize]:
        return [
            TableSize(name, int(data), int(indexes))
            for name, data, indexes in executor.database.table_sizes(executor.connection, names, schema)
        ]

    return _run_with_timeout(engine, read, timeout)


# --- statements ---


class _PeriodStart(FunctionElement[Any]):
    """Start of the hour or day of a time, in UTC: a naive datetime, or a prefix of its text."""

    inherit_cache = True
    unit: ClassVar[str]
    length: ClassVar[int]


class _Hour(_PeriodStart):
    name, unit, length = "hour_of", "hour", 13
    inherit_cache = True


class _Day(_PeriodStart):
    name, unit, length = "day_of", "day", 10
    inherit_cache = True


@compiles(_PeriodStart)
def _prefix(element: _PeriodStart, compiler: SQLCompiler, **options: Any) -> str:
    # SQLite stores ISO text, and MariaDB converts DATETIME to such text
    return f"substr({compiler.process(element.clauses, **options)}, 1, {element.length})"


@compiles(_PeriodStart, "postgresql")
def _truncated(element: _PeriodStart, compiler: SQLCompiler, **options: Any) -> str:
    # the text form depends on the DateStyle of the connection
    return f"date_trunc('{element.unit}', timezone('UTC', {compiler.process(element.clauses, **options)}))"


_phases: Final = (
    select(
        sessions.c.phase,
        func.count().label("sessions"),
        func.min(sessions.c.created_at),
        func.max(sessions.c.created_at),
        func.max(sessions.c.updated_at),
        func.sum(sessions.c.error_count),
        func.sum(sessions.c.log_count),
        func.count(sessions.c.held_at),
    )
    .group_by(sessions.c.phase)
    .order_by(func.count().desc(), sessions.c.phase)
)


@functools.cache
def _errors(every: Period, given: tuple[str, ...]) -> Select[Any]:
    begins = (_Day if every == "day" else _Hour)(errors.c.timestamp)
    found = select(begins.label("begins"), errors.c.task_id, errors.c.phase, func.count().label("errors"))
    if "since" in given:
        since: BindParameter[Any] = bindparam("since", type_=errors.c.timestamp.type)
        # not a join: without table statistics, SQLite would read all errors first
        touched = select(sessions.c.session_id).where(sessions.c.updated_at >= since)
        found = found.where(errors.c.session_id.in_(touched), errors.c.timestamp >= since)
    if "before" in given:
        found = found.where(errors.c.timestamp < bindparam("before", type_=errors.c.timestamp.type))
    counted = found.group_by(begins, errors.c.task_id, errors.c.phase).subquery()
    pair = (counted.c.task_id, counted.c.phase)
    totals = select(counted, func.sum(counted.c.errors).over(partition_by=pair).label("total")).subquery()
    order = (totals.c.total.desc(), totals.c.task_id, totals.c.phase)
    placed = select(totals, func.dense_rank().over(order_by=order).label("place")).subquery()
    first = placed.c.place <= bindparam("top", type_=Integer)
    # a subquery, because GROUP BY expressions must not contain parameters
    named = select(
        placed.c.begins,
        case((first, placed.c.task_id)).label("task_id"),
        case((first, placed.c.phase)).label("phase"),
        placed.c.errors,
    ).subquery()
    groups = (named.c.begins, named.c.task_id, named.c.phase)
    return select(*groups, func.sum(named.c.errors)).group_by(*groups)


@functools.cache
def _ages(of: str, edges: int) -> Select[Any]:
    time = sessions.c[of]
    places = [(time >= bindparam(f"edge_{index}", type_=time.type), index) for index in range(edges)]
    aged = select(case(*places, else_=edges).label("place")).select_from(sessions).subquery()
    return select(aged.c.place, func.count()).group_by(aged.c.place)


# --- execution ---


def _query(engine: Engine, statement: Executable, parameters: Mapping[str, Any], timeout: float) -> Sequence[Any]:
    return _run_with_timeout(engine, lambda executor: executor.rows(statement, parameters), timeout)


@dataclass(frozen=True, slots=True)
class _LimitedRead(Operation[T]):
    """A read each of whose statements the database ends after a time."""

    needs_transaction = True

    query: Callable[[ConnectionExecutor], T]
    seconds: float

    def execute(self, executor: Executor) -> T:
        assert isinstance(executor, ConnectionExecutor)  # noqa: S101 (precompiled statements are disabled)
        limit: AbstractContextManager[None] = executor.database.statement_time_limit(executor.driver, self.seconds)
        with limit:
            return self.query(executor)


def _run_with_timeout(engine: Engine, query: Callable[[ConnectionExecutor], T], timeout: float) -> T:
    """Run queries in a transaction whose statements are ended by the database after `timeout` seconds."""
    if not 0 < timeout <= _MAX_TIMEOUT:
        raise InvalidArgumentError(f"must be a number of seconds, more than 0 and at most {_MAX_TIMEOUT:,}", "timeout")

    # one attempt may use half of the deadline
    transactions = transactions_on(engine, precompiled=False, retry=RetryPolicy(deadline=2 * (timeout + _ANSWER_TIME)))
    try:
        return transactions.run(_LimitedRead(query, timeout))
    except StorageError as error:
        cause = error.__cause__
        if (
            isinstance(cause, DBAPIError)
            and failure_code(cause) in database_dialect_of(engine.dialect).statement_timeout_codes
        ):
            raise StorageError(f"the query exceeded the limit of {timeout:g} s: raise the timeout") from cause
        raise


def _before(now: datetime, age: timedelta) -> datetime:
    try:
        return now - age
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _utc(begins: datetime | str) -> datetime:
    time = datetime.fromisoformat(begins) if isinstance(begins, str) else begins
    return time.replace(tzinfo=UTC)
