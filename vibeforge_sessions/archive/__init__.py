"""Archive files of sessions: export, import, archiving before deletion, and copies between repositories.

A file contains sessions as JSON Lines, optionally compressed with gzip; docs/archive-format.md describes the lines.
Equal sessions give equal bytes, whatever database they are stored in.
"""

from __future__ import annotations

from vibeforge_sessions.archive.exporting import export_sessions
from vibeforge_sessions.archive.importing import OnConflict, copy_sessions, import_sessions
from vibeforge_sessions.archive.report import OnSession, Outcome, Report, Result
from vibeforge_sessions.archive.writer import ArchiveWriter

__all__ = [
    "ArchiveWriter",
    "OnConflict",
    "OnSession",
    "Outcome",
    "Report",
    "Result",
    "copy_sessions",
    "export_sessions",
    "import_sessions",
]
