"""Execution through SQLAlchemy's `Connection`: an engine's event listeners see every statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Executable, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects import database_dialect_of, failure_code
from vibeforge_sessions.sql.transactions.executor import Executor, Parameters, Rows
from vibeforge_sessions.sql.transactions.joined_writes import joined_writes


class ConnectionExecutor(Executor):
    """Executes each statement through `sqlalchemy.Connection.execute`."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection, *, joined: bool = False) -> None:
        self.connection = connection
        self.dialect = connection.dialect
        self.database = database_dialect_of(connection.dialect)
        self.joined = joined

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
        """End the server session of a lost connection; return whether that is certain.

        See `DatabaseDialect.end_server_session`.
        """
        try:
            return self.database.end_server_session(self.connection, session)
        except DBAPIError as error:
            if self.database.is_lost(error) or self.database.is_unavailable(failure_code(error)):
                raise
            return False
        finally:
            if not self.connection.closed:
                self.connection.rollback()

    def begin(self, *, write: bool, single_statement: bool) -> bool:
        fork_safety.check_file(self.info)
        return self.database.begin(self.connection, write=write, single_statement=single_statement)

    def wrote(self, session_id: str, *, deleted: bool = False) -> None:
        if self.joined:
            joined_writes(self.connection).deleted[session_id] = deleted

    def has_deleted(self, session_id: str) -> bool:
        return self.joined and joined_writes(self.connection).deleted.get(session_id, False)

    def transaction_of(self, session_id: str) -> str | None:
        writes = joined_writes(self.connection) if self.joined else None
        return writes.transaction_id if writes is not None and session_id in writes.deleted else None

    def reads_now(self, session_id: str) -> bool:
        return (
            self.joined
            and self.database.writes_bypass_snapshot
            and session_id in joined_writes(self.connection).deleted
        )

    def join(self) -> None:
        """Join the transaction of the connection; begin one if none has begun.

        :raises ConfigurationError: the driver is in no transaction although SQLAlchemy has begun one.
        :raises StorageError: another process has opened the connection.
        """
        fork_safety.track(self.connection.engine)
        fork_safety.check_joined(self.connection)
        if not self.connection.in_transaction():
            self.connection.begin()
        self.database.check_joined_connection(self.connection)

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        try:  # for SQLAlchemy the transaction has ended; SQLite's may go on
            self.connection.connection.rollback()
        except BaseException as error:  # the state of the connection is unknown
            self.give_up()
            if not isinstance(error, Exception):
                raise

    def give_up(self) -> None:
        if not self.connection.closed:  # SQLAlchemy closes it after an error of its own close
            self.connection.invalidate()

    def close(self) -> None:
        try:
            self.connection.close()
        except BaseException as error:  # lost at the ROLLBACK: the error before matters
            self.give_up()
            self.connection.close()
            if not isinstance(error, Exception):
                raise

    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        return self.connection.execute(statement, parameters).all()

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        given = parameters if len(parameters) > 1 else parameters[0]
        return self.connection.execute(statement, given).rowcount
