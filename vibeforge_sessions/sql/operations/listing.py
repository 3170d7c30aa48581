"""Listing sessions by phase, time and errors, in pages. Statements of one kind are built once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import BindParameter, ColumnElement, FromClause, Select, bindparam, false, or_, select, union_all

from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.query import Query, SessionFilter, SessionSummary
from vibeforge_sessions.repository.serialization import ARTIFACTS
from vibeforge_sessions.sql.operations.session_rows import inline
from vibeforge_sessions.sql.tables import documents, sessions
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import Operation


@dataclasses.dataclass(frozen=True, slots=True)
class ListSessions(Operation[list[str]]):
    """Read the ids of the sessions that match, oldest first."""

    filter: SessionFilter

    def execute(self, executor: Executor) -> list[str]:
        return [session_id for (session_id,) in executor.rows(*_ids(self.filter))]


@dataclasses.dataclass(frozen=True, slots=True)
class FindSessions(Operation[list[SessionSummary]]):
    """Read the summaries of a page, and of one session more."""

    query: Query

    def execute(self, executor: Executor) -> list[SessionSummary]:
        rows = executor.rows(*_page_of(self.query))
        return [
            SessionSummary(
                session_id=session_id,
                phase=phase,
                created_at=created_at,
                updated_at=updated_at,
                version=version,
                error_count=errors,
                log_count=logs,
                active_task_id=task_id,
                held=bool(held),
                artifacts=frozenset(itertools.compress(ARTIFACTS, there)),
            )
            for session_id, phase, created_at, updated_at, version, errors, logs, task_id, held, *there in rows
        ]


def _ids(asked: SessionFilter) -> tuple[Select[Any], dict[str, Any]]:
    """Return the statement for the ids of what matches, oldest first, and its parameters."""
    conditions, parameters = _asked(asked)
    return _ids_statement(conditions), parameters


def _page_of(query: Query) -> tuple[Select[Any], dict[str, Any]]:
    """Return the statement for the summaries of a page, and of one session more; and its parameters."""
    conditions, parameters = _asked(query.filter)
    if query.after is not None:
        parameters["last_time"], parameters["last_id"] = query.after
    return _page_statement(
        query.column, query.descending, query.after is not None, query.limit + 1, conditions
    ), parameters


@functools.lru_cache(maxsize=128)
def _ids_statement(conditions: tuple[tuple[str, int], ...]) -> Select[Any]:
    return (
        select(sessions.c.session_id)
        .where(*map(_condition, conditions))
        .order_by(sessions.c.created_at, sessions.c.session_id)
    )


@functools.lru_cache(maxsize=128)
def _page_statement(
    column: str,
    descending: bool,  # noqa: FBT001 (a cache's key)
    resumed: bool,  # noqa: FBT001
    limit: int,
    conditions: tuple[tuple[str, int], ...],
) -> Select[Any]:
    def page(statement: Select[Any]) -> Select[Any]:
        return _page(statement, column, descending=descending, resumed=resumed).limit(inline(limit))

    asked = list(map(_condition, conditions))
    phases = conditions[0][1] if conditions and conditions[0][0] == _PHASES else 0
    source: FromClause = sessions
    if 1 < phases <= _MOST_PHASES and column == "created_at":
        # an index has the sessions of one phase in order, and not those of several: so a page of each, and of these one
        of_each = [
            page(select(sessions.c.session_id).where(sessions.c.phase == _phase(index), *asked[1:])).subquery()
            for index in range(phases)
        ]
        found = union_all(*(select(part.c.session_id) for part in of_each)).subquery()
        source, asked = found.join(sessions, sessions.c.session_id == found.c.session_id), []
    return page(
        select(
            sessions.c.session_id,
            sessions.c.phase,
            sessions.c.created_at,
            sessions.c.updated_at,
            sessions.c.version,
            sessions.c.error_count,
            sessions.c.log_count,
            sessions.c.active_task_id,
            sessions.c.held_at.is_not(None).label("held"),
            *(documents.c[name].is_not(None).label(name) for name in ARTIFACTS),
        )
        .select_from(source.outerjoin(documents, documents.c.session_id == sessions.c.session_id))
        .where(*asked)
    )


def _page(statement: Select[Any], column: str, *, descending: bool, resumed: bool) -> Select[Any]:
    time, session_id = sessions.c[column], sessions.c.session_id
    if resumed:
        last_time: BindParameter[Any] = bindparam("last_time")
        last_id: BindParameter[Any] = bindparam("last_id")
        # the first half is what an index can use; (a, b) < (x, y) is a full scan on MariaDB
        if descending:
            statement = statement.where(time <= last_time, or_(time < last_time, session_id < last_id))
        else:
            statement = statement.where(time >= last_time, or_(time > last_time, session_id > last_id))
    if descending:
        return statement.order_by(time.desc(), session_id.desc())
    return statement.order_by(time, session_id)


_PHASES: Final = "phases"
_MOST_PHASES: Final = 20
"""There are nine, and those that later versions may bring."""
_WINDOWS: Final[dict[str, Callable[[], ColumnElement[bool]]]] = {
    "created_from": lambda: sessions.c.created_at >= bindparam("created_from"),
    "created_before": lambda: sessions.c.created_at < bindparam("created_before"),
    "updated_from": lambda: sessions.c.updated_at >= bindparam("updated_from"),
    "updated_before": lambda: sessions.c.updated_at < bindparam("updated_before"),
}


def _asked(asked: SessionFilter) -> tuple[tuple[tuple[str, int], ...], dict[str, Any]]:
    """Return the kinds of a filter's conditions, each with a number, and their parameters.

    Filters of one kind are one statement.
    """
    kinds: list[tuple[str, int]] = []
    parameters: dict[str, Any] = {}
    if asked.phases is not None:
        # a text that no database takes is no stored phase either
        phases = sorted(phase for phase in asked.phases if validation.storable_phase(phase) == phase)
        kinds.append((_PHASES, len(phases)))
        parameters.update({f"phase_{index}": phase for index, phase in enumerate(phases)})
    for name in _WINDOWS:
        if getattr(asked, name) is not None:
            kinds.append((name, 0))
            parameters[name] = getattr(asked, name)
    if asked.has_errors is not None:
        kinds.append(("has_errors", int(asked.has_errors)))
    return tuple(kinds), parameters


def _phase(index: int) -> BindParameter[Any]:
    return bindparam(f"phase_{index}", type_=sessions.c.phase.type)


def _condition(kind: tuple[str, int]) -> ColumnElement[bool]:
    name, number = kind
    if name == _PHASES:
        return sessions.c.phase.in_(list(map(_phase, range(number)))) if number else false()
    if name == "has_errors":
        return sessions.c.error_count > 0 if number else sessions.c.error_count == 0
    return _WINDOWS[name]()
