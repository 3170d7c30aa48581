"""Building blocks of single-statement writes, for databases that support writable CTEs.

Such a write takes one round trip, without BEGIN and COMMIT.

The first CTE changes the session's row, under the same conditions as the ordinary statement. The other CTEs select from
the first one, so they write nothing if it matches no row. New entries are passed as arrays, so one statement inserts
any number of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import CTE, ColumnElement, Table, bindparam, func, insert, select
from sqlalchemy.dialects.postgresql import ARRAY

from vibeforge_sessions.sql.operations.session_rows import History
from vibeforge_sessions.sql.transactions.executor import Executor

# Prefixes of the parameters of each table, because SQLAlchemy reserves the column names themselves.
SESSION: Final = "session_"
DOCUMENT: Final = "document_"


def parameter(prefix: str, column: ColumnElement[Any]) -> Any:
    """Return the parameter for a column."""
    return bindparam(f"{prefix}{column.name}", type_=column.type)


def entry_part(row: CTE, history: History) -> CTE:
    """Return the CTE that inserts new entries. The position of the last entry is the count in the session's row."""
    table = history.table
    names = _own_columns(table)
    arrays = [bindparam(history.prefix + name, type_=ARRAY(table.c[name].type)) for name in names]
    given = (
        func.unnest(*arrays)
        .table_valued(*names, with_ordinality="number", joins_implicitly=True)
        .render_derived(f"new_{table.name}")
    )
    before = row.c[history.counter] - func.cardinality(arrays[0])
    columns: list[ColumnElement[Any]] = [row.c.session_id, before + given.c.number]
    columns += [given.c[name] for name in names]
    return insert(table).from_select(["session_id", "position", *names], select(*columns)).cte(f"added_{table.name}")


def changeset_parameters(
    executor: Executor, documents: Mapping[str, str | None], entries: Mapping[History, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return the parameters of a changeset's documents and new entries, whose positions the database assigns."""
    if documents or entries:
        executor.check_rows([dict(documents), *itertools.chain(*entries.values())])
    parameters: dict[str, Any] = {DOCUMENT + name: text for name, text in documents.items()}
    for history, rows in entries.items():
        names = _own_columns(history.table)
        parameters |= {history.prefix + name: [row[name] for row in rows] for name in names}
    return parameters


def _own_columns(table: Table) -> list[str]:
    return [column.name for column in table.columns if column.name not in {"session_id", "position"}]
