"""How a unit of work runs its statements: through SQLAlchemy's `Connection`, or on the driver's connection below it.

The second way costs a quarter of the first: each statement is compiled once per engine, and its parameters and rows
pass through the same column types. It steps around the engine's events, so it is taken only where nobody listens.
"""

from __future__ import annotations

import logging
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Engine, Executable, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError, IntegrityError

from vibeforge_sessions.sql import fork
from vibeforge_sessions.sql.compiled import Compiled, Parameters, Rows
from vibeforge_sessions.sql.databases import Database, database_of, failure_code
from vibeforge_sessions.sql.databases.base import LEVEL_CHANGED, OURS, POOLER
from vibeforge_sessions.sql.failures import as_sqlalchemys
from vibeforge_sessions.sql.joined_transactions import joined_writes

Known = dict[object, Compiled]

_listeners: Final = operator.attrgetter(
    "after_cursor_execute",
    "after_execute",
    "before_cursor_execute",
    "before_execute",
    "commit",
    "engine_connect",
    "rollback",
    "set_connection_execution_options",
)
"""The listeners to the events that the driver's way would not raise. ``begin`` is our own on SQLite, see there."""
_dialects_listeners: Final = operator.attrgetter("do_execute", "do_execute_no_params", "do_executemany", "handle_error")
_SCHEMAS: Final = "schema_translate_map"
_UNDERSTOOD: Final = {OURS, POOLER, _SCHEMAS}
"""The execution options of an engine that the driver's way knows how to follow."""
_SESSION: Final = "vibeforge_sessions_server_session"
_MOST: Final = 1_000
"""Compiled statements that are kept for an engine."""


