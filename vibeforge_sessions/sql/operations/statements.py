"""The statements, built once. What a database lacks is asked of SQLAlchemy's dialect, not of its name.

Parents are written before children everywhere: the other order deadlocks MariaDB.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Delete,
    Insert,
    Integer,
    Select,
    Table,
    Update,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    null,
    select,
    true,
    update,
)

from vibeforge_sessions.repository.serialization import DOCUMENTS
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions

# Names of parameters that are no columns: SQLAlchemy keeps a column's own name for the value to be set.
ID: Final = "of_session_id"
VERSION: Final = "read_version"
WRITE_ID: Final = "read_write_id"
NOW: Final = "now"
AFTER: Final = "after_position"
UNTIL: Final = "until_position"

_this: Final = sessions.c.session_id == bindparam(ID)
_now: Final[BindParameter[Any]] = bindparam(NOW, type_=sessions.c.updated_at.type)
_updated_at: Final = case((sessions.c.updated_at < _now, _now), else_=sessions.c.updated_at)
"""Never back: the greater of the old and the new."""

# --- create, delete ---

insert_session: Final[Insert] = insert(sessions)
insert_documents: Final[Insert] = insert(documents)

delete_session: Final[Delete] = delete(sessions).where(_this)
delete_children: Final[tuple[Delete, ...]] = tuple(
    delete(table).where(table.c.session_id == bindparam(ID)) for table in (documents, errors, logs)
)

_unchanged: Final = (
    _this,
    sessions.c.version == bindparam(VERSION),
    sessions.c.write_id == bindparam(WRITE_ID),
    sessions.c.error_count == bindparam("read_error_count", type_=sessions.c.error_count.type),
    sessions.c.log_count == bindparam("read_log_count", type_=sessions.c.log_count.type),
)
delete_unchanged: Final[Delete] = delete(sessions).where(*_unchanged)
delete_unheld: Final[Delete] = delete_unchanged.where(sessions.c.held_at.is_(None))

# --- hold ---

hold: Final[Update] = (
    update(sessions)
    .where(_this)
    .values(held_at=func.coalesce(sessions.c.held_at, bindparam(NOW, type_=sessions.c.held_at.type)))
)
release: Final[Update] = update(sessions).where(_this).values(held_at=null())

# --- update ---

update_session: Final[Update] = (
    update(sessions)
    .where(_this, sessions.c.version == bindparam(VERSION), sessions.c.write_id == bindparam(WRITE_ID))
    .values(
        phase=bindparam("phase"),
        current_question_index=bindparam("current_question_index"),
        active_task_id=bindparam("active_task_id"),
        updated_at=_updated_at,
        version=sessions.c.version + 1,
        write_id=bindparam("write_id"),
        error_count=sessions.c.error_count + bindparam("new_errors"),
        log_count=sessions.c.log_count + bindparam("new_logs"),
    )
)
counters: Final = (sessions.c.error_count, sessions.c.log_count, sessions.c.updated_at, sessions.c.phase)
"""What each of the three updates has to tell afterwards."""
select_counters: Final[Select[Any]] = select(*counters).where(_this)
select_counters_now: Final[Select[Any]] = select_counters.with_for_update(read=True)
select_version: Final[Select[Any]] = select(sessions.c.version, sessions.c.write_id).where(_this)
touch: Final[Update] = update(sessions).where(_this).values(updated_at=_now)
_identity: Final = (sessions.c.version, sessions.c.write_id, sessions.c.created_at)
select_for_update: Final[Select[Any]] = (
    select(*_identity, sessions.c.updated_at, sessions.c.error_count, sessions.c.log_count)
    .where(_this)
    .with_for_update()
)
"""What is committed, once nobody else is about to change it."""
select_version_now: Final[Select[Any]] = select_version.with_for_update(read=True)
"""What is committed, whatever snapshot a transaction has."""


@functools.cache
def returning_identity(statement: Delete) -> Any:
    """Return the deletion so that it tells whom it has hit, for databases that can."""
    return statement.returning(*_identity)


@functools.cache
def returning_counters(statement: Update) -> Any:
    """Return the update with RETURNING, for databases that have it."""
    return statement.returning(*counters)


# --- histories ---


def inline(limit: int) -> ColumnElement[int]:
    """Return the number as part of the statement.

    PostgreSQL takes a parameter there for a tenth of the table, finds that plan too dear, and plans anew at each call:
    twice the time.
    """
    return literal_column(str(int(limit)), Integer)


class History(NamedTuple):
    """The statements of one history."""

    table: Table
    counter: str
    """The column of the session's row that counts it."""
    counting: Update
    """Counts one entry more; its position is the count afterwards."""
    insert: Insert
    of_write: Select[Any]
    """The last entry of a write: its position, and its phase if there is one."""


