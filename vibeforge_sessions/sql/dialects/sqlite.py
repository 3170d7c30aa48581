"""SQLite: the embedded default."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    Connection,
    Dialect,
    Engine,
    QueuePool,
    bindparam,
    event,
    inspect,
    text,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import SingletonThreadPool

from vibeforge_sessions.errors import SchemaError, StorageError
from vibeforge_sessions.sql.dialects.base import (
    Database,
    Rows,
    Settings,
    Timeouts,
    is_ours,
    lock_error,
    refuse_payload,
)
from vibeforge_sessions.sql.tables import metadata

_OFTEN: Final = 10_000
"""After how many of SQLite's own steps it is looked at the clock."""
_TELLS_SIZES: Final = "SELECT 1 FROM pragma_module_list WHERE name = 'dbstat'"
_SIZES: Final = text(
    "SELECT parts.tbl_name, sum(CASE parts.type WHEN 'table' THEN pages.pgsize ELSE 0 END), "
    "sum(CASE parts.type WHEN 'index' THEN pages.pgsize ELSE 0 END) "
    "FROM dbstat AS pages JOIN sqlite_schema AS parts ON parts.name = pages.name "
    "WHERE pages.aggregate = TRUE AND parts.tbl_name IN :names GROUP BY parts.tbl_name"
).bindparams(bindparam("names", expanding=True))
_WRITE: Final = "vibeforge_sessions_write"
_LENGTH: Final = 1_000_000_000
"""SQLite's own default for the longest statement and value, in bytes."""


