"""Interface of operations, as the transaction runners use it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from vibeforge_sessions.sql.transactions.executor import Executor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Operation(ABC, Generic[T_co]):
    """One repository call: what it executes in a transaction that the runner begins and ends.

    An operation may be executed several times, each time in a new transaction. This class is for operations that read.
    """

    __slots__ = ()

    is_write: ClassVar[bool] = False
    needs_transaction: bool = False
    """Whether it needs a transaction even if each write is a single statement.

    See `DatabaseDialect.supports_writable_ctes`.
    """
    extra_seconds: float = 0
    """Seconds that it may take beyond the deadline of a call."""

    @property
    def about(self) -> str | None:
        """The id of the operation's session: an attribute of its own, or of the changeset or record that it writes."""
        of = getattr(self, "write", None) or getattr(self, "record", None) or self
        return getattr(of, "session_id", None)

    @abstractmethod
    def execute(self, executor: Executor) -> T_co:
        """Execute all statements."""


class WriteOperation(Operation[T_co]):
    """An operation that writes: if the COMMIT was not answered, the runner calls `resolve`."""

    __slots__ = ()

    is_write: ClassVar[bool] = True

    @abstractmethod
    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> T_co:
        """Return what the in-doubt write returned, or execute it if it was not done.

        It runs in a transaction of its own, and begins with a lock on the session's row.

        :param may_still_arrive: the server may still execute the statements that were sent.
        :raises UnresolvableOutcome: the database does not show the outcome any more.
        :raises ResolutionConflict: another transaction has written since the lock was requested; resolve again.
        """


class UnresolvableOutcome(Exception):  # noqa: N818 (a finding; the runner raises OutcomeUnknownError)
    """The database does not show whether an in-doubt write was committed."""


class ResolutionConflict(Exception):  # noqa: N818 (a finding; the runner resolves again)
    """Another transaction has written the session while an in-doubt write was resolved."""
