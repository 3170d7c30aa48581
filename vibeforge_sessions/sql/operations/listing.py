"""Listing sessions by phase, time and errors, in pages. Statements that differ only in parameters are built once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BindParameter, ColumnElement, FromClause, Select, bindparam, false, or_, select, union_all

from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.query import Query, SessionFilter, SessionSummary
from vibeforge_sessions.repository.serialization import ARTIFACTS
from vibeforge_sessions.sql.operations.session_rows import inline
from vibeforge_sessions.sql.tables import documents, sessions
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import Operation

_MAX_UNION: Final = 20
"""Maximum number of phases for which a page is read by a union of queries. Today, there are nine phases."""
_CONDITIONS: Final[dict[str, ColumnElement[bool]]] = {
    "created_from": sessions.c.created_at >= bindparam("created_from"),
    "created_before": sessions.c.created_at < bindparam("created_before"),
    "updated_from": sessions.c.updated_at >= bindparam("updated_from"),
    "updated_before": sessions.c.updated_at < bindparam("updated_before"),
    "errors": sessions.c.error_count > 0,
    "no_errors": sessions.c.error_count == 0,
}
_SUMMARY: Final = [field.name for field in dataclasses.fields(SessionSummary) if field.name in sessions.columns]
"""Columns whose values a summary contains unchanged."""
_HAS_ERRORS: Final = {True: "errors", False: "no_errors"}


@dataclasses.dataclass(frozen=True, slots=True)
class ListSessions(Operation[list[str]]):
    """Read the ids of the sessions that match a filter, oldest first."""

    filter: SessionFilter

    def execute(self, executor: Executor) -> list[str]:
        kind, parameters = _kind_of(self.filter)
        return [session_id for (session_id,) in executor.rows(_select_ids(kind), parameters)]


@dataclasses.dataclass(frozen=True, slots=True)
class FindSessions(Operation[list[SessionSummary]]):
    """Read the summaries of a page and of the session that follows it."""

    query: Query

    def execute(self, executor: Executor) -> list[SessionSummary]:
        query = self.query
        kind, parameters = _kind_of(query.filter)
        if query.after is not None:
            parameters["last_time"], parameters["last_id"] = query.after
        statement = _select_page(query.column, query.descending, query.after is not None, query.limit + 1, kind)
        rows = executor.rows(statement, parameters)
        return [SessionSummary(*_in_summary(row)) for row in rows]


def _in_summary(row: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a summary from a row, in the order of its fields."""
    *values, is_held = row[: len(_SUMMARY) + 1]
    return [*values, frozenset(itertools.compress(ARTIFACTS, row[len(_SUMMARY) + 1 :])), bool(is_held)]


class _Kind(NamedTuple):
    """Kind of a filter. Filters of one kind differ only in the values of parameters."""

    phases: int | None
    """Number of phases; None for any phase."""
    conditions: tuple[str, ...]
    """Keys of `_CONDITIONS`."""


def _kind_of(asked: SessionFilter) -> tuple[_Kind, dict[str, Any]]:
    """Return the kind of a filter, and its parameters."""
    times = [name for name in _CONDITIONS if getattr(asked, name, None) is not None]
    parameters: dict[str, Any] = {name: getattr(asked, name) for name in times}
    conditions = tuple(times) if asked.has_errors is None else (*times, _HAS_ERRORS[asked.has_errors])
    if asked.phases is None:
        return _Kind(None, conditions), parameters
    # no stored session has a phase that no database can store
    phases = sorted(phase for phase in asked.phases if validation.storable_phase(phase) == phase)
    parameters |= {f"phase_{index}": phase for index, phase in enumerate(phases)}
    return _Kind(len(phases), conditions), parameters


def _phase(index: int) -> BindParameter[Any]:
    return bindparam(f"phase_{index}", type_=sessions.c.phase.type)


def _conditions(kind: _Kind) -> list[ColumnElement[bool]]:
    conditions = [_CONDITIONS[name] for name in kind.conditions]
    if kind.phases is not None:
        phases = list(map(_phase, range(kind.phases)))
        conditions.append(sessions.c.phase.in_(phases) if phases else false())
    return conditions


@functools.lru_cache(maxsize=128)
def _select_ids(kind: _Kind) -> Select[Any]:
    return (
        select(sessions.c.session_id).where(*_conditions(kind)).order_by(sessions.c.created_at, sessions.c.session_id)
    )


@functools.lru_cache(maxsize=128)
def _select_page(
    column: str,
    descending: bool,  # noqa: FBT001 (a cache's key)
    resumed: bool,  # noqa: FBT001
    limit: int,
    kind: _Kind,
) -> Select[Any]:
    def page(statement: Select[Any]) -> Select[Any]:
        return _page(statement, column, descending=descending, resumed=resumed).limit(inline(limit))

    conditions = _conditions(kind)
    source: FromClause = sessions
    if kind.phases and 1 < kind.phases <= _MAX_UNION and column == "created_at":
        # an index lists the sessions of one phase in order, but not those of several phases: read a page of each phase,
        # and merge these pages
        others = _conditions(_Kind(None, kind.conditions))
        of_each = [
            page(select(sessions.c.session_id).where(sessions.c.phase == _phase(index), *others)).subquery()
            for index in range(kind.phases)
        ]
        found = union_all(*(select(part.c.session_id) for part in of_each)).subquery()
        source, conditions = found.join(sessions, sessions.c.session_id == found.c.session_id), []
    return page(
        select(
            *(sessions.c[name] for name in _SUMMARY),
            sessions.c.held_at.is_not(None).label("held"),
            *(documents.c[name].is_not(None).label(name) for name in ARTIFACTS),
        )
        .select_from(source.outerjoin(documents, documents.c.session_id == sessions.c.session_id))
        .where(*conditions)
    )


def _page(statement: Select[Any], column: str, *, descending: bool, resumed: bool) -> Select[Any]:
    time, session_id = sessions.c[column], sessions.c.session_id
    if resumed:
        last_time: BindParameter[Any] = bindparam("last_time")
        last_id: BindParameter[Any] = bindparam("last_id")
        until, beyond = (operator.le, operator.lt) if descending else (operator.ge, operator.gt)
        # an index serves the first condition; for (a, b) < (x, y), MariaDB would scan the whole table
        statement = statement.where(until(time, last_time), or_(beyond(time, last_time), beyond(session_id, last_id)))
    return statement.order_by(*((time.desc(), session_id.desc()) if descending else (time, session_id)))
