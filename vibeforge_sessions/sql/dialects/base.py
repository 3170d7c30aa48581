"""Interface of the database dialects, and helpers that they share."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from sqlalchemy import URL, ColumnElement, Connection, Dialect, Engine, func
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.exc import DBAPIError, TimeoutError  # noqa: A004 (the pool's)

from vibeforge_sessions.errors import ConfigurationError, InvalidSessionError, SchemaError

PREPARED: Final = "vibeforge_sessions_prepared"
"""Execution option that marks an engine of this package's `create_engine` as prepared."""
BEHIND_POOLER: Final = "vibeforge_sessions_pooler"
"""Execution option of a prepared engine behind a pooler. A server session cannot be ended through a pooler."""
ISOLATION_LEVEL_CHANGED: Final = "vibeforge_sessions_level_changed"
"""Key in the `info` of a pooled connection whose isolation level may differ from the engine's."""

CONNECT_TIMEOUT: Final = 5
"""Seconds that a prepared engine waits for a server to accept a connection."""
LOCK_TIMEOUT: Final = 10
"""Seconds that the connections of a prepared engine wait for a row lock of another transaction."""
IDLE_TIMEOUT: Final = 60
"""Seconds after which the server ends an idle transaction.

Without this limit, the server keeps the locks of a vanished client for hours.
"""

Rows = list[dict[str, Any]]


