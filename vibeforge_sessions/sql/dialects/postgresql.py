"""PostgreSQL 15 to 18."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import URL, Connection, Dialect, Engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.sql.dialects.base import (
    CONNECT_TIMEOUT,
    IDLE_TIMEOUT,
    LEVEL_CHANGED,
    LOCK_TIMEOUT,
    POOLER,
    Database,
    Hosts,
    Rows,
    Settings,
    Timeouts,
    ask,
    lock_error,
    refuse_payload,
    second_connection,
    shut_down,
)
from vibeforge_sessions.sql.tables import APPLICATION_RIGHTS, schema_of

_LOCK: Final = 0x7669_6265_666F_7267  # "vibeforg": the key of the migration lock, the same in every release
_MESSAGE: Final = 2**30 - 2**16  # a statement with its parameters; a field is not larger either
_MAY_MIGRATE: Final = f"SELECT pg_try_advisory_xact_lock({_LOCK})"
"""Without parameters: one that has some leaves a portal open, and CREATE INDEX CONCURRENTLY waits for its snapshot."""
_HOLDER: Final = text(
    """
    SELECT a.pid, a.application_name, a.client_addr::text
    FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND (l.classid::bigint << 32) | l.objid::bigint = :key
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
)
_TIMEOUTS: Final = {
    "lock_timeout": f"{LOCK_TIMEOUT}s",
    "idle_in_transaction_session_timeout": f"{IDLE_TIMEOUT}s",
}
_END_SESSION: Final = text(
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE pid = :pid AND pid <> pg_backend_pid() AND usename = current_user AND datname = current_database()"
)
_SIZES: Final = text(
    "SELECT relname, pg_table_size(oid), pg_indexes_size(oid) FROM pg_class "
    "WHERE oid IN (SELECT to_regclass(path) FROM unnest(CAST(:paths AS text[])) AS path)"
)
_REFUSALS: Final = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")
_ASKED: Final = "SELECT current_setting('default_transaction_isolation'), current_setting('server_encoding')"
_ENOUGH: Final = "read committed"
_default_levels: Final[weakref.WeakKeyDictionary[Dialect, str]] = weakref.WeakKeyDictionary()
"""The server's default isolation level by the dialect of each engine that was found to be usable."""


