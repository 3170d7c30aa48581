"""Validation and delays of `RetryPolicy`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vibeforge_sessions import ConfigurationError, RetryPolicy, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine


def test_delays_double_up_to_longest_delay_and_are_random() -> None:
    policy = RetryPolicy(first_delay=0.01, longest_delay=0.1)
    for attempt, longest in [(1, 0.01), (2, 0.02), (4, 0.08), (5, 0.1), (1_000_000, 0.1)]:
        delays = {policy.delay(attempt) for _ in range(200)}
        assert len(delays) > 1
        assert min(delays) >= 0
        assert longest / 2 < max(delays) <= longest


def test_first_delay_of_zero_disables_delays() -> None:
    assert RetryPolicy(first_delay=0).delay(7) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline", 0),
        ("deadline", -1.0),
        ("deadline", float("inf")),
        ("deadline", float("nan")),
        ("deadline", "30"),
        ("deadline", True),
        ("deadline", None),
        ("attempts", 0),
        ("attempts", 2.0),
        ("first_delay", -0.1),
        ("longest_delay", float("inf")),
    ],
)
def test_invalid_value_raises_configuration_error_with_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RetryPolicy(**{name: value})
    assert caught.value.name == f"RetryPolicy.{name}"


def test_retry_policy_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetryPolicy().deadline = 1  # type: ignore[misc]


def test_repository_rejects_retry_that_is_no_policy() -> None:
    with pytest.raises(ConfigurationError, match="must be a RetryPolicy, not int"):
        SQLAlchemySessionRepository(create_engine("sqlite://"), retry=30)  # type: ignore[arg-type]
