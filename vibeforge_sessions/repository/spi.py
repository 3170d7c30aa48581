"""Service-provider interface (SPI) for implementations of `SessionRepository`.

``examples/file_repository.py`` is an implementation on plain files. `vibeforge_sessions.testing` contains the contract
as a test class. A call consists of these steps:

- *Validate* the arguments: `check_session_type`, `check_session_id`, `check_session`, `check_recent`, `check_limit`,
  `check_after`, `check_expected_record`; `Query.of` for a listing.
- *Compute the changeset* before anything is locked: `new_session` and `changeset_for_create`, or `changeset_for_update`
  (after `adopt_content`, if `needs_content` returns True). Invalid values are rejected here, so that all
  implementations reject the same values.
- *Store* the changeset: `StoredSession` is a complete stored session with a method for each write. `check_replacing`
  rejects a restore that would replace a session other than the one that the caller expects.
- *Mark* the caller's session as stored: `mark_stored`.
- *List* sessions, if the store itself cannot search: `select` and `summary_of`.

`DelegatingSessionRepository` is the base of a repository that changes some calls of another one. `Changeset.record`
returns the record of a session, for example to restore a session that another program has exported.
"""

from __future__ import annotations

from vibeforge_sessions.model.record import Content
from vibeforge_sessions.model.session import S, phases_of
from vibeforge_sessions.repository.arguments import check_after, check_limit, check_recent, check_session_id
from vibeforge_sessions.repository.changeset import (
    Changeset,
    adopt_content,
    changeset_for_create,
    changeset_for_update,
    check_session,
    mark_stored,
    needs_content,
    new_session,
)
from vibeforge_sessions.repository.delegating import DelegatingSessionRepository
from vibeforge_sessions.repository.query import Query
from vibeforge_sessions.repository.restoration import check_expected_record, check_replacing
from vibeforge_sessions.repository.serialization import Record, check_session_type
from vibeforge_sessions.repository.stored_session import StoredSession, select, summary_of

__all__ = [
    "Changeset",
    "Content",
    "DelegatingSessionRepository",
    "Query",
    "Record",
    "S",
    "StoredSession",
    "adopt_content",
    "changeset_for_create",
    "changeset_for_update",
    "check_after",
    "check_expected_record",
    "check_limit",
    "check_recent",
    "check_replacing",
    "check_session",
    "check_session_id",
    "check_session_type",
    "mark_stored",
    "needs_content",
    "new_session",
    "phases_of",
    "select",
    "summary_of",
]
