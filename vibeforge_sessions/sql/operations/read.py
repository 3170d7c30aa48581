"""Reading a session: its record, and the last entries of its histories.

On a database with single-statement writes, a read returns the state of one moment even without a transaction.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, bindparam, literal_column, null, select, union_all

from vibeforge_sessions.errors import SessionNotFoundError, StaleSessionError, StorageError
from vibeforge_sessions.model.record import Baseline, Content
from vibeforge_sessions.repository.serialization import DOCUMENTS, Record
from vibeforge_sessions.sql.operations import session_rows
from vibeforge_sessions.sql.operations.histories import incomplete, select_slice
from vibeforge_sessions.sql.operations.session_rows import AFTER, ERRORS, ID, LOGS, UNTIL, select_version, this_session
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions
from vibeforge_sessions.sql.transactions.executor import Executor, Rows
from vibeforge_sessions.sql.transactions.operation import Operation

_ATTEMPTS: Final = 100
"""Maximum number of attempts, if other writers change the session between the two statements of each attempt."""

_select_session: Final[Select[Any]] = (
    select(sessions, *(documents.c[name] for name in DOCUMENTS))
    .join_from(sessions, documents, documents.c.session_id == sessions.c.session_id, isouter=True)
    .where(this_session)
)
"""The session's row and its documents in one statement. Old documents with a new version would cause a lost update."""

# --- both histories in one statement ---

_OF_ERROR: Final = 1
_OF_LOG: Final = 2
_OF_ROW: Final = 3
"""The kinds of rows of `_select_histories`."""
_BY_PLACE: Final = operator.itemgetter(0, 1)


def _slice(history: session_rows.History, kind: int, *columns: ColumnElement[Any]) -> Select[Any]:
    table, prefix = history.table, history.prefix
    return select(literal_column(str(kind)), table.c.position, *columns).where(
        table.c.session_id == bindparam(ID),
        table.c.position > bindparam(f"{prefix}{AFTER}"),
        table.c.position <= bindparam(f"{prefix}{UNTIL}"),
    )


_select_histories: Final = union_all(
    _slice(ERRORS, _OF_ERROR, errors.c.timestamp, errors.c.task_id, errors.c.error_message, errors.c.phase),
    _slice(LOGS, _OF_LOG, null(), null(), logs.c.message, null()),
    select(literal_column(str(_OF_ROW)), sessions.c.version, null(), null(), sessions.c.write_id, null()).where(
        sessions.c.session_id == bindparam(ID)
    ),
)
"""Unordered slices of both histories, and the version and write id of the session at the same moment."""


@dataclasses.dataclass(frozen=True, slots=True)
class GetSession(Operation[tuple[Record, Rows, Sequence[str]] | None]):
    """Read a session's record and the last entries of its histories, up to the counts of that record.

    The errors are returned as columns: position, timestamp, task_id, error_message, phase. Without errors, there are
    no columns.
    """

    session_id: str
    recent: int | None

    def execute(self, executor: Executor) -> tuple[Record, Rows, Sequence[str]] | None:
        for _ in range(_ATTEMPTS):
            record = _record(executor, self.session_id)
            if record is None:
                return None
            slices = [(0 if self.recent is None else max(0, count - self.recent), count) for count in record.counts]
            in_one = executor.database.supports_writable_ctes or (
                executor.joined and not executor.reads_now(self.session_id)
            )
            found = (_histories_in_one if in_one else _histories)(executor, record, slices)
            if found is not None:
                for columns, (after, until) in zip(found, slices, strict=True):
                    if until < after or tuple(columns[0] if columns else ()) != tuple(range(after + 1, until + 1)):
                        raise incomplete(self.session_id)
                error_columns, log_columns = found
                return record, error_columns, log_columns[1] if log_columns else ()
        raise StorageError("the session changes faster than it can be read: retry later")


@dataclasses.dataclass(frozen=True, slots=True)
class GetRecord(Operation[Record | None]):
    """Read a session without its histories."""

    session_id: str

    def execute(self, executor: Executor) -> Record | None:
        return _record(executor, self.session_id)


