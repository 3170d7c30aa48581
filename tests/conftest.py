"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Real databases are slow and noisy beside what hypothesis expects: no deadlines (nothing here asserts on time), and
# one repository serves all examples of a test. In CI the examples are the same at every run.
settings.register_profile(
    "suite",
    deadline=None,
    max_examples=int(os.environ.get("VIBEFORGE_SESSIONS_TEST_EXAMPLES", "40")),
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")

# What runs in the background of a shell ignores Ctrl-C, and so does all that it starts: tests interrupt some of that.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class WeakKeysRemovedInC(weakref.WeakKeyDictionary[Any, Any]):
    """A `WeakKeyDictionary` that calls no Python function when a key is garbage-collected."""

    def __init__(self, given: Any = None) -> None:
        super().__init__(given)
        vars(self)["_remove"] = vars(self)["data"].__delitem__


def pytest_configure(config: pytest.Config) -> None:
    """Keep a test from hanging in CPython 3.11 while coverage is measured.

    With the concurrency "greenlet", coverage keeps a WeakKeyDictionary whose keys are greenlets, and greenlet deletes
    the greenlets of an ended thread in a pending call. If another thread ends meanwhile, CPython never leaves the
    traced function that removes the key: it looks for pending calls again and again.
    """
    if sys.version_info < (3, 12) and getattr(config.option, "cov_source", None):
        setattr(weakref, "WeakKeyDictionary", WeakKeysRemovedInC)  # noqa: B010 (mypy rejects the assignment to a class)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all but the first case of the parametrized tests of a variant as exhaustive."""
    seen: set[tuple[object, str]] = set()
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("variant"):
            test = (item.cls, item.originalname)
            if test in seen:
                item.add_marker(pytest.mark.exhaustive)
            seen.add(test)


pytest_plugins = ["tests.support.servers.fixtures", "tests.support.databases"]


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the environment of whoever runs the tests out of them."""
    for name in ("VIBEFORGE_SESSIONS_DATABASE_URL", "VIBEFORGE_SESSIONS_MIGRATE", "VIBEFORGE_SESSIONS_SCHEMA"):
        monkeypatch.delenv(name, raising=False)
