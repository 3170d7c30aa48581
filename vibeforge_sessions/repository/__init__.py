"""Abstract repositories and the service-provider interface for implementations."""

from __future__ import annotations

from vibeforge_sessions.repository.aio import AsyncSessionRepository
from vibeforge_sessions.repository.base import SessionRepository

__all__ = ["AsyncSessionRepository", "SessionRepository"]
