"""What has become of a write whose COMMIT nobody has answered: looked for by its write id, and done if it is not there.

Each function is a unit of work in a transaction of its own, and begins with a lock on the session's row: a commit that
is still on its way, or waits for its standby, holds that lock, and a plain read would miss it. While the lock is held
nobody else can do the write. The transaction is committed whatever it has found: so what it answers from is as safe as
what it would have written itself.

Lives of a session are told apart by ``created_at``: one that was deleted and stored anew with the time of the old one
is taken for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from vibeforge_sessions import changes
from vibeforge_sessions.changes import Write
from vibeforge_sessions.codec import Record
from vibeforge_sessions.errors import SessionExistsError, StaleSessionError
from vibeforge_sessions.sql import statements as sql
from vibeforge_sessions.sql import writes
from vibeforge_sessions.sql.execution import ThroughSQLAlchemy


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


def create(executor: ThroughSQLAlchemy, write: Write, *, session: Any) -> Record:  # noqa: ARG001 (one signature for all)
    """Settle a `writes.create`."""
    row = _locked(executor, write.session_id)
    if row is None:
        try:
            return writes.create(executor, write)
        except SessionExistsError:
            raise LookAgain("the session was stored meanwhile") from None
    if row.write_id == write.write_id or _last_positions(executor, write):
        return changes.record_of(
            write, version=1, updated_at=write.updated_at, error_count=len(write.errors), log_count=len(write.logs)
        )
    raise CannotTell("a session of this id is stored, and nobody can tell whether another one was before")


def update(executor: ThroughSQLAlchemy, write: Write, *, session: Any) -> Record:  # noqa: ARG001 (one signature for all)
    """Settle a `writes.update`."""
    row = _locked(executor, write.session_id)
    if row is None:
        raise CannotTell("the session is deleted, and nobody can tell whether it was updated before")
    if (row.version, row.write_id) == (write.version, write.replaces):
        return writes.update(executor, write)
    positions = _last_positions(executor, write)
    if row.write_id == write.write_id or positions:
        return changes.record_of(
            write,
            version=write.version + 1,
            updated_at=row.updated_at,
            error_count=positions.get(sql.ERRORS, row.error_count),
            log_count=positions.get(sql.LOGS, row.log_count),
        )
    same_life = row.created_at == write.created_at and row.version > write.version
    if same_life and (write.errors or write.logs or row.version == write.version + 1):
        raise StaleSessionError(write.session_id, write.version, row.version)
    raise CannotTell("the session was stored by somebody else since, and nobody can tell whether it was updated before")


def delete(executor: ThroughSQLAlchemy, deletion: writes.Deletion, *, session: Any) -> bool:  # noqa: ARG001 (one signature for all)
    """Settle a `writes.delete`."""
    there = deletion.deleted
    if there is None:
        return False
    row = _locked(executor, deletion.session_id)
    same_life = row is not None and (
        row.write_id == there.write_id or (row.created_at == there.created_at and row.version > there.version)
    )
    return writes.delete(executor, deletion) if same_life else True


def append_error(executor: ThroughSQLAlchemy, row: dict[str, Any], *, session: Any) -> tuple[int, str]:
    """Settle a `writes.append_error`."""
    found = _appended(executor, sql.ERRORS, row, session)
    return writes.append_error(executor, row) if found is None else (found[0], str(found[1]))


def append_log(executor: ThroughSQLAlchemy, row: dict[str, Any], now: datetime, *, session: Any) -> None:
    """Settle a `writes.append_log`."""
    if _appended(executor, sql.LOGS, row, session) is None:
        writes.append_log(executor, row, now)


SETTLING: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    writes.create: create,
    writes.update: update,
    writes.delete: delete,
    writes.append_error: append_error,
    writes.append_log: append_log,
}
"""What settles each unit of work that writes; ``session`` is what `Database.end_session` needs, if anything."""


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


def _appended(executor: ThroughSQLAlchemy, history: sql.History, row: Mapping[str, Any], session: Any) -> Any:
    """Return the position of an entry, and its phase if it has one; None if it is not there and will not be."""
    parameters = {sql.ID: row["session_id"], sql.WRITE_ID: row["write_id"]}
    if _locked(executor, row["session_id"]) is None:
        raise CannotTell("the session is not there, and nobody can tell whether it was deleted since")
    found = executor.row(history.of_write, parameters)
    if found is None and session is not None:
        # the statement that was sent may not have been read yet: it would append once more after us
        if not executor.database.end_session(executor.connection, session):
            raise CannotTell("it is not there, but may be on its way still")
        found = executor.row(history.of_write, parameters)
    return found
