"""Retention: sessions are deleted for their phase and their age, and archived before that where somebody asks for it.

`prune` runs over any repository, `prune_async` over one of asyncio. What must stay is held by
`SessionRepository.hold_session`, and let go by `SessionRepository.release_session`.
"""

from __future__ import annotations

from vibeforge_sessions.retention.pruning import prune, prune_async
from vibeforge_sessions.retention.report import OnBatch, PruneProblem, PruneReport

__all__ = ["OnBatch", "PruneProblem", "PruneReport", "prune", "prune_async"]
