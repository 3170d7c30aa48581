"""Contract tests of sessions made from a dict with missing fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vibeforge_sessions import InvalidSessionError, Session, SessionPhase, SessionRepository
from vibeforge_sessions.testing.base import SESSION_ID, NewRepository, assert_same, full_session, stored
from vibeforge_sessions.testing.subclasses import ExtendedSession

_REQUIRED = {"session_id", "version"}


def _partial(repository: SessionRepository, *missing: str) -> Session:
    """Return the session that `Session.from_dict` creates from a stored session's dict after removing fields."""
    data = stored(repository).to_dict()
    for name in missing:
        del data[name]
    return Session.from_dict(data)


class PartialDictTests:
    """`update_session` of a session that `Session.from_dict` created from an incomplete dict of a stored session."""

    @pytest.mark.parametrize("name", sorted(Session.model_fields.keys() - _REQUIRED))
    def test_update_keeps_stored_value_of_missing_field(self, repository: SessionRepository, name: str) -> None:
        before = repository.create_session(full_session())
        session = _partial(repository, name)
        repository.update_session(session)
        assert_same(stored(repository), before)
        session = _partial(repository, name)
        for line in ("one", "two"):  # the second update must not store the default of the missing field
            session.add_log(line)
            repository.update_session(session)
        after = stored(repository)
        assert [line.split()[-1] for line in after.logs] == ["started", "one", "two"]
        before.logs, before.version, before.updated_at = after.logs, after.version, after.updated_at
        assert_same(after, before)

    def test_update_with_all_fields_missing(self, repository: SessionRepository) -> None:
        before = repository.create_session(full_session())
        session = _partial(repository, *(Session.model_fields.keys() - _REQUIRED))
        session.add_error("t", "new")
        session.add_log("new")
        repository.update_session(session)
        after = stored(repository)
        assert [entry.position for entry in after.error_history] == [1, 2]
        assert len(after.logs) == 2
        before.error_history, before.logs = after.error_history, after.logs
        before.version, before.updated_at = after.version, after.updated_at
        assert_same(after, before)

    @pytest.mark.parametrize("name", sorted(_REQUIRED))
    def test_from_dict_without_id_or_version_is_rejected(self, repository: SessionRepository, name: str) -> None:
        repository.create_session(full_session())
        data = stored(repository).to_dict()
        del data[name]
        with pytest.raises(InvalidSessionError) as caught:
            Session.from_dict(data)
        assert caught.value.path == name

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("answers", lambda s: s.add_answer("q", 1)),
            ("answers", lambda s: s.answers.update(q=1)),
            ("completed_task_ids", lambda s: s.completed_task_ids.append("t9")),
        ],
        ids=["add_answer", "answers_update", "completed_task_ids_append"],
    )
    def test_missing_field_changed_in_place_is_rejected(
        self, repository: SessionRepository, name: str, change: Callable[[Session], None]
    ) -> None:
        before = repository.create_session(full_session())
        session = _partial(repository, name)
        change(session)
        for call in (repository.update_session, repository.update_session, lambda s: s.to_dict()):
            with pytest.raises(InvalidSessionError) as caught:
                call(session)
            assert caught.value.path == name
        assert_same(stored(repository), before)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("answers", {}),
            ("concept", None),
            ("concept", {"title": "another"}),
            ("completed_task_ids", []),
            ("active_task_id", None),
            ("current_question_index", 0),
            ("phase", SessionPhase.FAILED),
        ],
    )
    def test_assigned_missing_field_is_stored(self, repository: SessionRepository, name: str, value: Any) -> None:
        repository.create_session(full_session())
        session = _partial(repository, name)
        setattr(session, name, value)
        repository.update_session(session)
        assert getattr(stored(repository), name) == value

    def test_missing_field_is_missing_after_second_round_trip(self, repository: SessionRepository) -> None:
        before = repository.create_session(full_session())
        data = _partial(repository, "concept", "answers", "logs", "error_history").to_dict()
        assert data.keys().isdisjoint({"concept", "answers"})
        session = Session.from_dict(data)
        session.active_task_id = "t5"
        repository.update_session(session)
        after = stored(repository)
        assert (after.concept, after.answers, after.active_task_id) == (before.concept, before.answers, "t5")
        assert_same(repository.create_session(Session(session_id="other")), stored(repository, "other"))

    def test_create_of_partial_session_is_rejected(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        session = _partial(repository, "concept")
        repository.delete_session(SESSION_ID)
        with pytest.raises(InvalidSessionError) as caught:
            repository.create_session(session)
        assert caught.value.path == "concept"
        session.concept = {"title": "assigned"}
        repository.create_session(session)
        assert stored(repository).concept == {"title": "assigned"}

    def test_missing_field_has_default_without_stored_key(self) -> None:
        session = Session.from_dict({"session_id": SESSION_ID, "answers": {"q": 1}})
        assert (session.version, session.concept, session.answers) == (0, None, {"q": 1})

    def test_update_keeps_stored_value_of_missing_subclass_field(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=ExtendedSession)
        repository.create_session(
            ExtendedSession(session_id=SESSION_ID, is_aborted=True, failure_artifact={"reason": "r"})
        )
        data = stored(repository).to_dict()
        del data["failure_artifact"], data["is_aborted"]
        session = ExtendedSession.from_dict(data)
        session.add_answer("q", 1)
        session.is_aborted = False
        repository.update_session(session)
        after = stored(repository)
        assert isinstance(after, ExtendedSession)
        assert (after.failure_artifact, after.is_aborted, after.answers) == ({"reason": "r"}, False, {"q": 1})
