"""Dialect of PostgreSQL 15 to 18."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import URL, ColumnElement, Connection, Dialect, Engine, event, func, text
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

from vibeforge_sessions.errors import ConfigurationError
from vibeforge_sessions.sql.dialects import base
from vibeforge_sessions.sql.dialects.base import DatabaseDialect, EngineSettings, MigrationTimeouts, Rows
from vibeforge_sessions.sql.dialects.several_hosts import connect_to_ready_host
from vibeforge_sessions.sql.tables import APPLICATION_PRIVILEGES, schema_of

_MIGRATION_LOCK: Final = 0x7669_6265_666F_7267  # "vibeforg" in ASCII; it must never change
_LARGEST_MESSAGE: Final = 2**30 - 2**16  # bytes of a statement with its parameters; a field is limited to 1 GiB, too
_TRY_MIGRATION_LOCK: Final = f"SELECT pg_try_advisory_xact_lock({_MIGRATION_LOCK})"
"""The statement has no parameters, because a statement with parameters leaves a portal open.

CREATE INDEX CONCURRENTLY would wait for the snapshot of this portal.
"""
_LOCK_HOLDER: Final = text(
    """
    SELECT format(
        'process %s of the server, application %L, from %s, holds it',
        a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), coalesce(host(a.client_addr), 'a local socket')
    )
    FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND (l.classid::bigint << 32) | l.objid::bigint = :key
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
)
_SESSION_SETTINGS: Final = {
    "TimeZone": "UTC",
    "lock_timeout": f"{base.LOCK_TIMEOUT}s",
    "idle_in_transaction_session_timeout": f"{base.IDLE_TIMEOUT}s",
}
_TERMINATE_SESSION: Final = text(
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE pid = :pid AND pid <> pg_backend_pid() AND usename = current_user AND datname = current_database()"
)
_TABLE_SIZES: Final = text(
    "SELECT relname, pg_table_size(oid), pg_indexes_size(oid) FROM pg_class "
    "WHERE oid IN (SELECT to_regclass(path) FROM unnest(CAST(:paths AS text[])) AS path)"
)
_CONNECTION_CODES: Final = frozenset({"08000", "08001", "08003", "08004", "08006", "08007", "08P01"})
_PERMANENT_FAILURES: Final = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")
_SINGLE_STATEMENT_LEVEL: Final = "read committed"


