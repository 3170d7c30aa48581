"""Fixtures and helper functions of the contract tests."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from vibeforge_sessions import Session, SessionRepository
from vibeforge_sessions.model.session import S

SESSION_ID = "session-1"
UNKNOWN_ID = "unknown"


class NewRepository(Protocol):
    """Function that creates an empty repository with its own storage."""

    def __call__(self, *, session_type: type[Session] = ...) -> SessionRepository: ...


class RepositoryTests:
    """Fixtures of the contract."""

    @pytest.fixture
    def new_repository(self) -> NewRepository:
        raise NotImplementedError("a subclass of the contract must define a fixture new_repository")

    @pytest.fixture
    def repository(self, new_repository: NewRepository) -> SessionRepository:
        return new_repository()


def numbered(_value: object) -> str:
    """Return the id of a parameter whose value must not be shown; pytest appends a number to equal ids."""
    return "case"


def stored(repository: SessionRepository[S], session_id: str = SESSION_ID) -> S:
    """Return the stored session, which must exist."""
    session = repository.get_session(session_id)
    assert session is not None
    return session


def full_session(session_id: str = SESSION_ID) -> Session:
    """Return a session with a value in every field."""
    session = Session(
        session_id=session_id,
        current_question_index=3,
        answers={"audience": "general", "budget": [1, 2.5, None, True]},
        intent_profile={"platform": "web"},
        build_spec={"stack": "vite-react"},
        concept={"title": "Ünïcode ☃ 😀", "features": ["auth"]},
        task_graph={"tasks": [{"id": "t1", "needs": []}]},
        completed_task_ids=["t1", "t2"],
        failed_task_ids=["t3"],
        active_task_id="t4",
        pending_clarification={"question": "Proceed?", "options": [{"value": "yes"}]},
        clarification_answer="yes",
    )
    session.add_log("started")
    session.add_error("t3", "it broke")
    return session


def exact(value: Any) -> Any:
    """Return a comparable form of a JSON value that distinguishes 1 from 1.0 and True, 0.0 from -0.0, and key order."""
    if isinstance(value, dict):
        return "dict", [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, list):
        return "list", [exact(item) for item in value]
    if isinstance(value, float):
        return "float", value.hex()
    return type(value).__name__, value


def assert_same(left: Session, right: Session) -> None:
    """Assert that two sessions have exactly the same values, types, key orders and positions."""
    assert left == right
    for name in type(left).model_fields:
        ours, theirs = getattr(left, name), getattr(right, name)
        assert exact(ours) == exact(theirs), name
        assert type(ours) is type(theirs), name
    assert [entry.position for entry in left.error_history] == [entry.position for entry in right.error_history]
    assert (left.omitted_errors, left.omitted_logs) == (right.omitted_errors, right.omitted_logs)
