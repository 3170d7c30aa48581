"""How a unit of work runs its statements: through SQLAlchemy's `Connection`, or on the driver's connection below it.

The second way costs a quarter of the first: each statement is compiled once per engine, and its parameters and rows
pass through the same column types. It steps around the engine's events, so it is taken only where nobody listens.
"""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Engine, Executable
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.types import NullType

from vibeforge_sessions.sql.databases import Database, database_of
from vibeforge_sessions.sql.databases.base import OURS

Parameters = Mapping[str, Any]
Rows = Sequence[Sequence[Any]]

_DIALECT_EVENTS: Final = ("do_execute", "do_execute_no_params", "do_executemany", "handle_error")
_EVENTS: Final = (
    "after_cursor_execute",
    "after_execute",
    "before_cursor_execute",
    "before_execute",
    "commit",
    "engine_connect",
    "rollback",
    "set_connection_execution_options",
)
"""The events of an engine that the driver's way would not raise. ``begin`` is our own on SQLite, see there."""

_MOST: Final = 1_000
"""Compiled statements that are kept for an engine."""


class Executor(ABC):
    """Runs the statements of one unit of work on a connection; somebody else begins and ends the transaction."""

    __slots__ = ("connection", "database")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.database: Database = database_of(connection.dialect)

    @abstractmethod
    def begin(self, *, write: bool, at_once: bool) -> bool:
        """Begin a transaction; return whether there is one to commit, and not one around each statement."""

    @abstractmethod
    def commit(self) -> None:
        """Commit."""

    def end(self) -> None:  # noqa: B027 (one way has nothing to undo)
        """Leave the connection as it was, after the commit or before the rollback."""

    @abstractmethod
    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        """Run a statement; return its rows."""

    @abstractmethod
    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        """Run a statement that returns nothing, once for each set of parameters; return how many rows it hit."""

    def failed(self, error: BaseException) -> BaseException:
        """Return what a method has raised as SQLAlchemy would; the connection is given up where it is lost."""
        return error

    def row(self, statement: Executable, parameters: Parameters) -> Sequence[Any] | None:
        """Run a statement that returns one row at the most."""
        rows = self.rows(statement, parameters)
        return rows[0] if rows else None

    def is_duplicate(self, error: BaseException) -> bool:
        """Tell whether a primary key is there already, and no constraint of the DBA's own was broken."""
        error = self.failed(error)
        return isinstance(error, IntegrityError) and failure_code(error) in self.database.duplicate


class ThroughSQLAlchemy(Executor):
    """Everything that watches an engine sees every statement."""

    __slots__ = ()

    def begin(self, *, write: bool, at_once: bool) -> bool:
        return self.database.begin(self.connection, write=write, at_once=at_once)

    def commit(self) -> None:
        self.connection.commit()

    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        return self.connection.execute(statement, parameters).all()

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        given = parameters if len(parameters) > 1 else parameters[0]
        return self.connection.execute(statement, given).rowcount


class OnTheDriver(Executor):
    """Statements compiled once, run on the pooled connection's driver."""

    __slots__ = ("_driver", "_known")

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._driver: Any = connection.connection.dbapi_connection
        self._known = _compiled.setdefault(connection.dialect, {})

    def begin(self, *, write: bool, at_once: bool) -> bool:
        return self.database.begin_on_driver(self.connection, self._driver, write=write, at_once=at_once)

    def commit(self) -> None:
        self._driver.commit()

    def end(self) -> None:
        self.database.end_on_driver(self.connection, self._driver)

    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        compiled = self._known.get(statement) or self._compile(statement, has_rows=True)
        cursor = self._driver.cursor()
        try:
            cursor.execute(compiled.text, compiled.given(parameters))
            return compiled.taken(cursor.fetchall())
        finally:
            cursor.close()

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        compiled = self._known.get(statement) or self._compile(statement, has_rows=False)
        cursor = self._driver.cursor()
        try:
            if len(parameters) == 1:
                cursor.execute(compiled.text, compiled.given(parameters[0]))
            else:
                cursor.executemany(compiled.text, [compiled.given(each) for each in parameters])
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def failed(self, error: BaseException) -> BaseException:
        connection, dialect = self.connection, self.connection.dialect
        if isinstance(error, dialect.loaded_dbapi.Error):
            lost = dialect.is_disconnect(error, self._driver, None)
            if lost:
                connection.invalidate(error)
            ours = DBAPIError.instance(
                None,
                None,
                error,
                dialect.loaded_dbapi.Error,
                hide_parameters=True,
                connection_invalidated=lost,
                dialect=dialect,
            )
            ours.__cause__ = error
            return ours
        if not isinstance(error, Exception):  # interrupted in the middle of the driver's protocol
            connection.invalidate()
        return error

    def _compile(self, statement: Executable, *, has_rows: bool) -> _Compiled:
        if len(self._known) >= _MOST:  # filters come in many kinds; the others are a few dozen
            self._known.clear()
        compiled = self._known[statement] = _Compiled(statement, self.connection.dialect, has_rows=has_rows)
        return compiled


