"""`RetryPolicy`: how long a call may take, and how it is tried again."""

from __future__ import annotations

import dataclasses
import random
from typing import Final

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model.builtin_types import plain_integer, plain_number

__all__ = ["RetryPolicy"]

_MOST: Final = 1_000_000_000
"""Seconds: 31 years. What is more, the system's clocks may not take."""


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a call that the database has not done for a passing reason is tried again; all times in seconds.

    Tried again is the whole call, never a part of it, when the database rolled it back in favour of another (a
    deadlock), when a lock was not to be had, and when the connection or the server was lost. A write of which nobody
    knows whether it was committed is looked for first, and done again only if it is not there.

    ``RetryPolicy(attempts=1)`` tries nothing again, and looks for nothing.
    """

    deadline: float = 30.0
    """How long a call may take, with all its attempts and the pauses between them.

    One attempt takes at most half of it, so that there is time for another when a server says nothing. A synchronous
    call may exceed it by what its last attempt waits for a connection (``pool_timeout`` and ``connect_timeout`` of the
    engine); on SQLite, by the last wait for the lock (``busy_timeout``).
    """
    attempts: int = 100
    """How often a call is tried at the most."""
    first_delay: float = 0.002
    """The longest pause before the second attempt; it doubles with each one."""
    longest_delay: float = 1.0
    """The longest pause there is."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.name == "attempts" else 0
            number = plain_integer(value) if field.name == "attempts" else plain_number(value)
            if number is None:
                raise InvalidSessionError(f"must be a number, not {type(value).__name__}", field.name)
            if not least <= number <= _MOST or (field.name == "deadline" and not number):
                raise InvalidSessionError(
                    f"must be a number from {least} to {_MOST:,}, and a deadline more than 0", field.name
                )
            object.__setattr__(self, field.name, number)

    def delay(self, attempt: int) -> float:
        """Return how long to wait after an attempt, counted from 1.

        Full jitter: writers that have collided spread out instead of colliding again.
        """
        longest = min(self.longest_delay, self.first_delay * 2.0 ** min(attempt - 1, 60))
        return random.uniform(0, longest)  # noqa: S311 (no secret)
