"""What is in the database, in numbers: one aggregate query for each answer, of which none takes longer than asked."""

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

from vibeforge_sessions.errors import InvalidSessionError, StorageError
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.sql.dialects import database_of, failure_code
from vibeforge_sessions.sql.tables import documents, errors, logs, schema_of, sessions
from vibeforge_sessions.sql.transactions import transactions_on
from vibeforge_sessions.sql.transactions.connection_executor import ConnectionExecutor
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import Operation

__all__ = [
    "AGES",
    "AgeCount",
    "ErrorCount",
    "PhaseCount",
    "TableSize",
    "count_ages",
    "count_errors",
    "count_phases",
    "table_sizes",
]

AGES: Final = tuple(timedelta(hours=hours) for hours in (1, 24, 7 * 24, 30 * 24, 90 * 24, 365 * 24))
"""Where one age ends and the next begins: an hour, a day, a week, 30, 90 and 365 days."""
_ANSWER: Final = 5.0
"""Seconds after its limit in which a server must have said that a statement was ended."""
_LONGEST: Final = 86_400
_MOST: Final = 1_000

Period = Literal["hour", "day"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PhaseCount:
    """The sessions of a phase."""

    phase: str
    sessions: int
    oldest: datetime
    """When the first of them was created."""
    newest: datetime
    """When the last of them was created."""
    touched: datetime
    """When one of them was last written to."""
    errors: int
    """How many entries their error histories have together."""
    logs: int
    held: int
    """How many of them are held."""


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """The errors of a task in a phase, in an hour or a day."""

    begins: datetime
    """When the hour or the day begins, in UTC."""
    task_id: str | None
    """None, and so is `phase`, for all that are not among those with the most errors."""
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
    """What a table takes of the disk, in bytes, as the database itself tells it."""

    table: str | None
    """None for the whole file, where SQLite does not tell it by table."""
    data: int
    indexes: int


def count_phases(engine: Engine, *, timeout: float = 30.0) -> list[PhaseCount]:
    """Count the sessions by phase, the most first. It reads the row of each session, and no documents or histories.

    :param timeout: seconds after which the database ends the statement.
    :raises StorageError: it took longer, or the database failed.
    """
    rows = _answer(engine, _phases, {}, timeout)
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
    """Count the errors by hour or day, task and phase, in the order of time; those of rare tasks together.

    With `since` only the histories of sessions are read that were touched since: an entry is never newer than its
    session's last update, unless somebody has given it another time than its own. Without, all errors are read.

    :param top: how many pairs of a task and a phase, those with the most errors, are told apart; 0 to 1000.
    :param timeout: seconds after which the database ends the statement.
    :raises StorageError: it took longer, or the database failed.
    :raises InvalidSessionError: an argument is out of range, or a time names no moment.
    """
    if every not in {"hour", "day"}:
        raise InvalidSessionError("must be hour or day", "every")
    if validation.check_integer(top, "top", least=0) > _MOST:
        raise InvalidSessionError(f"must be at most {_MOST}", "top")
    given = {"since": since, "before": before}
    times = {name: validation.check_time(time) for name, time in given.items() if time is not None}
    rows = _answer(engine, _errors(every, tuple(times)), {**times, "top": top}, timeout)
    counts = [ErrorCount(_utc(begins), task, phase, int(count)) for begins, task, phase, count in rows]
    return sorted(counts, key=lambda each: (each.begins, -each.errors, each.task_id is None, each.task_id, each.phase))


def count_ages(
    engine: Engine,
    *,
    of: Literal["created_at", "updated_at"] = "updated_at",
    edges: Sequence[timedelta] = AGES,
    timeout: float = 30.0,
) -> list[AgeCount]:
    """Count the sessions by how long ago they were created, or last written to, the youngest first.

    :param edges: where one age ends and the next begins, ascending.
    :param timeout: seconds after which the database ends the statement.
    :raises StorageError: it took longer, or the database failed.
    :raises InvalidSessionError: an argument is out of range.
    """
    if of not in {"created_at", "updated_at"}:
        raise InvalidSessionError("must be created_at or updated_at", "of")
    if not 1 <= len(edges) <= _MOST or sorted(set(edges)) != list(edges) or edges[0] <= timedelta():
        raise InvalidSessionError(f"must be 1 to {_MOST} lengths of time, ascending", "edges")
    now = validation.utc_now()
    times = {f"edge_{index}": _before(now, edge) for index, edge in enumerate(edges)}
    found: dict[int, int] = dict(_answer(engine, _ages(of, len(edges)), times, timeout))
    bounds = [timedelta(), *edges, None]
    return [
        AgeCount(least or timedelta(), most, found.get(index, 0))
        for index, (least, most) in enumerate(itertools.pairwise(bounds))
    ]


def table_sizes(engine: Engine, *, timeout: float = 30.0) -> list[TableSize]:
    """Return what each table of ours takes of the disk.

    SQLite reads its whole file for that, where it was built with ``dbstat``; otherwise, and where that takes longer
    than `timeout`, there is one item, for the file.

    :raises StorageError: the database failed.
    """
    names = [table.name for table in (sessions, documents, errors, logs)]
    schema = schema_of(engine)

    def look(executor: ConnectionExecutor) -> list[TableSize]:
        return [
            TableSize(name, int(data), int(indexes))
            for name, data, indexes in executor.database.table_sizes(executor.connection, names, schema)
        ]

    return _within(engine, look, timeout)


# --- the statements ---


class _Begin(FunctionElement[Any]):
    """The beginning of the hour or day, in UTC, of a time: a naive datetime, or its text as far as it goes."""

    inherit_cache = True
    unit: ClassVar[str]
    length: ClassVar[int]


class _Hour(_Begin):
    name, unit, length = "hour_of", "hour", 13
    inherit_cache = True


class _Day(_Begin):
    name, unit, length = "day_of", "day", 10
    inherit_cache = True


@compiles(_Begin)
def _cut(element: _Begin, compiler: SQLCompiler, **options: Any) -> str:
    # ISO text on SQLite, and what MariaDB makes of its DATETIME
    return f"substr({compiler.process(element.clauses, **options)}, 1, {element.length})"


@compiles(_Begin, "postgresql")
def _truncated(element: _Begin, compiler: SQLCompiler, **options: Any) -> str:
    # its texts are as the connection's DateStyle has them
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
        # not a join: SQLite, which knows nothing of how many there are, would read all errors first
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
    # a query of its own, since what is grouped by must not hold a parameter
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


# --- asking ---


def _answer(engine: Engine, statement: Executable, parameters: Mapping[str, Any], timeout: float) -> Sequence[Any]:
    return _within(engine, lambda executor: executor.rows(statement, parameters), timeout)


@dataclass(frozen=True, slots=True)
class _LimitedRead(Operation[T]):
    """A read each of whose statements the database ends after a time."""

    needs_transaction = True

    ask: Callable[[ConnectionExecutor], T]
    seconds: float

    def execute(self, executor: Executor) -> T:
        assert isinstance(executor, ConnectionExecutor)  # noqa: S101 (precompiled statements were not requested)
        limit: AbstractContextManager[None] = executor.database.limiting_statements(executor.driver, self.seconds)
        with limit:
            return self.ask(executor)


def _within(engine: Engine, ask: Callable[[ConnectionExecutor], T], timeout: float) -> T:
    """Ask in a transaction of its own; the database ends each statement after so many seconds."""
    if not 0 < timeout <= _LONGEST:
        raise InvalidSessionError(f"must be a number of seconds, more than 0 and at most {_LONGEST:,}", "timeout")

    # half of a deadline is for one attempt
    transactions = transactions_on(engine, precompiled=False, retry=RetryPolicy(deadline=2 * (timeout + _ANSWER)))
    try:
        return transactions.run(_LimitedRead(ask, timeout))
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, DBAPIError) and failure_code(cause) in database_of(engine.dialect).took_too_long:
            raise StorageError(f"it takes longer than {timeout:g} s") from cause
        raise


def _before(now: datetime, age: timedelta) -> datetime:
    try:
        return now - age
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _utc(begins: datetime | str) -> datetime:
    time = datetime.fromisoformat(begins) if isinstance(begins, str) else begins
    return time.replace(tzinfo=UTC)
