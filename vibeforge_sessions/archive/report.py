"""Reports of export, import and copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias

from vibeforge_sessions import errors

Outcome: TypeAlias = Literal["exported", "created", "replaced", "unchanged", "skipped", "gone", "failed"]
"""Outcome for one session.

exported: the session was written to the file; created: it was stored; replaced: it replaced a different stored state;
unchanged: an equal session is already stored; skipped: a different session is stored and was kept, as the caller asked;
gone: the session was deleted before it was read; failed: it was not transferred, for the reason in the report.
"""

PER_SESSION: Final = (
    errors.CorruptSessionError,
    errors.InvalidArgumentError,  # an id that was changed by hand
    errors.InvalidSessionError,
    errors.SessionExistsError,
    errors.SessionNotFoundError,
    errors.StaleSessionError,
)
"""Errors that concern a single session. After such an error, the other sessions can still be transferred."""

MAX_PROBLEMS: Final = 1_000
"""Maximum number of problems that a report keeps. All problems are counted and passed to the callback `OnSession`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """Outcome for one session, or for a line that belongs to no session."""

    outcome: Outcome
    session_id: str | None
    errors: int = 0
    """Number of error entries that were transferred."""
    logs: int = 0
    """Number of log lines that were transferred."""
    reason: str | None = None
    """Reason of a failure. It contains no values of the session."""
    line: int | None = None
    """Line in the file, counted from 1. In a file of the application, it is the number of the session."""


OnSession: TypeAlias = Callable[[Result], object]
"""Callback for each result. An exception that it raises ends the operation."""


@dataclasses.dataclass(slots=True)
class Report:
    """Numbers of exported, imported or copied sessions, and the problems.

    For each `Outcome`, an attribute of the same name counts the sessions with that outcome.
    """

    exported: int = 0
    created: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: int = 0
    gone: int = 0
    failed: int = 0
    errors: int = 0
    """Number of error entries that were transferred."""
    logs: int = 0
    """Number of log lines that were transferred."""
    problems: list[Result] = dataclasses.field(default_factory=list)
    """The first 1,000 failures."""

    def add(self, result: Result, on_session: OnSession | None = None) -> None:
        """Count a result, and pass it to the callback."""
        setattr(self, result.outcome, getattr(self, result.outcome) + 1)
        self.errors += result.errors
        self.logs += result.logs
        if result.outcome == "failed" and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(result)
        if on_session is not None:
            on_session(result)


def transfer_each(
    session_ids: Iterable[str], transfer: Callable[[str], Result], *, stop_on_error: bool, on_session: OnSession | None
) -> Report:
    """Transfer sessions, and return the report.

    After an error of a single session, the transfer continues with the other sessions.

    :param stop_on_error: raise the error of a session instead of continuing.
    """
    report = Report()
    for session_id in session_ids:
        try:
            result = transfer(session_id)
        except PER_SESSION as error:
            if stop_on_error:
                raise
            result = Result("failed", session_id, reason=str(error))
        report.add(result, on_session)
    return report
