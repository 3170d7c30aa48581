"""Helpers for tests: databases, servers, processes, faults and sample data."""

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
"""Folder of the checkout."""


def cases(values: Iterable[Any], quick: Container[Any]) -> list[Any]:
    """Return parameters of a test; values that are not in `quick` are marked as exhaustive (`make test-all`)."""
    return [value if value in quick else _exhaustive(value) for value in values]


def _exhaustive(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.exhaustive)