class PostgreSQL(Database):
    """One statement for each write, in AUTOCOMMIT: one round trip, neither BEGIN nor COMMIT.

    A statement's snapshot is one moment under READ COMMITTED, and ours begin with an UPDATE (or INSERT) of one row
    that says in its WHERE what must still be true; PostgreSQL looks at that again after it has waited for another's
    lock, so that no write is refused as "could not serialize". A session is read in two statements, of which the
    second tells whether it belongs to the first. Whatever a host's engine has by default, this is asked for; where
    the server's own default is another level, each call is a transaction that asks for its level.
    """

    names = ("postgresql",)
    drivers: ClassVar[Mapping[str, str | None]] = {"postgresql+psycopg": "postgresql"}
    async_drivers: ClassVar[Mapping[str, str | None]] = {
        "postgresql+psycopg": "postgresql",
        "postgresql+asyncpg": "postgresql-asyncpg",
    }
    has_schemas = True
    writes_at_once = True
    transient = frozenset({"40001", "40P01", "55P03"})  # serialization, deadlock, lock not available in time
    # shut down, crashed, starting up, idle for too long; not the primary (any more); no connection left
    unavailable = frozenset({"57P01", "57P02", "57P03", "57P05", "25006", "53300"})
    damaged = frozenset({"XX001", "XX002"})
    duplicate = frozenset({"23505"})
    wrong_schema = frozenset({"42P01", "42703", "3F000"})
    took_too_long = frozenset({"57014"})
    create_database = "CREATE DATABASE {name} TEMPLATE template0"  # which nobody can be connected to
    drop_database = "DROP DATABASE IF EXISTS {name} WITH (FORCE)"
    wait_briefly = ("SET lock_timeout = '10s'",)

    def engine_options(self, url: URL, settings: Settings) -> dict[str, Any]:
        options: dict[str, Any] = {"isolation_level": "READ COMMITTED"}
        if url.get_driver_name() == "asyncpg":
            options["connect_args"] = {"server_settings": {"TimeZone": "UTC", **_TIMEOUTS}}
            if settings.pgbouncer:
                options["connect_args"] = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        elif settings.pgbouncer:  # what one client has prepared or set, another would find: prepare and set nothing
            options["connect_args"] = {"prepare_threshold": None}
        else:
            theirs = url.query.get("options", "")  # later ones win
            options["connect_args"] = {
                "options": f"-c TimeZone=UTC {' '.join(f'-c {name}={value}' for name, value in _TIMEOUTS.items())} "
                f"{theirs if isinstance(theirs, str) else ' '.join(theirs)}"
            }
        if settings.pgbouncer:
            options["execution_options"] = {POOLER: True}
        if url.get_driver_name() == "psycopg" and "connect_timeout" not in url.query:
            options["connect_args"]["connect_timeout"] = CONNECT_TIMEOUT
        return options

    def prepare(self, engine: Engine, url: URL, settings: Settings) -> None:
        if url.get_driver_name() == "asyncpg":
            event.listen(engine, "do_connect", _connecting_to_each())

        @event.listens_for(engine, "reset")
        def reset(driver: Any, record: ConnectionPoolEntry | None, state: PoolResetState) -> None:
            # the pool discards a connection whose reset raises
            if not state.asyncio_safe:  # the garbage collector's, discarded; psycopg would leave its transaction open
                self.cut(driver.driver_connection)
            elif record is not None and LEVEL_CHANGED in record.info:
                if not driver.autocommit:
                    driver.rollback()  # a level cannot be set within a transaction
                engine.dialect.reset_isolation_level(driver)
                del record.info[LEVEL_CHANGED]

    def begin(self, connection: Connection, *, write: bool, at_once: bool) -> bool:
        connection.connection.commit()  # what a host's listener to "connect" has set is to stay
        connection.info[LEVEL_CHANGED] = True  # before it is: SQLAlchemy itself sets back only what it has changed
        if connection.dialect not in _default_levels:
            _default_levels[connection.dialect] = _usable(connection.exec_driver_sql(_ASKED).one())
            connection.rollback()
        if at_once and _default_levels[connection.dialect] == _ENOUGH:
            connection.execution_options(isolation_level="AUTOCOMMIT")  # an attribute of the driver's connection
            return False
        # another one, which goes along with BEGIN: neither is a round trip
        connection.execution_options(isolation_level="READ COMMITTED" if write else "REPEATABLE READ")
        connection.begin()
        return True

    def join(self, connection: Connection) -> None:
        super().join(connection)
        if connection.dialect not in _default_levels:
            _default_levels[connection.dialect] = _usable(connection.exec_driver_sql(_ASKED).one())

    def begin_on_driver(self, dialect: Dialect, driver: Any, *, write: bool, at_once: bool) -> bool:
        driver.commit()  # what a host's listener to "connect" has set is to stay; no round trip where there is nothing
        if dialect not in _default_levels:
            _default_levels[dialect] = _usable(ask(driver, _ASKED))
        if at_once and _default_levels[dialect] == _ENOUGH:
            dialect.set_isolation_level(driver, "AUTOCOMMIT")
            return False
        dialect.set_isolation_level(driver, "READ COMMITTED" if write else "REPEATABLE READ")
        return True

    def is_unavailable(self, code: Any) -> bool:
        return super().is_unavailable(code) or str(code).startswith("08")

    def is_lost(self, error: DBAPIError) -> bool:
        # psycopg may find the socket closed before libpq does; what it says then has no code
        raised: Any = error.orig
        of_psycopg = isinstance(error, OperationalError) and type(raised).__module__.startswith("psycopg")
        return super().is_lost(error) or (of_psycopg and raised.sqlstate is None)

    def is_unreachable(self, error: DBAPIError, code: Any) -> bool:
        if code is not None:
            return self.is_unavailable(code)
        # libpq tells no code; in another language than English the wrong password is tried until the deadline
        return not any(words in str(error.orig) for words in _REFUSALS)

    def cut(self, connection: Any) -> None:
        with contextlib.suppress(Exception):  # closed meanwhile
            terminate = getattr(connection, "terminate", None)  # asyncpg's
            shut_down(connection.fileno()) if terminate is None else terminate()

    def server_session(self, connection: Any) -> Any:
        get_server_pid = getattr(connection, "get_server_pid", None)  # asyncpg's
        return connection.info.backend_pid if get_server_pid is None else get_server_pid()

    def end_session(self, connection: Connection, session: Any) -> bool:
        driver = connection.connection.driver_connection
        if connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() != self.server_session(driver):
            return False  # a pooler is in between, and the session one of its own
        for _ in range(2):  # one that ends by itself meanwhile is reported like one that does not end
            if all(connection.execute(_END_SESSION, {"pid": session}).scalars().all()):
                return True
            connection.rollback()  # the list of sessions is that of the transaction's beginning
        return False

    def batches(self, dialect: Dialect, driver: Any, rows: Rows) -> list[Rows]:
        texts = [value for row in rows for value in row.values() if isinstance(value, str)]
        if sum(map(len, texts)) > _MESSAGE // 4:  # a character takes four bytes at the most
            refuse_payload(sum(len(value.encode()) for value in texts), _MESSAGE, "the largest message")
        return [rows]

    @contextmanager
    def limiting_statements(self, driver: Any, seconds: float) -> Iterator[None]:
        cursor = driver.cursor()
        cursor.execute(f"SET LOCAL statement_timeout = {max(1, round(seconds * 1000))}")  # 0 would be without end
        cursor.close()
        yield

    def table_sizes(self, connection: Connection, tables: Sequence[str], schema: str | None) -> Sequence[Sequence[Any]]:
        place = "" if schema is None else f"{_quoted(schema)}."
        return connection.execute(_SIZES, {"paths": [f"{place}{_quoted(name)}" for name in tables]}).all()

    def migration_settings(self, timeouts: Timeouts, *, of_session: bool) -> tuple[str, ...]:
        scope = "SET" if of_session else "SET LOCAL"
        patience = max(1, round(timeouts.table * 1000))  # 0 would be without end
        settings = [f"{scope} lock_timeout = '{patience}ms'"]
        if timeouts.statement is not None:
            settings.append(f"{scope} statement_timeout = '{timeouts.statement * 1000:.0f}ms'")
        return tuple(settings)

    @contextmanager
    def migrating_alone(self, connection: Connection, timeouts: Timeouts) -> Iterator[None]:
        # The lock stands on a connection of its own, and nobody who waits for it has a transaction open: CREATE INDEX
        # CONCURRENTLY waits for every transaction that is older than itself, and would wait for the waiting ones.
        with second_connection(connection) as lock:
            # under REPEATABLE READ, which a host's engine may have, the holder's own transaction would be waited for
            lock.execution_options(isolation_level="READ COMMITTED")
            deadline = time.monotonic() + timeouts.migration
            while not lock.exec_driver_sql(_MAY_MIGRATE).scalar():
                holder = _holder(lock)
                lock.rollback()
                if time.monotonic() >= deadline:
                    raise lock_error(timeouts.migration, holder)
                time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
            lock.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")  # it waits for the migration
            driver = connection.connection.driver_connection  # the server knows nothing of AUTOCOMMIT
            level = "AUTOCOMMIT" if getattr(driver, "autocommit", False) else connection.get_isolation_level()
            connection.connection.rollback()  # asking has begun a transaction
            connection.execution_options(isolation_level="READ COMMITTED")
            # Each transaction sets its own; an index made CONCURRENTLY is in none. What a session sets would leak
            # through PgBouncer, so it does only if it is asked to.
            of_session = self.migration_settings(timeouts, of_session=True) if timeouts.given else ()
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
                connection.execution_options(isolation_level=level)  # a host's stays as it was

    @contextmanager
    def migrating_inside(self, connection: Connection, timeouts: Timeouts) -> Iterator[None]:
        deadline = time.monotonic() + timeouts.migration
        while not connection.exec_driver_sql(_MAY_MIGRATE).scalar():
            if time.monotonic() >= deadline:
                raise lock_error(timeouts.migration, _holder(connection))
            time.sleep(0.1)
        yield

    def grants(self, role: str | None, migrator: str | None, *, database: str | None, schema: str | None) -> list[str]:
        path = _quoted(schema or "public")
        lines: list[str] = []
        if migrator is not None:
            lines += [
                "-- runs the migrations: who makes the tables owns them, and may change and drop them",
                f"GRANT USAGE, CREATE ON SCHEMA {path} TO {_quoted(migrator)};",
            ]
        if role is not None:
            lines += [
                "-- the application: rows, and no DDL; after the first upgrade, and after each that brings a table",
                f"GRANT USAGE ON SCHEMA {path} TO {_quoted(role)};",
            ]
            rights = APPLICATION_RIGHTS.items()
            lines += [f"GRANT {granted} ON {path}.{table} TO {_quoted(role)};" for table, granted in rights]
        if role is not None and migrator is not None:
            made = f"FOR ROLE {_quoted(migrator)} IN SCHEMA {path} GRANT SELECT ON TABLES"
            lines += [
                "-- what a later migration makes is readable at once, for replicas that start before this is run again",
                f"ALTER DEFAULT PRIVILEGES {made} TO {_quoted(role)};",
            ]
        return lines

    def backup(self, connection: Connection, path: Path) -> None:
        raise StorageError(
            "PostgreSQL has a tool for that, which others may write beside: pg_dump --format=custom "
            f"--file={path} --table='{schema_of(connection) or '*'}.vibeforge_session*' and the database's address"
        )