class Executor(ABC):
    """Runs the statements of one unit of work on a connection; somebody else begins and ends the transaction."""

    __slots__ = ("database", "dialect", "joined")

    def __init__(self, dialect: Dialect, *, joined: bool = False) -> None:
        self.dialect = dialect
        self.database: Database = database_of(dialect)
        self.joined = joined
        """Whether the transaction is a host's, who may have chosen one in which two reads show two moments."""

    @property
    @abstractmethod
    def driver(self) -> Any:
        """The driver's connection; an asynchronous driver's may come in SQLAlchemy's synchronous coat."""

    @property
    @abstractmethod
    def pooled(self) -> PoolProxiedConnection:
        """The connection of the pool, which is given back by it, or once nothing refers to it."""

    @property
    @abstractmethod
    def own_connection(self) -> Any:
        """The driver's own connection, without a coat."""

    @abstractmethod
    def begin(self, *, write: bool, at_once: bool) -> bool:
        """Begin a transaction; return whether there is one to commit, and not one around each statement."""

    @abstractmethod
    def commit(self) -> None:
        """Commit."""

    @abstractmethod
    def rollback(self) -> None:
        """Undo what a failed COMMIT has left, which the next one to get this connection would commit."""

    @abstractmethod
    def close(self) -> None:
        """Roll back what is not committed, and give the connection back as it was."""

    @abstractmethod
    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        """Run a statement; return its rows."""

    @property
    @abstractmethod
    def info(self) -> dict[Any, Any]:
        """What is to be remembered of this connection as long as it lasts."""

    @property
    def server_session(self) -> Any:
        """What `Database.end_session` needs once this connection is lost; a lost one does not tell."""
        if _SESSION not in self.info:
            self.info[_SESSION] = self.database.server_session(self.own_connection)
        return self.info[_SESSION]

    def wrote(self, session_id: str, *, deleted: bool = False) -> None:  # noqa: B027 (only a joined transaction reads after that)
        """Record that this transaction has written or deleted a session."""

    def has_deleted(self, session_id: str) -> bool:  # noqa: ARG002 (not all need it)
        """Return whether this transaction has deleted a session, and not written it since."""
        return False

    def reads_now(self, session_id: str) -> bool:  # noqa: ARG002 (not all need it)
        """Tell whether a session has to be read as it is now (see `Database.mixes_snapshots`)."""
        return False

    def columns(self, statement: Executable, parameters: Parameters) -> Rows:
        """Run a statement; return its rows by column, nothing for no row: what is made of many is made so."""
        return list(zip(*self.rows(statement, parameters), strict=True))

    @abstractmethod
    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        """Run a statement that returns nothing, once for each set of parameters; return how many rows it hit."""

    @abstractmethod
    def give_up(self) -> None:
        """Take the connection for one that is of no more use to anybody."""

    def failed(self, error: BaseException) -> BaseException:
        """Return what a method has raised as SQLAlchemy would; the connection is given up where it is lost."""
        return error

    def row(self, statement: Executable, parameters: Parameters) -> Sequence[Any] | None:
        """Run a statement that returns one row at the most."""
        rows = self.rows(statement, parameters)
        return rows[0] if rows else None

    def batches(self, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the rows, in parts that each fit into one statement (see `Database.batches`)."""
        return self.database.batches(self.dialect, self.driver, rows)

    def is_duplicate(self, error: BaseException) -> bool:
        """Tell whether a primary key is there already, and no constraint of the DBA's own was broken."""
        error = self.failed(error)
        return isinstance(error, IntegrityError) and failure_code(error) in self.database.duplicate


class ThroughSQLAlchemy(Executor):
    """Everything that watches an engine sees every statement."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection, *, joined: bool = False) -> None:
        super().__init__(connection.dialect, joined=joined)
        self.connection = connection

    @property
    def driver(self) -> Any:
        return self.connection.connection.driver_connection

    @property
    def pooled(self) -> PoolProxiedConnection:
        return self.connection.connection

    @property
    def own_connection(self) -> Any:
        return self.driver

    @property
    def info(self) -> dict[Any, Any]:
        return self.connection.info

    def end_session(self, session: Any) -> bool:
        """End another connection's session, which that one has lost; tell whether it is certain (see `Database`)."""
        try:
            return self.database.end_session(self.connection, session)
        except DBAPIError as error:
            if self.database.is_lost(error) or self.database.is_unavailable(failure_code(error)):
                raise
            return False
        finally:
            if not self.connection.closed:
                self.connection.rollback()

    def begin(self, *, write: bool, at_once: bool) -> bool:
        fork.check_file(self.info)
        return self.database.begin(self.connection, write=write, at_once=at_once)

    def wrote(self, session_id: str, *, deleted: bool = False) -> None:
        if self.joined:
            joined_writes(self.connection).deleted[session_id] = deleted

    def has_deleted(self, session_id: str) -> bool:
        return self.joined and joined_writes(self.connection).deleted.get(session_id, False)

    def reads_now(self, session_id: str) -> bool:
        return self.joined and self.database.mixes_snapshots and session_id in joined_writes(self.connection).deleted

    def join(self) -> None:
        """Join the transaction of the connection, which begins here if it has not yet.

        :raises StorageError: there is none, whatever SQLAlchemy says; or another process has opened the connection.
        """
        fork.track(self.connection.engine)
        fork.check_joined(self.connection)
        if not self.connection.in_transaction():
            self.connection.begin()
        self.database.join(self.connection)

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        try:  # SQLAlchemy takes the transaction for ended; SQLite's may go on
            self.connection.connection.rollback()
        except BaseException as error:  # whatever it is, this connection is of no more use
            self.give_up()
            if not isinstance(error, Exception):
                raise

    def give_up(self) -> None:
        if not self.connection.closed:  # it is, once SQLAlchemy has met an error while it closed it
            self.connection.invalidate()

    def close(self) -> None:
        try:
            self.connection.close()
        except BaseException as error:  # lost at the ROLLBACK: what happened before is what the caller must hear
            self.give_up()
            self.connection.close()
            if not isinstance(error, Exception):
                raise

    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        return self.connection.execute(statement, parameters).all()

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        given = parameters if len(parameters) > 1 else parameters[0]
        return self.connection.execute(statement, given).rowcount


class OnTheDriver(Executor):
    """Statements compiled once, run on the pooled connection's driver.

    :param known: the engine's statements that have been compiled so far; grows.
    """

    __slots__ = ("_driver", "_known", "_pooled", "_schemas")

    def __init__(self, engine: Engine, pooled: PoolProxiedConnection, known: Known) -> None:
        super().__init__(engine.dialect)
        self._schemas = engine.get_execution_options().get(_SCHEMAS)
        self._pooled = pooled
        self._driver: Any = pooled.dbapi_connection
        self._known = known

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
        return self._pooled.info

    def begin(self, *, write: bool, at_once: bool) -> bool:
        fork.check_file(self.info)
        self._pooled.info[LEVEL_CHANGED] = True  # before it is: the pool sets it back, however this call ends
        return self.database.begin_on_driver(self.dialect, self._driver, write=write, at_once=at_once)

    def commit(self) -> None:
        self._driver.commit()

    def rollback(self) -> None:
        try:
            self._driver.rollback()
        except BaseException as error:  # whatever it is, this connection is of no more use
            self.give_up()
            if not isinstance(error, Exception):
                raise

    def give_up(self) -> None:
        if self._pooled.is_valid:
            self._pooled.invalidate()

    def close(self) -> None:
        self._pooled.close()

    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        compiled, rows = self._fetch(statement, parameters)
        return list(zip(*compiled.taken(rows), strict=True)) if compiled.converts and rows else rows

    def columns(self, statement: Executable, parameters: Parameters) -> Rows:
        compiled, rows = self._fetch(statement, parameters)
        return compiled.taken(rows)

    def row(self, statement: Executable, parameters: Parameters) -> Sequence[Any] | None:
        compiled, rows = self._fetch(statement, parameters)
        return compiled.one(rows[0]) if rows else None

    def _fetch(self, statement: Executable, parameters: Parameters) -> tuple[Compiled, Rows]:
        compiled = self._compiled(statement, has_rows=True)
        cursor = self._driver.cursor()
        try:
            cursor.execute(compiled.text, compiled.given(parameters))
            return compiled, cursor.fetchall()
        finally:
            cursor.close()

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        compiled = self._compiled(statement, has_rows=False)
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
        if isinstance(error, self.dialect.loaded_dbapi.Error):
            lost = self.dialect.is_disconnect(error, self._driver, None)
            if lost:
                self.give_up()
            return as_sqlalchemys(error, self.dialect, lost=lost)
        if not isinstance(error, Exception):  # interrupted in the middle of the driver's protocol
            self.give_up()
        return error

    def _compiled(self, statement: Executable, *, has_rows: bool) -> Compiled:
        # an engine's schema may be changed at any time
        key = statement if self._schemas is None else (statement, *self._schemas.values())
        compiled = self._known.get(key)
        if compiled is None:
            if len(self._known) >= _MOST:  # filters come in many kinds; the others are a few dozen
                self._known.clear()
            compiled = self._known[key] = Compiled(statement, self.dialect, self._schemas, has_rows=has_rows)
        return compiled


def executor_of(engine: Engine, known: Known | None) -> Executor:
    """Take a connection of the engine; return the quick way on it if the engine is ours as made, and nobody watches.

    :param known: the engine's compiled statements; None to go through SQLAlchemy in any case.
    :raises SQLAlchemyError: the database cannot be reached.
    """
    if known is None or _is_watched(engine):
        return ThroughSQLAlchemy(engine.connect())
    try:
        return OnTheDriver(engine, engine.raw_connection(), known)
    except engine.dialect.loaded_dbapi.Error as error:
        raise as_sqlalchemys(error, engine.dialect, lost=False) from error


def _is_watched(engine: Engine) -> bool:
    """Tell whether somebody could miss something: by listening, by logging, or by options of his own."""
    options = engine.get_execution_options()
    if not options.get(OURS) or options.keys() - _UNDERSTOOD or engine.logger.isEnabledFor(logging.INFO):
        return True
    return any(_listeners(engine.dispatch)) or any(_dialects_listeners(engine.dialect.dispatch))
