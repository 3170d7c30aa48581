"""The statements, built once. What a database lacks is asked of SQLAlchemy's dialect, not of its name.

Parents are written before children everywhere: the other order deadlocks MariaDB.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Delete,
    Insert,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    true,
    update,
)

from vibeforge_sessions import values
from vibeforge_sessions.codec import ARTIFACTS, DOCUMENTS
from vibeforge_sessions.query import Query, SessionFilter
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions

# Names of parameters that are no columns: SQLAlchemy keeps a column's own name for the value to be set.
ID: Final = "of_session_id"
VERSION: Final = "read_version"
WRITE_ID: Final = "read_write_id"
NOW: Final = "now"
AFTER: Final = "after_position"
UNTIL: Final = "until_position"
LIMIT: Final = "at_most"
ENTRY: Final = "entry_"
"""What the names of an entry's parameters begin with."""

_this: Final = sessions.c.session_id == bindparam(ID)
_updated_at: Final = case(  # never back: the greater of the old and the new
    (sessions.c.updated_at < bindparam(NOW, type_=sessions.c.updated_at.type), bindparam(NOW)),
    else_=sessions.c.updated_at,
)

# --- create, delete ---

insert_session: Final[Insert] = insert(sessions)
insert_documents: Final[Insert] = insert(documents)

delete_session: Final[Delete] = delete(sessions).where(_this)
delete_children: Final[tuple[Delete, ...]] = tuple(
    delete(table).where(table.c.session_id == bindparam(ID)) for table in (documents, errors, logs)
)

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
select_version: Final[Select[Any]] = select(sessions.c.version).where(_this)


@functools.cache
def returning_counters(statement: Update) -> Any:
    """Return the update with RETURNING, for databases that have it."""
    return statement.returning(*counters)


# --- append ---


class History(NamedTuple):
    """The statements of one history."""

    counter: str
    """The column of the session's row that counts it."""
    counting: Update
    """Counts one entry more; its position is the count afterwards."""
    insert: Insert
    append: Any
    """Both as one statement, for databases whose WITH can write; tells position, and phase where there is one."""


_TELLS: Final = ("position", "phase")


def _history(table: Table, counter: str) -> History:
    count = update(sessions).where(_this).values({"updated_at": _updated_at, counter: sessions.c[counter] + 1})
    counted = count.returning(sessions.c.session_id, sessions.c[counter], sessions.c.phase).cte("counted")
    placed = {"session_id": counted.c.session_id, "position": counted.c[counter]}
    given = {
        name: bindparam(ENTRY + name, type_=table.c[name].type)
        for name in (column.name for column in table.columns)
        if name not in placed
    }
    entry: dict[str, Any] = {**placed, **given}
    if "phase" in entry:
        entry["phase"] = func.coalesce(entry["phase"], counted.c.phase)
    append = insert(table).from_select(list(entry), select(*entry.values())).add_cte(counted)
    return History(
        counter, count, insert(table), append.returning(*(table.c[name] for name in _TELLS if name in table.c))
    )


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


def _listing(table: Table, *names: str) -> Any:
    """One statement that tells an unknown session (no row) from an empty slice (one row of NULLs)."""

    def listing(*conditions: ColumnElement[bool]) -> Select[Any]:
        entries = and_(table.c.session_id == sessions.c.session_id, table.c.position > bindparam(AFTER), *conditions)
        return (
            select(*(table.c[name] for name in names))
            .select_from(sessions.outerjoin(table, entries))
            .where(_this)
            .order_by(table.c.position)
            .limit(bindparam(LIMIT))
        )

    return listing


_list_errors: Final = _listing(errors, *_READ)
list_logs: Final[Select[Any]] = _listing(logs, "position", "message")()


@functools.cache
def list_errors(*, of_task: bool, of_phase: bool) -> Select[Any]:
    """Return the listing of errors; its filters take the parameters ``task_id`` and ``phase``."""
    conditions = []
    if of_task:
        conditions.append(errors.c.task_id == bindparam("task_id"))
    if of_phase:
        conditions.append(errors.c.phase == bindparam("phase"))
    statement: Select[Any] = _list_errors(*conditions)
    return statement


# --- find ---


def list_ids(asked: SessionFilter) -> Select[Any]:
    """Return the ids of what matches, oldest first."""
    return (
        select(sessions.c.session_id).where(*_conditions(asked)).order_by(sessions.c.created_at, sessions.c.session_id)
    )


def find(query: Query) -> Select[Any]:
    """Return the summaries of a page, and of one session more."""
    time, session_id = sessions.c[query.column], sessions.c.session_id
    statement = (
        select(
            session_id,
            sessions.c.phase,
            sessions.c.created_at,
            sessions.c.updated_at,
            sessions.c.version,
            sessions.c.error_count,
            sessions.c.log_count,
            sessions.c.active_task_id,
            *(documents.c[name].is_not(None).label(name) for name in ARTIFACTS),
        )
        .join_from(sessions, documents, documents.c.session_id == session_id, isouter=True)
        .where(*_conditions(query.filter))
        .limit(query.limit + 1)
    )
    if query.after is not None:
        last_time, last_id = query.after
        # the first half is what an index can use; (a, b) < (x, y) is a full scan on MariaDB
        if query.descending:
            statement = statement.where(time <= last_time, or_(time < last_time, session_id < last_id))
        else:
            statement = statement.where(time >= last_time, or_(time > last_time, session_id > last_id))
    if query.descending:
        return statement.order_by(time.desc(), session_id.desc())
    return statement.order_by(time, session_id)


def _conditions(asked: SessionFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if asked.phases is not None:
        # a text that no database takes is no stored phase either
        phases = [phase for phase in asked.phases if values.storable_phase(phase) == phase]
        conditions.append(sessions.c.phase.in_(sorted(phases)) if phases else false())
    if asked.created_from is not None:
        conditions.append(sessions.c.created_at >= asked.created_from)
    if asked.created_before is not None:
        conditions.append(sessions.c.created_at < asked.created_before)
    if asked.updated_from is not None:
        conditions.append(sessions.c.updated_at >= asked.updated_from)
    if asked.updated_before is not None:
        conditions.append(sessions.c.updated_at < asked.updated_before)
    if asked.has_errors is not None:
        conditions.append(sessions.c.error_count > 0 if asked.has_errors else sessions.c.error_count == 0)
    return conditions or [true()]
