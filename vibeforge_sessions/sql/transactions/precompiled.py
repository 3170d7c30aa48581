"""Precompiled statements: compiled once per engine, and executed on the driver's connection below SQLAlchemy's.

Parameters and rows pass through the same column types as on the ordinary path. This takes 40 to 63 % of the ordinary
path's CPU time (python -m benchmarks.execution_paths), but the engine's events are not raised: `owned` decides when it
is used.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Dialect, Engine, Executable, PoolProxiedConnection
from sqlalchemy.types import NullType

from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects import DatabaseDialect
from vibeforge_sessions.sql.dialects.base import ISOLATION_LEVEL_CHANGED
from vibeforge_sessions.sql.transactions.error_translation import as_sqlalchemys
from vibeforge_sessions.sql.transactions.executor import Executor, Parameters, Rows

Processor = Callable[[Any], Any]

SCHEMAS: Final = "schema_translate_map"
_MOST: Final = 1_000
"""Precompiled statements that are kept for an engine."""


class PrecompiledStatement:
    """A statement's text, and the conversions of its parameters and rows."""

    __slots__ = ("_constants", "_in", "_out", "_pick", "text")

    def __init__(self, statement: Any, dialect: Dialect, schemas: Any, *, has_rows: bool) -> None:
        compiled = statement.compile(
            dialect=dialect, schema_translate_map=schemas, render_schema_translate=schemas is not None
        )
        self.text = str(compiled)
        names: Sequence[str] = compiled.positiontup or list(compiled.bind_names.values())
        self._pick = _picker(names) if compiled.positional else None
        binds = {name: compiled.binds[name] for name in names}
        if untyped := [name for name, bind in binds.items() if isinstance(bind.type, NullType)]:
            raise AssertionError(f"the driver alone would convert parameters without a type: {', '.join(untyped)}")
        self._constants = {name: bind.value for name, bind in binds.items() if not bind.required}
        into = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in binds.items()}
        self._in: list[tuple[str, Processor]] = [(name, each) for name, each in into.items() if each is not None]
        # a statement without rows would memoize its columns, and a RETURNING that is made from it would copy them
        columns = statement.exported_columns if has_rows else ()
        out = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._out: list[tuple[int, Processor]] = [(index, each) for index, each in enumerate(out) if each is not None]

    def bind(self, parameters: Parameters) -> Any:
        """Return the parameters in the driver's order and types."""
        values = {**self._constants, **parameters}
        for name, process in self._in:
            values[name] = process(values[name])
        return values if self._pick is None else self._pick(values)

    def row(self, row: Sequence[Any]) -> Sequence[Any]:
        """Return a row in Python's types."""
        if not self._out:
            return row
        values = list(row)
        for index, process in self._out:
            values[index] = process(values[index])
        return values

    def rows(self, rows: Rows) -> Rows:
        """Return rows in Python's types."""
        return list(zip(*self.columns(rows), strict=True)) if self._out and rows else rows

    def columns(self, rows: Rows) -> list[Sequence[Any]]:
        """Return rows by column, in Python's types; nothing for no rows."""
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        if columns:
            for index, process in self._out:
                columns[index] = list(map(process, columns[index]))
        return columns


Statements = dict[object, PrecompiledStatement]


def _picker(names: Sequence[str]) -> Callable[[Parameters], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)  # of a single name, itemgetter makes no tuple


class PrecompiledExecutor(Executor):
    """Executes precompiled statements on the driver's connection of a pooled connection.

    :param statements: the engine's precompiled statements; grows.
    """

    __slots__ = ("_driver", "_info", "_pooled", "_schemas", "_statements")

    def __init__(
        self, engine: Engine, database: DatabaseDialect, pooled: PoolProxiedConnection, statements: Statements
    ) -> None:
        self.dialect = engine.dialect
        self.database = database
        self.joined = False
        self._info = pooled.info
        self._schemas = engine.get_execution_options().get(SCHEMAS)
        self._pooled = pooled
        self._driver: Any = pooled.dbapi_connection
        self._statements = statements

    @property
    def driver(self) -> Any:
        return self._driver

    @property
    def pooled(self) -> PoolProxiedConnection:
        return self._pooled

    @property
    def own_connection(self) -> Any:
        return self.dialect.get_driver_connection(self._driver)

    @property
    def info(self) -> dict[Any, Any]:
        return self._info

    def begin(self, *, write: bool, single_statement: bool) -> bool:
        if fork_safety.rejected_files:
            fork_safety.check_file(self._info)
        begin = self.database.begin_statements
        if begin is not None:
            self._driver.execute(begin[write])
            return True
        self._info[ISOLATION_LEVEL_CHANGED] = True  # before it changes: the pool resets it, however this call ends
        return self.database.begin_on_driver(self.dialect, self._driver, write=write, single_statement=single_statement)

    def commit(self) -> None:
        self._driver.commit()

    def rollback(self) -> None:
        try:
            self._driver.rollback()
        except BaseException as error:  # the state of the connection is unknown
            self.give_up()
            if not isinstance(error, Exception):
                raise

    def give_up(self) -> None:
        if self._pooled.is_valid:
            self._pooled.invalidate()

    def close(self) -> None:
        self._pooled.close()

    def row(self, statement: Executable, parameters: Parameters) -> Sequence[Any] | None:
        compiled = self._statements.get(statement if self._schemas is None else (statement, *self._schemas.values()))
        if compiled is None:
            compiled = self._compile(statement, has_rows=True)
        cursor = self._driver.cursor()
        try:
            cursor.execute(compiled.text, compiled.bind(parameters))
            rows = cursor.fetchall()
        finally:
            cursor.close()
        return compiled.row(rows[0]) if rows else None

    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        compiled, rows = self._fetch(statement, parameters)
        return compiled.rows(rows)

    def columns(self, statement: Executable, parameters: Parameters) -> Rows:
        compiled, rows = self._fetch(statement, parameters)
        return compiled.columns(rows)

    def _fetch(self, statement: Executable, parameters: Parameters) -> tuple[PrecompiledStatement, Rows]:
        compiled = self._compile(statement, has_rows=True)
        cursor = self._driver.cursor()
        try:
            cursor.execute(compiled.text, compiled.bind(parameters))
            return compiled, cursor.fetchall()
        finally:
            cursor.close()

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        compiled = self._statements.get(statement if self._schemas is None else (statement, *self._schemas.values()))
        if compiled is None:
            compiled = self._compile(statement, has_rows=False)
        cursor = self._driver.cursor()
        try:
            if len(parameters) == 1:
                cursor.execute(compiled.text, compiled.bind(parameters[0]))
            else:
                cursor.executemany(compiled.text, [compiled.bind(each) for each in parameters])
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def failed(self, error: BaseException) -> BaseException:
        if isinstance(error, self.dialect.loaded_dbapi.Error):
            lost = self.dialect.is_disconnect(error, self._driver, None)
            if lost:
                self.give_up()
            return as_sqlalchemys(error, self.dialect, lost=lost)
        if not isinstance(error, Exception):  # interrupted in the middle of the driver's protocol
            self.give_up()
        return error

    def _compile(self, statement: Executable, *, has_rows: bool) -> PrecompiledStatement:
        # an engine's schema may be changed at any time
        key = statement if self._schemas is None else (statement, *self._schemas.values())
        compiled = self._statements.get(key)
        if compiled is None:
            if len(self._statements) >= _MOST:  # filters come in many kinds; the others are a few dozen
                self._statements.clear()
            compiled = PrecompiledStatement(statement, self.dialect, self._schemas, has_rows=has_rows)
            self._statements[key] = compiled
        return compiled
