"""Query plans of the statements of a call, and the tables that they read completely."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import Engine, event

_OURS = re.compile(r"\bvibeforge_session\w*")
_SORTS = {"Sort", "Incremental Sort"}


class Plan(NamedTuple):
    """Plan of a statement."""

    how: str
    """Summary: the indexes that are used, and the tables that are read completely."""
    whole: list[str]
    """Tables that are read completely."""
    statement: str


def plans_of(engine: Engine, call: Any) -> list[Plan]:
    """Run a call on an engine, and return the plan of each statement."""
    seen: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:  # noqa: FBT001 (SQLAlchemy calls it)
        given = parameters[0] if many else parameters
        if _OURS.search(statement) and statement.lstrip().startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            seen.append((statement, given))

    event.listen(engine, "before_cursor_execute", listen)
    try:
        call()
    finally:
        event.remove(engine, "before_cursor_execute", listen)
    explain = {"sqlite": _of_sqlite, "postgresql": _of_postgresql}[engine.dialect.name]
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        return [explain(driver, statement, parameters) for statement, parameters in seen]


def _of_sqlite(driver: Any, statement: str, parameters: Any) -> Plan:
    steps = [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()]
    sorts = any(step.startswith("USE TEMP B-TREE FOR ORDER BY") for step in steps)
    ends = "LIMIT" in statement and not sorts
    used, whole = [], []
    for step in steps:
        match = re.match(r"(SEARCH|SCAN) (vibeforge_session\w*)(.*)", step)
        if match is None:
            continue
        kind, table, rest = match.groups()
        index = re.search(r"INDEX (\w+)", rest)
        name = _short(index[1] if index else table)
        if kind == "SEARCH" or "VIRTUAL TABLE" in rest:
            used.append(name)
        elif ends and index:
            used.append(f"{name} in order")
        else:
            used.append(f"all of {name}")
            whole.append(table)
    return Plan(", ".join(dict.fromkeys([*used, *(["sorted"] if sorts else [])])), whole, statement)


def _of_postgresql(driver: Any, statement: str, parameters: Any) -> Plan:
    cursor = driver.cursor()
    cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
    (tree,) = cursor.fetchone()[0]
    driver.rollback()
    nodes = list(_nodes(tree["Plan"]))
    sorts = any(node["Node Type"] in _SORTS for node, _ in nodes)
    used, whole = [], []
    for node, ends in nodes:
        table, index = node.get("Relation Name", ""), node.get("Index Name")
        if node["Node Type"] == "Seq Scan" and _OURS.match(table):
            used.append(f"all of {_short(table)}")
            whole.append(table)
        elif index is not None and "Index Cond" in node:
            used.append(_short(index))
        elif index is not None and ends:
            used.append(f"{_short(index)} in order")
        elif index is not None:
            used.append(f"all of {_short(index)}")
            whole.append(table or index)
    return Plan(", ".join(dict.fromkeys([*used, *(["sorted"] if sorts else [])])), whole, statement)


def _nodes(node: dict[str, Any], *, ends: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each node of a plan, and whether it may end early: below a limit, without a sort in between."""
    yield node, ends
    ends = node["Node Type"] == "Limit" or (ends and node["Node Type"] not in _SORTS)
    for each in node.get("Plans", ()):
        yield from _nodes(each, ends=ends)


def _short(name: str) -> str:
    """Return the name of an index without the common prefix."""
    name = re.sub(r"^(sqlite_autoindex_|ix_|pk_)?vibeforge_sessions?_?|(_session_id|_?1|_?pkey)$", "", name)
    return name or "sessions"
