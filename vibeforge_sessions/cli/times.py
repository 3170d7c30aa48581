"""Parsing and formatting of times and ages. All times are in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import typer

from vibeforge_sessions.model import validation

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE: Final = re.compile(r"(\d{1,9})([smhdw])")
_FORMAT_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60))


def parse_age(text: str | timedelta) -> timedelta:
    """Parse an age, such as ``90s``, ``15m``, ``6h``, ``2d`` or ``3w``, or the default of an option."""
    if isinstance(text, timedelta):
        return text
    found = _parse_age_or_none(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not an age such as 90s, 15m, 6h, 2d or 3w")
    return found


def parse_time(text: str) -> datetime:
    """Parse a time in ISO 8601, in UTC without a zone; or an age before now."""
    try:
        found = _parse_age_or_none(text)
        time = datetime.fromisoformat(text) if found is None else validation.utc_now() - found
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither a time, such as 2026-11-25 or 2026-11-25T13:00Z, nor an age, such as 2d"
        ) from None


def _parse_age_or_none(text: str) -> timedelta | None:
    """Parse an age such as ``2d``; return None for any other text."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        return None
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        return None


def ago(time: datetime, now: datetime) -> str:
    """Return the time since an event, in one unit."""
    length = now - time
    if abs(length) < timedelta(seconds=1):
        return "now"
    return f"in {format_age(-length)}" if length < timedelta() else f"{format_age(length)} ago"


def format_age(length: timedelta) -> str:
    """Return a length of time in one unit."""
    seconds = int(length.total_seconds())
    for unit, size in _FORMAT_UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def clock(time: datetime) -> str:
    """Return a time to the second."""
    return time.isoformat(" ", "seconds").removesuffix("+00:00")