class DatabaseDialect(ABC):
    """Everything that differs between databases.

    The rest of the package calls these methods and does not compare names of SQLAlchemy dialects.
    """

    names: ClassVar[tuple[str, ...]]
    """Names of the SQLAlchemy dialects of this database."""
    drivers: ClassVar[Mapping[str, str | None]]
    """Supported drivers, default first, each with the extra that installs it."""
    async_drivers: ClassVar[Mapping[str, str | None]] = {}
    transactional_ddl: ClassVar[bool] = True
    """Whether a failed migration leaves the schema unchanged."""
    has_schemas: ClassVar[bool] = False
    """Whether a database contains named schemas."""
    supports_writable_ctes: ClassVar[bool] = False
    """Whether ``WITH … AS (UPDATE … RETURNING …) INSERT …`` is supported, so that a write needs no transaction."""
    writes_bypass_snapshot: ClassVar[bool] = False
    """Whether writes use the latest committed rows, while reads use the snapshot from the start of the transaction."""
    is_server: ClassVar[bool] = True
    """Whether the database is reached over a network connection, which may be lost or stop answering."""
    transient_codes: ClassVar[frozenset[Any]] = frozenset()
    """Codes of transient failures: a deadlock, a serialization failure or a lock timeout.

    The transaction was rolled back, so it may be retried even after its COMMIT was sent.
    """
    unavailable_codes: ClassVar[frozenset[Any]] = frozenset()
    """Codes of a server that is missing or cannot be used now. Another connection may succeed."""
    connection_bound_codes: ClassVar[frozenset[Any]] = frozenset()
    """Codes of failures that persist on the connection after their cause is removed."""
    corruption_codes: ClassVar[frozenset[Any]] = frozenset()
    """Codes of a database that has detected corruption of its own data."""
    duplicate_key_codes: ClassVar[frozenset[Any]]
    """Codes of a duplicate primary key."""
    missing_schema_codes: ClassVar[frozenset[Any]] = frozenset()
    """Codes of a missing table, column or schema."""
    statement_timeout_codes: ClassVar[frozenset[Any]] = frozenset()
    """Codes of a statement that exceeded `statement_time_limit`."""
    create_database_statement: ClassVar[str | None] = None
    """Statement that creates an empty database on the server. None if a database is a file."""
    drop_database_statement: ClassVar[str] = ""
    """Statement that drops that database. It runs outside a transaction."""
    settings_query: ClassVar[str] = ""
    """Query for settings of the server that every transaction depends on."""
    begin_statements: ClassVar[tuple[str, str] | None] = None
    """Statements that begin a read transaction and a write transaction. None if the driver begins transactions."""
    short_lock_timeout_statements: ClassVar[tuple[str, ...]] = ()
    """Statements that limit each wait of a connection for a lock to ten seconds."""

    server_settings: ClassVar[weakref.WeakKeyDictionary[Dialect, Any]] = weakref.WeakKeyDictionary()
    """Results of `check_settings`, by the dialect of each engine."""

    @abstractmethod
    def engine_options(self, url: URL, settings: EngineSettings) -> dict[str, Any]:
        """Return options for `sqlalchemy.create_engine`. The caller's ``connect_args`` are merged into them."""

    def add_event_listeners(self, engine: Engine, url: URL, settings: EngineSettings) -> None:  # noqa: B027 (not all need it)
        """Add event listeners to a prepared engine."""

    @abstractmethod
    def begin(self, connection: Connection, *, write: bool, single_statement: bool) -> bool:
        """Begin a transaction in which all reads use one snapshot, on any engine.

        :param single_statement: the operation needs no transaction on a database that `supports_writable_ctes`.
        :returns: whether a transaction was begun. If not, each statement commits itself.
        """

    def check_joined_connection(self, connection: Connection) -> None:
        """Check that the caller's connection, on which SQLAlchemy has begun a transaction, can be used unchanged.

        :raises ConfigurationError: it cannot. The error names the fix.
        """
        driver: Any = connection.connection.dbapi_connection
        if connection.dialect.detect_autocommit_setting(driver):
            raise ConfigurationError(
                "this connection is in AUTOCOMMIT, so there is no transaction to join: leave isolation_level out, or "
                "give the repository the Engine"
            )
        self.check_server(connection)

    def isolation_level(self, dialect: Dialect, *, write: bool, single_statement: bool) -> IsolationLevel | None:
        """Return the isolation level that a transaction sets on a prepared engine; None if it sets none.

        In AUTOCOMMIT, each statement commits itself. Call `check_server` first.
        """
        return None

    def check_server(self, connection: Connection) -> None:
        """Check the settings of the server, once for each engine, and keep them in `server_settings`.

        :raises ConfigurationError: with these settings, the server would change text. The error names the fix.
        """
        if self.settings_query and connection.dialect not in self.server_settings:
            is_joined = connection.in_transaction()
            row = connection.exec_driver_sql(self.settings_query).one()
            driver = connection.connection.driver_connection
            self.server_settings[connection.dialect] = self.check_settings(row, driver)
            if not is_joined:
                connection.rollback()

    def check_settings(self, row: Sequence[Any], driver: Any) -> Any:  # noqa: B027 (not all need it)
        """Check the result of `settings_query` on a driver connection; return the value for `server_settings`."""

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the connection was lost, and with it the answer to the last statement."""
        return isinstance(error, DBAPIError) and error.connection_invalidated

    def is_unreachable(self, error: DBAPIError, code: Any) -> bool:
        """Return whether a failed connection attempt may succeed later."""
        return code in self.unavailable_codes

    def may_have_committed(self, code: Any) -> bool:
        """Return whether the outcome of a COMMIT that failed with this code is unknown."""
        return code not in self.transient_codes

    def abort_connection(self, connection: Any) -> None:
        """Close the socket of a driver connection on which a thread or a task waits for the server."""
        with contextlib.suppress(Exception):  # the connection may have been closed meanwhile
            if hasattr(connection, "terminate"):  # of asyncpg
                connection.terminate()
            elif getattr(connection, "_transport", None) is not None:  # of asyncmy
                connection._transport.abort()  # noqa: SLF001
            else:  # of psycopg and PyMySQL
                number = getattr(connection, "_sock", connection).fileno()
                with socket.socket(fileno=os.dup(number)) as duplicate:
                    duplicate.shutdown(socket.SHUT_RDWR)

    def server_session(self, connection: Any) -> Any:
        """Return the data about a driver connection that `end_server_session` needs."""
        return None

    def end_server_session(self, connection: Connection, session: Any) -> bool:
        """End the server session of a lost connection, using another connection that is in no transaction.

        The server may not have noticed the loss. It would then keep the locks for hours and execute statements that
        arrive late.

        :returns: whether it is certain that the server executes none of the lost connection's statements from now on.
        """
        return True

    def wait_for_replication(self, connection: Connection) -> None:  # noqa: B027 (not all need it)
        """Wait until the node of this connection has applied all earlier commits of its cluster."""

    @abstractmethod
    def check_rows(self, dialect: Dialect, driver: Any, rows: Rows) -> None:
        """Check that the driver connection can send the rows; the driver splits them into statements.

        :raises InvalidSessionError: a statement would be too large. The error names its size and the limit.
        """

    @abstractmethod
    def statement_time_limit(self, driver: Any, seconds: float) -> AbstractContextManager[None]:
        """Limit the duration of each statement in a read transaction of a synchronous driver connection."""

    def period_start(self, time: ColumnElement[Any], unit: str) -> ColumnElement[Any]:
        """Return the start of a time's hour or day, as a prefix of the ISO text or as a naive datetime in UTC.

        :param unit: ``hour`` or ``day``.
        """
        return func.substr(time, 1, 13 if unit == "hour" else 10)

    @abstractmethod
    def table_sizes(self, connection: Connection, tables: Sequence[str], schema: str | None) -> Sequence[Sequence[Any]]:
        """Return rows of table name, table bytes and index bytes. The name None stands for the whole database."""

    def migration_settings(self, timeouts: MigrationTimeouts, *, of_session: bool) -> tuple[str, ...]:
        """Return the statements that set the time limits of a migration.

        :param of_session: set the limits for the database session instead of the transaction.
        """
        return ()

    @contextmanager
    def migration_lock(self, connection: Connection, timeouts: MigrationTimeouts) -> Iterator[None]:
        """Hold the migration lock. A transaction that the caller has begun continues, and the caller ends it.

        :raises SchemaError: another migration still holds the lock after ``timeouts.migration`` seconds.
        """
        if connection.in_transaction():
            with self.named_lock(connection, timeouts):
                yield
            return
        # A second connection takes the lock, so that this one has no open transaction and no table lock while it waits.
        try:
            second = connection.engine.connect()
        except TimeoutError:
            raise SchemaError(
                "a migration needs a second connection for its lock, but the engine's pool has none left: allow the "
                "pool at least two connections"
            ) from None
        with second, self.named_lock(second, timeouts), self.migration_session(connection, timeouts):
            yield

    def named_lock(self, connection: Connection, timeouts: MigrationTimeouts) -> AbstractContextManager[None]:
        """Hold a lock that the server knows by a name or number.

        If the connection is in no transaction, the lock must survive idle timeouts and must not block CREATE INDEX
        CONCURRENTLY.

        :raises SchemaError: as `migration_lock` does.
        """
        raise NotImplementedError

    def migration_session(self, connection: Connection, timeouts: MigrationTimeouts) -> AbstractContextManager[None]:
        """Set the time limits of a connection that migrates outside a transaction, and reset them at the end."""
        raise NotImplementedError

    @abstractmethod
    def grants(self, role: str | None, migrator: str | None, *, database: str | None, schema: str | None) -> list[str]:
        """Return SQL lines that grant the least privileges to the roles of the application and the migrator.

        :raises ConfigurationError: the name of the database is needed and missing.
        """

    @abstractmethod
    def backup(self, connection: Connection, path: Path) -> None:
        """Write a consistent copy of the database into a new file. Other connections may write meanwhile.

        :raises ConfigurationError: this database has its own backup tool. The error names the command.
        """


class MigrationTimeouts(NamedTuple):
    """Time limits of a migration in seconds. None selects the default."""

    lock: float | None = None
    """Seconds to wait for another migration, and for a table lock."""
    statement: float | None = None
    """Time limit of a statement in seconds, 0 for no limit."""

    @property
    def migration(self) -> float:
        """Seconds to wait for another migration."""
        return 60.0 if self.lock is None else self.lock

    @property
    def table(self) -> float:
        """Seconds to wait for a table lock. While a migration waits, it blocks every other access to the table."""
        return 10.0 if self.lock is None else self.lock


class EngineSettings(NamedTuple):
    """Options of `create_engine` that only some databases support."""

    synchronous: str = "FULL"
    busy_timeout: float = 30.0
    pgbouncer: bool = False


def is_prepared(connection: Connection) -> bool:
    """Return whether this package's `create_engine` made the engine and its isolation level is unchanged."""
    options = connection.get_execution_options()
    return bool(options.get(PREPARED)) and "isolation_level" not in options


