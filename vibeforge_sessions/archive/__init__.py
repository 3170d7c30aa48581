"""Files of sessions: export, import, archives of what is to be deleted, and copies from one store to another.

A file holds sessions as lines of JSON (see `vibeforge_sessions.archive.serialization`), compressed or not. The same
session gives the same bytes, whatever it is stored in.
"""

from __future__ import annotations

from vibeforge_sessions.archive.copying import copy_sessions
from vibeforge_sessions.archive.exporting import export_sessions
from vibeforge_sessions.archive.importing import OnConflict, import_sessions
from vibeforge_sessions.archive.report import Outcome, Report, Result
from vibeforge_sessions.archive.writer import ArchiveWriter

__all__ = [
    "ArchiveWriter",
    "OnConflict",
    "Outcome",
    "Report",
    "Result",
    "copy_sessions",
    "export_sessions",
    "import_sessions",
]
