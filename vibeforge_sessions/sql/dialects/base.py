"""What differs between databases, as one interface; and how SQLAlchemy's engine is made for any of them."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple

from sqlalchemy import URL, Connection, Dialect, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, TimeoutError  # noqa: A004 (the pool's)

from vibeforge_sessions.errors import InvalidSessionError, SchemaError, StorageError

OURS: Final = "vibeforge_sessions_prepared"
"""The execution option of an engine that we have made: its connections need nothing more."""
POOLER: Final = "vibeforge_sessions_pooler"
"""The execution option of an engine of ours with a pooler in between, behind which no session can be ended."""
LEVEL_CHANGED: Final = "vibeforge_sessions_level_changed"
"""In the information about a pooled connection of ours: its isolation level may not be the engine's."""

CONNECT_TIMEOUT: Final = 5
"""How long an engine of ours waits for a server to take a connection, in seconds."""
LOCK_TIMEOUT: Final = 10
"""How long a connection of such an engine waits for another's lock on a row, in seconds."""
IDLE_TIMEOUT: Final = 60
"""How long its transactions may do nothing: a client that has vanished would keep its locks for hours."""

Rows = list[dict[str, Any]]


class Database(ABC):
    """One kind of database. The rest of the package asks this, and never for a dialect's name."""

    names: ClassVar[tuple[str, ...]]
    """The names that SQLAlchemy's dialects have for it."""
    drivers: ClassVar[Mapping[str, str | None]]
    """Each supported driver, the default one first, and the extra that installs it."""
    async_drivers: ClassVar[Mapping[str, str | None]] = {}
    transactional_ddl: ClassVar[bool] = True
    """Whether a migration that fails leaves nothing behind."""
    has_schemas: ClassVar[bool] = False
    """Whether tables may stand in a schema of their own within the database."""
    writes_at_once: ClassVar[bool] = False
    """Whether ``WITH … AS (UPDATE … RETURNING …) INSERT …`` is one statement: then a write needs no transaction."""
    mixes_snapshots: ClassVar[bool] = False
    """Whether a transaction sees the rows that it has written as they are now, and all others as of its beginning."""
    is_server: ClassVar[bool] = True
    """Whether it is on the other side of a connection, which may be lost, or say nothing for ever."""
    transient: ClassVar[frozenset[Any]] = frozenset()
    """The codes of a transaction that was rolled back in favour of another, or did not get a lock: it may be tried
    again, even after a COMMIT."""
    unavailable: ClassVar[frozenset[Any]] = frozenset()
    """The codes of a server that is not there or cannot be used now: another connection may do better."""
    lasting: ClassVar[frozenset[Any]] = frozenset()
    """The codes of failures that stay with the connection when their cause is gone."""
    damaged: ClassVar[frozenset[Any]] = frozenset()
    """The codes of a database that has found its own data spoilt."""
    duplicate: ClassVar[frozenset[Any]]
    """The codes of a primary key that is there already."""
    wrong_schema: ClassVar[frozenset[Any]] = frozenset()
    """The codes of "no such table" and "no such column"."""
    took_too_long: ClassVar[frozenset[Any]] = frozenset()
    """The codes of a statement that was ended because its time was over (see `limiting_statements`)."""
    create_database: ClassVar[str | None] = None
    """The statement that makes an empty database on the server; None where a database is a file."""
    drop_database: ClassVar[str] = ""
    """The statement that drops it, outside a transaction."""
    begin_statements: ClassVar[tuple[str, str] | None] = None
    """The statements that begin a transaction that reads, and one that writes; None where the driver begins it."""
    wait_briefly: ClassVar[tuple[str, ...]] = ()
    """Statements after which a connection waits for others' locks for ten seconds at the most."""

    @abstractmethod
    def engine_options(self, url: URL, settings: Settings) -> dict[str, Any]:
        """Return options for `sqlalchemy.create_engine`; ``connect_args`` are merged with the caller's."""

    def engine_url(self, url: URL) -> URL:
        """Return the URL without what `prepare` sees to."""
        return url

    def prepare(self, engine: Engine, url: URL, settings: Settings) -> None:  # noqa: B027 (not all need it)
        """Listen to the events of an engine of ours."""

    @abstractmethod
    def begin(self, connection: Connection, *, write: bool, at_once: bool) -> bool:
        """Begin a transaction that is one, whoever made the engine: a read shows one moment.

        :param at_once: the unit of work needs none where `writes_at_once`.
        :returns: whether there is one; otherwise each statement commits itself.
        """

    def join(self, connection: Connection) -> None:
        """Look whether a host's connection, on which SQLAlchemy has begun a transaction, can be used as it is.

        :raises StorageError: it cannot; the error names the fix.
        """
        driver: Any = connection.connection.dbapi_connection
        if connection.dialect.detect_autocommit_setting(driver):
            raise StorageError(
                "this connection is in AUTOCOMMIT, so there is no transaction to join: leave isolation_level out, or "
                "give the repository the Engine"
            )

    def begin_on_driver(self, dialect: Dialect, driver: Any, *, write: bool, at_once: bool) -> bool:
        """Do what `begin` does on the driver's connection of our own engine, if there are no `begin_statements`."""
        return True

    def is_unavailable(self, code: Any) -> bool:
        """Tell whether a code is one of a server that is not there, or cannot be used now."""
        return code in self.unavailable

    def is_lost(self, error: DBAPIError) -> bool:
        """Tell whether the connection is lost, and with it the answer to what it was sent."""
        return error.connection_invalidated

    def is_unreachable(self, error: DBAPIError, code: Any) -> bool:
        """Tell whether a connection that could not be made may be made a moment later."""
        return self.is_unavailable(code)

    def may_have_committed(self, code: Any) -> bool:
        """Tell whether what a COMMIT has failed with leaves open whether it was done."""
        return code not in self.transient

    def is_garbled(self, error: DBAPIError) -> bool:
        """Tell whether the driver could not make sense of a stored value, which its error shows."""
        return False

    def cut(self, connection: Any) -> None:  # noqa: B027 (not all need it)
        """Cut a driver's own connection, on which a thread or a task is waiting for the server."""

    def server_session(self, connection: Any) -> Any:
        """Return what `end_session` needs to know about a driver's own connection."""
        return None

    def end_session(self, connection: Connection, session: Any) -> bool:
        """End the server's side of a connection that was lost, on another one that is in no transaction.

        The server may not know that it is lost: it would hold its locks for hours, and run what was sent whenever that
        arrives. Tell whether it is certain that nothing will be run any more.
        """
        return True

    def catch_up(self, connection: Connection) -> None:  # noqa: B027 (not all need it)
        """Have what is read next show everything that any node of a cluster has committed."""

    @abstractmethod
    def batches(self, dialect: Dialect, driver: Any, rows: Rows) -> list[Rows]:
        """Return the rows, in parts that each fit into one statement of the driver's connection.

        :raises InvalidSessionError: a row does not, with both sizes.
        """

    @abstractmethod
    def limiting_statements(self, driver: Any, seconds: float) -> AbstractContextManager[None]:
        """End each statement that takes longer on a synchronous driver's connection, in a transaction that reads."""

    @abstractmethod
    def table_sizes(self, connection: Connection, tables: Sequence[str], schema: str | None) -> Sequence[Sequence[Any]]:
        """Return the name of each table, and the bytes that it and its indexes take; None for the whole database."""

    def migration_settings(self, timeouts: Timeouts, *, of_session: bool) -> tuple[str, ...]:
        """Return the statements that limit a migration's waiting, for its session or else for its transaction."""
        return ()

    @abstractmethod
    def migrating_alone(self, connection: Connection, timeouts: Timeouts) -> AbstractContextManager[None]:
        """Hold the lock that keeps other migrations out, on a connection that is in no transaction.

        :raises SchemaError: somebody else holds it still after ``timeouts.migration`` seconds.
        """

    @abstractmethod
    def migrating_inside(self, connection: Connection, timeouts: Timeouts) -> AbstractContextManager[None]:
        """Hold the lock inside a host's transaction, which is left to the host."""

    @abstractmethod
    def grants(self, role: str | None, migrator: str | None, *, database: str | None, schema: str | None) -> list[str]:
        """Return the lines that give the least rights to the application's role, and to the migrator's.

        :raises StorageError: the database's name is needed, and there is none.
        """

    @abstractmethod
    def backup(self, connection: Connection, path: Path) -> None:
        """Write a consistent copy of the database, which others may be writing to, into a new file.

        :raises StorageError: this database has a tool for it; the error names the command.
        """


