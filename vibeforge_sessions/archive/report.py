"""What export, import and copy tell: of each session, and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

Outcome: TypeAlias = Literal["exported", "created", "replaced", "unchanged", "skipped", "gone", "failed"]
"""What became of a session.

exported: written to the file; created: stored; replaced: stored in the place of another state of it; unchanged: it was
there already, and equal; skipped: another one was there, which stays as it was asked for; gone: deleted while it was to
be read; failed: not moved, and the reason says why.
"""

KEPT: Final = 1_000
"""How many problems a report keeps; all of them are counted, and all are told as they come."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What became of one session, or of a line that belongs to none."""

    outcome: Outcome
    session_id: str | None
    errors: int = 0
    """How many errors were moved with it."""
    logs: int = 0
    reason: str | None = None
    """Why it failed; no value of a session is in it."""
    line: int | None = None
    """Where in the file it stands, from 1; in a file of the application's own, the number of the session."""


OnSession: TypeAlias = Callable[[Result], object]
"""Is called with each result as it comes; what it raises ends the whole."""


@dataclasses.dataclass(slots=True)
class Report:
    """How many sessions were exported, imported or copied, and what could not be."""

    exported: int = 0
    created: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: int = 0
    gone: int = 0
    failed: int = 0
    errors: int = 0
    """How many errors were moved."""
    logs: int = 0
    problems: list[Result] = dataclasses.field(default_factory=list)
    """The first 1,000 that failed."""

    def add(self, result: Result, on_session: OnSession | None = None) -> None:
        """Count a result, and tell it."""
        setattr(self, result.outcome, getattr(self, result.outcome) + 1)
        self.errors += result.errors
        self.logs += result.logs
        if result.outcome == "failed" and len(self.problems) < KEPT:
            self.problems.append(result)
        if on_session is not None:
            on_session(result)
