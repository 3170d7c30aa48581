"""SQL implementation: repositories, engines, schema status and migrations.

Only the modules of this package import SQLAlchemy and Alembic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vibeforge_sessions.errors import SchemaState
from vibeforge_sessions.sql.engine import create_async_engine, create_engine
from vibeforge_sessions.sql.migrate import check_schema
from vibeforge_sessions.sql.migrations.schema_status import SchemaStatus
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository
from vibeforge_sessions.sql.tables import metadata

if TYPE_CHECKING:
    from vibeforge_sessions.sql.aio import AsyncSQLAlchemySessionRepository

__all__ = [
    "AsyncSQLAlchemySessionRepository",
    "SQLAlchemySessionRepository",
    "SchemaState",
    "SchemaStatus",
    "check_schema",
    "create_async_engine",
    "create_engine",
    "metadata",
]


def __getattr__(name: str) -> Any:
    if name != "AsyncSQLAlchemySessionRepository":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("vibeforge_sessions.sql.aio").AsyncSQLAlchemySessionRepository  # needs an extra
