"""What the repositories that join one transaction share: the sessions it has written, and the queue of its calls."""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from contextlib import ExitStack
from typing import Final

from sqlalchemy import Connection, RootTransaction, orm
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from vibeforge_sessions.model import validation

_KEY: Final = "vibeforge_sessions_writes"


@dataclasses.dataclass(frozen=True, slots=True)
class JoinedWrites:
    """The sessions that one transaction of the caller has written through any repository that joined it."""

    transaction: weakref.ref[RootTransaction]
    transaction_id: str = dataclasses.field(default_factory=validation.new_write_id)
    deleted: dict[str, bool] = dataclasses.field(default_factory=dict)
    """Each session that was written, and whether the last write deleted it."""


def joined_writes(connection: Connection) -> JoinedWrites:
    """Return the writes of the connection's current transaction, which must have begun."""
    transaction = connection.get_transaction()
    if transaction is None:
        raise AssertionError("no transaction has begun")
    writes: JoinedWrites | None = connection.info.get(_KEY)
    if writes is None or writes.transaction() is not transaction:
        writes = connection.info[_KEY] = JoinedWrites(weakref.ref(transaction))
    return writes


_queues: Final[weakref.WeakKeyDictionary[object, asyncio.Lock]] = weakref.WeakKeyDictionary()


def queue(host: Connection | orm.Session, until: ExitStack) -> None:
    """Let the calls of several tasks on one asynchronous connection or session run one after the other.

    Interleaved, one call's savepoint would be released or rolled back within another's.

    :param until: the call's turn ends with it.
    """
    if in_greenlet():
        turn = _queues.setdefault(host, asyncio.Lock())
        await_only(turn.acquire())
        until.callback(turn.release)
