"""Creating a session."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from sqlalchemy import Select, insert, select

from vibeforge_sessions.errors import SessionExistsError
from vibeforge_sessions.repository.changeset import Changeset
from vibeforge_sessions.repository.serialization import DOCUMENTS, Record
from vibeforge_sessions.sql.operations import session_rows
from vibeforge_sessions.sql.operations.in_doubt import last_positions, lock_row, make_durable
from vibeforge_sessions.sql.operations.session_rows import History
from vibeforge_sessions.sql.operations.writable_ctes import (
    DOCUMENT,
    SESSION,
    changeset_parameters,
    entry_part,
    parameter,
)
from vibeforge_sessions.sql.tables import documents, sessions
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import ResolutionConflict, UnresolvableOutcome, WriteOperation


@functools.cache
def _single_statement(histories: tuple[History, ...]) -> Select[Any]:
    """Return the statement that inserts a session with its documents and with entries of these histories."""
    row = (
        insert(sessions)
        .values({column.name: parameter(SESSION, column) for column in sessions.columns})
        .returning(sessions.c.session_id, sessions.c.error_count, sessions.c.log_count)
        .cte("session_row")
    )
    texts = {name: parameter(DOCUMENT, documents.c[name]) for name in DOCUMENTS}
    kept = insert(documents).from_select(["session_id", *texts], select(row.c.session_id, *texts.values())).cte("kept")
    return select(row.c.session_id).add_cte(kept, *(entry_part(row, history) for history in histories))


@dataclasses.dataclass(frozen=True, slots=True)
class CreateSession(WriteOperation[Record]):
    """Insert a session with its initial histories.

    :raises SessionExistsError: a session with this id exists.
    """

    write: Changeset

    def execute(self, executor: Executor) -> Record:
        write, record = self.write, self._record
        entries = session_rows.entry_rows(write, record.error_count, record.log_count)
        if executor.database.supports_writable_ctes:
            row = {SESSION + name: value for name, value in session_rows.session_row(record).items()}
            parameters = changeset_parameters(executor, write.documents, entries)
            with session_rows.duplicate_raises(executor, SessionExistsError(write.session_id)):
                executor.rows(_single_statement(tuple(entries)), {**row, **parameters})
        else:
            session_rows.store_session(executor, record, entries)
        executor.wrote(write.session_id)
        return record

    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> Record:
        row = lock_row(executor, self.write.session_id)
        if row is None:
            try:
                return self.execute(executor)
            except SessionExistsError:
                raise ResolutionConflict("another writer has since created the session") from None
        if row.write_id == self.write.write_id or last_positions(executor, self.write):
            updated_at = make_durable(executor, self.write.session_id, row)
            return dataclasses.replace(self._record, updated_at=updated_at)
        raise UnresolvableOutcome(
            "another writer has stored a session with this id, and the database does not show whether this one was "
            "stored"
        )

    @property
    def _record(self) -> Record:
        write = self.write
        return write.record(1, write.updated_at, len(write.errors), len(write.logs))
