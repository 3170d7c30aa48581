"""The sessions that a joined transaction has written."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Final

from sqlalchemy import Connection, RootTransaction

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
