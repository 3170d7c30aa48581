"""Holding a session and releasing it."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Update, func, null, update

from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.model import validation
from vibeforge_sessions.sql.operations.in_doubt import make_durable
from vibeforge_sessions.sql.operations.session_rows import ID, NOW, now, this_session
from vibeforge_sessions.sql.tables import sessions
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.operation import WriteOperation

_hold: Final[Update] = update(sessions).where(this_session).values(held_at=func.coalesce(sessions.c.held_at, now))
_release: Final[Update] = update(sessions).where(this_session).values(held_at=null())


@dataclasses.dataclass(frozen=True, slots=True)
class HoldSession(WriteOperation[None]):
    """Hold a session from a given time on, unless it is already held; or release it.

    :raises SessionNotFoundError: there is no session with this id.
    """

    needs_transaction = True
    """Without a transaction, the server could execute an in-doubt hold late, and thus undo a later release."""

    session_id: str
    since: datetime | None
    """None releases the session."""

    def execute(self, executor: Executor) -> None:
        parameters: dict[str, Any] = {ID: self.session_id}
        if self.since is not None:
            parameters[NOW] = self.since
        if not executor.write(_release if self.since is None else _hold, [parameters]):
            raise SessionNotFoundError(self.session_id)
        executor.wrote(self.session_id)

    def resolve(self, executor: Executor, *, may_still_arrive: bool) -> None:
        self.execute(executor)  # repeating the statement changes nothing, so its COMMIT may wait for nothing
        make_durable(executor, validation.new_write_id(), None)
