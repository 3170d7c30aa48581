"""Tools for tests: the contract of `SessionRepository` as test classes, and the tracking of unsaved changes.

An implementation of `SessionRepository` is tested by a subclass of the contract:

    from vibeforge_sessions.testing import SessionRepositoryContract

    class TestMyRepository(SessionRepositoryContract):
        @pytest.fixture
        def new_repository(self):
            return MyRepository  # called without arguments, or with session_type=…

Every call of ``new_repository`` returns an empty repository with its own storage. `AsyncSessionRepositoryContract` is
the contract of `AsyncSessionRepository`, with a fixture ``new_async_repository``.

The contract classes require pytest. `track_unsaved_changes` does not, so it can be used in development too.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vibeforge_sessions.testing.aio import NewAsyncRepository, Run
    from vibeforge_sessions.testing.base import NewRepository
    from vibeforge_sessions.testing.contract import AsyncSessionRepositoryContract, SessionRepositoryContract
    from vibeforge_sessions.testing.unsaved_changes import (
        AsyncTrackedSessionRepository,
        TrackedSessionRepository,
        UnsavedChanges,
        track_unsaved_changes,
    )

__all__ = [
    "AsyncSessionRepositoryContract",
    "AsyncTrackedSessionRepository",
    "NewAsyncRepository",
    "NewRepository",
    "Run",
    "SessionRepositoryContract",
    "TrackedSessionRepository",
    "UnsavedChanges",
    "track_unsaved_changes",
]

_CONTRACT_MODULES = (
    "aio",
    "base",
    "diagnostics",
    "histories",
    "holds",
    "listings",
    "observation",
    "partial_dicts",
    "sessions",
    "stored_values",
    "subclasses",
    "threads",
    "updates",
)

# After this registration, failing assertions of the contract show their values, like those of a test module. It must
# precede the import of the modules. If pytest has not been imported, no test is running.
if (pytest := sys.modules.get("pytest")) is not None:
    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _CONTRACT_MODULES))

_MODULES = {
    "aio": ("NewAsyncRepository", "Run"),
    "base": ("NewRepository",),
    "contract": ("AsyncSessionRepositoryContract", "SessionRepositoryContract"),
    "unsaved_changes": (
        "AsyncTrackedSessionRepository",
        "TrackedSessionRepository",
        "UnsavedChanges",
        "track_unsaved_changes",
    ),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_LAZY[name]}")
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise ImportError(
            f"vibeforge_sessions.testing.{name} needs pytest: pip install 'vibeforge-sessions[testing]'"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
