"""Owned and joined transactions: retries, time limits, statement execution and error translation."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, orm

from vibeforge_sessions.errors import ConfigurationError
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.sql.transactions.joined import JoinedTransaction
from vibeforge_sessions.sql.transactions.owned import OwnedTransactions


def transactions_on(bind: object, *, precompiled: bool, retry: RetryPolicy) -> OwnedTransactions | JoinedTransaction:
    """Return the transaction runner for an engine, or for a connection or ORM session of the caller."""
    if not isinstance(retry, RetryPolicy):
        raise ConfigurationError(f"must be a RetryPolicy, not {type(retry).__name__}", "retry")
    if isinstance(bind, Engine):
        return OwnedTransactions(bind, precompiled=precompiled, retry=retry)
    if isinstance(bind, (Connection, orm.Session)):
        return JoinedTransaction(bind, retry=retry)
    raise ConfigurationError(f"must be an Engine, Connection or orm.Session, not {type(bind).__name__}", "bind")