class SQLite(Database):
    """WAL, real transactions, BEGIN IMMEDIATE for our writes.

    Python's driver begins nothing for reads and DDL, and a transaction that reads first and then writes is refused
    with "database is locked", whatever the timeout, in half of the attempts of four processes.
    """

    names = ("sqlite",)
    drivers: ClassVar[Mapping[str, str | None]] = {"sqlite+pysqlite": None}
    async_drivers: ClassVar[Mapping[str, str | None]] = {"sqlite+aiosqlite": "sqlite-aiosqlite"}
    is_server = False
    transient = frozenset(
        {
            "SQLITE_BUSY",
            "SQLITE_BUSY_RECOVERY",
            "SQLITE_BUSY_SNAPSHOT",
            "SQLITE_BUSY_TIMEOUT",
            "SQLITE_LOCKED",
            "SQLITE_LOCKED_SHAREDCACHE",
        }
    )
    lasting = frozenset({"SQLITE_READONLY", "SQLITE_READONLY_DBMOVED", "SQLITE_READONLY_DIRECTORY"})
    damaged = frozenset({"SQLITE_CORRUPT", "SQLITE_CORRUPT_INDEX", "SQLITE_CORRUPT_SEQUENCE", "SQLITE_NOTADB"})
    duplicate = frozenset({"SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"})
    took_too_long = frozenset({"SQLITE_INTERRUPT"})
    begin_statements = ("BEGIN", "BEGIN IMMEDIATE")
    wrong_schema = frozenset({"SQLITE_ERROR"})  # one code for a missing table and for much else

    def engine_options(self, url: URL, settings: Settings) -> dict[str, Any]:
        options: dict[str, Any] = {"connect_args": {"check_same_thread": False}}
        if "timeout" not in url.query:  # seconds, too
            options["connect_args"]["timeout"] = settings.busy_timeout
        if _in_memory(url):
            # each connection would be a database of its own: threads take turns on a single one
            options |= {
                "poolclass": QueuePool if url.drivername in self.drivers else AsyncAdaptedQueuePool,
                "pool_size": 1,
                "max_overflow": 0,
                "pool_timeout": settings.busy_timeout,
            }
        return options

    def prepare(self, engine: Engine, url: URL, settings: Settings) -> None:
        @event.listens_for(engine, "connect")
        def connect(connection: DBAPIConnection, _record: object) -> None:
            connection.isolation_level = None  # the driver begins nothing by itself; the event below does
            cursor = connection.cursor()
            if not _in_memory(url):
                _use_wal(cursor, settings.busy_timeout)
            cursor.execute(f"PRAGMA synchronous = {settings.synchronous}")
            cursor.execute("PRAGMA foreign_keys = ON")  # ignored inside a transaction, so here
            cursor.close()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            write = connection.get_execution_options().get(_WRITE, False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def begin(self, connection: Connection, *, write: bool, at_once: bool = False) -> bool:
        _check_host(connection)
        connection.execution_options(**{_WRITE: write})
        connection.begin()
        if not _driver(connection).in_transaction:  # a host's engine, whose driver would begin at the first INSERT only
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
        return True

    def join(self, connection: Connection) -> None:
        _check_host(connection)
        if not _driver(connection).in_transaction:  # a savepoint would be the transaction, and its RELEASE the commit
            raise _without_begin("SQLAlchemy has begun a transaction, but Python's SQLite driver has not sent a BEGIN")
        if connection.in_nested_transaction() and not _sends_begin(connection):
            # in_transaction is true inside any savepoint, also inside one that stands in no transaction
            raise _without_begin("this SQLite connection is in a savepoint, and its engine does not ensure a BEGIN")

    def is_garbled(self, error: DBAPIError) -> bool:
        return str(error.orig).startswith("Could not decode to UTF-8")

    def may_have_committed(self, code: Any) -> bool:
        # it is this process that commits, and it is told; but a commit that could not be synced may be found in the WAL
        return code in {"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"}

    def batches(self, dialect: Dialect, driver: Any, rows: Rows) -> list[Rows]:
        # aiosqlite does not tell; one that a host has lowered shows as an error of the database then
        limit = driver.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) if isinstance(driver, sqlite3.Connection) else _LENGTH
        for row in rows:
            size = sum(len(value) for value in row.values() if isinstance(value, str))
            if size > limit // 4:  # a character takes four bytes at the most: count them only where it matters
                size = sum(len(value.encode()) for value in row.values() if isinstance(value, str))
                refuse_payload(size, limit, "SQLITE_LIMIT_LENGTH")
        return [rows]

    @contextmanager
    def limiting_statements(self, driver: Any, seconds: float) -> Iterator[None]:
        until = time.monotonic() + seconds
        driver.set_progress_handler(lambda: time.monotonic() > until, _OFTEN)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)

    def table_sizes(self, connection: Connection, tables: Sequence[str], schema: str | None) -> Sequence[Sequence[Any]]:
        try:
            if connection.exec_driver_sql(_TELLS_SIZES).first() is not None:
                return connection.execute(_SIZES, {"names": list(tables)}).all()
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", None) not in self.took_too_long:
                raise
            _driver(connection).set_progress_handler(None, 0)
        pages, size = (
            _driver(connection).execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
        )
        return [(None, pages * size, 0)]

    @contextmanager
    def migrating_alone(self, connection: Connection, timeouts: Timeouts) -> Iterator[None]:
        if timeouts.statement is not None:
            raise SchemaError("SQLite knows no limit for a statement: leave the statement timeout out")
        # Dropping a table with foreign keys on deletes every row that refers to it, in silence, and batch migrations
        # drop tables: so they are off meanwhile, and checked before the commit.
        foreign_keys = _switch_foreign_keys(connection, on=False)
        busy_timeout = _pragma(connection, "busy_timeout")
        _pragma(connection, f"busy_timeout = {int(timeouts.migration * 1000)}")
        try:
            try:
                self.begin(connection, write=True)
                if not is_ours(connection):  # a host's may have begun as a reader: begin anew, as the writer
                    connection.exec_driver_sql("ROLLBACK")
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                    raise lock_error(timeouts.migration, "another connection is writing to the file") from error
                raise
            yield
            _check_foreign_keys(connection)
            connection.commit()
        finally:
            connection.rollback()
            connection.execution_options(**{_WRITE: False})
            _pragma(connection, f"busy_timeout = {busy_timeout}")
            if foreign_keys:
                _switch_foreign_keys(connection, on=True)

    @contextmanager
    def migrating_inside(self, connection: Connection, timeouts: Timeouts) -> Iterator[None]:
        if not _driver(connection).in_transaction:  # Python's driver begins none for DDL: half of it could stay behind
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        tables = inspect(connection).get_table_names()
        # the very first migration has nothing to lose
        if connection.exec_driver_sql("PRAGMA foreign_keys").scalar() and not metadata.tables.keys().isdisjoint(tables):
            raise _foreign_keys_stay_on()
        yield

    def grants(self, role: str | None, migrator: str | None, *, database: str | None, schema: str | None) -> list[str]:
        return [
            "-- SQLite has no roles: whoever may write the file, and its folder for what stands beside it, may do all"
        ]

    def backup(self, connection: Connection, path: Path) -> None:
        try:  # SQLite itself would follow a symbolic link, and let other users read the file
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise StorageError(f"{path} is there already: name a new file") from None
        except OSError as error:
            raise StorageError(f"could not write {path}: {error.strerror}") from error
        with ExitStack() as on_failure, closing(_driver(connection).cursor()) as cursor:
            on_failure.callback(path.unlink, missing_ok=True)
            try:
                # an empty file counts as a new one; it reads one moment, and waits for nobody
                cursor.execute("VACUUM INTO ?", (str(path.absolute()),))
            except sqlite3.Error as error:
                raise StorageError(f"could not write {path}: {error.sqlite_errorname}") from error
            on_failure.pop_all()


