"""Each write as one statement, for databases whose WITH can write: one round trip, without BEGIN and COMMIT.

The first part changes the session's row, under the same conditions as elsewhere, and the others take from it what
they insert: where it hits nothing, they do nothing. New entries come as arrays, so that any number is one statement.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    Table,
    bindparam,
    exists,
    func,
    insert,
    literal_column,
    null,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from vibeforge_sessions.repository.serialization import DOCUMENTS
from vibeforge_sessions.sql.operations import statements as sql
from vibeforge_sessions.sql.operations.statements import ERRORS, ID, LOGS, History
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions

# What the names of the parameters of each table begin with: a column's own is SQLAlchemy's.
_SESSION: Final = "session_"
_DOCUMENT: Final = "document_"
_ERROR: Final = "error_"
_LOG: Final = "log_"


@functools.cache
def create(*, with_errors: bool, with_logs: bool) -> Select[Any]:
    """Return the statement for a session, its documents and the histories that it brings along; it tells nothing."""
    hot = (
        insert(sessions)
        .values({column.name: _given(_SESSION, column) for column in sessions.columns})
        .returning(sessions.c.session_id, sessions.c.error_count, sessions.c.log_count)
        .cte("hot")
    )
    texts = {name: _given(_DOCUMENT, documents.c[name]) for name in DOCUMENTS}
    kept = insert(documents).from_select(["session_id", *texts], select(hot.c.session_id, *texts.values())).cte("kept")
    return select(hot.c.session_id).add_cte(kept, *_entries(hot, with_errors=with_errors, with_logs=with_logs))


@functools.cache
def update_session(names: tuple[str, ...], *, with_errors: bool, with_logs: bool) -> Any:
    """Return the guarded update of the session's row, of these documents, and with new entries; it tells counters."""
    changed = sql.update_session
    if names:  # a session without them is corrupt, and stays as it is
        changed = changed.where(exists().where(documents.c.session_id == bindparam(ID)))
    elif not with_errors and not with_logs:
        return sql.returning_counters(changed)
    hot = changed.returning(sessions.c.session_id, *sql.counters).cte("hot")
    parts = _entries(hot, with_errors=with_errors, with_logs=with_logs)
    if names:
        texts = {name: _given(_DOCUMENT, documents.c[name]) for name in names}
        parts.append(update(documents).where(documents.c.session_id == hot.c.session_id).values(texts).cte("kept"))
    return select(*(hot.c[column.name] for column in sql.counters)).add_cte(*parts)


@functools.cache
def append(history: History) -> Any:
    """Return the statement that counts and inserts an entry; it tells the position, and the phase if there is one."""
    table = history.table
    counted = history.counting.returning(sessions.c.session_id, sessions.c[history.counter], sessions.c.phase).cte(
        "hot"
    )
    placed = {"session_id": counted.c.session_id, "position": counted.c[history.counter]}
    entry: dict[str, Any] = {
        **placed,
        **{column.name: _given(_prefix(table), column) for column in table.columns if column.name not in placed},
    }
    if "phase" in entry:
        entry["phase"] = func.coalesce(entry["phase"], counted.c.phase)
    appended = insert(table).from_select(list(entry), select(*entry.values())).add_cte(counted)
    return appended.returning(*(table.c[name] for name in ("position", "phase") if name in table.c))


def of_session(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a row of the sessions is."""
    return {_SESSION + name: value for name, value in row.items()}


def of_documents(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the parameters that documents are."""
    return {_DOCUMENT + name: text for name, text in texts.items()}


def of_entry(history: History, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that an entry of a history is."""
    prefix = _prefix(history.table)
    return {prefix + name: value for name, value in row.items()}


def of_entries(history: History, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parameters that new entries of a history are: an array for each column; none for none."""
    if not rows:
        return {}
    prefix = _prefix(history.table)
    return {prefix + name: [row[name] for row in rows] for name in _own(history.table)}


def _entries(hot: CTE, *, with_errors: bool, with_logs: bool) -> list[CTE]:
    """Return the inserts of new entries, in their order, up to the counts of the session's row."""
    wanted = [(ERRORS, with_errors), (LOGS, with_logs)]
    return [_insert(hot, history) for history, there in wanted if there]


def _insert(hot: CTE, history: History) -> CTE:
    table = history.table
    names = _own(table)
    arrays = [bindparam(_prefix(table) + name, type_=ARRAY(table.c[name].type)) for name in names]
    given = (
        func.unnest(*arrays)
        .table_valued(*names, with_ordinality="number", joins_implicitly=True)
        .render_derived(f"new_{table.name}")
    )
    before = hot.c[history.counter] - func.cardinality(arrays[0])
    columns: list[ColumnElement[Any]] = [hot.c.session_id, before + given.c.number]
    columns += [given.c[name] for name in names]
    return insert(table).from_select(["session_id", "position", *names], select(*columns)).cte(f"added_{table.name}")


def _own(table: Table) -> list[str]:
    return [column.name for column in table.columns if column.name not in {"session_id", "position"}]


def _prefix(table: Table) -> str:
    return _ERROR if table is errors else _LOG


def _given(prefix: str, column: ColumnElement[Any]) -> Any:
    return bindparam(f"{prefix}{column.name}", type_=column.type)


# --- read ---

OF_ERROR: Final = 1
OF_LOG: Final = 2
OF_ROW: Final = 3
"""What a row of `histories` is of."""


def _slice(table: Table, kind: int, *columns: ColumnElement[Any] | None) -> Select[Any]:
    prefix = _prefix(table)
    return select(literal_column(str(kind)), table.c.position, *(null() if c is None else c for c in columns)).where(
        table.c.session_id == bindparam(ID),
        table.c.position > bindparam(f"{prefix}{sql.AFTER}"),
        table.c.position <= bindparam(f"{prefix}{sql.UNTIL}"),
    )


histories: Final = union_all(
    _slice(errors, OF_ERROR, errors.c.timestamp, errors.c.task_id, errors.c.error_message, errors.c.phase),
    _slice(logs, OF_LOG, None, None, logs.c.message, None),
    select(literal_column(str(OF_ROW)), sessions.c.version, null(), null(), sessions.c.write_id, null()).where(
        sessions.c.session_id == bindparam(ID)
    ),
)
"""Slices of both histories, in no order, and the version and write id that the session has at the same moment."""


def of_slices(session_id: str, slices: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the parameters of `histories`: after which position, and until which, of errors and logs."""
    parameters: dict[str, Any] = {ID: session_id}
    for prefix, (after, until) in zip((_ERROR, _LOG), slices, strict=True):
        parameters[prefix + sql.AFTER], parameters[prefix + sql.UNTIL] = after, until
    return parameters
