"""What the service is about: its questions, its plan, and the session that carries them."""

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
"""How long a worker that says nothing keeps a session: after that it is taken for dead.

Longer than any task, then. One that is taken for dead and is not loses its work, and nothing else: its update is stale.
"""


class ForgeSession(Session):
    """A session with what this service needs besides: three fields, and no migration."""

    is_aborted: bool = False
    worker: str | None = None
    leased_until: datetime | None = None

    def is_free(self) -> bool:
        """Tell whether no worker is at it, or only one that has died."""
        return self.leased_until is None or self.leased_until < datetime.now(UTC)

    def lease_to(self, worker: str) -> None:
        """Let a worker have the session; it renews this with every update."""
        self.worker, self.leased_until = worker, datetime.now(UTC) + LEASE

    def release(self) -> None:
        """Leave the session to whoever comes next."""
        self.worker = self.leased_until = None

    def answer(self, question_id: str, value: str) -> None:
        """Take the answer to the current question; after the last one comes the plan."""
        self.add_answer(question_id, value)
        self.current_question_index += 1
        if self.current_question_index == len(QUESTIONS):
            self.plan()

    def plan(self) -> None:
        """Make the artifacts of the answers: the same ones always, where an application would ask a model."""
        self.intent_profile = {"audience": self.answers["audience"]}
        self.build_spec = {"platform": self.answers["platform"], "storage": self.answers["storage"]}
        self.concept = {"title": f"An app for {self.answers['audience']}", "platform": self.answers["platform"]}
        self.task_graph = {"tasks": [{"id": task["id"], "title": task["title"]} for task in TASKS]}
        self.update_phase(SessionPhase.PLAN_REVIEW)

    def next_task(self) -> dict[str, Any] | None:
        """Return the task to do next, None after the last one."""
        return next((task for task in TASKS if task["id"] not in self.completed_task_ids), None)
