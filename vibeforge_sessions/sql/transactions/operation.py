"""Interface between operations and the transaction runners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from vibeforge_sessions.sql.transactions.executor import Executor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Operation(ABC, Generic[T_co]):
    """One repository call, executed in a transaction that the runner begins and ends.

    An operation may be executed several times, each time in a new transaction. This class is for operations that read.
    """

    __slots__ = ()

    is_write: ClassVar[bool] = False
    needs_transaction: bool = False
    """Whether the operation needs a transaction even if each write is a single statement.

    See `DatabaseDialect.supports_writable_ctes`.
    """
    extra_seconds: float = 0
    """Seconds that the operation may take beyond the deadline of a call."""

    @property
    def about(self) -> str | None:
        """The id of the operation's session, from the changeset or record that it writes or from its own attribute."""
        of = getattr(self, "write", None) or getattr(self, "record", None) or self
        return getattr(of, "session_id", None)

    @abstractmethod
    def execute(self, executor: Executor) -> T_co:
        """Execute all statements."""


class WriteOperation(Operation[T_co]):
    """An operation that writes. If the outcome of an attempt is in doubt, the runner calls `resolve`."""

    __slots__ = ()

    is_write: ClassVar[bool] = True

    @abstractmethod
    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> T_co:
        """Return the result of the in-doubt write, or execute the write if it was not committed.

        This method runs in its own transaction, and first locks the session's row.

        :param may_still_arrive: the server may still execute the statements that were sent.
        :raises UnresolvableOutcome: the database no longer shows the outcome.
        :raises ResolutionConflict: another transaction has written since the lock was requested; resolve again.
        """


class UnresolvableOutcome(Exception):  # noqa: N818 (internal; the runner raises OutcomeUnknownError)
    """The database does not show whether an in-doubt write was committed."""


class ResolutionConflict(Exception):  # noqa: N818 (internal; the runner resolves again)
    """Another transaction has written the session while an in-doubt write was resolved."""
