"""The interface of the transaction runners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from sqlalchemy import Connection, Engine

from vibeforge_sessions.sql.transactions.operation import Operation

T = TypeVar("T")


class TransactionRunner(ABC):
    """Executes the operations of a repository, each in a transaction."""

    @property
    @abstractmethod
    def bind(self) -> Engine | Connection:
        """The engine or connection of which the schema's status can be read."""

    def transaction_of(self, session_id: str) -> str | None:
        """Return the id of the caller's transaction if it has written a session: it may still be rolled back."""
        return None

    @abstractmethod
    def run(self, operation: Operation[T]) -> T:
        """Execute the operation, wholly or not at all.

        :raises StorageError: SQLAlchemy or the driver raised; the cause is chained, without parameters.
        :raises OutcomeUnknownError: the outcome of an in-doubt write could not be resolved.
        """
