"""Units of work that read: plain functions that run statements, in a transaction that somebody else begins and ends.

Where the database is one whose writes are single statements, they read one moment without a transaction, too.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Executable

from vibeforge_sessions.errors import CorruptSessionError, SessionNotFoundError, StaleSessionError, StorageError
from vibeforge_sessions.model.record import Content
from vibeforge_sessions.repository.changeset import PossibleState
from vibeforge_sessions.repository.query import Query, SessionFilter, SessionSummary
from vibeforge_sessions.repository.serialization import ARTIFACTS, DOCUMENTS, Record
from vibeforge_sessions.sql.operations import listing, writable_ctes
from vibeforge_sessions.sql.operations import statements as sql
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.precompiled import Rows

_BY_PLACE: Final = operator.itemgetter(0, 1)
_READS: Final = 100
"""How often a session is read anew that somebody else changes between the two statements that read it."""


def get(executor: Executor, session_id: str, recent: int | None) -> tuple[Record, Rows, Sequence[str]] | None:
    """Read a session's record and the last entries of its histories, up to the counts of that record.

    The errors come by column: position, timestamp, task_id, error_message, phase; no columns for none.
    """
    for _ in range(_READS):
        record = get_record(executor, session_id)
        if record is None:
            return None
        slices = [(0 if recent is None else max(0, count - recent), count) for count in record.counts]
        in_one = executor.database.writes_at_once or (executor.joined and not executor.reads_now(session_id))
        read = _histories_at_once if in_one else _histories
        found = read(executor, record, slices)
        if found is not None:
            errors, logs = found
            for columns, (after, until) in zip(found, slices, strict=True):
                if until < after or tuple(columns[0] if columns else ()) != tuple(range(after + 1, until + 1)):
                    raise _not_whole(session_id)
            return record, errors, logs[1] if logs else ()
    raise StorageError("the session changes faster than it can be read")


def get_record(executor: Executor, session_id: str) -> Record | None:
    """Read a session without its histories."""
    now = executor.reads_now(session_id)  # or old documents would come with a new version: a lost update
    row = executor.row(sql.select_session_now if now else sql.select_session, {sql.ID: session_id})
    if row is None:
        return None
    session_id, phase, created_at, updated_at, version, write_id, question, task_id, errors, logs, held_at, *texts = row
    if texts[0] is None:
        raise no_documents(session_id)
    return Record(
        session_id=session_id,
        created_at=created_at,
        updated_at=updated_at,
        version=version,
        write_id=write_id,
        error_count=errors,
        log_count=logs,
        held_at=held_at,
        content=Content(
            phase=phase,
            current_question_index=question,
            active_task_id=task_id,
            documents=dict(zip(DOCUMENTS, texts, strict=True)),
        ),
    )


def get_current_record(executor: Executor, session_id: str, version: int, write_id: str) -> Record:
    """Read a session's record if it is still the one of that version and write."""
    record = get_record(executor, session_id)
    if record is None or (record.version, record.write_id) != (version, write_id):
        raise missed(executor, session_id, version, write_id)
    return record


def find_state(executor: Executor, session_id: str, states: Sequence[PossibleState]) -> int:
    """Return which of a session's possible states is the stored one.

    :raises StaleSessionError: none is, or no session is stored.
    :raises SessionNotFoundError: this transaction has deleted the session.
    """
    select = sql.select_version_now if executor.reads_now(session_id) else sql.select_version
    row = executor.row(select, {sql.ID: session_id})
    if row is None:
        if executor.has_deleted(session_id):
            raise SessionNotFoundError(session_id)
        raise StaleSessionError(session_id, states[0].version, 0)
    for index, state in enumerate(states):
        if tuple(row) == (state.version, state.write_id) and _has_entries_of(executor, session_id, state):
            return index
    raise StaleSessionError(session_id, states[0].version, row[0])


def _has_entries_of(executor: Executor, session_id: str, state: PossibleState) -> bool:
    """Return whether the last entries of a state are stored; then those before them are, too."""
    now = executor.reads_now(session_id)

    def entry_at(position: int, select: Executable, select_now: Executable) -> Sequence[Any] | None:
        this = {sql.ID: session_id, sql.AFTER: position - 1, sql.UNTIL: position}
        return executor.row(select_now if now else select, this)

    error, log = state.last_error, state.last_log
    if error is not None and error.position is not None:
        row = entry_at(error.position, sql.select_errors, sql.select_errors_now)
        if row is None or tuple(row[1:]) != (error.timestamp, error.task_id, error.error_message, error["phase"]):
            return False
    if log is not None:
        row = entry_at(log[0], sql.select_logs, sql.select_logs_now)
        return row is not None and tuple(row) == log
    return True


def list_errors(
    executor: Executor, session_id: str, after: int, limit: int, task_id: str | None, phase: str | None
) -> Rows:
    """Read a slice of the error history, in one statement; the last column is the length of the whole."""
    filters = {"of_task": task_id is not None, "of_phase": phase is not None}
    parameters = {sql.AFTER: after, "task_id": task_id, "phase": phase}
    rows = _listing(executor, sql.ERRORS.counter, session_id, limit, parameters, **filters)
    if task_id is None and phase is None:
        _check_whole(session_id, rows, after, limit)
    return rows if rows[0][0] is not None else ()


