"""Long-running sessions of an application: the model, and the repositories where they live.

Start with `open_repository`, or hand an SQLAlchemy engine to `SQLAlchemySessionRepository`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vibeforge_sessions.errors import (
        CorruptSessionError,
        InvalidSessionError,
        OutcomeUnknownError,
        SchemaError,
        SessionExistsError,
        SessionNotFoundError,
        SessionRepositoryError,
        StaleSessionError,
        StorageError,
    )
    from vibeforge_sessions.memory import AsyncInMemorySessionRepository, InMemorySessionRepository
    from vibeforge_sessions.model import ErrorEntry, Session, SessionPhase
    from vibeforge_sessions.query import SessionFilter, SessionOrder, SessionPage, SessionSummary
    from vibeforge_sessions.repository import AsyncSessionRepository, SessionRepository
    from vibeforge_sessions.retry import RetryPolicy
    from vibeforge_sessions.settings import open_async_repository, open_repository
    from vibeforge_sessions.sql.aio import AsyncSQLAlchemySessionRepository
    from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository

__all__ = [
    "AsyncInMemorySessionRepository",
    "AsyncSQLAlchemySessionRepository",
    "AsyncSessionRepository",
    "CorruptSessionError",
    "ErrorEntry",
    "InMemorySessionRepository",
    "InvalidSessionError",
    "OutcomeUnknownError",
    "RetryPolicy",
    "SQLAlchemySessionRepository",
    "SchemaError",
    "Session",
    "SessionExistsError",
    "SessionFilter",
    "SessionNotFoundError",
    "SessionOrder",
    "SessionPage",
    "SessionPhase",
    "SessionRepository",
    "SessionRepositoryError",
    "SessionSummary",
    "StaleSessionError",
    "StorageError",
    "open_async_repository",
    "open_repository",
]

# Every name comes when it is asked for (PEP 562): who only needs the model does not wait for SQLAlchemy, and pytest,
# which imports this package for its fixtures wherever it is installed, does not wait for pydantic.
_ROOMS = {
    "errors": (
        "CorruptSessionError",
        "InvalidSessionError",
        "OutcomeUnknownError",
        "SchemaError",
        "SessionExistsError",
        "SessionNotFoundError",
        "SessionRepositoryError",
        "StaleSessionError",
        "StorageError",
    ),
    "memory": ("AsyncInMemorySessionRepository", "InMemorySessionRepository"),
    "model": ("ErrorEntry", "Session", "SessionPhase"),
    "query": ("SessionFilter", "SessionOrder", "SessionPage", "SessionSummary"),
    "repository": ("AsyncSessionRepository", "SessionRepository"),
    "retry": ("RetryPolicy",),
    "settings": ("open_async_repository", "open_repository"),
    "sql.aio": ("AsyncSQLAlchemySessionRepository",),
    "sql.repository": ("SQLAlchemySessionRepository",),
}
_LAZY = {name: f"vibeforge_sessions.{room}" for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
