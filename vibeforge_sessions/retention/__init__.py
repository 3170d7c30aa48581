"""Retention: deletion of old sessions by phase and age, optionally after archiving.

`prune` works with any repository, `prune_async` with an asynchronous one. `SessionRepository.hold_session` protects a
session from deletion, and `SessionRepository.release_session` ends the hold.
"""

from __future__ import annotations

from vibeforge_sessions.retention.pruning import prune, prune_async
from vibeforge_sessions.retention.report import OnBatch, PruneProblem, PruneReport

__all__ = ["OnBatch", "PruneProblem", "PruneReport", "prune", "prune_async"]
