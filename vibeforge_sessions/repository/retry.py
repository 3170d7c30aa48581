"""`RetryPolicy`: deadline and retries of a call."""

from __future__ import annotations

import dataclasses
import random
from typing import Final

from vibeforge_sessions.errors import ConfigurationError
from vibeforge_sessions.model.builtin_types import exact

_MAX_SECONDS: Final = 1_000_000_000
"""About 31 years; the operating system's timers may not accept longer times."""


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Deadline and retries of a call after transient failures; all times are in seconds.

    A retry repeats the whole call. Transient failures are a rollback by the database because of a deadlock, a lock that
    was not available in time, and the loss of the connection or the server. Before an in-doubt write is repeated, its
    outcome is resolved, and it is repeated only if it was not committed.

    ``RetryPolicy(attempts=1)`` disables both retries and outcome resolution.

    :raises ConfigurationError: a value is not a number, or is out of range.
    """

    deadline: float = 30.0
    """Maximum duration of a call, including all attempts and the pauses between them.

    One attempt takes at most half of this time, so that a second attempt is possible if a server does not answer. The
    last attempt of a synchronous call may exceed the deadline while it waits for a connection (``pool_timeout`` and
    ``connect_timeout`` of the engine), and on SQLite while it waits for the lock (``busy_timeout``).
    """
    attempts: int = 100
    """Maximum number of attempts."""
    first_delay: float = 0.002
    """Maximum pause before the second attempt; the maximum doubles with each further attempt."""
    longest_delay: float = 1.0
    """Upper limit of the maximum pause."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given, is_count = getattr(self, field.name), field.name == "attempts"
            number = exact(given)
            if type(number) is not int and (is_count or type(number) is not float):
                kind = "an integer" if is_count else "a number"
                raise ConfigurationError(f"must be {kind}, not {type(given).__name__}", f"RetryPolicy.{field.name}")
            least = 1 if is_count else 0
            if not least <= number <= _MAX_SECONDS or (field.name == "deadline" and not number):
                bounds = "more than 0 and at most" if field.name == "deadline" else f"{least} to"
                raise ConfigurationError(f"must be {bounds} {_MAX_SECONDS:,}", f"RetryPolicy.{field.name}")
            object.__setattr__(self, field.name, number)

    def delay(self, attempt: int) -> float:
        """Return a random pause in seconds after an attempt; attempts are counted from 1.

        The pause is random between zero and the maximum, so that conflicting writers do not retry at the same time.
        """
        longest = min(self.longest_delay, self.first_delay * 2.0 ** min(attempt - 1, 60))
        return random.uniform(0, longest)  # noqa: S311 (no secret)
