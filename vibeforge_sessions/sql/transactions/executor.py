"""The interface by which an operation executes its statements: one for both execution paths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Dialect, Executable, PoolProxiedConnection
from sqlalchemy.exc import IntegrityError

from vibeforge_sessions.sql.dialects import DatabaseDialect, failure_code

Parameters = Mapping[str, Any]
Rows = Sequence[Sequence[Any]]

_SESSION: Final = "vibeforge_sessions_server_session"


class Executor(ABC):
    """Executes the statements of one operation on a connection; the runner begins and ends the transaction."""

    __slots__ = ("database", "dialect", "joined")

    database: DatabaseDialect
    dialect: Dialect
    joined: bool
    """Whether the transaction is the caller's, who may have chosen a level at which two reads see two moments."""

    @property
    @abstractmethod
    def driver(self) -> Any:
        """The driver's connection; of an asynchronous driver it may be SQLAlchemy's synchronous adapter."""

    @property
    @abstractmethod
    def pooled(self) -> PoolProxiedConnection:
        """The pooled connection; it returns to the pool when it is closed, or when nothing refers to it."""

    @property
    @abstractmethod
    def own_connection(self) -> Any:
        """The driver's own connection, without an adapter."""

    @abstractmethod
    def begin(self, *, write: bool, single_statement: bool) -> bool:
        """Begin a transaction.

        :param single_statement: each write of the operation is a single statement where the database supports that.
        :returns: whether there is a transaction to commit; otherwise each statement commits itself.
        """

    @abstractmethod
    def commit(self) -> None:
        """Commit."""

    @abstractmethod
    def rollback(self) -> None:
        """Roll back what a failed COMMIT has left: the next user of the connection would commit it."""

    @abstractmethod
    def close(self) -> None:
        """Roll back what is not committed, and return the connection to the pool as it was."""

    @abstractmethod
    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        """Execute a statement; return its rows."""

    @property
    @abstractmethod
    def info(self) -> dict[Any, Any]:
        """Values that are kept as long as this connection exists."""

    @property
    def server_session(self) -> Any:
        """The argument of `DatabaseDialect.end_server_session`, which a lost connection cannot return."""
        if _SESSION not in self.info:
            self.info[_SESSION] = self.database.server_session(self.own_connection)
        return self.info[_SESSION]

    def wrote(self, session_id: str, *, deleted: bool = False) -> None:  # noqa: B027 (only a joined transaction reads after that)
        """Record that this transaction has written or deleted a session."""

    def has_deleted(self, session_id: str) -> bool:
        """Return whether this transaction has deleted a session, and not written it since."""
        return False

    def transaction_of(self, session_id: str) -> str | None:
        """Return the id of the joined transaction if it has written a session."""
        return None

    def reads_now(self, session_id: str) -> bool:
        """Return whether a session must be read as committed now (see `DatabaseDialect.writes_bypass_snapshot`)."""
        return False

    def columns(self, statement: Executable, parameters: Parameters) -> Rows:
        """Execute a statement; return its rows by column, nothing for no rows. Long histories are built so."""
        return list(zip(*self.rows(statement, parameters), strict=True))

    @abstractmethod
    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        """Execute a statement without rows once for each set of parameters; return the number of rows it matched."""

    @abstractmethod
    def give_up(self) -> None:
        """Discard the connection."""

    def failed(self, error: BaseException) -> BaseException:
        """Return what a method has raised as SQLAlchemy would raise it; discard the connection if it is lost."""
        return error

    def row(self, statement: Executable, parameters: Parameters) -> Sequence[Any] | None:
        """Execute a statement that returns one row at the most."""
        rows = self.rows(statement, parameters)
        return rows[0] if rows else None

    def batches(self, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the rows in batches that each fit into one statement (see `DatabaseDialect.batches`)."""
        return self.database.batches(self.dialect, self.driver, rows)

    def is_duplicate(self, error: BaseException) -> bool:
        """Return whether a primary key exists already; a constraint that the DBA has added does not count."""
        error = self.failed(error)
        return isinstance(error, IntegrityError) and failure_code(error) in self.database.duplicate_key_codes
