"""What is stored of a session, and what a session in hand knows of its stored state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from vibeforge_sessions.model.history import ErrorEntry


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """A session without times and histories, as it is stored: plain texts and numbers."""

    phase: str
    current_question_index: int
    active_task_id: str | None
    documents: Mapping[str, str | None]
    """The JSON text of each document field, None where there is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class EarlierState:
    """A session's stored state before a write of the caller's transaction, which a rollback brings back."""

    version: int
    write_id: str
    updated_at: datetime
    error_count: int
    """Stored entries at the head of ``error_history``."""
    log_count: int
    """Stored lines at the head of ``logs``."""
    log_position: int
    content: Content | None
    fingerprints: Mapping[str, bytes | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """What a session knows of its stored self: what tells the new in it from the old. Repositories write it."""

    write_id: str
    created_at: datetime
    updated_at: datetime
    errors: tuple[ErrorEntry, ...] | None
    """The stored entries at the head of ``error_history``; None where they were tampered with on a journey."""
    logs: tuple[str, ...] | None
    omitted_errors: int = 0
    omitted_logs: int = 0
    content: Content | None = None
    """None after a journey as JSON: a repository then reads it again before it tells what has changed."""
    fingerprints: Mapping[str, bytes | None] = dataclasses.field(default_factory=dict)
    """What the document fields held when they were stored, where that is known (see `values.fingerprint`)."""
    missing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that the dict given to `from_dict` did not have, with a copy of the default that stands in for each."""
    log_position: int = 0
    """The position of the last of ``logs``."""
    transaction: str | None = None
    """The caller's transaction that had written the session by then, and may have been rolled back since."""
    earlier: tuple[EarlierState, ...] = ()
    """The states before each update by that transaction, newest first."""
