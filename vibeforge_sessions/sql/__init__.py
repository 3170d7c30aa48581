"""SQL implementation: repositories, engines, schema status and migrations.

Only the modules of this package import SQLAlchemy and Alembic.
"""

from __future__ import annotations

from vibeforge_sessions.errors import SchemaState
from vibeforge_sessions.sql.aio import AsyncSQLAlchemySessionRepository
from vibeforge_sessions.sql.engine import create_async_engine, create_engine
from vibeforge_sessions.sql.migrate import check_schema
from vibeforge_sessions.sql.migrations.schema_status import SchemaStatus
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository
from vibeforge_sessions.sql.tables import metadata

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
