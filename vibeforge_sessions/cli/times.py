"""Times and ages, as people type and read them. All are UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import typer

from vibeforge_sessions.model import validation

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE: Final = re.compile(r"(\d{1,9})([smhdw])")
_SPOKEN: Final = (("d", 86_400), ("h", 3_600), ("m", 60))


def age(text: str | timedelta) -> timedelta:
    """Return how long: ``90s``, ``15m``, ``6h``, ``2d`` or ``3w``. A parser of options, and of their defaults."""
    if isinstance(text, timedelta):
        return text
    found = age_of(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no age: 90s, 15m, 6h, 2d or 3w")
    return found


def moment(text: str) -> datetime:
    """Return when: ISO 8601, in UTC where it names no zone; or an age, which is so long ago. A parser of options."""
    try:
        found = age_of(text)
        time = datetime.fromisoformat(text) if found is None else validation.utc_now() - found
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither a time, as 2026-11-25 or 2026-11-25T13:00Z, nor an age, as 2d"
        ) from None


def age_of(text: str) -> timedelta | None:
    """Return the length of time that a text such as ``2d`` names; None if it is none."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        return None
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        return None


def ago(time: datetime, now: datetime) -> str:
    """Return how long ago something was, in one unit."""
    length = now - time
    if abs(length) < timedelta(seconds=1):
        return "now"
    return f"in {spoken(-length)}" if length < timedelta() else f"{spoken(length)} ago"


def spoken(length: timedelta) -> str:
    """Return a length of time in one unit."""
    seconds = int(length.total_seconds())
    for unit, size in _SPOKEN:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def clock(time: datetime) -> str:
    """Return a time to the second."""
    return time.isoformat(" ", "seconds").removesuffix("+00:00")