def executor_on(connection: Connection, *, fast: bool) -> Executor:
    """Return the quick way if it is allowed, the engine is ours as it was made, and nobody watches it."""
    if fast and not _is_watched(connection.engine):
        return OnTheDriver(connection)
    return ThroughSQLAlchemy(connection)


def _is_watched(engine: Engine) -> bool:
    """Tell whether somebody could miss something: by listening, by logging, or by options of his own."""
    options = engine.get_execution_options()
    if len(options) > 1 or not options.get(OURS) or engine.logger.isEnabledFor(logging.INFO):
        return True
    events, of_dialect = engine.dispatch, engine.dialect.dispatch
    return any(getattr(events, name) for name in _EVENTS) or any(getattr(of_dialect, name) for name in _DIALECT_EVENTS)


Processor = Callable[[Any], Any]


class _Compiled:
    """A statement as the driver takes it, and what its types do with values on their way in and out."""

    __slots__ = ("_constants", "_in", "_names", "_out", "_positional", "text")

    def __init__(self, statement: Any, dialect: Dialect, *, has_rows: bool) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self._positional: bool = compiled.positional
        self._names: tuple[str, ...] = tuple(compiled.positiontup or set(compiled.bind_names.values()))
        binds = {name: compiled.binds[name] for name in self._names}
        if untyped := [name for name, bind in binds.items() if isinstance(bind.type, NullType)]:
            raise AssertionError(f"parameters without a type would be stored as the driver likes: {', '.join(untyped)}")
        self._constants = {name: bind.value for name, bind in binds.items() if not bind.required}
        into = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in binds.items()}
        self._in: list[tuple[str, Processor]] = [(name, each) for name, each in into.items() if each is not None]
        # not asked of a statement without rows: it would remember, and one made from it with RETURNING believe it
        columns = statement.exported_columns if has_rows else ()
        out = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._out: list[tuple[int, Processor]] = [(index, each) for index, each in enumerate(out) if each is not None]

    def given(self, parameters: Parameters) -> Any:
        """Return the parameters in the driver's order and types."""
        values = {**self._constants, **parameters}
        for name, process in self._in:
            values[name] = process(values[name])
        if self._positional:
            return tuple([values[name] for name in self._names])
        return {name: values[name] for name in self._names}

    def taken(self, rows: list[Sequence[Any]]) -> Rows:
        """Return the rows in Python's types."""
        if not self._out or not rows:
            return rows
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        for index, process in self._out:
            columns[index] = [process(value) for value in columns[index]]
        return list(zip(*columns, strict=True))


_compiled: Final[weakref.WeakKeyDictionary[Dialect, dict[Executable, _Compiled]]] = weakref.WeakKeyDictionary()
"""The compiled statements of each engine, by its dialect, each made at its first use."""


def failure_code(error: DBAPIError) -> Any:
    """Return SQLite's error name, PostgreSQL's SQLSTATE or MariaDB's error number."""
    original: Any = error.orig
    if original.args and isinstance(original.args[0], int):
        return original.args[0]
    return getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None)
