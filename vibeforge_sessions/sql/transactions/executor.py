"""Execution of an operation's statements on both paths: through SQLAlchemy's `Connection`, and precompiled.

Precompiled statements are compiled once per engine, and executed directly on the driver's connection. Parameters and
rows are converted by the same column types as on the ordinary path. The precompiled path takes 44 to 68 % of the
ordinary path's CPU time (python -m benchmarks.execution_paths), but raises none of the engine's events. The module
`owned` decides which path is used.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

from sqlalchemy import Connection, Delete, Dialect, Executable, PoolProxiedConnection, RootTransaction, Select, Update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import NullType

from vibeforge_sessions.model import validation
from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects.base import ISOLATION_LEVEL_CHANGED, DatabaseDialect

Parameters = Mapping[str, Any]
Rows = Sequence[Sequence[Any]]
Processor = Callable[[Any], Any]

_SESSION: Final = "vibeforge_sessions_server_session"
_WRITES: Final = "vibeforge_sessions_writes"
_MOST: Final = 1_000
"""Maximum number of precompiled statements that are kept for an engine."""


@dataclasses.dataclass(frozen=True, slots=True)
class JoinedWrites:
    """The sessions written in one transaction of the caller, by all repositories that joined it."""

    transaction: weakref.ref[RootTransaction]
    transaction_id: str = dataclasses.field(default_factory=validation.new_write_id)
    deleted: dict[str, bool] = dataclasses.field(default_factory=dict)
    """Each session that was written, and whether the last write deleted it."""

    def transaction_of(self, session_id: str) -> str | None:
        """Return the id of the transaction if it has written or deleted the session."""
        return self.transaction_id if session_id in self.deleted else None


def joined_writes(connection: Connection) -> JoinedWrites:
    """Return the writes of the connection's current transaction, which must have begun."""
    transaction = connection.get_transaction()
    if transaction is None:
        raise AssertionError("no transaction has begun")
    writes: JoinedWrites | None = connection.info.get(_WRITES)
    if writes is None or writes.transaction() is not transaction:
        writes = connection.info[_WRITES] = JoinedWrites(weakref.ref(transaction))
    return writes


@functools.cache
def returning(statement: Update | Delete, select: Select[Any]) -> Any:
    """Return an update or a deletion that returns the columns of `select`, for databases with RETURNING."""
    return statement.returning(*select.selected_columns)


