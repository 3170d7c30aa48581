"""The statements, built once. What a database lacks is asked of SQLAlchemy's dialect, not of its name.

Parents are written before children everywhere: the other order deadlocks MariaDB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Delete,
    FromClause,
    Insert,
    Integer,
    Select,
    Table,
    Update,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
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


def _inline(limit: int) -> ColumnElement[int]:
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
        .limit(_inline(1))
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


_TABLES: Final = {"error_count": (errors, _READ), "log_count": (logs, ("position", "message"))}


@functools.lru_cache(maxsize=128)
def list_entries(history: str, limit: int, *, of_task: bool = False, of_phase: bool = False) -> Select[Any]:
    """Return the listing of a history, by its counter; the filters take the parameters ``task_id`` and ``phase``.

    The last column is the counter, of the same moment. One statement tells an unknown session (no row) from an empty
    slice (one row of NULLs). The slice is cut before it is joined: a database that joins first sorts all that comes
    after it. The join has no order of its own.
    """
    table, names = _TABLES[history]
    entries = (
        select(*(table.c[name] for name in names))
        .where(table.c.session_id == bindparam(ID), table.c.position > bindparam(AFTER))
        .order_by(table.c.position)
        .limit(_inline(limit))
    )
    if of_task:
        entries = entries.where(table.c.task_id == bindparam("task_id"))
    if of_phase:
        entries = entries.where(table.c.phase == bindparam("phase"))
    cut = entries.subquery()
    columns = (*(cut.c[name] for name in names), sessions.c[history])
    return select(*columns).select_from(sessions.outerjoin(cut, true())).where(_this)


# --- find ---


def list_ids(asked: SessionFilter) -> tuple[Select[Any], dict[str, Any]]:
    """Return the statement for the ids of what matches, oldest first, and its parameters."""
    conditions, parameters = _asked(asked)
    return _list_ids(conditions), parameters


def find(query: Query) -> tuple[Select[Any], dict[str, Any]]:
    """Return the statement for the summaries of a page, and of one session more; and its parameters."""
    conditions, parameters = _asked(query.filter)
    if query.after is not None:
        parameters["last_time"], parameters["last_id"] = query.after
    return _find(query.column, query.descending, query.after is not None, query.limit + 1, conditions), parameters


@functools.lru_cache(maxsize=128)
def _list_ids(conditions: tuple[tuple[str, int], ...]) -> Select[Any]:
    return (
        select(sessions.c.session_id)
        .where(*map(_condition, conditions))
        .order_by(sessions.c.created_at, sessions.c.session_id)
    )


@functools.lru_cache(maxsize=128)
def _find(
    column: str,
    descending: bool,  # noqa: FBT001 (a cache's key)
    resumed: bool,  # noqa: FBT001
    limit: int,
    conditions: tuple[tuple[str, int], ...],
) -> Select[Any]:
    def page(statement: Select[Any]) -> Select[Any]:
        return _page(statement, column, descending=descending, resumed=resumed).limit(_inline(limit))

    asked = list(map(_condition, conditions))
    phases = conditions[0][1] if conditions and conditions[0][0] == _PHASES else 0
    source: FromClause = sessions
    if 1 < phases <= _MOST_PHASES and column == "created_at":
        # an index has the sessions of one phase in order, and not those of several: so a page of each, and of these one
        of_each = [
            page(select(sessions.c.session_id).where(sessions.c.phase == _phase(index), *asked[1:])).subquery()
            for index in range(phases)
        ]
        found = union_all(*(select(part.c.session_id) for part in of_each)).subquery()
        source, asked = found.join(sessions, sessions.c.session_id == found.c.session_id), []
    return page(
        select(
            sessions.c.session_id,
            sessions.c.phase,
            sessions.c.created_at,
            sessions.c.updated_at,
            sessions.c.version,
            sessions.c.error_count,
            sessions.c.log_count,
            sessions.c.active_task_id,
            sessions.c.held_at.is_not(None).label("held"),
            *(documents.c[name].is_not(None).label(name) for name in ARTIFACTS),
        )
        .select_from(source.outerjoin(documents, documents.c.session_id == sessions.c.session_id))
        .where(*asked)
    )


def _page(statement: Select[Any], column: str, *, descending: bool, resumed: bool) -> Select[Any]:
    time, session_id = sessions.c[column], sessions.c.session_id
    if resumed:
        last_time: BindParameter[Any] = bindparam("last_time")
        last_id: BindParameter[Any] = bindparam("last_id")
        # the first half is what an index can use; (a, b) < (x, y) is a full scan on MariaDB
        if descending:
            statement = statement.where(time <= last_time, or_(time < last_time, session_id < last_id))
        else:
            statement = statement.where(time >= last_time, or_(time > last_time, session_id > last_id))
    if descending:
        return statement.order_by(time.desc(), session_id.desc())
    return statement.order_by(time, session_id)


_PHASES: Final = "phases"
_MOST_PHASES: Final = 20
"""There are nine, and those that later versions may bring."""
_WINDOWS: Final[dict[str, Callable[[], ColumnElement[bool]]]] = {
    "created_from": lambda: sessions.c.created_at >= bindparam("created_from"),
    "created_before": lambda: sessions.c.created_at < bindparam("created_before"),
    "updated_from": lambda: sessions.c.updated_at >= bindparam("updated_from"),
    "updated_before": lambda: sessions.c.updated_at < bindparam("updated_before"),
}


def _asked(asked: SessionFilter) -> tuple[tuple[tuple[str, int], ...], dict[str, Any]]:
    """Return the kinds of a filter's conditions, each with a number, and their parameters.

    Filters of one kind are one statement.
    """
    kinds: list[tuple[str, int]] = []
    parameters: dict[str, Any] = {}
    if asked.phases is not None:
        # a text that no database takes is no stored phase either
        phases = sorted(phase for phase in asked.phases if values.storable_phase(phase) == phase)
        kinds.append((_PHASES, len(phases)))
        parameters.update({f"phase_{index}": phase for index, phase in enumerate(phases)})
    for name in _WINDOWS:
        if getattr(asked, name) is not None:
            kinds.append((name, 0))
            parameters[name] = getattr(asked, name)
    if asked.has_errors is not None:
        kinds.append(("has_errors", int(asked.has_errors)))
    return tuple(kinds), parameters


def _phase(index: int) -> BindParameter[Any]:
    return bindparam(f"phase_{index}", type_=sessions.c.phase.type)


def _condition(kind: tuple[str, int]) -> ColumnElement[bool]:
    name, number = kind
    if name == _PHASES:
        return sessions.c.phase.in_(list(map(_phase, range(number)))) if number else false()
    if name == "has_errors":
        return sessions.c.error_count > 0 if number else sessions.c.error_count == 0
    return _WINDOWS[name]()
