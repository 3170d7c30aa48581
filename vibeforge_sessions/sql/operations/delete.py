"""Deleting a session with its documents and histories."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from sqlalchemy import Delete, bindparam, delete

from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql.operations import in_doubt
from vibeforge_sessions.sql.operations.session_rows import ID, delete_session
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions
from vibeforge_sessions.sql.transactions.executor import Executor, returning
from vibeforge_sessions.sql.transactions.operation import WriteOperation

_STATE: Final = ("version", "write_id", "error_count", "log_count")
"""Columns of the session's row. Each update and each append changes at least one of them."""
_delete_children: Final[tuple[Delete, ...]] = tuple(
    delete(table).where(table.c.session_id == bindparam(ID)) for table in (documents, errors, logs)
)
delete_unchanged: Final[Delete] = delete_session.where(
    *(sessions.c[name] == bindparam(f"read_{name}", type_=sessions.c[name].type) for name in _STATE)
)
_delete_unheld: Final[Delete] = delete_unchanged.where(sessions.c.held_at.is_(None))


def state_parameters(record: Record) -> dict[str, Any]:
    """Return the parameters of `delete_unchanged`."""
    return {ID: record.session_id} | {f"read_{name}": getattr(record, name) for name in _STATE}


def delete_rows(executor: Executor, statement: Delete, parameters: dict[str, Any]) -> in_doubt.LockedRow | None:
    """Delete a session and its child rows, even without a cascade; return its row, or None if no row matched."""
    session_id = parameters[ID]
    if executor.dialect.delete_returning:
        row = executor.row(returning(statement, in_doubt.select_for_update), parameters)
    else:
        row = executor.row(in_doubt.select_for_update, {ID: session_id})
        if not executor.write(statement, [parameters]):
            row = None
    if row is None:
        return None
    for each in _delete_children:
        executor.write(each, [{ID: session_id}])
    executor.wrote(session_id, deleted=True)
    return in_doubt.LockedRow(*row)


@dataclasses.dataclass(slots=True)
class DeleteSession(WriteOperation[bool]):
    """Delete a session; return whether there was one."""

    needs_transaction = True
    """A statement that deletes entries must begin after another statement has locked the session's row."""

    session_id: str
    unchanged_since: Record | None = None
    """Delete the session only if it is still in the state of this record and is not held."""
    deleted: in_doubt.LockedRow | None = dataclasses.field(default=None, init=False)
    """The row that the last execution deleted."""

    def execute(self, executor: Executor) -> bool:
        if self.unchanged_since is None:
            self.deleted = delete_rows(executor, delete_session, {ID: self.session_id})
        else:
            self.deleted = delete_rows(executor, _delete_unheld, state_parameters(self.unchanged_since))
        return self.deleted is not None

    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> bool:
        deleted = self.deleted
        if deleted is None:
            return False
        row = in_doubt.lock_row(executor, self.session_id)
        same_incarnation = row is not None and (
            row.write_id == deleted.write_id or (row.created_at == deleted.created_at and row.version > deleted.version)
        )
        if same_incarnation:
            return self.execute(executor)
        in_doubt.make_durable(executor, self.session_id, row)
        return True