class Timeouts(NamedTuple):
    """How long a migration waits, in seconds; None for the defaults."""

    lock: float | None = None
    statement: float | None = None

    @property
    def migration(self) -> float:
        """How long for another migration."""
        return 60.0 if self.lock is None else self.lock

    @property
    def table(self) -> float:
        """How long for a table's lock: whoever waits for one lets nobody else near the table meanwhile."""
        return 10.0 if self.lock is None else self.lock

    @property
    def given(self) -> bool:
        """Whether somebody has asked for any."""
        return self != Timeouts()


class Settings:
    """The options of `create_engine` that only some databases know."""

    __slots__ = ("busy_timeout", "pgbouncer", "synchronous")

    def __init__(self, *, synchronous: Literal["FULL", "NORMAL"], busy_timeout: float, pgbouncer: bool) -> None:
        self.synchronous = synchronous
        self.busy_timeout = busy_timeout
        self.pgbouncer = pgbouncer


def is_ours(connection: Connection) -> bool:
    """Tell whether the connection's engine was made by `create_engine` of this package, and left as it is."""
    options = connection.get_execution_options()
    return bool(options.get(OURS)) and "isolation_level" not in options


def ask(driver: Any, statement: str) -> tuple[Any, ...]:
    """Return the single row of a statement that is run on the driver's connection, and roll back."""
    cursor = driver.cursor()
    try:
        cursor.execute(statement)
        return tuple(cursor.fetchone())
    finally:
        cursor.close()
        driver.rollback()


