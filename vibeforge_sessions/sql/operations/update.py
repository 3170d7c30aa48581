"""Updating a session under optimistic concurrency control."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

from sqlalchemy import Update, bindparam, exists, select, update

from vibeforge_sessions.errors import StaleSessionError
from vibeforge_sessions.repository.changeset import Changeset
from vibeforge_sessions.repository.serialization import DOCUMENTS, Record
from vibeforge_sessions.sql.operations.in_doubt import last_positions, lock_row, make_durable
from vibeforge_sessions.sql.operations.session_rows import (
    ERRORS,
    ID,
    LOGS,
    NOW,
    VERSION,
    WRITE_ID,
    counters,
    entry_rows,
    later_updated_at,
    missed,
    no_documents,
    select_counters,
    store_entries,
    store_rows,
    this_session,
)
from vibeforge_sessions.sql.operations.writable_ctes import DOCUMENT, changeset_parameters, entry_parts, parameter
from vibeforge_sessions.sql.tables import documents, sessions
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import UnresolvableOutcome, WriteOperation

_update_session: Final[Update] = (
    update(sessions)
    .where(this_session, sessions.c.version == bindparam(VERSION), sessions.c.write_id == bindparam(WRITE_ID))
    .values(
        phase=bindparam("phase"),
        current_question_index=bindparam("current_question_index"),
        active_task_id=bindparam("active_task_id"),
        updated_at=later_updated_at,
        version=sessions.c.version + 1,
        write_id=bindparam("write_id"),
        error_count=sessions.c.error_count + bindparam("new_errors"),
        log_count=sessions.c.log_count + bindparam("new_logs"),
    )
)


@functools.cache
def _update_documents(names: tuple[str, ...]) -> Update:
    """Return the update of just these documents."""
    return (
        update(documents)
        .where(documents.c.session_id == bindparam(ID))
        .values({name: bindparam(name) for name in names})
    )


@functools.cache
def _single_statement(names: tuple[str, ...], *, with_errors: bool, with_logs: bool) -> Any:
    """Return the guarded update of a session, these documents and new entries; the statement returns the counters."""
    guarded = _update_session
    if names:  # a session without documents is corrupt, and stays as it is
        guarded = guarded.where(exists().where(documents.c.session_id == bindparam(ID)))
    elif not with_errors and not with_logs:
        return guarded.returning(*counters)
    row = guarded.returning(sessions.c.session_id, *counters).cte("session_row")
    parts = entry_parts(row, with_errors=with_errors, with_logs=with_logs)
    if names:
        texts = {name: parameter(DOCUMENT, documents.c[name]) for name in names}
        parts.append(update(documents).where(documents.c.session_id == row.c.session_id).values(texts).cte("kept"))
    return select(*(row.c[column.name] for column in counters)).add_cte(*parts)


@dataclasses.dataclass(frozen=True, slots=True)
class UpdateSession(WriteOperation[Record]):
    """Store a changeset if the version and write id that it was made from are still stored.

    :raises StaleSessionError: another write is stored.
    :raises SessionNotFoundError: the session was deleted.
    :raises CorruptSessionError: its documents were deleted.
    """

    write: Changeset

    @property
    def about(self) -> str:
        return self.write.session_id

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
            statement = _single_statement(names, with_errors=bool(write.errors), with_logs=bool(write.logs))
            found = executor.row(statement, {**parameters, **changeset_parameters(executor, write)})
        else:
            found = executor.updated_row(_update_session, parameters, select_counters)
        if found is None:
            raise missed(executor, write.session_id, write.version, write.expected_write_id)
        errors, logs, updated_at, _ = found
        record = write.record(write.version + 1, updated_at, errors, logs)
        if not is_single:
            if names and not store_rows(
                executor, _update_documents(names), [{ID: write.session_id, **write.documents}]
            ):
                raise no_documents(write.session_id)
            if write.errors or write.logs:
                store_entries(executor, entry_rows(write, record.error_count, record.log_count))
        if executor.joined:
            executor.wrote(write.session_id)
        return record

    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> Record:
        write = self.write
        row = lock_row(executor, write.session_id)
        if row is None:
            raise UnresolvableOutcome("the session is deleted, and whether it was updated before is not visible")
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
            "another writer has stored the session, and whether it was updated before is not visible"
        )
