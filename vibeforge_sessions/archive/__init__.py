"""Files of sessions: export, import, archives of what is to be deleted, and copies from one store to another."""

from __future__ import annotations

from vibeforge_sessions.archive.writer import ArchiveWriter

__all__ = ["ArchiveWriter"]