def check_size(rows: Rows, limit: int, setting: str, *, overhead: int = 0, escaped: str = "") -> None:
    """Check that the rows of a statement are not too large.

    :param overhead: upper limit of the bytes of a statement without its values.
    :param escaped: characters to each of which the driver adds an escape character.
    :raises InvalidSessionError: the rows are too large. The error names the size and the limit.
    """
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    size = 4 * sum(map(len, texts)) + overhead  # UTF-8 takes at most four bytes per character
    if size > limit:  # encode only strings that may be too large: encoding takes longer than `len`
        size = sum(len(text.encode()) + sum(map(text.count, escaped)) for text in texts) + overhead
        if size > limit:
            raise InvalidSessionError(
                f"one statement would need {size:,} bytes, but this database accepts at most {limit:,} ({setting}): "
                "make the session smaller, or raise the limit"
            )


def quoted(name: str, mark: str = '"') -> str:
    """Return a name between quotation marks."""
    return mark + name.replace(mark, 2 * mark) + mark


def lock_error(timeouts: MigrationTimeouts, holder: str | None) -> SchemaError:
    """Return the error for a migration that did not get its lock."""
    return SchemaError(
        f"nothing was migrated, because the migration lock was still not free after {timeouts.migration:g} s "
        f"({holder or 'the other migration has just released it'}): retry later"
    )


def failure_code(error: BaseException | None) -> Any:
    """Return SQLite's error name, PostgreSQL's SQLSTATE or MariaDB's error number; None if the error has none."""
    original: Any = error.orig if isinstance(error, DBAPIError) else None
    if original is None:
        return None
    if original.args and isinstance(original.args[0], int):
        return original.args[0]
    return getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None)