@contextmanager
def second_connection(connection: Connection) -> Iterator[Connection]:
    """Give another connection of the same engine, for a lock."""
    try:
        second = connection.engine.connect()
    except TimeoutError:
        raise SchemaError(
            "a migration takes a second connection for its lock, and this engine's pool has none left: let it have two"
        ) from None
    with second:
        yield second


def shut_down(file_descriptor: int) -> None:
    """Shut a socket down that belongs to somebody else, who is waiting on it."""
    try:
        with socket.socket(fileno=os.dup(file_descriptor)) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:  # closed meanwhile
        pass


def refuse_payload(size: int, limit: int, setting: str) -> None:
    """Refuse what does not fit."""
    if size > limit:
        raise InvalidSessionError(
            f"what is to be stored in one statement takes {size:,} bytes, and this database takes {limit:,} ({setting})"
        )


def lock_error(timeout: float, holder: str) -> SchemaError:
    """Return the error of a migration that did not get its lock."""
    return SchemaError(f"another migration holds the lock still, after {timeout:g} s: {holder}; nothing was migrated")


class Hosts:
    """Which of several hosts was ready last: the next connection begins with it."""

    def __init__(self) -> None:
        self._last_ready = 0

    def connect(
        self, number: int, connect_to: Callable[[int], DBAPIConnection], errors: tuple[type[Exception], ...]
    ) -> DBAPIConnection:
        """Return a connection to the first one of so many that is ready.

        :param connect_to: connects to the one of an index, or raises one of `errors`; the last of these is raised where
            none is ready.
        """
        first, raised = self._last_ready, None
        for index in (each % number for each in range(first, first + number)):
            try:
                connection = connect_to(index)
            except errors as error:
                raised = error
            else:
                self._last_ready = index
                return connection
        raise raised or AssertionError("there are no hosts")


def failure_code(error: DBAPIError) -> Any:
    """Return SQLite's error name, PostgreSQL's SQLSTATE or MariaDB's error number."""
    original: Any = error.orig
    if original.args and isinstance(original.args[0], int):
        return original.args[0]
    return getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None)