def _history(table: Table, counter: str) -> History:
    count = update(sessions).where(_this).values({"updated_at": _updated_at, counter: sessions.c[counter] + 1})
    of_write = (
        select(*(table.c[name] for name in ("position", "phase") if name in table.c))
        .where(table.c.session_id == bindparam(ID), table.c.write_id == bindparam(WRITE_ID))
        .order_by(table.c.position.desc())
        .limit(inline(1))
    )
    return History(table, counter, count, insert(table), of_write)


ERRORS: Final = _history(errors, "error_count")
LOGS: Final = _history(logs, "log_count")


@functools.cache
def update_documents(names: tuple[str, ...]) -> Update:
    """Return the update of just these documents."""
    return (
        update(documents)
        .where(documents.c.session_id == bindparam(ID))
        .values({name: bindparam(name) for name in names})
    )


# --- read ---

select_session: Final[Select[Any]] = (
    select(sessions, *(documents.c[name] for name in DOCUMENTS))
    .join_from(sessions, documents, documents.c.session_id == sessions.c.session_id, isouter=True)
    .where(_this)
)
"""The hot row and its documents in one statement: old documents with a new version would be a lost update."""


select_session_now: Final[Select[Any]] = select_session.with_for_update(read=True)
"""The same of what is committed, whatever snapshot a transaction has."""


def _slice_of(table: Table, *names: str) -> Select[Any]:
    return (
        select(*(table.c[name] for name in names))
        .where(
            table.c.session_id == bindparam(ID),
            table.c.position > bindparam(AFTER),
            table.c.position <= bindparam(UNTIL),
        )
        .order_by(table.c.position)
    )


_READ: Final = ("position", "timestamp", "task_id", "error_message", "phase")
select_errors: Final = _slice_of(errors, *_READ)
select_logs: Final = _slice_of(logs, "position", "message")
select_errors_now: Final = select_errors.with_for_update(read=True)
select_logs_now: Final = select_logs.with_for_update(read=True)


_TABLES: Final = {"error_count": (errors, _READ), "log_count": (logs, ("position", "message"))}


@functools.lru_cache(maxsize=128)
def list_entries(history: str, limit: int, *, of_task: bool = False, of_phase: bool = False) -> Select[Any]:
    """Return the listing of a history, by its counter; the filters take the parameters ``task_id`` and ``phase``.

    The last column is the counter, of the same moment. One statement tells an unknown session (no row) from an empty
    slice (one row of NULLs). The slice is cut before it is joined: a database that joins first sorts all that comes
    after it. The join has no order of its own.
    """
    cut = _entries(history, limit, of_task=of_task, of_phase=of_phase).subquery()
    columns = (*cut.c, sessions.c[history])
    return select(*columns).select_from(sessions.outerjoin(cut, true())).where(_this)


def list_entries_now(history: str, limit: int, *, of_task: bool = False, of_phase: bool = False) -> Select[Any]:
    """Return the listing of what is committed, whatever snapshot a transaction has; without the counter."""
    return _entries(history, limit, of_task=of_task, of_phase=of_phase).with_for_update(read=True)


def _entries(history: str, limit: int, *, of_task: bool, of_phase: bool) -> Select[Any]:
    table, names = _TABLES[history]
    entries = (
        select(*(table.c[name] for name in names))
        .where(table.c.session_id == bindparam(ID), table.c.position > bindparam(AFTER))
        .order_by(table.c.position)
        .limit(inline(limit))
    )
    if of_task:
        entries = entries.where(table.c.task_id == bindparam("task_id"))
    if of_phase:
        entries = entries.where(table.c.phase == bindparam("phase"))
    return entries
