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

check_session_id = functools.partial(validation.check_session_id, error=InvalidArgumentError)
"""Return an id if it consists of 1 to 64 of the characters ``A-Z a-z 0-9 . _ : ~ -``."""


check_integer = functools.partial(validation.check_integer, error=InvalidArgumentError)
"""Return a value if it is an integer from `least` to `most`; the default for `most` is the maximum of BIGINT."""

check_limit = functools.partial(check_integer, path="limit", least=1)
"""Return `limit` if it is an integer from 1 to `most`."""

check_after = functools.partial(check_integer, path="after", least=0)
"""Return `after` of `list_errors` and `list_logs` if it is an integer of at least 0."""

check_attempts = functools.partial(check_integer, path="attempts", least=1)
"""Return `attempts` of `modify_session` if it is a positive integer."""


def check_recent(recent: object) -> int | None:
    """Return `recent` of `get_session` if it is None or an integer of at least 0."""
    return None if recent is None else check_integer(recent, "recent", least=0)


def check_datetime(value: object, argument: str) -> datetime:
    """Return `value` in UTC if it is a timezone-aware datetime."""
    try:
        return validation.check_datetime(value, argument)
    except InvalidSessionError as error:
        raise InvalidArgumentError(error.reason, argument) from None
