"""Updating a session under optimistic concurrency control."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

from sqlalchemy import Update, bindparam, exists, select, update

from vibeforge_sessions.errors import StaleSessionError
from vibeforge_sessions.repository.changeset import Changeset
from vibeforge_sessions.repository.serialization import DOCUMENTS, Record
from vibeforge_sessions.sql.operations import session_rows
from vibeforge_sessions.sql.operations.in_doubt import last_positions, lock_row, make_durable
from vibeforge_sessions.sql.operations.session_rows import ERRORS, ID, LOGS, NOW, VERSION, WRITE_ID, this_session
from vibeforge_sessions.sql.operations.writable_ctes import DOCUMENT, changeset_parameters, entry_part, parameter
from vibeforge_sessions.sql.tables import documents, sessions
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import UnresolvableOutcome, WriteOperation

_update_session: Final[Update] = (
    update(sessions)
    .where(this_session, sessions.c.version == bindparam(VERSION), sessions.c.write_id == bindparam(WRITE_ID))
    .values(
        **{name: bindparam(name) for name in ("phase", "current_question_index", "active_task_id", "write_id")},
        updated_at=session_rows.later_updated_at,
        version=sessions.c.version + 1,
        error_count=sessions.c.error_count + bindparam("new_errors"),
        log_count=sessions.c.log_count + bindparam("new_logs"),
    )
)


@functools.cache
def _update_documents(names: tuple[str, ...]) -> Update:
    """Return the update of these documents only."""
    return (
        update(documents)
        .where(documents.c.session_id == bindparam(ID))
        .values({name: bindparam(name) for name in names})
    )


@functools.cache
def _single_statement(names: tuple[str, ...], histories: tuple[session_rows.History, ...]) -> Any:
    """Return the statement that updates a session with these documents and histories, and returns the counters."""
    guarded = _update_session
    if names:  # a session without documents is corrupt, and is not updated
        guarded = guarded.where(exists().where(documents.c.session_id == bindparam(ID)))
    elif not histories:
        return guarded.returning(*session_rows.counters)
    row = guarded.returning(sessions.c.session_id, *session_rows.counters).cte("session_row")
    parts = [entry_part(row, history) for history in histories]
    if names:
        texts = {name: parameter(DOCUMENT, documents.c[name]) for name in names}
        parts.append(update(documents).where(documents.c.session_id == row.c.session_id).values(texts).cte("kept"))
    return select(*(row.c[column.name] for column in session_rows.counters)).add_cte(*parts)


@dataclasses.dataclass(frozen=True, slots=True)
class UpdateSession(WriteOperation[Record]):
    """Store a changeset if the version and write id that it was made from are still stored.

    :raises StaleSessionError: another write is stored.
    :raises SessionNotFoundError: the session was deleted.
    :raises CorruptSessionError: its documents were deleted.
    """

    write: Changeset

    def execute(self, executor: Executor) -> Record:
        write = self.write
        parameters = {
            "phase": write.content.phase,
            "current_question_index": write.content.current_question_index,
            "active_task_id": write.content.active_task_id,
            "write_id": write.write_id,
            ID: write.session_id,
            VERSION: write.version,
            WRITE_ID: write.expected_write_id,
            NOW: write.updated_at,
            "new_errors": len(write.errors),
            "new_logs": len(write.logs),
        }
        names = tuple([name for name in DOCUMENTS if name in write.documents]) if write.documents else ()
        is_single = executor.database.supports_writable_ctes
        if is_single:
            entries = session_rows.entry_rows(write, len(write.errors), len(write.logs))
            parameters |= changeset_parameters(executor, write.documents, entries)
            found = executor.row(_single_statement(names, tuple(entries)), parameters)
        else:
            found = executor.updated_row(_update_session, parameters, session_rows.select_counters)
        if found is None:
            raise session_rows.missed(executor, write.session_id, write.version, write.expected_write_id)
        errors, logs, updated_at, _ = found
        record = write.record(write.version + 1, updated_at, errors, logs)
        if not is_single:
            texts = {ID: write.session_id, **write.documents}
            if names and not session_rows.store_rows(executor, _update_documents(names), [texts]):
                raise session_rows.no_documents(write.session_id)
            if write.errors or write.logs:
                entries = session_rows.entry_rows(write, errors, logs)
                session_rows.store_entries(executor, entries)
        if executor.joined:
            executor.wrote(write.session_id)
        return record

    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> Record:
        write = self.write
        row = lock_row(executor, write.session_id)
        if row is None:
            raise UnresolvableOutcome(
                "the session was deleted, and the database does not show whether this update was stored first"
            )
        if (row.version, row.write_id) == (write.version, write.expected_write_id):
            return self.execute(executor)
        positions = last_positions(executor, write)
        if row.write_id == write.write_id or positions:
            updated_at = make_durable(executor, write.session_id, row)
            errors, logs = positions.get(ERRORS, row.error_count), positions.get(LOGS, row.log_count)
            return write.record(write.version + 1, updated_at, errors, logs)
        same_incarnation = row.created_at == write.created_at and row.version > write.version
        if same_incarnation and (write.errors or write.logs or row.version == write.version + 1):
            raise StaleSessionError(write.session_id, write.version, row.version)
        raise UnresolvableOutcome(
            "another writer has stored the session, and the database does not show whether this update was stored first"
        )
