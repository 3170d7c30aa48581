"""Parsing and formatting of times and ages. All times are in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import typer

from vibeforge_sessions.model import validation

_AGE: Final = re.compile(r"\s*(\d{1,6})([smhdw])\s*")
_SECONDS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse_age(text: str | timedelta) -> timedelta:
    """Parse an age, such as ``90s``, ``15m``, ``6h``, ``2d`` or ``3w``, or the default of an option."""
    if isinstance(text, timedelta):
        return text
    match = _AGE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not an age such as 90s, 15m, 6h, 2d or 3w")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def parse_time(text: str) -> datetime:
    """Parse a time in ISO 8601, in UTC without a zone; or an age before now."""
    try:
        time = validation.utc_now() - parse_age(text) if _AGE.fullmatch(text) else datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither a time, such as 2026-11-25 or 2026-11-25T13:00Z, nor an age, such as 2d"
        ) from None


def format_age(length: timedelta) -> str:
    """Return a length of time in one unit, at most in days."""
    seconds = int(length.total_seconds())
    unit = next((unit for unit in "dhm" if seconds >= _SECONDS[unit]), "s")
    return f"{seconds // _SECONDS[unit]}{unit}"


def clock(time: datetime) -> str:
    """Return a time to the second."""
    return time.isoformat(" ", "seconds").removesuffix("+00:00")