def _in_memory(url: URL) -> bool:
    name = url.database or ":memory:"
    return ":memory:" in name or url.query.get("mode") == "memory" or "mode=memory" in name


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _sends_begin(connection: Connection) -> bool:
    """Return whether each transaction of the connection's engine starts with a BEGIN, before any SAVEPOINT."""
    driver = _driver(connection)
    if is_ours(connection) or getattr(driver, "autocommit", None) is False:  # the driver then keeps a transaction open
        return True
    return driver.isolation_level is None and bool(connection.dispatch.begin)


def _without_begin(problem: str) -> StorageError:
    return StorageError(
        f"{problem}, so RELEASE of a savepoint would commit and the caller's work could not be rolled back: make the "
        "engine with vibeforge_sessions.sql.create_engine, or let the driver begin nothing by itself (isolation_level "
        "= None) and emit BEGIN in the engine's begin event"
    )


def _check_host(connection: Connection) -> None:
    """Refuse a host's engine on which transactions or threads cannot work, with the way out."""
    if getattr(_driver(connection), "autocommit", None) is True:
        raise StorageError(
            "this engine's SQLite connections have autocommit=True, under which Python's driver never commits a "
            "transaction: leave autocommit out of connect_args"
        )
    if connection.dialect.skip_autocommit_rollback:
        raise StorageError(
            "this engine has skip_autocommit_rollback=True, with which SQLAlchemy leaves transactions on SQLite open: "
            "leave it out"
        )
    if isinstance(connection.engine.pool, SingletonThreadPool) and _in_memory(connection.engine.url):
        raise StorageError(
            "this engine gives each thread an empty SQLite database of its own: make it with "
            "vibeforge_sessions.sql.create_engine, or with poolclass=StaticPool for a single thread"
        )


def _use_wal(cursor: Any, busy_timeout: float) -> None:
    # WAL is kept in the file, so only the first connection ever changes it. SQLite does not wait for others there.
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code == sqlite3.SQLITE_READONLY:  # whoever may only read needs none
                return
            if code != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _pragma(connection: Connection, pragma: str) -> Any:
    """Run a PRAGMA outside a transaction: a statement of SQLAlchemy's would begin one first."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(f"PRAGMA {pragma}")
        row = cursor.fetchone()
    finally:
        cursor.close()
    return None if row is None else row[0]


def _switch_foreign_keys(connection: Connection, *, on: bool) -> bool:
    """Switch foreign keys; return whether they were on before.

    :raises SchemaError: they stayed on, since the driver was in a transaction of its own.
    """
    before = bool(_pragma(connection, "foreign_keys"))
    if before != on:
        _pragma(connection, f"foreign_keys = {'ON' if on else 'OFF'}")
        if not on and _pragma(connection, "foreign_keys"):
            raise _foreign_keys_stay_on()
    return before


def _foreign_keys_stay_on() -> SchemaError:
    return SchemaError(
        "SQLite's foreign keys are on and cannot be switched off inside a transaction, and with them on a migration "
        "could delete rows in silence: pass the Engine, or a Connection that is not in a transaction"
    )


def _check_foreign_keys(connection: Connection) -> None:
    for table in inspect(connection).get_table_names():
        if table in metadata.tables and connection.exec_driver_sql(f'PRAGMA foreign_key_check("{table}")').first():
            raise SchemaError(f"the migration was rolled back: rows of {table} refer to sessions that are not there")
