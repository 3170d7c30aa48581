"""What has become of a write whose COMMIT nobody has answered: looked for by its write id, and done if it is not there.

Each function is a unit of work in a transaction of its own, and begins with a lock on the session's row: a commit that
is still on its way, or waits for its standby, holds that lock, and a plain read would miss it. While the lock is held
nobody else can do the write. What is found is not yet safe: it may wait for its standby, and MariaDB shows a commit
before its log is on the disk. So the transaction writes something itself, and its COMMIT waits for all that was before.

Lives of a session are told apart by ``created_at``: one that was deleted and stored anew with the time of the old one
is taken for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from vibeforge_sessions.errors import SessionExistsError, SessionNotFoundError, StaleSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository import changeset
from vibeforge_sessions.repository.changeset import Write
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql.operations import statements as sql
from vibeforge_sessions.sql.operations import writes
from vibeforge_sessions.sql.tables import sessions
from vibeforge_sessions.sql.transactions.connection_executor import ThroughSQLAlchemy


class CannotTell(Exception):  # noqa: N818 (a finding)
    """The evidence is gone, or covered by somebody else's write."""


class LookAgain(Exception):  # noqa: N818 (a finding)
    """Something has come up since the look."""


class _Row(NamedTuple):
    version: int
    write_id: str
    created_at: datetime
    updated_at: datetime
    error_count: int
    log_count: int


def create(executor: ThroughSQLAlchemy, write: Write, *, may_come: bool) -> Record:  # noqa: ARG001 (one signature for all)
    """Settle a `writes.create`."""
    row = _locked(executor, write.session_id)
    if row is None:
        try:
            return writes.create(executor, write)
        except SessionExistsError:
            raise LookAgain("the session was stored meanwhile") from None
    if row.write_id == write.write_id or _last_positions(executor, write):
        updated_at = _make_safe(executor, write.session_id, row)
        return changeset.record_of(
            write, version=1, updated_at=updated_at, error_count=len(write.errors), log_count=len(write.logs)
        )
    raise CannotTell("a session of this id is stored, and nobody can tell whether another one was before")


def update(executor: ThroughSQLAlchemy, write: Write, *, may_come: bool) -> Record:  # noqa: ARG001 (one signature for all)
    """Settle a `writes.update`."""
    row = _locked(executor, write.session_id)
    if row is None:
        raise CannotTell("the session is deleted, and nobody can tell whether it was updated before")
    if (row.version, row.write_id) == (write.version, write.replaces):
        return writes.update(executor, write)
    positions = _last_positions(executor, write)
    if row.write_id == write.write_id or positions:
        return changeset.record_of(
            write,
            version=write.version + 1,
            updated_at=_make_safe(executor, write.session_id, row),
            error_count=positions.get(sql.ERRORS, row.error_count),
            log_count=positions.get(sql.LOGS, row.log_count),
        )
    same_life = row.created_at == write.created_at and row.version > write.version
    if same_life and (write.errors or write.logs or row.version == write.version + 1):
        raise StaleSessionError(write.session_id, write.version, row.version)
    raise CannotTell("the session was stored by somebody else since, and nobody can tell whether it was updated before")


def delete(executor: ThroughSQLAlchemy, deletion: writes.Deletion, *, may_come: bool) -> bool:  # noqa: ARG001 (one signature for all)
    """Settle a `writes.delete`."""
    there = deletion.deleted
    if there is None:
        return False
    row = _locked(executor, deletion.session_id)
    same_life = row is not None and (
        row.write_id == there.write_id or (row.created_at == there.created_at and row.version > there.version)
    )
    if same_life:
        return writes.delete(executor, deletion)
    _make_safe(executor, deletion.session_id, row)
    return True


def append_error(executor: ThroughSQLAlchemy, row: dict[str, Any], *, may_come: bool) -> tuple[int, str]:
    """Settle a `writes.append_error`."""
    found = _appended(executor, sql.ERRORS, row, row["timestamp"], may_come=may_come)
    return writes.append_error(executor, row) if found is None else (found[0], str(found[1]))


