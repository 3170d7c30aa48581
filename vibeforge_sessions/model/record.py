"""Encoded content of a session, and the stored state that a session is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from vibeforge_sessions.model.history import ErrorEntry


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """Encoded session without times and histories; all values are exact strings and integers."""

    phase: str
    current_question_index: int
    active_task_id: str | None
    documents: Mapping[str, str | None]
    """JSON text of each document field; None for a field without a value."""


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """The stored state of a session at its last read or write. Repositories set it, and compute changesets from it."""

    version: int
    write_id: str
    created_at: datetime
    updated_at: datetime
    errors: tuple[ErrorEntry, ...] | None
    """Stored entries at the start of ``error_history``; None if they were changed in the dict from `to_dict`."""
    logs: tuple[str, ...] | None
    omitted_errors: int = 0
    omitted_logs: int = 0
    content: Content | None = None
    """None for a session made by `from_dict`: a repository then reads the content before it computes a changeset."""
    fingerprints: Mapping[str, bytes | None] = dataclasses.field(default_factory=dict)
    """Fingerprints of the stored document fields, as far as they are known (see `validation.fingerprint`)."""
    missing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that were missing in the dict given to `from_dict`, with a copy of the default of each field."""
    log_position: int = 0
    """Position of the last stored line of ``logs``."""
    transaction: str | None = None
    """The caller's transaction that wrote this state and may have been rolled back; None if the state is committed."""
    earlier: tuple[Baseline, ...] = ()
    """States before each update by that transaction, newest first; a rollback restores one of them."""
