"""Dialect of MariaDB 10.11 and later, and of MySQL where it behaves alike."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import URL, Connection, Dialect, Engine, bindparam, event, func, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError

from vibeforge_sessions.errors import ConfigurationError
from vibeforge_sessions.sql.dialects import base
from vibeforge_sessions.sql.dialects.base import DatabaseDialect, EngineSettings, MigrationTimeouts, Rows
from vibeforge_sessions.sql.dialects.several_hosts import connect_to_ready_host
from vibeforge_sessions.sql.tables import APPLICATION_PRIVILEGES

_OVERHEAD: Final = 2_000
"""Upper limit of the bytes of a statement without its values."""
_ESCAPED: Final = "\\'\"\0\n\r\x1a"
"""Characters to which the drivers add an escape character when they write values into the text of a statement."""

_TABLE_SIZES: Final = text(
    "SELECT table_name, data_length, index_length FROM information_schema.tables "
    "WHERE table_schema = DATABASE() AND table_name IN :names"
).bindparams(bindparam("names", expanding=True))
_SESSION_SETTINGS: Final = (  # strict mode: the server raises an error instead of truncating a value
    "SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO,"
    f"NO_ZERO_DATE,NO_ZERO_IN_DATE', innodb_lock_wait_timeout = {base.LOCK_TIMEOUT}, "
    # init_connect and skip-character-set-client-handshake override the character set that the driver requests
    "NAMES utf8mb4"
    f"/*M!, idle_transaction_timeout = {base.IDLE_TIMEOUT}*/"  # MySQL has no such setting
)

_GREETING_TIMEOUT: Final = float(base.CONNECT_TIMEOUT)
"""Seconds that a server may stay silent during the handshake. The `connect` listener tests for this very object."""
_UNKNOWN_VARIABLE: Final = 1193
_UNKNOWN_THREAD: Final = 1094
_DEFAULT_PORT: Final = 3306

_CHARACTER_SETS: Final = (
    "character_set_client",
    "character_set_connection",
    "character_set_results",
    "collation_connection",
)
"""Variables of a connection that decide how the server converts text."""
_CHARACTER_SET: Final = "utf8mb4"


class MariaDBDialect(DatabaseDialect):
    """MariaDB under its default isolation level REPEATABLE READ: all reads of a transaction use one snapshot.

    A write first locks the row of the session and checks its version in the same statement. This statement reads the
    latest committed row and not the snapshot of the transaction. A write reads nothing before this statement.
    """

    names = ("mysql", "mariadb")
    drivers: ClassVar[Mapping[str, str | None]] = {"mysql+pymysql": "mariadb", "mariadb+pymysql": "mariadb"}
    async_drivers: ClassVar[Mapping[str, str | None]] = {
        "mysql+asyncmy": "mariadb-asyncmy",
        "mariadb+asyncmy": "mariadb-asyncmy",
    }
    transactional_ddl = False  # each CREATE and ALTER commits
    writes_bypass_snapshot = True
    transient_codes = frozenset({1213, 1205, 1020})  # deadlock; lock wait timeout; record has changed since last read
    # too many connections, shutting down, not ready (Galera), killed, missing, gone, lost, closed when idle
    unavailable_codes = frozenset({1040, 1053, 1047, 1927, 2002, 2003, 2006, 2013, 2055, 4031})
    corruption_codes = frozenset({1034, 1194, 1195, 1712, 1877})
    duplicate_key_codes = frozenset({1062})
    missing_schema_codes = frozenset({1146, 1054})
    statement_timeout_codes = frozenset({1969})
    create_database_statement = "CREATE DATABASE {name}"
    drop_database_statement = "DROP DATABASE IF EXISTS {name}"
    short_lock_timeout_statements = ("SET SESSION lock_wait_timeout = 10, innodb_lock_wait_timeout = 10",)
    settings_query = ", ".join(["SELECT @@max_allowed_packet", *(f"@@{name}" for name in _CHARACTER_SETS)])

    def engine_options(self, url: URL, settings: EngineSettings) -> dict[str, Any]:
        connect_args: dict[str, Any] = {"charset": "utf8mb4"}
        if "connect_timeout" not in url.query:
            connect_args["connect_timeout"] = base.CONNECT_TIMEOUT
        if "read_timeout" not in url.query and url.drivername in self.drivers:
            connect_args["read_timeout"] = _GREETING_TIMEOUT
        return {
            "isolation_level": "REPEATABLE READ",
            "connect_args": connect_args,
            "pool_recycle": 3600,  # the server closes connections that were idle for eight hours
        }

    def add_event_listeners(self, engine: Engine, url: URL, settings: EngineSettings) -> None:
        if url.drivername in self.async_drivers:
            event.listen(engine, "do_connect", _limit_connect_time)
        if "host" in url.query:
            event.listen(engine, "do_connect", connect_to_ready_host(_hosts))

        @event.listens_for(engine, "connect")
        def connect(connection: DBAPIConnection, _record: object) -> None:
            if getattr(connection, "_read_timeout", None) is _GREETING_TIMEOUT:
                connection._read_timeout = None  # noqa: SLF001 (PyMySQL has no public way; a migration may take longer)
            with contextlib.closing(connection.cursor()) as cursor:
                cursor.execute(_SESSION_SETTINGS)

    def begin(self, connection: Connection, *, write: bool, single_statement: bool) -> bool:
        if not base.is_prepared(connection):
            # a caller's engine may use AUTOCOMMIT, or a new snapshot for each statement
            connection.execution_options(isolation_level="REPEATABLE READ")
        self.check_server(connection)
        connection.begin()
        return True

    def check_settings(self, row: Sequence[Any], driver: Any) -> int:
        """Check the character sets of a connection; return the size limit of one statement in bytes."""
        packet, *values = row
        problems = [
            f"{name} is {value}"
            for name, value in zip(_CHARACTER_SETS, values, strict=True)
            # character_set_results may be None: then the server sends text as stored, without conversion
            if value is not None and value.partition("_")[0] != _CHARACTER_SET
        ]
        # a listener may have sent SET NAMES, which does not change the encoding of the driver
        if not driver.character_set_name().startswith("utf8"):
            problems.append(f"the driver's character set is {driver.character_set_name()}")
        if problems:
            raise ConfigurationError(
                f"this engine's connections change text before it is stored: {problems[0]} and must be "
                f"{_CHARACTER_SET}: add ?charset={_CHARACTER_SET} to its URL; remove a different character set from "
                "the engine's connect events and init_command; if the server's init_connect sets it, override it with "
                f"SET NAMES {_CHARACTER_SET} in a connect event"
            )
        return int(packet)

    def server_session(self, connection: Any) -> Any:
        return connection.get_host_info(), connection.thread_id()

    def end_server_session(self, connection: Connection, session: Any) -> bool:
        host, number = session
        galera = connection.exec_driver_sql("SHOW VARIABLES LIKE 'wsrep_on'").first()
        # a connection id is valid on one node only, and KILL during a commit can disrupt a Galera cluster
        on_other_node = host != connection.connection.driver_connection.get_host_info()  # type: ignore[union-attr]
        if not on_other_node and (galera is None or galera[1] != "ON"):
            try:
                connection.exec_driver_sql(f"KILL CONNECTION {int(number)}")
            except DBAPIError as error:
                if error.orig is None or error.orig.args[0] != _UNKNOWN_THREAD:
                    raise
        return True  # a transaction has no effect before its COMMIT, and keeps its locks until then

    def wait_for_replication(self, connection: Connection) -> None:
        try:  # the server waits only before the first statement of a transaction
            connection.exec_driver_sql("SET STATEMENT wsrep_sync_wait = 1 FOR SELECT 1")
        except DBAPIError as error:
            if error.orig is None or error.orig.args[0] != _UNKNOWN_VARIABLE:  # the server was built without Galera
                raise

    def check_rows(self, dialect: Dialect, driver: Any, rows: Rows) -> None:
        limit = self.server_settings[dialect]
        for row in rows:  # the drivers begin a new statement after one megabyte, which every server accepts by default
            base.check_size([row], limit, "max_allowed_packet", overhead=_OVERHEAD, escaped=_ESCAPED)

    @contextmanager
    def statement_time_limit(self, driver: Any, seconds: float) -> Iterator[None]:
        with driver.cursor() as cursor:
            cursor.execute("SELECT @@max_statement_time")
            (before,) = cursor.fetchone()
            cursor.execute(f"SET SESSION max_statement_time = {seconds:g}")
            try:
                yield
            finally:
                with contextlib.suppress(Exception):  # raised if the connection is lost, which is then not used again
                    cursor.execute(f"SET SESSION max_statement_time = {before}")

    def table_sizes(self, connection: Connection, tables: Sequence[str], schema: str | None) -> Sequence[Sequence[Any]]:
        return connection.execute(_TABLE_SIZES, {"names": list(tables)}).all()

    def migration_settings(self, timeouts: MigrationTimeouts, *, of_session: bool) -> tuple[str, ...]:
        if not of_session:
            return ()
        # by default the server waits a day for a table lock, and blocks all other access to the table while it waits
        settings = [f"SET SESSION lock_wait_timeout = {max(0, round(timeouts.table))}"]
        if timeouts.statement is not None:
            settings.append(f"SET SESSION max_statement_time = {timeouts.statement:g}")
        return tuple(settings)

    @contextmanager
    def named_lock(self, connection: Connection, timeouts: MigrationTimeouts) -> Iterator[None]:
        is_joined = connection.in_transaction()
        database = connection.execute(text("SELECT DATABASE()")).scalar_one()
        # lock names apply to the whole server and have at most 64 characters
        name = f"vibeforge_sessions:{hashlib.sha256(str(database).encode()).hexdigest()[:32]}"
        if not connection.execute(select(func.get_lock(name, timeouts.migration))).scalar():
            holder = connection.execute(select(func.is_used_lock(name))).scalar()
            raise base.lock_error(timeouts, f"connection {holder} of the server" if holder else None)
        if not is_joined:
            connection.rollback()  # the lock survives this; the server would end an idle transaction
        try:
            yield
        finally:
            connection.execute(select(func.release_lock(name)))

    @contextmanager
    def migration_session(self, connection: Connection, timeouts: MigrationTimeouts) -> Iterator[None]:
        before = connection.exec_driver_sql("SELECT @@lock_wait_timeout, @@max_statement_time").one()
        try:
            for setting in self.migration_settings(timeouts, of_session=True):
                connection.exec_driver_sql(setting)
            connection.commit()
            yield
        finally:
            connection.rollback()
            if not connection.invalidated:  # restore the settings of a caller's connection
                connection.exec_driver_sql(
                    f"SET SESSION lock_wait_timeout = {before[0]}, max_statement_time = {before[1]}"
                )
                connection.rollback()

    def grants(self, role: str | None, migrator: str | None, *, database: str | None, schema: str | None) -> list[str]:
        if not database:
            raise ConfigurationError("privileges on MariaDB are granted for a database: name the database in the URL")
        of, lines = base.quoted(database, "`"), list[str]()
        if migrator is not None:
            changes = "CREATE, ALTER, DROP, INDEX, REFERENCES, SELECT, INSERT, UPDATE, DELETE"
            lines.append("-- migrations")
            lines += [f"GRANT {changes} ON {of}.{table} TO {_account(migrator)};" for table in APPLICATION_PRIVILEGES]
        if role is not None:
            lines.append(
                "-- application: rows, no DDL; run after the first upgrade and after each upgrade that adds a table"
            )
            privileges = APPLICATION_PRIVILEGES.items()
            lines += [f"GRANT {granted} ON {of}.{table} TO {_account(role)};" for table, granted in privileges]
        return lines

    def backup(self, connection: Connection, path: Path) -> None:
        tables = " ".join(APPLICATION_PRIVILEGES)
        raise ConfigurationError(
            "only SQLite files are copied: on MariaDB run mariadb-dump --single-transaction "
            f"--result-file={path} {connection.engine.url.database} {tables} with the connection options of this server"
        )


def _hosts(parameters: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the hosts and ports of a URL like ``mariadb+pymysql://user@/database?host=a:3306&host=b``."""
    given = parameters["host"]
    hosts = []
    for each in (given,) if isinstance(given, str) else given:
        host, _, port = each.rpartition(":") if each.rpartition(":")[2].isdecimal() else (each, "", "")
        hosts.append((host.strip("[]"), int(port or parameters.get("port") or _DEFAULT_PORT)))
    return hosts


def _limit_connect_time(dialect: Dialect, _record: object, _args: object, parameters: dict[str, Any]) -> None:
    """Limit the whole connection setup, because asyncmy's own limit ends when the server accepts the connection."""
    connect = parameters.get("async_creator_fn", dialect.loaded_dbapi.asyncmy.connect)

    async def connect_in_time(*args: Any, **given: Any) -> Any:
        async with asyncio.timeout(base.CONNECT_TIMEOUT):
            return await connect(*args, **given)

    parameters["async_creator_fn"] = connect_in_time


def _account(name: str) -> str:
    """Return a quoted account, for any host unless the name contains a host, as in ``app@10.0.0.%``."""
    user, _, host = name.rpartition("@") if "@" in name else (name, "", "%")
    return f"{base.quoted(user, '`')}@{base.quoted(host, '`')}"
