"""Filters, orders, pages and cursors of session listings."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import itertools
from collections.abc import Collection
from datetime import datetime
from typing import Final, Literal, cast, get_args

from vibeforge_sessions.errors import InvalidArgumentError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import exact
from vibeforge_sessions.repository.arguments import check_datetime, check_limit

SessionOrder = Literal["created_at", "-created_at", "updated_at", "-updated_at"]
"""Time by which sessions are ordered; a leading minus means descending. Sessions with equal times are ordered by id."""

MAX_PAGE: Final = 1000
MAX_PHASES: Final = 1000
_MAX_CURSOR: Final = 400
"""Maximum length in characters; cursors of this package have fewer than 200."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilter:
    """Conditions on sessions. None means no condition; a session matches if it meets all conditions.

    :raises InvalidArgumentError: a time is not an aware datetime, or `phases` is not a collection of strings.
    """

    phases: Collection[str] | None = None
    """Allowed phases, at most 1000. An empty collection matches no session."""
    created_from: datetime | None = None
    """Created at this time or later."""
    created_before: datetime | None = None
    """Created before this time (exclusive), so that adjacent time windows do not overlap."""
    updated_from: datetime | None = None
    updated_before: datetime | None = None
    has_errors: bool | None = None
    """True selects sessions with at least one entry in the error history, False sessions without entries."""

    def __post_init__(self) -> None:
        if self.phases is not None:
            object.__setattr__(self, "phases", _check_phases(self.phases))
        for name in ("created_from", "created_before", "updated_from", "updated_before"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_datetime(getattr(self, name), name))
        if self.has_errors is not None and type(self.has_errors) is not bool:
            raise InvalidArgumentError("must be True, False or None", "has_errors")


@dataclasses.dataclass(frozen=True, slots=True)
class SessionSummary:
    """Session in a listing, without its documents and histories."""

    session_id: str
    phase: str
    """The stored text and not an enum member, because this code may not know the phase."""
    created_at: datetime
    updated_at: datetime
    version: int
    error_count: int
    log_count: int
    active_task_id: str | None
    artifacts: frozenset[str]
    """Names of the artifacts (``intent_profile``, ``build_spec``, ``concept``, ``task_graph``) that are not None."""
    held: bool = False
    """True if the session is held (see `SessionRepository.hold_session`)."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionPage:
    """Page of session summaries."""

    items: tuple[SessionSummary, ...]
    next_cursor: str | None
    """Cursor of the next page, for a call with the same filter and order; None on the last page."""


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """Validated arguments of `find_sessions`."""

    filter: SessionFilter
    order: SessionOrder
    limit: int
    after: tuple[datetime, str] | None
    """Time and id of the last session of the previous page."""

    @property
    def column(self) -> Literal["created_at", "updated_at"]:
        """Name of the time that sessions are ordered by."""
        return "updated_at" if self.order.endswith("updated_at") else "created_at"

    @property
    def descending(self) -> bool:
        """True if the newest sessions come first."""
        return self.order.startswith("-")

    @classmethod
    def of(cls, filter: SessionFilter | None, order: str, limit: int, cursor: str | None) -> Query:  # noqa: A002 (the contract's name)
        """Validate the arguments of `find_sessions`."""
        if filter is None:
            filter = SessionFilter()  # noqa: A001
        elif not issubclass(type(filter), SessionFilter):
            raise InvalidArgumentError(f"must be a SessionFilter, not {type(filter).__name__}", "filter")
        known = exact(order)
        if type(known) is not str or known not in get_args(SessionOrder):
            raise InvalidArgumentError(f"must be one of {', '.join(get_args(SessionOrder))}", "order")
        query = cls(filter, cast("SessionOrder", known), check_limit(limit, most=MAX_PAGE), None)
        return query if cursor is None else dataclasses.replace(query, after=query._read_cursor(cursor))

    def page(self, found: list[SessionSummary]) -> SessionPage:
        """Return a page of the summaries; `found` has one item more than the limit if there is a next page."""
        items = tuple(found[: self.limit])
        return SessionPage(items, self._cursor(items[-1]) if len(found) > self.limit else None)

    def _cursor(self, last: SessionSummary) -> str:
        text = f"{self._signature()}|{getattr(last, self.column).isoformat()}|{last.session_id}"
        return base64.urlsafe_b64encode(f"{text}|{_digest(text)}".encode("ascii")).decode("ascii")

    def _read_cursor(self, cursor: object) -> tuple[datetime, str]:
        given = exact(cursor)
        try:
            if type(given) is not str or len(given) > _MAX_CURSOR:
                raise ValueError("not a cursor of this package")
            text, digest = base64.b64decode(given, b"-_", validate=True).decode("ascii").rsplit("|", 1)
            signature, time, session_id = text.split("|")
            after = validation.check_time(time), validation.check_session_id(session_id)
            if digest != _digest(text):
                raise ValueError("damaged")
        except (ValueError, TypeError, binascii.Error):
            raise InvalidArgumentError("must be the next_cursor of a page of find_sessions", "cursor") from None
        if signature != self._signature():
            raise InvalidArgumentError(
                "belongs to a different filter or order: pass the filter and order of the page that returned it",
                "cursor",
            )
        return after

    def _signature(self) -> str:
        phases = None if self.filter.phases is None else sorted(self.filter.phases)
        return _digest(repr((self.order, phases, dataclasses.replace(self.filter, phases=None))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _check_phases(given: object) -> frozenset[str]:
    """Return phases as exact strings; reject iterators, because they can be consumed only once and may be endless."""
    if issubclass(type(given), (str, bytes)) or not issubclass(type(given), Collection):
        raise InvalidArgumentError("must be a collection of phases", "phases")
    try:
        phases = [exact(phase) for phase in itertools.islice(cast("Collection[object]", given), MAX_PHASES + 1)]
    except Exception:  # noqa: BLE001 (a caller's collection may raise anything)
        raise InvalidArgumentError("must be a collection of phases", "phases") from None
    if any(type(phase) is not str for phase in phases):
        raise InvalidArgumentError("must all be strings", "phases")
    if len(phases) > MAX_PHASES:
        raise InvalidArgumentError(f"must be at most {MAX_PHASES} phases", "phases")
    return frozenset(phases)
