"""Long-running sessions of an application: the model, and the repositories where they live.

Start with `open_repository`, or hand an SQLAlchemy engine to `SQLAlchemySessionRepository`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
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

# Whoever only needs the model, or sessions in memory, does not wait for SQLAlchemy to be imported (PEP 562).
_LAZY = {
    "AsyncSQLAlchemySessionRepository": "vibeforge_sessions.sql.aio",
    "SQLAlchemySessionRepository": "vibeforge_sessions.sql.repository",
    "open_async_repository": "vibeforge_sessions.settings",
    "open_repository": "vibeforge_sessions.settings",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
