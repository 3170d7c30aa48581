"""Questions, plan and session class of the service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from vibeforge_sessions import Session, SessionPhase

QUESTIONS: list[dict[str, Any]] = [
    {"id": "audience", "text": "Who is it for?", "options": ["everybody", "a team", "me"]},
    {"id": "platform", "text": "Where does it run?", "options": ["web", "desktop", "terminal"]},
    {"id": "storage", "text": "What does it keep?", "options": ["nothing", "files", "a database"]},
]

TASKS: list[dict[str, Any]] = [
    {"id": "scaffold", "title": "Lay out the project"},
    {"id": "storage", "title": "Keep what it keeps", "fails_first": True},
    {"id": "screens", "title": "Draw the screens", "asks": "Which colours?"},
    {"id": "tests", "title": "Test it"},
]

UNDER_WAY = (SessionPhase.EXECUTION, SessionPhase.VERIFICATION)
LEASE = timedelta(seconds=5)
"""Time without an update after which a worker loses its session to another worker.

It must be longer than any task. A slow worker whose session another worker has claimed loses its current task, because
its next update is stale.
"""


class ForgeSession(Session):
    """Session with three additional fields of this service; they need no migration."""

    is_aborted: bool = False
    worker: str | None = None
    leased_until: datetime | None = None

    def is_free(self) -> bool:
        """Return whether no worker has a valid lease."""
        return self.leased_until is None or self.leased_until < datetime.now(UTC)

    def lease_to(self, worker: str) -> None:
        """Lease the session to a worker, which renews the lease with every update."""
        self.worker, self.leased_until = worker, datetime.now(UTC) + LEASE

    def release(self) -> None:
        """End the lease, so that any worker can claim the session."""
        self.worker = self.leased_until = None

    def answer(self, question_id: str, value: str) -> None:
        """Set the answer to the current question; after the last question, make the plan."""
        self.add_answer(question_id, value)
        self.current_question_index += 1
        if self.current_question_index == len(QUESTIONS):
            self.plan()

    def plan(self) -> None:
        """Make the artifacts from the answers; an application would call a model here."""
        self.intent_profile = {"audience": self.answers["audience"]}
        self.build_spec = {"platform": self.answers["platform"], "storage": self.answers["storage"]}
        self.concept = {"title": f"An app for {self.answers['audience']}", "platform": self.answers["platform"]}
        self.task_graph = {"tasks": [{"id": task["id"], "title": task["title"]} for task in TASKS]}
        self.update_phase(SessionPhase.PLAN_REVIEW)

    def next_task(self) -> dict[str, Any] | None:
        """Return the next task, or None after the last one."""
        return next((task for task in TASKS if task["id"] not in self.completed_task_ids), None)
