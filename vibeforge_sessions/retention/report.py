"""Reports of a prune."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias


@dataclasses.dataclass(frozen=True, slots=True)
class PruneProblem:
    """A session that was not deleted because it cannot be read or archived."""

    session_id: str
    reason: str
    """The reason. It contains no values of the session."""


@dataclasses.dataclass(slots=True)
class PruneReport:
    """Outcome of a prune, or the expected outcome in a dry run."""

    dry_run: bool
    before: datetime
    """Sessions whose last update was before this time were old enough."""
    phases: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of deleted sessions by phase."""
    oldest: datetime | None = None
    """Earliest last update among the deleted sessions."""
    newest: datetime | None = None
    """Latest last update among the deleted sessions."""
    document_bytes: int = 0
    """Size of their documents. Their histories are counted, but not measured."""
    errors: int = 0
    """Number of entries in their error histories."""
    logs: int = 0
    held: int = 0
    """Number of sessions that were kept because they are held."""
    touched: int = 0
    """Number of sessions that were kept because they were changed after they had been found."""
    gone: int = 0
    """Number of sessions that another client has deleted meanwhile, such as another prune."""
    failed: int = 0
    """Number of sessions that were kept because they cannot be read or archived."""
    problems: list[PruneProblem] = dataclasses.field(default_factory=list)
    """The first 1,000 failures."""
    archived: int = 0
    """Number of archived sessions. It includes sessions that were changed after that, and so were kept."""
    archived_bytes: int = 0
    """Growth of the archive in bytes."""

    @property
    def total(self) -> int:
        """Number of deleted sessions. In a dry run, the number that would be deleted."""
        return sum(self.phases.values())


OnBatch: TypeAlias = Callable[[PruneReport], object]
"""Callback with the report so far, after each batch. An exception of it ends the prune."""