def _connecting_to_each() -> Callable[..., DBAPIConnection | None]:
    """Return a listener that gives each of several hosts a time limit of its own.

    asyncpg has one for all of them together, which the first may use up by accepting the connection and saying nothing.
    """
    known = Hosts()

    def connect(
        dialect: Dialect, _record: object, args: Sequence[Any], parameters: dict[str, Any]
    ) -> DBAPIConnection | None:
        parameters.setdefault("timeout", CONNECT_TIMEOUT)
        hosts, ports = parameters.get("host"), parameters.get("port")
        if not isinstance(hosts, list) or len(hosts) < 2:  # noqa: PLR2004 (several)
            return None

        def connect_to(index: int) -> DBAPIConnection:
            port = ports[index] if isinstance(ports, list) else ports
            return dialect.connect(*args, **{**parameters, "host": hosts[index], "port": port})

        return known.connect(len(hosts), connect_to, (Exception,))  # asyncpg's own, the system's, and more

    return connect


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _usable(row: Sequence[Any]) -> str:
    """Return the isolation level of statements outside a transaction; refuse a database that cannot keep our texts."""
    level, encoding = row
    if encoding != "UTF8":
        raise StorageError(
            f"this database's encoding is {encoding}, in which most texts cannot be written: UTF8 is needed"
        )
    return str(level)


def _holder(connection: Connection) -> str:
    row = connection.execute(_HOLDER, {"key": _LOCK}).first()
    if row is None:
        return "its holder has just gone"
    pid, application, address = row
    return f"process {pid} of the server, application {application or 'unnamed'!r}, from {address or 'a local socket'}"