def list_logs(executor: Executor, session_id: str, after: int, limit: int) -> list[str]:
    """Read a slice of the logs, in one statement."""
    rows = _listing(executor, sql.LOGS.counter, session_id, limit, {sql.AFTER: after})
    _check_whole(session_id, rows, after, limit)
    return [message for position, message, _ in rows if position is not None]


def list_ids(executor: Executor, asked: SessionFilter) -> list[str]:
    """Read the ids of what matches, oldest first."""
    return [session_id for (session_id,) in executor.rows(*listing.list_ids(asked))]


def find(executor: Executor, query: Query) -> list[SessionSummary]:
    """Read the summaries of a page, and of one session more."""
    return [
        SessionSummary(
            session_id=session_id,
            phase=phase,
            created_at=created_at,
            updated_at=updated_at,
            version=version,
            error_count=errors,
            log_count=logs,
            active_task_id=task_id,
            held=bool(held),
            artifacts=frozenset(itertools.compress(ARTIFACTS, there)),
        )
        for session_id, phase, created_at, updated_at, version, errors, logs, task_id, held, *there in executor.rows(
            *listing.find(query)
        )
    ]


def _histories(executor: Executor, record: Record, slices: Sequence[tuple[int, int]]) -> tuple[Rows, Rows]:
    now = executor.reads_now(record.session_id)
    statements = (sql.select_errors_now, sql.select_logs_now) if now else (sql.select_errors, sql.select_logs)
    errors, logs = (
        executor.columns(statement, {sql.ID: record.session_id, sql.AFTER: after, sql.UNTIL: until})
        if after < until
        else ()
        for statement, (after, until) in zip(statements, slices, strict=True)
    )
    return errors, logs


def _histories_at_once(
    executor: Executor, record: Record, slices: Sequence[tuple[int, int]]
) -> tuple[Rows, Rows] | None:
    """Read both slices in one statement; None if the session is not the record's any more.

    Entries never change, so the slices are as good as of the record's moment, unless the session was deleted since
    and made anew. That changes its write id; so does an update, and it is read again then, too.
    """
    if all(after == until for after, until in slices):
        return (), ()
    columns = executor.columns(writable_ctes.histories, writable_ctes.of_slices(record.session_id, slices))
    if not columns:
        return None
    ends = list(itertools.accumulate(map(columns[0].count, (writable_ctes.OF_ERROR, writable_ctes.OF_LOG))))
    places = [*range(slices[0][0] + 1, slices[0][1] + 1), *range(slices[1][0] + 1, slices[1][1] + 1)]
    if list(columns[1][: ends[1]]) != places:  # no order was asked for, and a plan may give another
        columns = list(zip(*sorted(zip(*columns, strict=True), key=_BY_PLACE), strict=True))
    _, positions, _, _, texts, _ = columns
    if list(zip(positions[ends[1] :], texts[ends[1] :], strict=True)) != [(record.version, record.write_id)]:
        return None
    errors = [column[: ends[0]] for column in columns[1:]] if ends[0] else ()
    logs = [positions[ends[0] : ends[1]], texts[ends[0] : ends[1]]]
    return errors, logs


def missed(executor: Executor, session_id: str, version: int, write_id: str) -> Exception:
    """Return why a guarded update has hit nothing."""
    # a host's snapshot may be older than what the update has found
    select = sql.select_version_now if executor.joined else sql.select_version
    stored = executor.row(select, {sql.ID: session_id})
    if stored is None:
        return SessionNotFoundError(session_id)
    if tuple(stored) == (version, write_id):  # it is the version, so it was the documents
        return no_documents(session_id)
    return StaleSessionError(session_id, version, stored[0])


def no_documents(session_id: str) -> CorruptSessionError:
    """Return the error of a session whose documents somebody has deleted."""
    return CorruptSessionError(session_id, "its documents are missing")


def _listing(
    executor: Executor, history: str, session_id: str, limit: int, parameters: Mapping[str, Any], **filters: bool
) -> Rows:
    """Read a slice in order, or one row without an entry where there is none; the last column is the whole's length."""
    this = {sql.ID: session_id}
    if executor.reads_now(session_id):
        counters = executor.row(sql.select_counters_now, this)
        found = executor.rows(sql.list_entries_now(history, limit, **filters), {**parameters, **this})
        length = None if counters is None else counters[0 if history == sql.ERRORS.counter else 1]
        rows: Rows = [(*row, length) for row in found or [(None, None)]] if counters is not None else []
    else:
        rows = executor.rows(sql.list_entries(history, limit, **filters), {**parameters, **this})
    if not rows:
        raise SessionNotFoundError(session_id)
    return sorted(rows, key=operator.itemgetter(0)) if len(rows) > 1 else rows


def _check_whole(session_id: str, rows: Rows, after: int, limit: int) -> None:
    """Refuse a slice of a listing without filters in which entries are missing, or are too many."""
    positions = [row[0] for row in rows]
    until = min(after + limit, rows[0][-1])
    if positions != list(range(after + 1, until + 1)) and (positions != [None] or after < until):
        raise _not_whole(session_id)


def _not_whole(session_id: str) -> CorruptSessionError:
    """Return the error of a session some of whose entries somebody has deleted."""
    return CorruptSessionError(session_id, "its histories are not what its row says")
