"""Reading slices of a session's histories by position."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Select, bindparam, select, true

from vibeforge_sessions.errors import CorruptSessionError, SessionNotFoundError
from vibeforge_sessions.repository.serialization import WRONG_COUNTS
from vibeforge_sessions.sql.operations import session_rows
from vibeforge_sessions.sql.operations.session_rows import AFTER, ERRORS, ID, LOGS, UNTIL, History, this_session
from vibeforge_sessions.sql.tables import sessions
from vibeforge_sessions.sql.transactions.executor import Executor, Rows
from vibeforge_sessions.sql.transactions.operation import Operation

_COLUMNS: Final = {
    ERRORS: ("position", "timestamp", "task_id", "error_message", "phase"),
    LOGS: ("position", "message"),
}


def _select_entries(history: History) -> Select[Any]:
    """Return a query for the entries after a position, in order."""
    table = history.table
    return (
        select(*(table.c[name] for name in _COLUMNS[history]))
        .where(table.c.session_id == bindparam(ID), table.c.position > bindparam(AFTER))
        .order_by(table.c.position)
    )


@functools.cache
def select_slice(history: History, *, now: bool) -> Select[Any]:
    """Return a query for the entries after one position and up to another.

    :param now: read the latest committed entries, whatever snapshot the transaction has.
    """
    entries = _select_entries(history).where(history.table.c.position <= bindparam(UNTIL))
    return session_rows.committed(entries) if now else entries


@functools.lru_cache(maxsize=128)
def _select_page(history: History, limit: int, filters: frozenset[str], *, now: bool) -> Select[Any]:
    """Return the statement that lists a history; its last column is the count at the same moment.

    One statement distinguishes an unknown session (no row) from an empty slice (one row of NULLs and the count). The
    subquery limits the slice, because a database that joins first would sort all later entries. The joined rows are in
    no particular order.
    """
    entries = _select_entries(history).limit(session_rows.inline(limit))
    entries = entries.where(*(history.table.c[name] == bindparam(name) for name in filters))
    cut = (session_rows.committed(entries) if now else entries).subquery()
    page = select(*cut.c, sessions.c[history.counter]).select_from(sessions.outerjoin(cut, true())).where(this_session)
    return session_rows.committed(page) if now else page


@dataclasses.dataclass(frozen=True, slots=True)
class ListEntries(Operation[Rows]):
    """Read a slice of a history, in one statement; the last column is the length of the whole history.

    :raises SessionNotFoundError: there is no session with this id.
    """

    history: History
    session_id: str
    after: int
    limit: int
    filters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of columns, each with the value that the entries must have."""

    def execute(self, executor: Executor) -> Rows:
        now = executor.reads_now(self.session_id)
        statement = _select_page(self.history, self.limit, frozenset(self.filters), now=now)
        rows = executor.rows(statement, {ID: self.session_id, AFTER: self.after, **self.filters})
        if not rows:
            raise SessionNotFoundError(self.session_id)
        if len(rows) > 1:
            rows = sorted(rows, key=operator.itemgetter(0))
        if not self.filters:
            self._check_complete(rows)
        return rows if rows[0][0] is not None else ()

    def _check_complete(self, rows: Rows) -> None:
        """Reject an unfiltered slice that lacks entries or has additional ones."""
        positions = [row[0] for row in rows]
        until = min(self.after + self.limit, rows[0][-1])
        if positions != list(range(self.after + 1, until + 1)) and (positions != [None] or self.after < until):
            raise incomplete(self.session_id)


def incomplete(session_id: str) -> CorruptSessionError:
    """Return the error for a session with missing history entries."""
    return CorruptSessionError(session_id, WRONG_COUNTS)
