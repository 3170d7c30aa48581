"""Dialect of SQLite, the embedded default."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import URL, Connection, Dialect, Engine, bindparam, event, inspect, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool, SingletonThreadPool

from vibeforge_sessions.errors import ConfigurationError, InvalidArgumentError, SchemaError, StorageError
from vibeforge_sessions.sql.dialects import base
from vibeforge_sessions.sql.dialects.base import DatabaseDialect, EngineSettings, MigrationTimeouts, Rows
from vibeforge_sessions.sql.tables import metadata

_STEPS_BETWEEN_CLOCK_CHECKS: Final = 10_000
"""Virtual-machine steps between two clock checks."""
_HAS_DBSTAT: Final = "SELECT 1 FROM pragma_module_list WHERE name = 'dbstat'"
_TABLE_SIZES: Final = text(
    "SELECT parts.tbl_name, sum(CASE parts.type WHEN 'table' THEN pages.pgsize ELSE 0 END), "
    "sum(CASE parts.type WHEN 'index' THEN pages.pgsize ELSE 0 END) "
    "FROM dbstat AS pages JOIN sqlite_schema AS parts ON parts.name = pages.name "
    "WHERE pages.aggregate = TRUE AND parts.tbl_name IN :names GROUP BY parts.tbl_name"
).bindparams(bindparam("names", expanding=True))
_BEGIN_IMMEDIATE: Final = "vibeforge_sessions_write"
_DEFAULT_LENGTH_LIMIT: Final = 1_000_000_000
"""Default limit of SQLite for the length of a statement or value, in bytes."""


class SQLiteDialect(DatabaseDialect):
    """SQLite with a write-ahead log, explicit BEGIN, and BEGIN IMMEDIATE for writes.

    Python's driver begins no transaction for reads and DDL. After a plain BEGIN, a transaction that first reads and
    then writes can fail with "database is locked" whatever the timeout (in half of the attempts of four processes).
    """

    names = ("sqlite",)
    drivers: ClassVar[Mapping[str, str | None]] = {"sqlite+pysqlite": None}
    async_drivers: ClassVar[Mapping[str, str | None]] = {"sqlite+aiosqlite": "sqlite-aiosqlite"}
    is_server = False
    transient_codes = frozenset(
        {
            "SQLITE_BUSY",
            "SQLITE_BUSY_RECOVERY",
            "SQLITE_BUSY_SNAPSHOT",
            "SQLITE_BUSY_TIMEOUT",
            "SQLITE_LOCKED",
            "SQLITE_LOCKED_SHAREDCACHE",
        }
    )
    connection_bound_codes = frozenset({"SQLITE_READONLY", "SQLITE_READONLY_DBMOVED", "SQLITE_READONLY_DIRECTORY"})
    corruption_codes = frozenset({"SQLITE_CORRUPT", "SQLITE_CORRUPT_INDEX", "SQLITE_CORRUPT_SEQUENCE", "SQLITE_NOTADB"})
    duplicate_key_codes = frozenset({"SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"})
    statement_timeout_codes = frozenset({"SQLITE_INTERRUPT"})
    begin_statements = ("BEGIN", "BEGIN IMMEDIATE")
    missing_schema_codes = frozenset({"SQLITE_ERROR"})  # SQLite has no separate code for a missing table

    def engine_options(self, url: URL, settings: EngineSettings) -> dict[str, Any]:
        options: dict[str, Any] = {"connect_args": {"check_same_thread": False}}
        if "timeout" not in url.query:  # in seconds, like busy_timeout
            options["connect_args"]["timeout"] = settings.busy_timeout
        if _in_memory(url):
            # a second connection would open a second database, so all threads share one connection
            options |= {
                "poolclass": QueuePool if url.drivername in self.drivers else AsyncAdaptedQueuePool,
                "pool_size": 1,
                "max_overflow": 0,
                "pool_timeout": settings.busy_timeout,
            }
        return options

    def add_event_listeners(self, engine: Engine, url: URL, settings: EngineSettings) -> None:
        @event.listens_for(engine, "connect")
        def connect(connection: DBAPIConnection, _record: object) -> None:
            connection.isolation_level = None  # the driver begins no transaction; the listener below does
            cursor = connection.cursor()
            if not _in_memory(url):
                _use_wal(cursor, settings.busy_timeout)
            cursor.execute(f"PRAGMA synchronous = {settings.synchronous}")
            cursor.execute("PRAGMA foreign_keys = ON")  # SQLite ignores it inside a transaction
            cursor.close()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            write = connection.get_execution_options().get(_BEGIN_IMMEDIATE, False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def begin(self, connection: Connection, *, write: bool, single_statement: bool = False) -> bool:
        _check_engine(connection)
        connection.execution_options(**{_BEGIN_IMMEDIATE: write})
        connection.begin()
        if not _driver(connection).in_transaction:  # not a prepared engine: the driver sends BEGIN too late
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
        return True

    def check_joined_connection(self, connection: Connection) -> None:
        _check_engine(connection)
        if not _driver(connection).in_transaction:  # RELEASE of the outermost savepoint would commit
            raise _missing_begin("SQLAlchemy has begun a transaction, but Python's SQLite driver has not sent a BEGIN")
        if connection.in_nested_transaction() and not _ensures_begin(connection):
            # in_transaction is true inside any savepoint, even without a BEGIN before it
            raise _missing_begin("this SQLite connection is in a savepoint, and its engine does not ensure a BEGIN")

    def may_have_committed(self, code: Any) -> bool:
        # this process commits, so it knows the outcome, unless the sync failed: then the WAL may contain the commit
        return code in {"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"}

    def check_rows(self, dialect: Dialect, driver: Any, rows: Rows) -> None:
        limit = _DEFAULT_LENGTH_LIMIT
        if isinstance(driver, sqlite3.Connection):  # not aiosqlite's: SQLite itself rejects rows above a lower limit
            limit = driver.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
        for row in rows:
            base.check_size([row], limit, "SQLITE_LIMIT_LENGTH")

    @contextmanager
    def statement_time_limit(self, driver: Any, seconds: float) -> Iterator[None]:
        deadline = time.monotonic() + seconds
        driver.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_CLOCK_CHECKS)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)

    def table_sizes(self, connection: Connection, tables: Sequence[str], schema: str | None) -> Sequence[Sequence[Any]]:
        try:
            if connection.exec_driver_sql(_HAS_DBSTAT).first() is not None:
                return connection.execute(_TABLE_SIZES, {"names": list(tables)}).all()
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", None) not in self.statement_timeout_codes:
                raise
            _driver(connection).set_progress_handler(None, 0)
        return [(None, _pragma(connection, "page_count") * _pragma(connection, "page_size"), 0)]

    @contextmanager
    def migration_lock(self, connection: Connection, timeouts: MigrationTimeouts) -> Iterator[None]:
        if connection.in_transaction():
            # the driver begins no transaction for DDL: a failed migration could leave half of its changes
            if not _driver(connection).in_transaction:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            tables = inspect(connection).get_table_names()
            # before the first migration there are no rows that could be deleted
            if _pragma(connection, "foreign_keys") and not metadata.tables.keys().isdisjoint(tables):
                raise _foreign_keys_error()
            yield
            return
        if timeouts.statement is not None:
            raise InvalidArgumentError("SQLite has no time limit for statements: leave it out", "statement_timeout")
        # Batch migrations drop tables. With foreign keys on, SQLite then deletes every row that refers to them. So
        # foreign keys are off during a migration, and checked before its commit.
        foreign_keys, busy_timeout = _pragma(connection, "foreign_keys"), _pragma(connection, "busy_timeout")
        _pragma(connection, "foreign_keys = OFF")
        if _pragma(connection, "foreign_keys"):
            raise _foreign_keys_error()
        _pragma(connection, f"busy_timeout = {int(timeouts.migration * 1000)}")
        try:
            try:
                _check_engine(connection)
                connection.begin()
                if _driver(connection).in_transaction:  # a listener or the driver has begun a read transaction
                    connection.exec_driver_sql("ROLLBACK")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                    raise base.lock_error(timeouts, "another connection is writing to the file") from error
                raise
            yield
            _check_foreign_keys(connection)
            connection.commit()
        finally:
            connection.rollback()
            _pragma(connection, f"busy_timeout = {busy_timeout}")
            _pragma(connection, f"foreign_keys = {foreign_keys}")

    def grants(self, role: str | None, migrator: str | None, *, database: str | None, schema: str | None) -> list[str]:
        return ["-- SQLite has no roles: permission to write the file and its folder includes every privilege"]

    def backup(self, connection: Connection, path: Path) -> None:
        try:  # SQLite would follow a symbolic link, and create a file that other users can read
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise StorageError(f"the file {path} already exists: name a new file") from None
        except ValueError:  # the name cannot be encoded
            raise StorageError(
                "could not write the copy, because its name is not a valid file name: name another file"
            ) from None
        except OSError as error:
            raise StorageError(f"could not write {path}: {error.strerror}") from error
        with closing(_driver(connection).cursor()) as cursor:
            try:
                # VACUUM INTO accepts an empty file; it reads one snapshot and does not wait for writers
                cursor.execute("VACUUM INTO ?", (str(path.absolute()),))
            except BaseException as error:
                path.unlink(missing_ok=True)
                if isinstance(error, sqlite3.Error):
                    raise StorageError(f"could not write {path}: {error.sqlite_errorname}") from error
                raise


def _in_memory(url: URL) -> bool:
    name = url.database or ":memory:"
    return ":memory:" in name or url.query.get("mode") == "memory" or "mode=memory" in name


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _ensures_begin(connection: Connection) -> bool:
    """Return whether every transaction of the connection's engine starts with BEGIN before any SAVEPOINT."""
    driver = _driver(connection)
    # with autocommit=False, the driver always keeps a transaction open
    if base.is_prepared(connection) or getattr(driver, "autocommit", None) is False:
        return True
    return driver.isolation_level is None and bool(connection.dispatch.begin)


