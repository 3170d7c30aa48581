"""MariaDB 10.11, and MySQL's protocol where it is the same."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import URL, Connection, Dialect, Engine, bindparam, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError

from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.sql.dialects.base import (
    CONNECT_TIMEOUT,
    IDLE_TIMEOUT,
    LOCK_TIMEOUT,
    Database,
    Hosts,
    Rows,
    Settings,
    Timeouts,
    ask,
    is_ours,
    lock_error,
    refuse_payload,
    second_connection,
    shut_down,
)
from vibeforge_sessions.sql.tables import APPLICATION_RIGHTS

_STATEMENT: Final = 2_000
"""More bytes than any of our statements has without its values."""
_ESCAPED: Final = "\\'\"\0\n\r\x1a"
"""Characters that become two in the text of a statement, into which the drivers write the values."""

_SIZES: Final = text(
    "SELECT table_name, data_length, index_length FROM information_schema.tables "
    "WHERE table_schema = DATABASE() AND table_name IN :names"
).bindparams(bindparam("names", expanding=True))
_SESSION: Final = (  # strict: what does not fit is an error, and not cut in silence
    "SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO,"
    f"NO_ZERO_DATE,NO_ZERO_IN_DATE', innodb_lock_wait_timeout = {LOCK_TIMEOUT}, "
    # init_connect and skip-character-set-client-handshake override what the driver asks for at the handshake
    "NAMES utf8mb4"
    f"/*M!, idle_transaction_timeout = {IDLE_TIMEOUT}*/"  # MySQL has none
)

_GREETING_TIMEOUT: Final = float(CONNECT_TIMEOUT)
"""How long a server that has taken the connection may stay silent, until it is made; told apart by identity."""
_UNKNOWN_VARIABLE: Final = 1193
_UNKNOWN_THREAD: Final = 1094
_PORT: Final = 3306

_CHARACTER_SETS: Final = (
    "character_set_client",
    "character_set_connection",
    "character_set_results",
    "collation_connection",
)
"""The variables of a connection that decide how texts are converted on their way to the tables and back."""
_CHARACTER_SET: Final = "utf8mb4"
_ASKED: Final = ", ".join(["SELECT @@max_allowed_packet", *(f"@@{name}" for name in _CHARACTER_SETS)])
_packets: Final[weakref.WeakKeyDictionary[Dialect, int]] = weakref.WeakKeyDictionary()
"""``max_allowed_packet`` by the dialect of each engine that was found to be usable."""


class MariaDB(Database):
    """REPEATABLE READ, its default: the reads of one session show one moment.

    Writes lock the session's row first and look at its version in the same statement, which reads what is committed
    and not what the transaction's snapshot holds; none of them reads before it writes.
    """

    names = ("mysql", "mariadb")
    drivers: ClassVar[Mapping[str, str | None]] = {"mysql+pymysql": "mariadb", "mariadb+pymysql": "mariadb"}
    async_drivers: ClassVar[Mapping[str, str | None]] = {
        "mysql+asyncmy": "mariadb-asyncmy",
        "mariadb+asyncmy": "mariadb-asyncmy",
    }
    transactional_ddl = False  # each CREATE and ALTER commits
    mixes_snapshots = True
    transient = frozenset({1213, 1205, 1020})  # deadlock; lock wait timeout; record has changed since last read
    # too many connections, shutting down, not ready (Galera), killed; not there, gone, lost, closed for being idle
    unavailable = frozenset({1040, 1053, 1047, 1927, 2002, 2003, 2006, 2013, 2055, 4031})
    damaged = frozenset({1034, 1194, 1195, 1712, 1877})
    duplicate = frozenset({1062})
    wrong_schema = frozenset({1146, 1054})
    took_too_long = frozenset({1969})
    create_database = "CREATE DATABASE {name}"
    drop_database = "DROP DATABASE IF EXISTS {name}"
    wait_briefly = ("SET SESSION lock_wait_timeout = 10, innodb_lock_wait_timeout = 10",)

    def engine_options(self, url: URL, settings: Settings) -> dict[str, Any]:
        connect_args: dict[str, Any] = {"charset": "utf8mb4"}
        if "connect_timeout" not in url.query:
            connect_args["connect_timeout"] = CONNECT_TIMEOUT
        if "read_timeout" not in url.query and url.drivername in self.drivers:
            connect_args["read_timeout"] = _GREETING_TIMEOUT
        return {
            "isolation_level": "REPEATABLE READ",
            "connect_args": connect_args,
            "pool_recycle": 3600,  # the server closes what has been idle for eight hours
        }

    def engine_url(self, url: URL) -> URL:
        hosts = _hosts(url)
        if not hosts:
            return url
        host, port = hosts[0]
        return url.difference_update_query(["host"]).set(host=host, port=port)

    def prepare(self, engine: Engine, url: URL, settings: Settings) -> None:
        if url.drivername in self.async_drivers:
            event.listen(engine, "do_connect", _greeted_in_time)
        hosts = _hosts(url)
        if hosts:
            event.listen(engine, "do_connect", _connecting_to_any(hosts))

        @event.listens_for(engine, "connect")
        def connect(connection: DBAPIConnection, _record: object) -> None:
            if getattr(connection, "_read_timeout", None) is _GREETING_TIMEOUT:
                connection._read_timeout = None  # noqa: SLF001 (PyMySQL has no other way; a migration takes long)
            cursor = connection.cursor()
            cursor.execute(_SESSION)
            cursor.close()

    def begin(self, connection: Connection, *, write: bool, at_once: bool) -> bool:
        if not is_ours(connection):  # a host's may commit each statement, or read another moment with each
            connection.execution_options(isolation_level="REPEATABLE READ")
        if connection.dialect not in _packets:
            asked = connection.exec_driver_sql(_ASKED).one()
            _packets[connection.dialect] = _usable(asked, connection.connection.driver_connection)
            connection.rollback()
        connection.begin()
        return True

    def join(self, connection: Connection) -> None:
        super().join(connection)
        if connection.dialect not in _packets:
            asked = connection.exec_driver_sql(_ASKED).one()
            _packets[connection.dialect] = _usable(asked, connection.connection.driver_connection)

    def begin_on_driver(self, dialect: Dialect, driver: Any, *, write: bool, at_once: bool) -> bool:
        if dialect not in _packets:
            _packets[dialect] = _usable(ask(driver, _ASKED), dialect.get_driver_connection(driver))
        return True  # the server begins at the first statement

    def cut(self, connection: Any) -> None:
        with contextlib.suppress(Exception):  # closed meanwhile
            transport = getattr(connection, "_transport", None)  # asyncmy's
            shut_down(connection._sock.fileno()) if transport is None else transport.abort()  # noqa: SLF001

    def server_session(self, connection: Any) -> Any:
        return connection.get_host_info(), connection.thread_id()

    def end_session(self, connection: Connection, session: Any) -> bool:
        host, number = session
        galera = connection.exec_driver_sql("SHOW VARIABLES LIKE 'wsrep_on'").first()
        # the numbers are those of a node, and a cluster that is committing is not to be disturbed
        elsewhere = host != connection.connection.driver_connection.get_host_info()  # type: ignore[union-attr]
        if not elsewhere and (galera is None or galera[1] != "ON"):
            try:
                connection.exec_driver_sql(f"KILL CONNECTION {int(number)}")
            except DBAPIError as error:
                if error.orig is None or error.orig.args[0] != _UNKNOWN_THREAD:
                    raise
        return True  # nothing counts until its COMMIT, and until then its locks are held

    def catch_up(self, connection: Connection) -> None:
        try:  # the server waits only where no statement has begun the transaction yet
            connection.exec_driver_sql("SET STATEMENT wsrep_sync_wait = 1 FOR SELECT 1")
        except DBAPIError as error:
            if error.orig is None or error.orig.args[0] != _UNKNOWN_VARIABLE:  # a server that was built without Galera
                raise

    def batches(self, dialect: Dialect, driver: Any, rows: Rows) -> list[Rows]:
        limit = _packets[dialect]
        batches: list[Rows] = [[]]
        room = limit
        for row in rows:
            texts = [value for value in row.values() if isinstance(value, str)]
            size = 4 * sum(map(len, texts)) + _STATEMENT
            if size > room:  # count bytes only where it matters
                size = sum(len(value.encode()) + sum(map(value.count, _ESCAPED)) for value in texts) + _STATEMENT
                refuse_payload(size, limit, "max_allowed_packet")
            if size > room:  # the driver puts the rows of one call into one statement
                batches.append([])
                room = limit
            batches[-1].append(row)
            room -= size
        return batches

    @contextmanager
    def limiting_statements(self, driver: Any, seconds: float) -> Iterator[None]:
        (before,) = ask(driver, "SELECT @@max_statement_time")
        with driver.cursor() as cursor:
            cursor.execute(f"SET SESSION max_statement_time = {seconds:g}")
            try:
                yield
            finally:
                with contextlib.suppress(Exception):  # lost, and not used again; otherwise a host's is as it was
                    cursor.execute(f"SET SESSION max_statement_time = {before}")

    def table_sizes(self, connection: Connection, tables: Sequence[str], schema: str | None) -> Sequence[Sequence[Any]]:
        return connection.execute(_SIZES, {"names": list(tables)}).all()

    def migration_settings(self, timeouts: Timeouts, *, of_session: bool) -> tuple[str, ...]:
        if not of_session:
            return ()
        # the server's own patience for a table's lock is a day, in which nobody else gets near the table
        settings = [f"SET SESSION lock_wait_timeout = {max(0, round(timeouts.table))}"]
        if timeouts.statement is not None:
            settings.append(f"SET SESSION max_statement_time = {timeouts.statement:g}")
        return tuple(settings)

    @contextmanager
    def migrating_alone(self, connection: Connection, timeouts: Timeouts) -> Iterator[None]:
        # apart: a lock that is waited for keeps no table locked
        with second_connection(connection) as lock, self.migrating_inside(lock, timeouts):
            lock.rollback()  # the lock stays; a transaction that does nothing would be ended
            before = connection.execute(text("SELECT @@lock_wait_timeout, @@max_statement_time")).one()
            try:
                for setting in self.migration_settings(timeouts, of_session=True):
                    connection.exec_driver_sql(setting)
                connection.commit()
                yield
            finally:
                connection.rollback()
                if not connection.invalidated:  # a host's stays as it was
                    connection.exec_driver_sql(
                        f"SET SESSION lock_wait_timeout = {before[0]}, max_statement_time = {before[1]}"
                    )
                    connection.rollback()

    @contextmanager
    def migrating_inside(self, connection: Connection, timeouts: Timeouts) -> Iterator[None]:
        timeout, name = timeouts.migration, {"name": _lock_name(connection)}
        if not connection.execute(text("SELECT GET_LOCK(:name, :timeout)"), {**name, "timeout": timeout}).scalar():
            holder = connection.execute(text("SELECT IS_USED_LOCK(:name)"), name).scalar()
            raise lock_error(timeout, f"connection {holder} of the server" if holder else "its holder has just gone")
        try:
            yield
        finally:
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), name)

    def grants(self, role: str | None, migrator: str | None, *, database: str | None, schema: str | None) -> list[str]:
        if not database:
            raise StorageError("MariaDB's rights are those of a database: name it in the URL")
        of, lines = _quoted(database), list[str]()
        if migrator is not None:
            changes = "CREATE, ALTER, DROP, INDEX, REFERENCES, SELECT, INSERT, UPDATE, DELETE"
            lines.append("-- runs the migrations")
            lines += [f"GRANT {changes} ON {of}.{table} TO {_account(migrator)};" for table in APPLICATION_RIGHTS]
        if role is not None:
            lines.append(
                "-- the application: rows, and no DDL; after the first upgrade, and after each that brings a table"
            )
            rights = APPLICATION_RIGHTS.items()
            lines += [f"GRANT {granted} ON {of}.{table} TO {_account(role)};" for table, granted in rights]
        return lines

    def backup(self, connection: Connection, path: Path) -> None:
        tables = " ".join(APPLICATION_RIGHTS)
        raise StorageError(
            "MariaDB has a tool for that, which others may write beside: mariadb-dump --single-transaction "
            f"--result-file={path} {connection.engine.url.database} {tables} and the server's address"
        )


def _hosts(url: URL) -> list[tuple[str, int]]:
    """Return the hosts of a URL like ``mariadb+pymysql://user@/database?host=a:3306&host=b``, with their ports."""
    given = url.query.get("host", ())
    hosts = []
    for each in (given,) if isinstance(given, str) else given:
        host, _, port = each.rpartition(":") if each.rpartition(":")[2].isdecimal() else (each, "", "")
        hosts.append((host.strip("[]"), int(port or url.port or _PORT)))
    return hosts


