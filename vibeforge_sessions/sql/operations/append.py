"""Appending one entry to a history, without loading the session."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, insert, select

from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.sql.operations import session_rows
from vibeforge_sessions.sql.operations.in_doubt import lock_row, make_durable
from vibeforge_sessions.sql.operations.session_rows import ERRORS, ID, NOW, WRITE_ID, History
from vibeforge_sessions.sql.operations.writable_ctes import parameter
from vibeforge_sessions.sql.tables import sessions
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import UnresolvableOutcome, WriteOperation

_SMALL: Final = 1_000
"""Length of a string that fits into a statement on every database, whatever the size limit of a statement is."""


@functools.cache
def _single_statement(history: History) -> Any:
    """Return the statement that increases the entry count, inserts the entry, and returns the session's counters."""
    table = history.table
    row = history.count_one.returning(sessions.c.session_id, *session_rows.counters).cte("session_row")
    entry: dict[str, Any] = {column.name: parameter(history.prefix, column) for column in table.columns}
    entry |= {"session_id": row.c.session_id, "position": row.c[history.counter]}
    if "phase" in entry:
        entry["phase"] = func.coalesce(entry["phase"], row.c.phase)
    added = insert(table).from_select(list(entry), select(*entry.values())).cte("added")
    return select(*(row.c[column.name] for column in session_rows.counters)).add_cte(added)


@dataclasses.dataclass(frozen=True, slots=True)
class AppendEntry(WriteOperation[Sequence[Any]]):
    """Add an entry to a history and increase the count; return the entry's position, and the phase of an error.

    The update of the count locks the session's row until the end of the transaction, so positions are gapless and in
    the order of commits.

    :raises SessionNotFoundError: there is no session with this id.
    """

    history: History
    row: dict[str, Any]
    """The entry without its position. A phase of None stands for the session's current phase."""
    time: datetime
    """The time of the call."""
    needs_transaction: bool = False
    """Required behind a pooler, where a lost server session cannot be ended and might execute the statement late."""

    @property
    def about(self) -> str:
        return str(self.row["session_id"])

    def execute(self, executor: Executor) -> Sequence[Any]:
        history, row, session_id = self.history, self.row, self.row["session_id"]
        if len(row[history.text]) > _SMALL:
            executor.check_rows([row])  # rejects an entry that is too large for a statement
        count = {ID: session_id, NOW: self.time}
        is_single = executor.database.supports_writable_ctes
        if is_single:
            entry = {history.prefix + name: value for name, value in row.items()}
            counted = executor.row(_single_statement(history), {**entry, **count})
        else:
            counted = executor.updated_row(history.count_one, count, session_rows.select_counters)
        if counted is None:
            raise SessionNotFoundError(session_id)
        errors, logs, _, phase = counted
        position, phase = (errors, row["phase"] or phase) if history is ERRORS else (logs, None)
        if not is_single:
            executor.write(history.insert, [{**row, "position": position, "phase": phase}])
        if executor.joined:
            executor.wrote(session_id)
        return position, phase

    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> Sequence[Any]:
        session_id = self.row["session_id"]
        stored = lock_row(executor, session_id)
        if stored is None:
            raise UnresolvableOutcome(
                "the session is not stored, and the database does not show whether it was deleted after the append"
            )
        found = executor.row(self.history.last_of_write, {ID: session_id, WRITE_ID: self.row["write_id"]})
        if found is not None:
            make_durable(executor, session_id, stored)
            return found
        if stored.created_at >= self.time:
            raise UnresolvableOutcome(
                "the session was deleted and created again, and its earlier histories no longer exist"
            )
        if may_still_arrive:  # a late execution would append the entry a second time
            raise UnresolvableOutcome("the entry is not stored, but the server may still execute the statement")
        return self.execute(executor)