def _missing_begin(problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"{problem}, so RELEASE of a savepoint would commit and the caller's work could not be rolled back: create the "
        "engine with vibeforge_sessions.sql.create_engine, or turn off the driver's own transactions (isolation_level "
        "= None) and emit BEGIN in the engine's begin event"
    )


def _check_engine(connection: Connection) -> None:
    """Reject an engine whose settings break transactions or the use of threads.

    :raises ConfigurationError: the engine has such a setting. The error names the fix.
    """
    if getattr(_driver(connection), "autocommit", None) is True:
        raise ConfigurationError(
            "this engine's SQLite connections have autocommit=True, under which Python's driver never commits a "
            "transaction: leave autocommit out of connect_args"
        )
    if connection.dialect.skip_autocommit_rollback:
        raise ConfigurationError(
            "this engine has skip_autocommit_rollback=True, with which SQLAlchemy leaves transactions on SQLite open: "
            "leave it out"
        )
    if isinstance(connection.engine.pool, SingletonThreadPool) and _in_memory(connection.engine.url):
        raise ConfigurationError(
            "this engine gives each thread an empty SQLite database of its own: create the engine with "
            "vibeforge_sessions.sql.create_engine, or with poolclass=StaticPool for a single thread"
        )


def _use_wal(cursor: Any, busy_timeout: float) -> None:
    # The file keeps the journal mode, so only the first connection changes it. The change does not wait for locks.
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code == sqlite3.SQLITE_READONLY:  # a read-only connection needs no WAL
                return
            if code != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _pragma(connection: Connection, pragma: str) -> Any:
    """Execute a PRAGMA on the driver connection, because SQLAlchemy would first begin a transaction."""
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA {pragma}")
        row = cursor.fetchone()
    return None if row is None else row[0]


def _foreign_keys_error() -> SchemaError:
    return SchemaError(
        "a migration must switch off SQLite's foreign keys, which could otherwise delete rows without an error, and it "
        "cannot do so inside a transaction: pass the Engine, or a Connection that is not in a transaction"
    )


def _check_foreign_keys(connection: Connection) -> None:
    for table in inspect(connection).get_table_names():
        if table in metadata.tables and connection.exec_driver_sql(f'PRAGMA foreign_key_check("{table}")').first():
            raise SchemaError(
                f"the migration was rolled back: rows of {table} refer to missing sessions: delete or repair them first"
            )
