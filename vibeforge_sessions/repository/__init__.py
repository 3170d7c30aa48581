"""The persistence seam: the abstract repositories and what an implementation of them is built from."""

from __future__ import annotations

from vibeforge_sessions.repository.aio import AsyncSessionRepository
from vibeforge_sessions.repository.base import SessionRepository

__all__ = ["AsyncSessionRepository", "SessionRepository"]
