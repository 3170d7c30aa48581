"""What an implementation of `SessionRepository` of one's own is built from.

``examples/file_repository.py`` shows all of it at work; `vibeforge_sessions.testing` has the contract as a test class.
A call goes through these steps:

- *check* what was given: `check_session_type`, `check_session_id`, `check_session`, `check_recent`, `check_limit`,
  `check_integer`, `check_seen`; `Query.of` for a listing;
- *plan* a write, before anything is locked: `new_session` and `plan_create`, or `plan_update` (after `adopt_content`,
  where `needs_content` says so). What can be refused is refused here, so that every implementation refuses the same;
- *store* it: `StoredSession` is one stored session, whole, and knows what each write makes of it, and how one is
  restored (`check_replacing` tells whether it may take another's place);
- *tell* the caller's session what was stored: `mark_stored`;
- *list*: `select` and `summary_of`, where the store itself cannot search.
"""

from __future__ import annotations

from vibeforge_sessions.model.record import Content
from vibeforge_sessions.model.session import S, phases_of
from vibeforge_sessions.model.validation import check_integer, check_session_id
from vibeforge_sessions.repository.changeset import (
    Write,
    adopt_content,
    check_session,
    mark_stored,
    needs_content,
    new_session,
    plan_create,
    plan_update,
)
from vibeforge_sessions.repository.query import Query, check_limit, check_recent
from vibeforge_sessions.repository.restoration import check_replacing, check_seen
from vibeforge_sessions.repository.serialization import Record, check_session_type
from vibeforge_sessions.repository.stored_session import StoredSession, select, summary_of

__all__ = [
    "Content",
    "Query",
    "Record",
    "S",
    "StoredSession",
    "Write",
    "adopt_content",
    "check_integer",
    "check_limit",
    "check_recent",
    "check_replacing",
    "check_seen",
    "check_session",
    "check_session_id",
    "check_session_type",
    "mark_stored",
    "needs_content",
    "new_session",
    "phases_of",
    "plan_create",
    "plan_update",
    "select",
    "summary_of",
]
