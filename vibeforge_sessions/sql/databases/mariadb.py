"""MariaDB 10.11, and MySQL's protocol where it is the same."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import URL, Connection, Dialect, Engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection

from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.sql.databases.base import (
    Database,
    Rows,
    Settings,
    Timeouts,
    ask,
    is_ours,
    lock_error,
    refuse_payload,
    second_connection,
)
from vibeforge_sessions.sql.tables import APPLICATION_RIGHTS

_STATEMENT: Final = 2_000
"""More bytes than any of our statements has without its values."""
_ESCAPED: Final = "\\'\"\0\n\r\x1a"
"""Characters that become two in the text of a statement, into which the drivers write the values."""

_SESSION: Final = (  # strict: what does not fit is an error, and not cut in silence
    "SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO,"
    "NO_ZERO_DATE,NO_ZERO_IN_DATE'"
)

_ASKED: Final = "SELECT @@max_allowed_packet, @@character_set_client"
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
    transient = frozenset({1213, 1020})  # deadlock; record has changed since last read
    duplicate = frozenset({1062})
    wrong_schema = frozenset({1146, 1054})
    create_database = "CREATE DATABASE {name}"
    drop_database = "DROP DATABASE IF EXISTS {name}"
    wait_briefly = ("SET SESSION lock_wait_timeout = 10, innodb_lock_wait_timeout = 10",)

    def engine_options(self, url: URL, settings: Settings) -> dict[str, Any]:
        return {
            "isolation_level": "REPEATABLE READ",
            "connect_args": {"charset": "utf8mb4"},
            "pool_recycle": 3600,  # the server closes what has been idle for eight hours
        }

    def prepare(self, engine: Engine, url: URL, settings: Settings) -> None:
        @event.listens_for(engine, "connect")
        def connect(connection: DBAPIConnection, _record: object) -> None:
            cursor = connection.cursor()
            cursor.execute(_SESSION)
            cursor.close()

    def begin(self, connection: Connection, *, write: bool, at_once: bool) -> bool:
        if not is_ours(connection):  # a host's may commit each statement, or read another moment with each
            connection.execution_options(isolation_level="REPEATABLE READ")
        if connection.dialect not in _packets:
            _packets[connection.dialect] = _usable(connection.exec_driver_sql(_ASKED).one())
            connection.rollback()
        connection.begin()
        return True

    def join(self, connection: Connection) -> None:
        super().join(connection)
        if connection.dialect not in _packets:
            _packets[connection.dialect] = _usable(connection.exec_driver_sql(_ASKED).one())

    def begin_on_driver(self, dialect: Dialect, driver: Any, *, write: bool, at_once: bool) -> bool:
        if dialect not in _packets:
            _packets[dialect] = _usable(ask(driver, _ASKED))
        return True  # the server begins at the first statement

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


def _usable(row: Sequence[Any]) -> int:
    """Return what a statement may hold at the most; refuse a connection that would not keep our texts."""
    packet, charset = row
    if charset != "utf8mb4":
        raise StorageError(
            f"this engine's connections speak {charset}, in which most texts cannot be written: add "
            "?charset=utf8mb4 to its URL"
        )
    return int(packet)