class PostgreSQLDialect(DatabaseDialect):
    """PostgreSQL with single-statement writes in AUTOCOMMIT, which take one round trip without BEGIN and COMMIT.

    Under READ COMMITTED, a statement uses one snapshot. Each write begins with an INSERT of one row, or with an UPDATE
    of one row whose WHERE clause states the expected version. After a wait for a row lock, PostgreSQL evaluates this
    clause again, so no write fails with "could not serialize access". A session is read in two statements, and the
    second returns the version again, so that a write between them is detected. The isolation level is set on every
    engine, whatever the engine's default. If the server's default is not READ COMMITTED, each call runs in a
    transaction that sets its own level.
    """

    names = ("postgresql",)
    drivers: ClassVar[Mapping[str, str | None]] = {"postgresql+psycopg": "postgresql"}
    async_drivers: ClassVar[Mapping[str, str | None]] = {
        "postgresql+psycopg": "postgresql",
        "postgresql+asyncpg": "postgresql-asyncpg",
    }
    has_schemas = True
    supports_writable_ctes = True
    transient_codes = frozenset({"40001", "40P01", "55P03"})  # serialization, deadlock, lock not available in time
    # shut down, crashed, starting up, idle for too long, not (or no longer) the primary, too many connections
    unavailable_codes = frozenset({"57P01", "57P02", "57P03", "57P05", "25006", "53300"}) | _CONNECTION_CODES
    corruption_codes = frozenset({"XX001", "XX002"})
    duplicate_key_codes = frozenset({"23505"})
    missing_schema_codes = frozenset({"42P01", "42703", "3F000"})
    statement_timeout_codes = frozenset({"57014"})
    # template1, the default, cannot be copied while clients are connected to it
    create_database_statement = "CREATE DATABASE {name} TEMPLATE template0"
    drop_database_statement = "DROP DATABASE IF EXISTS {name} WITH (FORCE)"
    short_lock_timeout_statements = ("SET lock_timeout = '10s'",)
    settings_query = "SELECT current_setting('default_transaction_isolation'), current_setting('server_encoding')"

    def engine_options(self, url: URL, settings: EngineSettings) -> dict[str, Any]:
        driver = url.get_driver_name()
        if settings.pgbouncer:  # PgBouncer shares server sessions between clients: prepare and set nothing
            of_asyncpg = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
            connect_args: dict[str, Any] = of_asyncpg if driver == "asyncpg" else {"prepare_threshold": None}
        elif driver == "asyncpg":
            connect_args = {"server_settings": dict(_SESSION_SETTINGS)}
        else:
            given = url.query.get("options", "")  # if both set a parameter, the later one wins
            options = [f"-c {name}={value}" for name, value in _SESSION_SETTINGS.items()]
            connect_args = {"options": " ".join([*options, *((given,) if isinstance(given, str) else given)])}
        timeout = "timeout" if driver == "asyncpg" else "connect_timeout"
        if timeout not in url.query:
            connect_args[timeout] = base.CONNECT_TIMEOUT
        return {
            "isolation_level": "READ COMMITTED",
            "connect_args": connect_args,
            "execution_options": {base.BEHIND_POOLER: True} if settings.pgbouncer else {},
        }

    def add_event_listeners(self, engine: Engine, url: URL, settings: EngineSettings) -> None:
        if url.get_driver_name() == "asyncpg":
            # asyncpg has one time limit for all hosts together: a first host that is silent would use it up
            event.listen(engine, "do_connect", connect_to_ready_host(_hosts))

        @event.listens_for(engine, "reset")
        def reset(driver: Any, record: ConnectionPoolEntry | None, state: PoolResetState) -> None:
            # the pool discards a connection whose reset raises
            if not state.asyncio_safe:  # garbage-collected: psycopg would leave the transaction open
                self.abort_connection(driver.driver_connection)
            elif record is not None and base.ISOLATION_LEVEL_CHANGED in record.info:
                if not driver.autocommit:
                    driver.rollback()  # the level cannot be set inside a transaction
                engine.dialect.reset_isolation_level(driver)
                del record.info[base.ISOLATION_LEVEL_CHANGED]

    def begin(self, connection: Connection, *, write: bool, single_statement: bool) -> bool:
        pooled: Any = connection.connection
        pooled.commit()  # keep the settings of a caller's `connect` listener
        connection.info[base.ISOLATION_LEVEL_CHANGED] = True  # set first, so that the pool always resets the level
        self.check_server(connection)
        # the driver sends the level along with BEGIN, and both with the first statement: no extra round trip
        level = self.isolation_level(connection.dialect, write=write, single_statement=single_statement)
        if base.is_prepared(connection):
            # set in the driver: an interruption of SQLAlchemy's own reset would lose the pooled connection
            connection.dialect.set_isolation_level(pooled.dbapi_connection, level)
        else:
            connection.execution_options(isolation_level=level)
        if level == "AUTOCOMMIT":
            return False
        connection.begin()
        return True

    def isolation_level(self, dialect: Dialect, *, write: bool, single_statement: bool) -> IsolationLevel:
        if single_statement and self.server_settings[dialect] == _SINGLE_STATEMENT_LEVEL:
            return "AUTOCOMMIT"  # no round trip: it is an attribute of the driver connection
        return "READ COMMITTED" if write else "REPEATABLE READ"

    def check_settings(self, row: Sequence[Any], driver: Any) -> str:
        """Check the encoding of the database; return its default isolation level."""
        level, encoding = row
        if encoding != "UTF8":
            raise ConfigurationError(
                f"this database has the encoding {encoding}, which lacks most characters: "
                "create a database with the encoding UTF8"
            )
        return str(level)

    def is_lost(self, error: BaseException) -> bool:
        # psycopg may find the socket closed before libpq does; its error then has no code
        raised: Any = error.orig if isinstance(error, OperationalError) else None
        of_psycopg = type(raised).__module__.startswith("psycopg")
        return super().is_lost(error) or (of_psycopg and raised.sqlstate is None)

    def is_unreachable(self, error: DBAPIError, code: Any) -> bool:
        if code is not None:
            return super().is_unreachable(error, code)
        # libpq reports no code; if its messages are not in English, a wrong password is retried until the deadline
        return not any(words in str(error.orig) for words in _PERMANENT_FAILURES)

    def server_session(self, connection: Any) -> Any:
        get_server_pid = getattr(connection, "get_server_pid", None)  # of asyncpg
        return connection.info.backend_pid if get_server_pid is None else get_server_pid()

    def end_server_session(self, connection: Connection, session: Any) -> bool:
        driver = connection.connection.driver_connection
        if connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() != self.server_session(driver):
            return False  # a pooler is in between: the process id belongs to one of its own server sessions
        for _ in range(2):  # twice: the first result is also False if the session ended by itself
            if all(connection.execute(_TERMINATE_SESSION, {"pid": session}).scalars().all()):
                return True
            connection.rollback()  # within a transaction, pg_stat_activity does not change
        return False

    def check_rows(self, dialect: Dialect, driver: Any, rows: Rows) -> None:
        base.check_size(rows, _LARGEST_MESSAGE, "the largest message")

    @contextmanager
    def statement_time_limit(self, driver: Any, seconds: float) -> Iterator[None]:
        with closing(driver.cursor()) as cursor:  # 0 would mean "no limit"
            cursor.execute(f"SET LOCAL statement_timeout = {max(1, round(seconds * 1000))}")
        yield

    def period_start(self, time: ColumnElement[Any], unit: str) -> ColumnElement[Any]:
        return func.date_trunc(unit, func.timezone("UTC", time))  # a string would depend on the DateStyle

    def table_sizes(self, connection: Connection, tables: Sequence[str], schema: str | None) -> Sequence[Sequence[Any]]:
        qualifier = "" if schema is None else f"{base.quoted(schema)}."
        return connection.execute(_TABLE_SIZES, {"paths": [f"{qualifier}{base.quoted(name)}" for name in tables]}).all()

    def migration_settings(self, timeouts: MigrationTimeouts, *, of_session: bool) -> tuple[str, ...]:
        scope = "SET" if of_session else "SET LOCAL"
        milliseconds = max(1, round(timeouts.table * 1000))  # 0 would mean "no limit"
        settings = [f"{scope} lock_timeout = '{milliseconds}ms'"]
        if timeouts.statement is not None:
            settings.append(f"{scope} statement_timeout = '{timeouts.statement * 1000:.0f}ms'")
        return tuple(settings)

    @contextmanager
    def named_lock(self, connection: Connection, timeouts: MigrationTimeouts) -> Iterator[None]:
        is_joined, deadline = connection.in_transaction(), time.monotonic() + timeouts.migration
        if not is_joined:  # CREATE INDEX CONCURRENTLY would wait for the snapshot of REPEATABLE READ
            connection.execution_options(isolation_level="READ COMMITTED")
        while not connection.exec_driver_sql(_TRY_MIGRATION_LOCK).scalar():
            if time.monotonic() >= deadline:
                raise base.lock_error(timeouts, connection.execute(_LOCK_HOLDER, {"key": _MIGRATION_LOCK}).scalar())
            if not is_joined:  # CREATE INDEX CONCURRENTLY waits for every older transaction
                connection.rollback()
            time.sleep(0.1)
        if not is_joined:  # the lock's transaction is idle during the migration
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield

    @contextmanager
    def migration_session(self, connection: Connection, timeouts: MigrationTimeouts) -> Iterator[None]:
        driver = connection.connection.driver_connection  # get_isolation_level does not report AUTOCOMMIT
        level = "AUTOCOMMIT" if getattr(driver, "autocommit", False) else connection.get_isolation_level()
        connection.connection.rollback()  # reading the level has begun a transaction
        connection.execution_options(isolation_level="READ COMMITTED")
        # Each transaction sets its own limits. CREATE INDEX CONCURRENTLY runs outside a transaction, so it needs
        # session settings. PgBouncer would pass these on to other clients, so they are set only on request.
        of_session = self.migration_settings(timeouts, of_session=True) if timeouts != MigrationTimeouts() else ()
        try:
            for setting in of_session:
                connection.exec_driver_sql(setting)
            connection.commit()
            yield
        finally:
            connection.rollback()
            if of_session and not connection.invalidated:
                connection.exec_driver_sql("RESET lock_timeout")
                connection.exec_driver_sql("RESET statement_timeout")
                connection.commit()
            connection.execution_options(isolation_level=level)  # restore the level of a caller's connection

    def grants(self, role: str | None, migrator: str | None, *, database: str | None, schema: str | None) -> list[str]:
        path = base.quoted(schema or "public")
        lines: list[str] = []
        if migrator is not None:
            lines += [
                "-- migrations: the role that creates the tables owns them, and may change and drop them",
                f"GRANT USAGE, CREATE ON SCHEMA {path} TO {base.quoted(migrator)};",
            ]
        if role is not None:
            lines += [
                "-- application: rows, no DDL; run after the first upgrade and after each upgrade that adds a table",
                f"GRANT USAGE ON SCHEMA {path} TO {base.quoted(role)};",
            ]
            privileges = APPLICATION_PRIVILEGES.items()
            lines += [f"GRANT {granted} ON {path}.{table} TO {base.quoted(role)};" for table, granted in privileges]
        if role is not None and migrator is not None:
            defaults = f"FOR ROLE {base.quoted(migrator)} IN SCHEMA {path} GRANT SELECT ON TABLES"
            lines += [
                "-- tables of later migrations are readable at once: a replica may start before these lines run again",
                f"ALTER DEFAULT PRIVILEGES {defaults} TO {base.quoted(role)};",
            ]
        return lines

    def backup(self, connection: Connection, path: Path) -> None:
        raise ConfigurationError(
            "only SQLite files are copied: on PostgreSQL run pg_dump --format=custom "
            f"--file={path} --table='{schema_of(connection) or '*'}.vibeforge_session*' with the connection "
            "options of this server"
        )


def _hosts(parameters: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the hosts and ports in parameters of asyncpg; an empty list if there is only one host."""
    hosts, ports = parameters.get("host"), parameters.get("port")
    if not isinstance(hosts, list):
        return []
    return list(zip(hosts, ports if isinstance(ports, list) else [ports] * len(hosts), strict=True))
