"""Round trips of generated sessions and JSON values: exact values and types, or rejection before any write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.databases import DATABASES, Storage
from tests.support.strategies import json_values, sessions, texts
from vibeforge_sessions import InvalidSessionError, Session, SessionRepository
from vibeforge_sessions.model import validation
from vibeforge_sessions.testing.base import assert_same, exact


@pytest.fixture(scope="module", params=DATABASES)
def repository(request: pytest.FixtureRequest) -> Iterator[SessionRepository]:
    """Yield one repository for all examples of a test; each example deletes its session."""
    storage: Storage = request.getfixturevalue(request.param)
    with storage.repositories() as new_repository:
        yield new_repository()


def stored(repository: SessionRepository, session_id: str) -> Session:
    session = repository.get_session(session_id)
    assert session is not None
    return session


@given(session=sessions)
def test_created_session_is_read_back_exactly(repository: SessionRepository, session: Session) -> None:
    try:
        assert_same(repository.create_session(session), session)
        assert_same(stored(repository, session.session_id), session)
        (summary,) = repository.find_sessions().items
        assert (summary.created_at, summary.updated_at) == (session.created_at, session.updated_at)
        assert (summary.error_count, summary.log_count) == (len(session.error_history), len(session.logs))
    finally:
        repository.delete_session(session.session_id)


@given(before=sessions, after=sessions)
def test_update_to_any_session_is_read_back_exactly(
    repository: SessionRepository, before: Session, after: Session
) -> None:
    try:
        repository.create_session(before)
        for name in Session.model_fields:
            if name not in {"session_id", "created_at", "updated_at", "version", "error_history", "logs"}:
                setattr(before, name, getattr(after, name))
        before.error_history += after.error_history
        before.logs += after.logs
        repository.update_session(before)
        assert_same(stored(repository, before.session_id), before)
    finally:
        repository.delete_session(before.session_id)


@given(session=sessions)
def test_session_from_its_json_is_unchanged(repository: SessionRepository, session: Session) -> None:
    assert_same(Session.from_dict(json.loads(json.dumps(session.to_dict()))), session)
    try:
        repository.create_session(session)
        restored = Session.from_dict(json.loads(json.dumps(session.to_dict())))
        assert_same(restored, session)
        repository.update_session(restored)
        assert restored.version == 1
    finally:
        repository.delete_session(session.session_id)


@given(message=st.text(st.characters()), task_id=st.text(st.characters()))
def test_every_diagnostic_text_is_stored(repository: SessionRepository, message: str, task_id: str) -> None:
    session = repository.create_session()
    try:
        session.add_error(task_id, message)
        session.add_log(message)
        repository.update_session(session)
        appended = repository.append_error(session.session_id, task_id, message)
        repository.append_log(session.session_id, message)
        after = stored(repository, session.session_id)
        first, second = after.error_history
        assert second == appended
        assert (first.task_id, first.error_message) == (second.task_id, second.error_message)
        assert len(first.error_message) == len(message)
        assert len(repository.list_errors(session.session_id, task_id=task_id)) == 2
        assert [line.split("] ", 1)[1] for line in after.logs] == [first.error_message] * 2
    finally:
        repository.delete_session(session.session_id)


@given(value=json_values)
def test_json_text_is_exact(value: Any) -> None:
    text = validation.encode_json(value, "v")
    assert text.isascii()
    assert exact(validation.decode_json(text)) == exact(value)
    assert validation.encode_json(validation.decode_json(text), "v") == text


any_values: st.SearchStrategy[Any] = st.recursive(
    json_values | st.floats() | st.binary(max_size=3) | st.dates() | st.decimals() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(texts | st.integers() | st.none(), inner, max_size=3)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=6,
)


@given(value=any_values)
@settings(max_examples=300)
def test_value_is_encoded_exactly_or_rejected(value: Any) -> None:
    try:
        text = validation.encode_json(value, "v")
    except InvalidSessionError as error:
        assert (error.path or "").startswith("v")  # noqa: PT017 (rejection is one of two correct outcomes)
    else:
        assert exact(validation.decode_json(text)) == exact(_plain(value))


def _plain(value: Any) -> Any:
    """Return the value with tuples replaced by lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
