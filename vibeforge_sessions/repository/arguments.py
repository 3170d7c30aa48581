"""Validation of the arguments of repository calls.

Each function returns the argument as an exact built-in type, or raises `InvalidArgumentError` with the argument's name.
The functions of `vibeforge_sessions.model.validation`, which validate the values in a session, raise
`InvalidSessionError` instead.
"""

from __future__ import annotations

import functools
from datetime import datetime

from vibeforge_sessions.errors import InvalidArgumentError, InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import exact_int

__all__ = [
    "check_after",
    "check_attempts",
    "check_datetime",
    "check_integer",
    "check_limit",
    "check_recent",
    "check_session_id",
]


check_session_id = functools.partial(validation.check_session_id, error=InvalidArgumentError)
"""Return an id if it consists of 1 to 64 of the characters ``A-Z a-z 0-9 . _ : ~ -``."""


def check_integer(value: object, argument: str, *, least: int, most: int = validation.MAX_BIGINT) -> int:
    """Return `value` if it is an integer from `least` to `most`; the default for `most` is the maximum of BIGINT."""
    number = exact_int(value)
    if number is None:
        raise InvalidArgumentError(f"must be an integer, not {type(value).__name__}", argument)
    if not least <= number <= most:
        limit = "2**63 - 1" if most == validation.MAX_BIGINT else most
        raise InvalidArgumentError(f"must be an integer from {least} to {limit}", argument)
    return number


def check_limit(limit: object, *, most: int = validation.MAX_BIGINT) -> int:
    """Return `limit` if it is an integer from 1 to `most`."""
    return check_integer(limit, "limit", least=1, most=most)


def check_after(after: object) -> int:
    """Return `after` of `list_errors` and `list_logs` if it is an integer of at least 0."""
    return check_integer(after, "after", least=0)


def check_recent(recent: object) -> int | None:
    """Return `recent` of `get_session` if it is None or an integer of at least 0."""
    return None if recent is None else check_integer(recent, "recent", least=0)


def check_attempts(attempts: object) -> int:
    """Return `attempts` of `modify_session` if it is a positive integer."""
    return check_integer(attempts, "attempts", least=1)


def check_datetime(value: object, argument: str) -> datetime:
    """Return `value` in UTC if it is a timezone-aware datetime."""
    try:
        return validation.check_datetime(value, argument)
    except InvalidSessionError as error:
        raise InvalidArgumentError(error.reason, argument) from None
