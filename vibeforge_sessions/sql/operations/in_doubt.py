"""Steps that the resolutions of in-doubt writes share.

A resolution runs in its own transaction, and first locks the session's row. The in-doubt transaction holds this lock
while its COMMIT is still on the way to the server or waits for a standby, and a plain read would not see its changes.
While the resolution holds the lock, no other transaction can do the write. The state that the resolution finds may not
be durable yet: its COMMIT may wait for a standby, and MariaDB shows a commit before its log is on the disk. So the
resolution itself writes something, and its COMMIT waits for all earlier commits.

Incarnations of a session are distinguished by ``created_at``. A session that was deleted and created again with the
same ``created_at`` counts as the same incarnation.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, Update, select, update

from vibeforge_sessions.model import validation
from vibeforge_sessions.model.record import Content
from vibeforge_sessions.repository.changeset import Changeset
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql.operations import session_rows
from vibeforge_sessions.sql.operations.session_rows import ERRORS, ID, LOGS, NOW, WRITE_ID, History, now, this_session
from vibeforge_sessions.sql.tables import sessions
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import ResolutionConflict


class LockedRow(NamedTuple):
    """State of a session, from its row. This transaction has locked or deleted the row."""

    version: int
    write_id: str
    created_at: datetime
    updated_at: datetime
    error_count: int
    log_count: int


_row_state: Final = select(*(sessions.c[name] for name in LockedRow._fields))
select_for_update: Final[Select[Any]] = _row_state.where(this_session).with_for_update()
"""Reads and locks the committed row, after waiting for other transactions that are changing it."""
_touch: Final[Update] = update(sessions).where(this_session).values(updated_at=now)


def lock_row(executor: Executor, session_id: str) -> LockedRow | None:
    """Lock the committed row of a session and return it; None if there is none."""
    executor.database.wait_for_replication(executor.connection)
    row = executor.row(select_for_update, {ID: session_id})
    return None if row is None else LockedRow(*row)


def last_positions(executor: Executor, write: Changeset) -> dict[History, int]:
    """Return the last position of a changeset's new entries in each history that contains some of them."""
    found = {}
    for history, entries in ((ERRORS, write.errors), (LOGS, write.logs)):
        if entries:
            row = executor.row(history.last_of_write, {ID: write.session_id, WRITE_ID: write.write_id})
            if row is not None:
                found[history] = row[0]
    return found


def make_durable(executor: Executor, session_id: str, row: LockedRow | None) -> datetime:
    """Write something, so that the COMMIT waits for all earlier commits; return the resulting ``updated_at``.

    :param row: the session's row; None to insert a row with this id and delete it again.
    :raises ResolutionConflict: another transaction has created the session.
    """
    time = validation.utc_now()
    if row is not None:
        time = max(time, row.updated_at + timedelta(microseconds=1))
        executor.write(_touch, [{ID: session_id, NOW: time}])
        return time
    placeholder = Record(session_id, time, time, 0, validation.new_write_id(), 0, 0, Content("-", 0, None, {}))
    with session_rows.duplicate_raises(executor, ResolutionConflict("another writer has since created the session")):
        executor.write(session_rows.insert_session, [session_rows.session_row(placeholder)])
    executor.write(session_rows.delete_session, [{ID: session_id}])
    return time