class Executor:
    """Executes the statements of one operation on a connection; the runner begins and ends the transaction.

    This class executes them through `sqlalchemy.Connection.execute`, so the engine's event listeners see each of them.
    """

    __slots__ = ("connection", "database", "dialect", "joined", "writes")

    joined: bool
    """Whether the transaction is the caller's. The caller's isolation level may let two reads see different states."""
    writes: JoinedWrites
    """The sessions that a joined transaction has written; not set in other transactions."""

    def __init__(self, connection: Connection, database: DatabaseDialect, *, joined: bool = False) -> None:
        self.connection = connection
        self.database = database
        self.dialect = connection.dialect
        self.joined = joined

    @property
    def pooled(self) -> PoolProxiedConnection:
        """The pooled connection; it returns to the pool when it is closed, or when nothing refers to it."""
        return self.connection.connection

    @property
    def driver(self) -> Any:
        """The driver's own connection."""
        return self.pooled.driver_connection

    @property
    def server_session(self) -> Any:
        """The argument of `DatabaseDialect.end_server_session`, kept because a lost connection cannot return it."""
        info = self.connection.info
        if _SESSION not in info:
            info[_SESSION] = self.database.server_session(self.driver)
        return info[_SESSION]

    def begin(self, *, write: bool, single_statement: bool) -> bool:
        """Begin a transaction.

        :param single_statement: each write of the operation is a single statement where the database supports that.
        :returns: whether there is a transaction to commit; otherwise each statement commits itself.
        """
        fork_safety.check_file(self.connection.info)
        return self.database.begin(self.connection, write=write, single_statement=single_statement)

    def join(self) -> Self:
        """Join the transaction of the connection; begin one if none has begun. Return the executor.

        :raises ConfigurationError: the driver is in no transaction although SQLAlchemy has begun one.
        :raises StorageError: another process has opened the connection.
        """
        fork_safety.track(self.connection.engine)
        fork_safety.check_joined(self.connection)
        if not self.connection.in_transaction():
            self.connection.begin()
        self.database.check_joined_connection(self.connection)
        self.writes = joined_writes(self.connection)
        return self

    def commit(self) -> None:
        """Commit."""
        self.connection.commit()

    def rollback(self) -> None:
        """Roll back what a failed COMMIT has left open, because the next user of the connection would commit it."""
        try:  # SQLAlchemy has ended its transaction, but SQLite's may still be open
            self.pooled.rollback()
        except BaseException as error:  # the state of the connection is unknown
            self.give_up()
            if not isinstance(error, Exception):
                raise

    def give_up(self) -> None:
        """Discard the connection."""
        if not self.connection.closed:  # a failed close may have closed the connection
            self.connection.invalidate()

    def close(self) -> None:
        """Roll back uncommitted changes, and return the connection to the pool in its original state."""
        try:
            self.connection.close()
        except BaseException as error:  # the connection was lost at the ROLLBACK; the earlier error matters more
            self.give_up()
            self.connection.close()
            if not isinstance(error, Exception):
                raise

    def columns(self, statement: Executable, parameters: Parameters) -> Rows:
        """Execute a statement; return its columns, or an empty list if there are no rows. Used for long histories."""
        return list(zip(*self.connection.execute(statement, parameters).all(), strict=True))

    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        """Execute a statement; return its rows."""
        return list(zip(*self.columns(statement, parameters), strict=True))

    def row(self, statement: Executable, parameters: Parameters) -> Sequence[Any] | None:
        """Execute a statement that returns at most one row."""
        return next(zip(*self.columns(statement, parameters), strict=True), None)

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        """Execute a statement without result rows, once per set of parameters; return the number of matched rows."""
        return self.connection.execute(statement, parameters if len(parameters) > 1 else parameters[0]).rowcount

    def updated_row(self, update: Update, parameters: Parameters, select: Select[Any]) -> Sequence[Any] | None:
        """Update a row, and return the columns of the row that `select` reads; None if the update matches no row."""
        if self.dialect.update_returning:
            return self.row(returning(update, select), parameters)
        return self.row(select, parameters) if self.write(update, [parameters]) else None

    def failed(self, error: BaseException) -> BaseException:
        """Return an error of another method, as SQLAlchemy's error; discard the connection after an interruption."""
        return error

    def check_rows(self, rows: list[dict[str, Any]]) -> None:
        """Check that the rows can be written (see `DatabaseDialect.check_rows`)."""
        self.database.check_rows(self.dialect, self.driver, rows)

    def wrote(self, session_id: str, *, deleted: bool = False) -> None:
        """Record that a joined transaction has written or deleted a session."""
        if self.joined:
            self.writes.deleted[session_id] = deleted

    def transaction_of(self, session_id: str) -> str | None:
        """Return the id of the joined transaction if it has written or deleted the session."""
        return self.writes.transaction_of(session_id) if self.joined else None

    def reads_now(self, session_id: str) -> bool:
        """Return whether a session must be read as committed now (see `DatabaseDialect.writes_bypass_snapshot`)."""
        return self.joined and self.database.writes_bypass_snapshot and session_id in self.writes.deleted


