"""The interface by which an operation executes its statements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Dialect, Executable, PoolProxiedConnection
from sqlalchemy.exc import IntegrityError

from vibeforge_sessions.sql.dialects import Database, database_of, failure_code
from vibeforge_sessions.sql.transactions.precompiled import Parameters, Rows

_SESSION: Final = "vibeforge_sessions_server_session"


class Executor(ABC):
    """Runs the statements of one unit of work on a connection; somebody else begins and ends the transaction."""

    __slots__ = ("database", "dialect", "joined")

    def __init__(self, dialect: Dialect, *, joined: bool = False) -> None:
        self.dialect = dialect
        self.database: Database = database_of(dialect)
        self.joined = joined
        """Whether the transaction is a host's, who may have chosen one in which two reads show two moments."""

    @property
    @abstractmethod
    def driver(self) -> Any:
        """The driver's connection; an asynchronous driver's may come in SQLAlchemy's synchronous coat."""

    @property
    @abstractmethod
    def pooled(self) -> PoolProxiedConnection:
        """The connection of the pool, which is given back by it, or once nothing refers to it."""

    @property
    @abstractmethod
    def own_connection(self) -> Any:
        """The driver's own connection, without a coat."""

    @abstractmethod
    def begin(self, *, write: bool, at_once: bool) -> bool:
        """Begin a transaction; return whether there is one to commit, and not one around each statement."""

    @abstractmethod
    def commit(self) -> None:
        """Commit."""

    @abstractmethod
    def rollback(self) -> None:
        """Undo what a failed COMMIT has left, which the next one to get this connection would commit."""

    @abstractmethod
    def close(self) -> None:
        """Roll back what is not committed, and give the connection back as it was."""

    @abstractmethod
    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        """Run a statement; return its rows."""

    @property
    @abstractmethod
    def info(self) -> dict[Any, Any]:
        """What is to be remembered of this connection as long as it lasts."""

    @property
    def server_session(self) -> Any:
        """What `Database.end_session` needs once this connection is lost; a lost one does not tell."""
        if _SESSION not in self.info:
            self.info[_SESSION] = self.database.server_session(self.own_connection)
        return self.info[_SESSION]

    def wrote(self, session_id: str, *, deleted: bool = False) -> None:  # noqa: B027 (only a joined transaction reads after that)
        """Record that this transaction has written or deleted a session."""

    def has_deleted(self, session_id: str) -> bool:
        """Return whether this transaction has deleted a session, and not written it since."""
        return False

    def reads_now(self, session_id: str) -> bool:
        """Tell whether a session has to be read as it is now (see `Database.mixes_snapshots`)."""
        return False

    def columns(self, statement: Executable, parameters: Parameters) -> Rows:
        """Run a statement; return its rows by column, nothing for no row: what is made of many is made so."""
        return list(zip(*self.rows(statement, parameters), strict=True))

    @abstractmethod
    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        """Run a statement that returns nothing, once for each set of parameters; return how many rows it hit."""

    @abstractmethod
    def give_up(self) -> None:
        """Take the connection for one that is of no more use to anybody."""

    def failed(self, error: BaseException) -> BaseException:
        """Return what a method has raised as SQLAlchemy would; the connection is given up where it is lost."""
        return error

    def row(self, statement: Executable, parameters: Parameters) -> Sequence[Any] | None:
        """Run a statement that returns one row at the most."""
        rows = self.rows(statement, parameters)
        return rows[0] if rows else None

    def batches(self, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the rows, in parts that each fit into one statement (see `Database.batches`)."""
        return self.database.batches(self.dialect, self.driver, rows)

    def is_duplicate(self, error: BaseException) -> bool:
        """Tell whether a primary key is there already, and no constraint of the DBA's own was broken."""
        error = self.failed(error)
        return isinstance(error, IntegrityError) and failure_code(error) in self.database.duplicate
