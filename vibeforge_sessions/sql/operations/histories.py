"""Reading slices of a session's histories by position."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Select, Table, bindparam, select, true

from vibeforge_sessions.errors import CorruptSessionError, SessionNotFoundError
from vibeforge_sessions.sql.operations.session_rows import (
    AFTER,
    ERRORS,
    ID,
    LOGS,
    UNTIL,
    History,
    inline,
    select_counters,
    this_session,
)
from vibeforge_sessions.sql.tables import errors, logs, sessions
from vibeforge_sessions.sql.transactions.executor import Executor, Rows
from vibeforge_sessions.sql.transactions.operation import Operation

_COLUMNS: Final = {
    ERRORS: ("position", "timestamp", "task_id", "error_message", "phase"),
    LOGS: ("position", "message"),
}


def _select_slice(table: Table, *names: str) -> Select[Any]:
    return (
        select(*(table.c[name] for name in names))
        .where(
            table.c.session_id == bindparam(ID),
            table.c.position > bindparam(AFTER),
            table.c.position <= bindparam(UNTIL),
        )
        .order_by(table.c.position)
    )


select_errors: Final = _select_slice(errors, *_COLUMNS[ERRORS])
select_logs: Final = _select_slice(logs, *_COLUMNS[LOGS])
select_errors_now: Final = select_errors.with_for_update(read=True)
select_logs_now: Final = select_logs.with_for_update(read=True)
"""Committed entries, whatever snapshot the transaction has."""
_select_counters_now: Final = select_counters.with_for_update(read=True)


@functools.lru_cache(maxsize=128)
def _select_entries(history: History, limit: int, *, of_task: bool, of_phase: bool) -> Select[Any]:
    """Return the listing of a history; the last column is the count of the same moment.

    One statement distinguishes an unknown session (no row) from an empty slice (one row of NULLs). The slice is cut
    before it is joined: a database that joins first sorts all entries after it. The join has no order of its own.
    """
    cut = _entries(history, limit, of_task=of_task, of_phase=of_phase).subquery()
    columns = (*cut.c, sessions.c[history.counter])
    return select(*columns).select_from(sessions.outerjoin(cut, true())).where(this_session)


def _entries(history: History, limit: int, *, of_task: bool, of_phase: bool) -> Select[Any]:
    table = history.table
    entries = (
        select(*(table.c[name] for name in _COLUMNS[history]))
        .where(table.c.session_id == bindparam(ID), table.c.position > bindparam(AFTER))
        .order_by(table.c.position)
        .limit(inline(limit))
    )
    if of_task:
        entries = entries.where(table.c.task_id == bindparam("task_id"))
    if of_phase:
        entries = entries.where(table.c.phase == bindparam("phase"))
    return entries


@dataclasses.dataclass(frozen=True, slots=True)
class ListErrors(Operation[Rows]):
    """Read a slice of the error history, in one statement; the last column is the length of the whole.

    :raises SessionNotFoundError: there is no session of this id.
    """

    session_id: str
    after: int
    limit: int
    task_id: str | None
    phase: str | None

    @property
    def about(self) -> str:
        return self.session_id

    def execute(self, executor: Executor) -> Rows:
        filters = {"of_task": self.task_id is not None, "of_phase": self.phase is not None}
        parameters = {AFTER: self.after, "task_id": self.task_id, "phase": self.phase}
        rows = _list(executor, ERRORS, self.session_id, self.limit, parameters, **filters)
        if self.task_id is None and self.phase is None:
            _check_whole(self.session_id, rows, self.after, self.limit)
        return rows if rows[0][0] is not None else ()


@dataclasses.dataclass(frozen=True, slots=True)
class ListLogs(Operation[list[str]]):
    """Read a slice of the logs, in one statement.

    :raises SessionNotFoundError: there is no session of this id.
    """

    session_id: str
    after: int
    limit: int

    @property
    def about(self) -> str:
        return self.session_id

    def execute(self, executor: Executor) -> list[str]:
        rows = _list(executor, LOGS, self.session_id, self.limit, {AFTER: self.after}, of_task=False, of_phase=False)
        _check_whole(self.session_id, rows, self.after, self.limit)
        return [message for position, message, _ in rows if position is not None]


def _list(
    executor: Executor, history: History, session_id: str, limit: int, parameters: Mapping[str, Any], **filters: bool
) -> Rows:
    """Read a slice in order, or one row without an entry if it is empty; the last column is the length of the whole."""
    this = {ID: session_id}
    if executor.reads_now(session_id):
        counts = executor.row(_select_counters_now, this)
        statement = _entries(history, limit, **filters).with_for_update(read=True)
        found = executor.rows(statement, {**parameters, **this})
        length = None if counts is None else counts[0 if history is ERRORS else 1]
        rows: Rows = [(*row, length) for row in found or [(None, None)]] if counts is not None else []
    else:
        rows = executor.rows(_select_entries(history, limit, **filters), {**parameters, **this})
    if not rows:
        raise SessionNotFoundError(session_id)
    return sorted(rows, key=operator.itemgetter(0)) if len(rows) > 1 else rows


def _check_whole(session_id: str, rows: Rows, after: int, limit: int) -> None:
    """Reject a slice without filters in which entries are missing, or too many."""
    positions = [row[0] for row in rows]
    until = min(after + limit, rows[0][-1])
    if positions != list(range(after + 1, until + 1)) and (positions != [None] or after < until):
        raise not_whole(session_id)


def not_whole(session_id: str) -> CorruptSessionError:
    """Return the error of a session some of whose entries were deleted."""
    return CorruptSessionError(session_id, "its histories have other lengths than its row states")