def _greeted_in_time(dialect: Dialect, _record: object, _args: object, parameters: dict[str, Any]) -> None:
    """Limit the whole of a connect: asyncmy's own limit ends when the server has taken the connection."""
    connect = parameters.get("async_creator_fn", dialect.loaded_dbapi.asyncmy.connect)

    async def connect_in_time(*args: Any, **given: Any) -> Any:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            return await connect(*args, **given)

    parameters["async_creator_fn"] = connect_in_time


def _connecting_to_any(hosts: Sequence[tuple[str, int]]) -> Callable[..., DBAPIConnection]:
    """Return a listener that connects to the first host that is ready."""
    known = Hosts()

    def connect(dialect: Dialect, _record: object, args: Sequence[Any], parameters: dict[str, Any]) -> DBAPIConnection:
        def connect_to(index: int) -> DBAPIConnection:
            host, port = hosts[index]
            connection = dialect.connect(*args, **{**parameters, "host": host, "port": port})
            try:
                connection.rollback()  # sent in any case; a node that is not ready refuses it, and no SELECT 1
            except BaseException:
                connection.close()
                raise
            return connection

        return known.connect(len(hosts), connect_to, (dialect.loaded_dbapi.Error, OSError))

    return connect


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _account(name: str) -> str:
    """Return a user, from any host unless it is named as in ``app@10.0.0.%``."""
    user, _, host = name.rpartition("@") if "@" in name else (name, "", "%")
    return f"{_quoted(user)}@{_quoted(host)}"


