"""Session model and the rules of its values; no storage."""

from __future__ import annotations

from vibeforge_sessions.model.history import ErrorEntry, SessionPhase
from vibeforge_sessions.model.session import Session

__all__ = ["ErrorEntry", "Session", "SessionPhase"]
