"""What a prune tells, after each batch and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias


@dataclasses.dataclass(frozen=True, slots=True)
class PruneProblem:
    """A session that was not deleted since it cannot be read, or not be archived."""

    session_id: str
    reason: str
    """Why; no value of the session is in it."""


@dataclasses.dataclass(slots=True)
class PruneReport:
    """What became of the sessions that were old enough. In a dry run: what would have."""

    dry_run: bool
    before: datetime
    """What was last touched before this was old enough."""
    phases: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many were deleted of each phase."""
    oldest: datetime | None = None
    """When the one of them was last touched that had been left alone for the longest time."""
    newest: datetime | None = None
    """And the one for the shortest."""
    document_bytes: int = 0
    """How large their documents were; their histories are counted, and not measured."""
    errors: int = 0
    """How many entries their error histories had."""
    logs: int = 0
    held: int = 0
    """How many were left since they are held."""
    touched: int = 0
    """How many were left since somebody has written to them after they had been found."""
    gone: int = 0
    """How many somebody else has deleted meanwhile: another prune, say."""
    failed: int = 0
    """How many were left since they cannot be read, or not be archived."""
    problems: list[PruneProblem] = dataclasses.field(default_factory=list)
    """The first 1,000 that failed."""
    archived: int = 0
    """How many were written to the archive, and read back from it; those that were touched after that, too."""
    archived_bytes: int = 0
    """By how much the archive has grown."""

    @property
    def total(self) -> int:
        """How many were deleted; in a dry run, how many would have been."""
        return sum(self.phases.values())


OnBatch: TypeAlias = Callable[[PruneReport], object]
"""Is called after each batch with the report so far; what it raises ends the whole."""