def append_log(executor: ThroughSQLAlchemy, row: dict[str, Any], now: datetime, *, may_come: bool) -> None:
    """Settle a `writes.append_log`."""
    if _appended(executor, sql.LOGS, row, now, may_come=may_come) is None:
        writes.append_log(executor, row, now)


def hold(executor: ThroughSQLAlchemy, session_id: str, now: datetime | None, *, may_come: bool) -> None:  # noqa: ARG001
    """Settle a `writes.hold`: twice is as good as once; but the second may have had nothing to write."""
    writes.hold(executor, session_id, now)
    _make_safe(executor, validation.new_write_id(), None)


def restore(executor: ThroughSQLAlchemy, restoring: writes.Restoring, *, may_come: bool) -> None:  # noqa: ARG001
    """Settle a `writes.restore`."""
    row = _locked(executor, restoring.record.session_id)
    if row is not None and row.write_id == restoring.record.write_id:
        _make_safe(executor, validation.new_write_id(), None)  # what was restored keeps its time of change
        return
    try:
        writes.restore(executor, restoring)
    except (SessionExistsError, SessionNotFoundError, StaleSessionError):
        raise CannotTell("somebody else has stored or deleted the session since") from None


SETTLING: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    writes.create: create,
    writes.update: update,
    writes.delete: delete,
    writes.append_error: append_error,
    writes.append_log: append_log,
    writes.hold: hold,
    writes.restore: restore,
}
"""What settles each unit of work that writes; ``may_come`` says that what was sent may still be run, after this."""


def _locked(executor: ThroughSQLAlchemy, session_id: str) -> _Row | None:
    executor.database.catch_up(executor.connection)
    row = executor.row(sql.select_for_update, {sql.ID: session_id})
    return None if row is None else _Row(*row)


def _last_positions(executor: ThroughSQLAlchemy, write: Write) -> dict[sql.History, int]:
    """Return the last position of the write's new entries in each history in which there are any."""
    found = {}
    for history, entries in ((sql.ERRORS, write.errors), (sql.LOGS, write.logs)):
        if entries:
            row = executor.row(history.of_write, {sql.ID: write.session_id, sql.WRITE_ID: write.write_id})
            if row is not None:
                found[history] = row[0]
    return found


def _appended(
    executor: ThroughSQLAlchemy, history: sql.History, row: Mapping[str, Any], called: datetime, *, may_come: bool
) -> Any:
    """Return the position of an entry, and its phase if it has one; None if it is not there and will not be."""
    stored = _locked(executor, row["session_id"])
    if stored is None:
        raise CannotTell("the session is not there, and nobody can tell whether it was deleted since")
    found = executor.row(history.of_write, {sql.ID: row["session_id"], sql.WRITE_ID: row["write_id"]})
    if found is not None:
        _make_safe(executor, row["session_id"], stored)
    elif stored.created_at >= called:
        raise CannotTell("the session was made anew since, and nobody can tell what the one before it held")
    elif may_come:  # it would append once more after us
        raise CannotTell("it is not there, but may be on its way still")
    return found


def _make_safe(executor: ThroughSQLAlchemy, session_id: str, row: _Row | None) -> datetime:
    """Write something, so that the COMMIT waits for all that was before; return the session's time of change then."""
    now = validation.utc_now()
    if row is not None:
        now = max(now, row.updated_at + timedelta(microseconds=1))
        executor.write(sql.touch, [{sql.ID: session_id, sql.NOW: now}])
        return now
    nobody = {**dict.fromkeys(column.name for column in sessions.columns), "session_id": session_id}
    nobody |= {"phase": "-", "created_at": now, "updated_at": now, "write_id": validation.new_write_id()}
    nobody |= dict.fromkeys(("version", "current_question_index", "error_count", "log_count"), 0)
    try:
        executor.write(sql.insert_session, [nobody])
    except Exception as error:
        if executor.is_duplicate(error):
            raise LookAgain("the session was stored meanwhile") from None
        raise
    executor.write(sql.delete_session, [{sql.ID: session_id}])
    return now