def _lock_name(connection: Connection) -> str:
    """Return the lock's name: GET_LOCK's are the server's, not the database's, and end at 64 characters."""
    database = connection.execute(text("SELECT DATABASE()")).scalar_one()
    return f"vibeforge_sessions:{hashlib.sha256(str(database).encode()).hexdigest()[:32]}"


def _usable(row: Sequence[Any], driver: Any) -> int:
    """Return the size limit of one statement.

    :param row: the answer to `_ASKED`.
    :param driver: the driver's own connection.
    :raises StorageError: texts would be changed between the caller and the tables; the error names the fix.
    """
    packet, *values = row
    settings = dict(zip(_CHARACTER_SETS, values, strict=True))
    if settings["character_set_results"] is None:  # no conversion: texts arrive as they are stored
        del settings["character_set_results"]
    for name, value in settings.items():
        if str(value).partition("_")[0] != _CHARACTER_SET:
            raise _changes_texts(f"{name} is {value}")
    of_driver = driver.character_set_name()
    if not of_driver.startswith("utf8"):  # a listener has sent SET NAMES; the driver encodes as before
        raise _changes_texts(f"the driver's character set is {of_driver}")
    return int(packet)


def _changes_texts(problem: str) -> StorageError:
    return StorageError(
        f"this engine's connections change texts on their way to the database: {problem} and must be {_CHARACTER_SET}: "
        f"add ?charset={_CHARACTER_SET} to its URL, and let no connect event, init_command or init_connect of the "
        f"server set another one (SET NAMES {_CHARACTER_SET} in the engine's connect event overrides the server)"
    )
