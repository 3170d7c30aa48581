"""What can be asked of many sessions at once: filters, orders, pages, and the cursors between them."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
from collections.abc import Collection
from datetime import datetime
from typing import Final, Literal, cast, get_args

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import plain_text

SessionOrder = Literal["created_at", "-created_at", "updated_at", "-updated_at"]
"""By which time, oldest first; newest first with a minus. Equal times are ordered by id, in the same direction."""

MAX_PAGE: Final = 1000
MAX_PHASES: Final = 1000
_MAX_CURSOR: Final = 400
"""Ours have less than 200 characters."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilter:
    """Which sessions to find. None asks for nothing; what is given must hold all at once.

    :raises InvalidSessionError: a time is not an aware datetime, or `phases` is no collection of texts.
    """

    phases: Collection[str] | None = None
    """One of these phases, at most 1000. An empty collection matches no session."""
    created_from: datetime | None = None
    """Created at this time or later."""
    created_before: datetime | None = None
    """Created before this time, exclusive: windows that touch do not overlap."""
    updated_from: datetime | None = None
    updated_before: datetime | None = None
    has_errors: bool | None = None
    """True: with at least one entry in the error history; False: with none."""

    def __post_init__(self) -> None:
        if self.phases is not None:
            object.__setattr__(self, "phases", _phases(self.phases))
        for name in ("created_from", "created_before", "updated_from", "updated_before"):
            value = getattr(self, name)
            if value is None:
                continue
            if not issubclass(type(value), datetime):
                raise InvalidSessionError(f"must be a datetime, not {type(value).__name__}", name)
            object.__setattr__(self, name, validation.check_time(value, path=name))
        if self.has_errors is not None and type(self.has_errors) is not bool:
            raise InvalidSessionError("must be True, False or None", "has_errors")


@dataclasses.dataclass(frozen=True, slots=True)
class SessionSummary:
    """What a listing shows of a session, without its documents and histories."""

    session_id: str
    phase: str
    """The stored text: a listing goes on where it meets a phase that this code does not know."""
    created_at: datetime
    updated_at: datetime
    version: int
    error_count: int
    log_count: int
    active_task_id: str | None
    artifacts: frozenset[str]
    """Which of ``intent_profile``, ``build_spec``, ``concept`` and ``task_graph`` are there."""
    held: bool = False
    """Whether it is held: see `SessionRepository.hold_session`."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionPage:
    """One page of summaries."""

    items: tuple[SessionSummary, ...]
    next_cursor: str | None
    """Hand it to the next call, with the same filter and order; None at the end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """A checked call of `find_sessions`."""

    filter: SessionFilter
    order: SessionOrder
    limit: int
    after: tuple[datetime, str] | None
    """The time and id of the last session of the page before."""

    @property
    def column(self) -> Literal["created_at", "updated_at"]:
        """The time that is ordered by."""
        return "updated_at" if self.order.endswith("updated_at") else "created_at"

    @property
    def descending(self) -> bool:
        """Whether the newest come first."""
        return self.order.startswith("-")

    @classmethod
    def of(cls, filter: SessionFilter | None, order: str, limit: int, cursor: str | None) -> Query:  # noqa: A002 (the contract's name)
        """Check the arguments of `find_sessions`."""
        if filter is None:
            filter = SessionFilter()  # noqa: A001
        elif not issubclass(type(filter), SessionFilter):
            raise InvalidSessionError(f"must be a SessionFilter, not {type(filter).__name__}", "filter")
        known = plain_text(order)
        if known not in get_args(SessionOrder):
            raise InvalidSessionError(f"must be one of {', '.join(get_args(SessionOrder))}", "order")
        query = cls(filter, cast("SessionOrder", known), check_limit(limit, most=MAX_PAGE), None)
        return query if cursor is None else dataclasses.replace(query, after=query._read_cursor(cursor))

    def page(self, found: list[SessionSummary]) -> SessionPage:
        """Return the page of what was found, one more than the limit if there is another page."""
        items = tuple(found[: self.limit])
        return SessionPage(items, self._cursor(items[-1]) if len(found) > self.limit else None)

    def _cursor(self, last: SessionSummary) -> str:
        text = f"{self._signature()}|{getattr(last, self.column).isoformat()}|{last.session_id}"
        return base64.urlsafe_b64encode(f"{text}|{_digest(text)}".encode("ascii")).decode("ascii")

    def _read_cursor(self, cursor: object) -> tuple[datetime, str]:
        given = plain_text(cursor)
        try:
            if given is None or len(given) > _MAX_CURSOR:
                raise ValueError("none of ours")
            text, digest = base64.b64decode(given, b"-_", validate=True).decode("ascii").rsplit("|", 1)
            signature, time, session_id = text.split("|")
            after = validation.check_time(time), validation.check_session_id(session_id)
            if digest != _digest(text):
                raise ValueError("damaged")
        except (ValueError, TypeError, binascii.Error):
            raise InvalidSessionError("is no cursor of find_sessions", "cursor") from None
        if signature != self._signature():
            raise InvalidSessionError("belongs to another filter or order", "cursor")
        return after

    def _signature(self) -> str:
        asked = self.filter
        phases = None if asked.phases is None else sorted(asked.phases)
        times = [
            None if time is None else time.isoformat()
            for time in (asked.created_from, asked.created_before, asked.updated_from, asked.updated_before)
        ]
        return _digest(repr((self.order, phases, times, asked.has_errors)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_limit(limit: object, *, most: int = validation.MAX_BIGINT) -> int:
    """Return `limit` if it is an integer from 1 to `most`."""
    return validation.check_integer(limit, "limit", least=1, most=most)


def _phases(given: object) -> frozenset[str]:
    """Return the texts of phases; what gives out its phases but once is no collection, and could be without end."""
    if issubclass(type(given), (str, bytes)) or not issubclass(type(given), Collection):
        raise InvalidSessionError("must be a collection of phases", "phases")
    phases: set[str] = set()
    try:
        for phase in cast("Collection[object]", given):
            text = plain_text(phase)
            if text is None:
                raise InvalidSessionError("must be texts", "phases")
            phases.add(text)
            if len(phases) > MAX_PHASES:
                raise InvalidSessionError(f"must be at most {MAX_PHASES}", "phases")
    except InvalidSessionError:
        raise
    except Exception:  # noqa: BLE001 (whatever somebody else's collection raises)
        raise InvalidSessionError("must be a collection of phases", "phases") from None
    return frozenset(phases)


def check_recent(recent: object) -> int | None:
    """Return `recent` of `get_session` if it is None or a count."""
    return None if recent is None else validation.check_integer(recent, "recent", least=0)
