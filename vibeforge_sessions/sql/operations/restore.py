"""Storing a session of another repository unchanged, with its version, times and histories."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from vibeforge_sessions.errors import SessionExistsError, SessionNotFoundError, StaleSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository.restoration import check_history, check_logs
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql.operations import session_rows
from vibeforge_sessions.sql.operations.delete import delete_rows, delete_unchanged, state_parameters
from vibeforge_sessions.sql.operations.in_doubt import lock_row, make_durable
from vibeforge_sessions.sql.operations.session_rows import ERRORS, ID, LOGS
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import UnresolvableOutcome, WriteOperation

_ENTRIES_PER_SECOND: Final = 1_000
_LONGEST_EXTRA: Final = 86_400.0
"""Maximum of `extra_seconds`, whatever lengths of histories a record states."""


@dataclasses.dataclass(frozen=True, slots=True)
class RestoreRecord(WriteOperation[None]):
    """Insert a complete session; if a stored session is to be replaced, delete it first.

    :raises SessionExistsError: a session with this id exists, and none is to be replaced.
    :raises SessionNotFoundError: the session to be replaced was deleted.
    :raises StaleSessionError: the session to be replaced has changed.
    """

    needs_transaction = True

    record: Record
    errors: Iterable[ErrorEntry]
    logs: Iterable[str]
    replacing: Record | None
    extra_seconds: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        extra = min(_LONGEST_EXTRA, sum(self.record.counts) / _ENTRIES_PER_SECOND)
        object.__setattr__(self, "extra_seconds", extra)

    def execute(self, executor: Executor) -> None:
        record, session_id = self.record, self.record.session_id
        replacing = self.replacing
        if replacing is not None and delete_rows(executor, delete_unchanged, state_parameters(replacing)) is None:
            stored = executor.row(session_rows.select_version, {ID: session_id})
            if stored is None:
                raise SessionNotFoundError(session_id)
            raise StaleSessionError(session_id, replacing.version, stored[0])
        errors = session_rows.error_rows(session_id, check_history(record, self.errors), record.write_id)
        logs = session_rows.log_rows(session_id, check_logs(record, self.logs), 1, record.write_id)
        session_rows.store_session(executor, record, {ERRORS: errors, LOGS: logs})
        executor.wrote(session_id)

    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> None:
        row = lock_row(executor, self.record.session_id)
        if row is not None and row.write_id == self.record.write_id:
            make_durable(executor, validation.new_write_id(), None)  # a restored session keeps its updated_at
            return
        try:
            self.execute(executor)
        except (SessionExistsError, SessionNotFoundError, StaleSessionError):
            raise UnresolvableOutcome("another writer has since stored or deleted the session") from None
