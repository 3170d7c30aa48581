"""Sessions in an SQL database: everything that imports SQLAlchemy or Alembic, and nothing else does."""

from __future__ import annotations

from vibeforge_sessions.sql.engine import create_async_engine, create_engine
from vibeforge_sessions.sql.migrate import check_schema
from vibeforge_sessions.sql.repository import SQLAlchemySessionRepository
from vibeforge_sessions.sql.states import SchemaStatus
from vibeforge_sessions.sql.tables import metadata

__all__ = [
    "SQLAlchemySessionRepository",
    "SchemaStatus",
    "check_schema",
    "create_async_engine",
    "create_engine",
    "metadata",
]