@dataclasses.dataclass(frozen=True, slots=True)
class FindState(Operation[int | None]):
    """Find out which of a session's possible states is stored; return its index.

    The result is None if a later write of the same transaction is stored. The usual check then rejects the session as
    stale.

    :raises StaleSessionError: another writer's state is stored, or the session is not stored.
    :raises SessionNotFoundError: this transaction has deleted the session.
    """

    session_id: str
    states: Sequence[Baseline]
    transaction: str | None
    """The caller's transaction that has written the session."""

    def execute(self, executor: Executor) -> int | None:
        statement = session_rows.committed(select_version) if executor.reads_now(self.session_id) else select_version
        row = executor.row(statement, {ID: self.session_id})
        if row is None:
            if executor.joined and executor.writes.deleted.get(self.session_id):
                raise SessionNotFoundError(self.session_id)
            raise StaleSessionError(self.session_id, self.states[0].version, 0)
        for index, state in enumerate(self.states):
            if tuple(row) == (state.version, state.write_id) and self._has_entries_of(executor, state):
                return index
        version = self.states[0].version
        if row[0] > version and executor.transaction_of(self.session_id) == self.transaction:
            return None
        raise StaleSessionError(self.session_id, version, row[0])

    def _has_entries_of(self, executor: Executor, state: Baseline) -> bool:
        """Return whether the last entries of a state are stored. If so, all earlier entries are stored as well."""
        entries: dict[session_rows.History, tuple[Any, ...]] = {}
        if state.errors:
            error = state.errors[-1]
            entries[ERRORS] = (error.position, error.timestamp, error.task_id, error.error_message, error["phase"])
        if state.logs:
            entries[LOGS] = (state.log_position, state.logs[-1])
        for history, entry in entries.items():
            statement = select_slice(history, now=executor.reads_now(self.session_id))
            row = executor.row(statement, {ID: self.session_id, AFTER: entry[0] - 1, UNTIL: entry[0]})
            if row is None or tuple(row) != entry:
                return False
        return True


def _record(executor: Executor, session_id: str) -> Record | None:
    now = executor.reads_now(session_id)  # otherwise, old documents with a new version could cause a lost update
    row = executor.row(session_rows.committed(_select_session) if now else _select_session, {ID: session_id})
    if row is None:
        return None
    session_id, phase, created_at, updated_at, version, write_id, question, task_id, error_count, log_count, held_at = (
        row[:11]
    )
    texts = dict(zip(DOCUMENTS, row[11:], strict=True))
    if texts["answers"] is None:
        raise session_rows.no_documents(session_id)
    content = Content(phase, question, task_id, texts)
    return Record(session_id, created_at, updated_at, version, write_id, error_count, log_count, content, held_at)


def _histories(executor: Executor, record: Record, slices: Sequence[tuple[int, int]]) -> tuple[Rows, Rows]:
    statements = [select_slice(each, now=executor.reads_now(record.session_id)) for each in (ERRORS, LOGS)]
    error_columns, log_columns = (
        executor.columns(statement, {ID: record.session_id, AFTER: after, UNTIL: until}) if after < until else ()
        for statement, (after, until) in zip(statements, slices, strict=True)
    )
    return error_columns, log_columns


def _histories_in_one(
    executor: Executor, record: Record, slices: Sequence[tuple[int, int]]
) -> tuple[Rows, Rows] | None:
    """Read both slices in one statement; None if the session no longer matches the record.

    Entries never change, so the slices match the record unless the session was deleted and created again in between,
    which changes the write id. An update also changes the write id, so the session is then read again as well.
    """
    if all(after == until for after, until in slices):
        return (), ()
    parameters: dict[str, Any] = {ID: record.session_id}
    for history, (after, until) in zip((ERRORS, LOGS), slices, strict=True):
        parameters |= {history.prefix + AFTER: after, history.prefix + UNTIL: until}
    columns = executor.columns(_select_histories, parameters)
    if not columns:
        return None
    ends = list(itertools.accumulate(map(columns[0].count, (_OF_ERROR, _OF_LOG))))
    places = [*range(slices[0][0] + 1, slices[0][1] + 1), *range(slices[1][0] + 1, slices[1][1] + 1)]
    if list(columns[1][: ends[1]]) != places:  # the statement has no ORDER BY, so any order is possible
        columns = list(zip(*sorted(zip(*columns, strict=True), key=_BY_PLACE), strict=True))
    _, positions, _, _, texts, _ = columns
    if list(zip(positions[ends[1] :], texts[ends[1] :], strict=True)) != [(record.version, record.write_id)]:
        return None
    error_columns = [column[: ends[0]] for column in columns[1:]] if ends[0] else ()
    log_columns = [positions[ends[0] : ends[1]], texts[ends[0] : ends[1]]]
    return error_columns, log_columns
