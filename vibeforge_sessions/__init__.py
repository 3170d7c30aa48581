"""Long-running sessions of an application: the session model and the repositories that store sessions.

Start with `open_repository`, or pass an SQLAlchemy engine to `SQLAlchemySessionRepository`.

The names in ``__all__`` of this package and of these modules are public; all other names and modules are private:

- `vibeforge_sessions.archive`
- `vibeforge_sessions.cli`
- `vibeforge_sessions.compat`
- `vibeforge_sessions.integrations.fastapi`
- `vibeforge_sessions.integrations.opentelemetry`
- `vibeforge_sessions.pytest_plugin`
- `vibeforge_sessions.repository.spi`
- `vibeforge_sessions.retention`
- `vibeforge_sessions.sql`
- `vibeforge_sessions.sql.admin.maintenance`
- `vibeforge_sessions.sql.admin.statistics`
- `vibeforge_sessions.sql.migrate`
- `vibeforge_sessions.sql.migrations.host_alembic`
- `vibeforge_sessions.testing`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vibeforge_sessions.errors import (
    ArchiveError,
    ConfigurationError,
    CorruptSessionError,
    InvalidArgumentError,
    InvalidSessionError,
    OutcomeUnknownError,
    SchemaError,
    SessionExistsError,
    SessionNotFoundError,
    SessionRepositoryError,
    StaleSessionError,
    StorageError,
)

if TYPE_CHECKING:
    from vibeforge_sessions.memory import AsyncInMemorySessionRepository, InMemorySessionRepository
    from vibeforge_sessions.model.session import ErrorEntry, Session, SessionPhase
    from vibeforge_sessions.repository.aio import AsyncSessionRepository
    from vibeforge_sessions.repository.base import SessionRepository
    from vibeforge_sessions.repository.query import SessionFilter, SessionOrder, SessionPage, SessionSummary
    from vibeforge_sessions.repository.retry import RetryPolicy
    from vibeforge_sessions.settings import open_async_repository, open_repository
    from vibeforge_sessions.sql.aio import AsyncSQLAlchemySessionRepository
    from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository

__all__ = [
    "ArchiveError",
    "AsyncInMemorySessionRepository",
    "AsyncSQLAlchemySessionRepository",
    "AsyncSessionRepository",
    "ConfigurationError",
    "CorruptSessionError",
    "ErrorEntry",
    "InMemorySessionRepository",
    "InvalidArgumentError",
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

# Each name except the errors is imported at its first use (PEP 562). A program that uses only the model therefore does
# not import SQLAlchemy, and loading the pytest plugin does not import pydantic.
_MODULES = {
    "memory": ("AsyncInMemorySessionRepository", "InMemorySessionRepository"),
    "model.session": ("ErrorEntry", "Session", "SessionPhase"),
    "repository.aio": ("AsyncSessionRepository",),
    "repository.base": ("SessionRepository",),
    "repository.query": ("SessionFilter", "SessionOrder", "SessionPage", "SessionSummary"),
    "repository.retry": ("RetryPolicy",),
    "settings": ("open_async_repository", "open_repository"),
    "sql.aio": ("AsyncSQLAlchemySessionRepository",),
    "sql.repository": ("SQLAlchemySessionRepository",),
}
_LAZY = {name: f"vibeforge_sessions.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
