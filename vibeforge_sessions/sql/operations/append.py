"""Appending one entry to a history, without loading the session."""

from __future__ import annotations

import dataclasses
import functools
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, insert, select

from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.sql.operations.in_doubt import lock_row, make_durable
from vibeforge_sessions.sql.operations.session_rows import (
    ERRORS,
    ID,
    LOGS,
    NOW,
    WRITE_ID,
    History,
    returning_counters,
    select_counters,
)
from vibeforge_sessions.sql.operations.writable_ctes import parameter, prefix_of
from vibeforge_sessions.sql.tables import sessions
from vibeforge_sessions.sql.transactions.connection_executor import ConnectionExecutor
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import UnresolvableOutcome, WriteOperation

_SMALL: Final = 1_000
"""Characters that a statement can hold on every database, whatever its limit for a statement is."""


@functools.cache
def _single_statement(history: History) -> Any:
    """Return the statement that counts and inserts an entry; it returns the position, and the phase if there is one."""
    table = history.table
    counted = history.count_one.returning(sessions.c.session_id, sessions.c[history.counter], sessions.c.phase).cte(
        "session_row"
    )
    placed = {"session_id": counted.c.session_id, "position": counted.c[history.counter]}
    own = [column for column in table.columns if column.name not in placed]
    entry: dict[str, Any] = {**placed, **{column.name: parameter(prefix_of(table), column) for column in own}}
    if "phase" in entry:
        entry["phase"] = func.coalesce(entry["phase"], counted.c.phase)
    appended = insert(table).from_select(list(entry), select(*entry.values())).add_cte(counted)
    return appended.returning(*(table.c[name] for name in ("position", "phase") if name in table.c))


@dataclasses.dataclass(frozen=True, slots=True)
class _Append(WriteOperation[tuple[int, Any]]):
    """Count one more entry of a history and insert it there; return its position, and its phase if it has one.

    The count locks the session's row until the end of the transaction, so positions are gapless and in the order of
    commits.

    :raises SessionNotFoundError: there is no session of this id.
    """

    history: History
    row: dict[str, Any]
    """The entry without its position. A phase of None stands for the session's."""
    time: datetime
    """The time of the call."""
    needs_transaction: bool = False
    """Behind a pooler the session of a lost connection cannot be ended: only a transaction can be resolved there."""

    @property
    def about(self) -> str:
        return str(self.row["session_id"])

    def execute(self, executor: Executor) -> tuple[int, Any]:
        history, row, session_id = self.history, self.row, self.row["session_id"]
        if len(row[history.text]) > _SMALL:
            executor.batches([row])  # rejects an entry that no statement can hold
        count = {ID: session_id, NOW: self.time}
        if executor.database.supports_writable_ctes:
            prefix = prefix_of(history.table)
            entry = {prefix + name: value for name, value in row.items()}
            placed = executor.row(_single_statement(history), {**entry, **count})
            if placed is None:
                raise SessionNotFoundError(session_id)
            if executor.joined:
                executor.wrote(session_id)
            return placed[0], placed[1] if len(placed) > 1 else None
        if executor.dialect.update_returning:
            counted = executor.row(returning_counters(history.count_one), count)
        elif executor.write(history.count_one, [count]):
            counted = executor.row(select_counters, {ID: session_id})
        else:
            counted = None
        if counted is None:
            raise SessionNotFoundError(session_id)
        errors, logs, _, phase = counted
        position = errors if history is ERRORS else logs
        if row.get("phase") is not None:
            phase = row["phase"]
        executor.write(history.insert, [{**row, "position": position, "phase": phase}])
        if executor.joined:
            executor.wrote(session_id)
        return position, phase

    def resolve(self, executor: ConnectionExecutor, *, may_still_arrive: bool) -> tuple[int, Any]:
        session_id = self.row["session_id"]
        stored = lock_row(executor, session_id)
        if stored is None:
            raise UnresolvableOutcome("the session is not stored, and whether it was deleted since is not visible")
        found = executor.row(self.history.last_of_write, {ID: session_id, WRITE_ID: self.row["write_id"]})
        if found is not None:
            make_durable(executor, session_id, stored)
            return found[0], found[1] if len(found) > 1 else None
        if stored.created_at >= self.time:
            raise UnresolvableOutcome("the session was created again since, without the histories of the one before")
        if may_still_arrive:  # it would append once more after this transaction
            raise UnresolvableOutcome("the entry is not stored, but the server may still execute the statement")
        return self.execute(executor)


def append_error(row: dict[str, Any], *, needs_transaction: bool) -> WriteOperation[tuple[int, Any]]:
    """Return the operation that appends an error entry, given without its position."""
    return _Append(ERRORS, row, row["timestamp"], needs_transaction)


def append_log(row: dict[str, Any], time: datetime, *, needs_transaction: bool) -> WriteOperation[tuple[int, Any]]:
    """Return the operation that appends a log line, given without its position."""
    return _Append(LOGS, row, time, needs_transaction)