class PrecompiledStatement:
    """A statement's text, and the conversions of its parameters and rows."""

    __slots__ = ("_constants", "_in", "_out", "_pick", "text")

    def __init__(self, statement: Any, dialect: Dialect, schemas: Any) -> None:
        compiled = statement.compile(
            dialect=dialect, schema_translate_map=schemas, render_schema_translate=schemas is not None
        )
        self.text = str(compiled)
        names: Sequence[str] = compiled.positiontup or list(compiled.bind_names.values())
        self._pick = _picker(names) if compiled.positional else None
        binds = {name: compiled.binds[name] for name in names}
        if untyped := [name for name, bind in binds.items() if isinstance(bind.type, NullType)]:
            raise AssertionError(f"the driver would convert parameters that have no type: {', '.join(untyped)}")
        self._constants = {name: bind.value for name, bind in binds.items() if not bind.required}
        into = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in binds.items()}
        self._in: list[tuple[str, Processor]] = [(name, each) for name, each in into.items() if each is not None]
        columns = compiled._result_columns  # noqa: SLF001 (an UPDATE would memoize its exported_columns)
        out = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._out: list[tuple[int, Processor]] = [(index, each) for index, each in enumerate(out) if each is not None]

    def bind(self, parameters: Parameters) -> Any:
        """Return the parameters in the driver's order and types."""
        values = {**self._constants, **parameters}
        for name, process in self._in:
            values[name] = process(values[name])
        return values if self._pick is None else self._pick(values)

    def columns(self, rows: Rows) -> list[Sequence[Any]]:
        """Return the columns of rows, in Python's types; an empty list if there are no rows."""
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        if columns:
            for index, process in self._out:
                columns[index] = list(map(process, columns[index]))
        return columns


def _picker(names: Sequence[str]) -> Callable[[Parameters], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)  # with a single name, itemgetter returns no tuple


class PrecompiledStatements(dict[Executable, PrecompiledStatement]):
    """The statements of an engine, each compiled when it is first looked up."""

    def __init__(self, dialect: Dialect, schemas: Any) -> None:
        super().__init__()
        self.dialect = dialect
        self.schemas = schemas
        """The engine's ``schema_translate_map``."""

    def __missing__(self, statement: Executable) -> PrecompiledStatement:
        if len(self) >= _MOST:  # listings have many forms; all other statements are a few dozen
            self.clear()
        compiled = self[statement] = PrecompiledStatement(statement, self.dialect, self.schemas)
        return compiled


class PrecompiledExecutor(Executor):
    """Executes precompiled statements on the cursor of the driver's connection."""

    __slots__ = ("_driver", "_statements")

    def __init__(self, connection: Connection, database: DatabaseDialect, statements: PrecompiledStatements) -> None:
        self.connection = connection
        self.database = database
        self.dialect = connection.dialect
        self.joined = False
        self._driver: Any = connection.connection.dbapi_connection
        self._statements = statements

    def begin(self, *, write: bool, single_statement: bool) -> bool:
        if fork_safety.rejected_files:
            fork_safety.check_file(self.connection.info)
        begin = self.database.begin_statements
        if begin is not None:
            self._driver.execute(begin[write])
            return True
        level = self.database.isolation_level(self.dialect, write=write, single_statement=single_statement)
        if level is not None:  # only PostgreSQL sets a level
            self.connection.info[ISOLATION_LEVEL_CHANGED] = True  # set first, so that the pool always resets the level
            self._driver.commit()  # keeps the settings of a caller's `connect` listener, if there is one
            self.dialect.set_isolation_level(self._driver, level)
        return level != "AUTOCOMMIT"

    def commit(self) -> None:
        self._driver.commit()

    def columns(self, statement: Executable, parameters: Parameters) -> Rows:
        compiled = self._statements[statement]
        cursor = self._driver.cursor()
        try:
            cursor.execute(compiled.text, compiled.bind(parameters))
            return compiled.columns(cursor.fetchall())
        finally:
            cursor.close()

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        compiled = self._statements[statement]
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
        driver_error = self.dialect.loaded_dbapi.Error
        if isinstance(error, driver_error):
            lost = self.dialect.is_disconnect(error, self._driver, None)
            wrapped = DBAPIError.instance(
                None, None, error, driver_error, hide_parameters=True, connection_invalidated=lost, dialect=self.dialect
            )
            wrapped.__cause__ = error
            return wrapped
        if not isinstance(error, Exception):  # interrupted in the middle of the driver's protocol
            self.give_up()
        return error
